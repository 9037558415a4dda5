"""Measure the time of consecutive stages."""

from __future__ import annotations

import itertools
import time
from typing import Any

from vitnp import kernels


class Stopwatch:
    """Stopwatch that records the seconds of consecutive stages; nothing waits for a GPU until they are read.

    Parameters
    ----------
    device : {"cpu", "cuda"}
        Device whose work belongs to the stages. On "cuda" a stage ends when all kernels that this thread has launched
        so far have finished: events on the thread's stream, not the host's clock, mark the ends.
    shared_by : int
        Number of photographs that the stages are for: the seconds of one of them are recorded.

    Examples
    --------
    >>> clock = Stopwatch()
    >>> clock.lap("decode")
    >>> list(clock.seconds)
    ['decode']
    """

    def __init__(self, device: str = "cpu", *, shared_by: int = 1) -> None:
        self.shared_by = shared_by
        self._device = device
        self._marks: list[tuple[str | None, Any]] = [(None, self._mark())]
        self._included: list[Stopwatch] = []

    def lap(self, name: str) -> None:
        """End a stage and start the next one; the laps of a stage add up."""
        self._marks.append((name, self._mark()))

    def include(self, other: Stopwatch) -> None:
        """Add the stages of another stopwatch, which has run meanwhile or before, and start the next stage."""
        self._included.append(other)
        self._marks.append((None, self._mark()))

    @property
    def seconds(self) -> dict[str, float]:
        """Duration of each stage by name; waits until the last one has ended."""
        found: dict[str, float] = {}
        for other in self._included:
            for name, seconds in other.seconds.items():
                found[name] = found.get(name, 0.0) + seconds
        for (_, begin), (stage, end) in itertools.pairwise(self._marks):
            if stage is not None:
                found[stage] = found.get(stage, 0.0) + self._between(begin, end) / self.shared_by
        return {name: round(seconds, 4) for name, seconds in found.items()}

    def _mark(self) -> Any:
        return time.perf_counter() if self._device == "cpu" else kernels.for_device(self._device).mark()

    def _between(self, begin: Any, end: Any) -> float:
        if self._device == "cpu":
            return end - begin
        return kernels.for_device(self._device).seconds_between(begin, end)
