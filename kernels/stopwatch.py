"""Measure the time of consecutive stages."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vitnp import kernels

if TYPE_CHECKING:
    pass


class Stopwatch:
    """Seconds between laps, by name.

    Parameters
    ----------
    device : {"cpu", "cuda"}
        A lap ends when that has done what it was told.

    Examples
    --------
    >>> clock = Stopwatch()
    >>> clock.lap("decode")
    >>> list(clock.seconds)
    ['decode']
    """

    def __init__(self, device: str = "cpu") -> None:
        self.seconds: dict[str, float] = {}
        self._device = device
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """End a stage."""
        if self._device != "cpu":
            kernels.for_device(self._device).wait()
        now = time.perf_counter()
        self.seconds[name] = round(now - self._last, 4)
        self._last = now
