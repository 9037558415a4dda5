"""Measure the time of consecutive stages."""

from __future__ import annotations

import time

from vitnp import kernels


class Stopwatch:
    """Stopwatch that records the seconds of consecutive stages.

    Parameters
    ----------
    device : {"cpu", "cuda"}
        Device whose work belongs to the stages; on "cuda" a stage ends when all kernels launched so far have finished.

    Attributes
    ----------
    seconds : dict of str to float
        Duration of each stage by name.

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
        """End a stage and start the next one; the laps of a stage add up."""
        if self._device != "cpu":
            kernels.for_device(self._device).wait()
        now = time.perf_counter()
        self.seconds[name] = round(self.seconds.get(name, 0.0) + now - self._last, 4)
        self._last = now
