"""Measure times on a GPU by its own clock: medians of warm calls, in turns, with a flushed L2 cache.

A sample is the time between two events in the stream. Before the first event the cache is overwritten, several times if
the host takes long to queue a call, so that the device does not wait for the host within a sample.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping
from types import ModuleType

Call = Callable[[], object]

FEWEST, MOST = 3, 40
# Limits of overwriting the cache before a sample: seconds, and number of times.
LONGEST_PRIMING, MOST_PRIMING = 0.02, 400


class Missing(Exception):
    """A contender cannot be measured; the message says why."""


@dataclasses.dataclass(frozen=True)
class Timing:
    """Median, minimum and maximum of the samples in seconds, and their number."""

    seconds: float
    fastest: float
    slowest: float
    samples: int

    @property
    def facts(self) -> dict[str, float]:
        """Return everything but the median, for a record."""
        return {"fastest": self.fastest, "slowest": self.slowest, "samples": self.samples}


class Timer:
    """Timer of calls that queue work on CuPy's current stream, which is also torch's default stream.

    Parameters
    ----------
    cupy : module
    """

    def __init__(self, cupy: ModuleType):
        self._cupy = cupy
        size = cupy.cuda.Device().attributes.get("L2CacheSize") or 64 << 20
        self._buffer = cupy.empty(4 * size, "uint8")
        self._overwrite()
        self._overwriting = min(self._sample(self._overwrite) for _ in range(3))

    def medians(
        self, contenders: Mapping[str, Call], seconds: float, *, primed: bool = True
    ) -> tuple[dict[str, Timing], dict[str, str]]:
        """Time several calls in turns.

        Parameters
        ----------
        contenders : mapping of str to callable
            Calls without arguments, which may return before the device has finished. The first one is ours.
        seconds : float
            Approximate total time.
        primed : bool
            Keep the queue of the device full, so that the time of the host does not count.

        Returns
        -------
        timings : dict of str to Timing
        missing : dict of str to str
            Contenders that failed, and why; if one failed after some samples, the timings contain it too.

        Raises
        ------
        Exception
            If our own call fails before its first sample, except for lack of memory.
        """
        plans, missing = {}, {}
        for index, (name, call) in enumerate(contenders.items()):
            try:
                plans[name] = self._try(call)
            except Exception as error:
                if index == 0 and not out_of_memory(error):
                    raise
                missing[name] = gist(error)
                free(self._cupy)
        if not plans:
            return {}, missing
        queueing = {name: times[0] if primed else 0.0 for name, times in plans.items()}
        once = sum(max(times) + self._overwriting for times in plans.values())
        rounds = max(FEWEST, min(MOST, int(seconds / once)))
        names, samples = list(plans), {name: [] for name in plans}
        for turn in range(rounds):
            start = turn % len(names)
            for name in names[start:] + names[:start]:
                if name in missing:
                    continue
                try:
                    samples[name].append(self._sample(contenders[name], queueing[name]))
                # If one contender fails, the others are still measured.
                except Exception as error:
                    if name == next(iter(contenders)) and not samples[name] and not out_of_memory(error):
                        raise
                    missing[name] = gist(error)
                    free(self._cupy)
        timings = {name: summary(found) for name, found in samples.items() if found}
        return timings, {name: why for name, why in missing.items() if name not in timings or name != names[0]}

    def _try(self, call: Call) -> tuple[float, float]:
        """Return the seconds until a warm call is queued, and until it has finished."""
        call()
        self._cupy.cuda.Device().synchronize()
        began = time.perf_counter()
        call()
        queued = time.perf_counter()
        self._cupy.cuda.Device().synchronize()
        return queued - began, time.perf_counter() - began

    def _sample(self, call: Call, queueing: float = 0.0) -> float:
        """Return the seconds of a call on the device; the host gets `queueing` seconds to queue it."""
        if queueing:
            times = math.ceil(min(1.5 * queueing, LONGEST_PRIMING) / self._overwriting)
            for _ in range(min(times, MOST_PRIMING) - 1):
                self._overwrite()
        cuda = self._cupy.cuda
        before, after = cuda.Event(), cuda.Event()
        self._overwrite()
        before.record()
        call()
        after.record()
        after.synchronize()
        return max(cuda.get_elapsed_time(before, after) / 1e3, 1e-9)

    def _overwrite(self) -> None:
        self._buffer.fill(0)


def summary(samples: list[float]) -> Timing:
    """Summarize samples in seconds.

    Examples
    --------
    >>> summary([3.0, 1.0, 2.0])
    Timing(seconds=2.0, fastest=1.0, slowest=3.0, samples=3)
    """
    return Timing(statistics.median(samples), min(samples), max(samples), len(samples))


def marginal(cupy: ModuleType, run: Callable[[int], object], few: int, many: int, repeats: int = 3) -> Timing:
    """Measure one step of an algorithm that can only run as a whole, from a short and a long run by the host's clock.

    Parameters
    ----------
    cupy : module
    run : callable
        Called with the number of steps.
    few, many : int
        Number of steps of the short and the long run.
    repeats : int
        Number of pairs of runs.
    """

    def clocked(steps: int) -> float:
        cupy.cuda.Device().synchronize()
        began = time.perf_counter()
        run(steps)
        cupy.cuda.Device().synchronize()
        return time.perf_counter() - began

    run(few)
    found = [(clocked(many) - clocked(few)) / (many - few) for _ in range(repeats)]
    if not statistics.median(found) > 0:
        raise Missing("its long run took no longer than its short one")
    return summary(found)


def gather(builders: Mapping[str, Callable[[], Call]]) -> tuple[dict[str, Call], dict[str, str]]:
    """Build the contenders; return those that work here, and why others do not. The first one, ours, has to work.

    Examples
    --------
    >>> def absent():
    ...     raise ImportError("No module named 'peer'")
    >>> gather({"ours": lambda: print, "peer": absent})
    ({'ours': <built-in function print>}, {'peer': "No module named 'peer'"})
    """
    calls, missing = {}, {}
    for index, (name, build) in enumerate(builders.items()):
        try:
            calls[name] = build()
        # Other libraries may fail in any way in an untested version; the rest is still measured.
        except Exception as error:
            if index == 0:
                raise
            missing[name] = gist(error)
    return calls, missing


def out_of_memory(error: BaseException) -> bool:
    """Return whether CuPy or torch ran out of device memory."""
    return "OutOfMemory" in type(error).__name__ or "out of memory" in str(error)


def gist(error: BaseException) -> str:
    """Return the first line of an error that contains letters, truncated."""
    if out_of_memory(error):
        return "out of memory"
    lines = [line.strip() for line in str(error).splitlines() if any(map(str.isalpha, line))]
    text = lines[0] if lines else type(error).__name__
    name = type(error).__name__
    return text[:200] if isinstance(error, (ImportError, Missing)) else f"{name}: {text}"[:200]


def free(cupy: ModuleType) -> None:
    """Return unused memory of CuPy's and torch's pools to the device, so that both can use it."""
    import sys

    cupy.get_default_memory_pool().free_all_blocks()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
