"""Times of what a GPU does, by its own clock: warmed up, in turns, with an empty second-level cache, as medians.

Every sample is the time between two events on the device's queue. Before the first of them the cache is overwritten, several
times over where the host needs long to queue a call: then the device never waits for the host within a sample.
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
# Of overwriting the cache before a sample, whatever the host needs: seconds, and how often.
LONGEST_PRIMING, MOST_PRIMING = 0.02, 400


class Missing(Exception):
    """A contender that can't take part, and why: half a sentence."""


@dataclasses.dataclass(frozen=True)
class Timing:
    """Median, least and most seconds of so many samples."""

    seconds: float
    fastest: float
    slowest: float
    samples: int

    @property
    def facts(self) -> dict[str, float]:
        """For the record."""
        return {"fastest": self.fastest, "slowest": self.slowest, "samples": self.samples}


class Timer:
    """Times calls that queue work on CuPy's current stream; torch's default stream is the same.

    Parameters
    ----------
    cupy : module
    """

    def __init__(self, cupy: ModuleType):
        self._cupy = cupy
        size = cupy.cuda.Device().attributes.get("L2CacheSize") or 64 << 20
        self._spare = cupy.empty(4 * size, "uint8")
        self._overwrite()
        self._overwriting = min(self._sample(self._overwrite) for _ in range(3))

    def medians(
        self, contenders: Mapping[str, Call], seconds: float, *, primed: bool = True
    ) -> tuple[dict[str, Timing], dict[str, str]]:
        """Time several calls in turns.

        Parameters
        ----------
        contenders : mapping of str to callable
            The first is our own. A call without arguments that may return before the device is done.
        seconds : float
            About as long as all of them together may take.
        primed : bool
            Whether the queue is kept full, so that time the host needs doesn't count.

        Returns
        -------
        timings : dict of str to Timing
        missing : dict of str to str
            Those that failed, and how; a peer that failed after some samples has them among the timings too.

        Raises
        ------
        Exception
            What our own call raises before it has been timed once, unless it's out of memory.
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
                # Others go on with what they have: a peer's trouble costs nobody else a figure.
                except Exception as error:
                    if name == next(iter(contenders)) and not samples[name] and not out_of_memory(error):
                        raise
                    missing[name] = gist(error)
                    free(self._cupy)
        timings = {name: summary(found) for name, found in samples.items() if found}
        return timings, {name: why for name, why in missing.items() if name not in timings or name != names[0]}

    def _try(self, call: Call) -> tuple[float, float]:
        """Seconds until a warm call is queued, and until it's done."""
        call()
        self._cupy.cuda.Device().synchronize()
        began = time.perf_counter()
        call()
        queued = time.perf_counter()
        self._cupy.cuda.Device().synchronize()
        return queued - began, time.perf_counter() - began

    def _sample(self, call: Call, queueing: float = 0.0) -> float:
        """Seconds on the device, the host being as much ahead as it needs."""
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
        self._spare.fill(0)


def summary(samples: list[float]) -> Timing:
    """The median and its company.

    Examples
    --------
    >>> summary([3.0, 1.0, 2.0])
    Timing(seconds=2.0, fastest=1.0, slowest=3.0, samples=3)
    """
    return Timing(statistics.median(samples), min(samples), max(samples), len(samples))


def marginal(cupy: ModuleType, run: Callable[[int], object], few: int, many: int, repeats: int = 3) -> Timing:
    """Seconds of one step of something that can only be run as a whole, from a short and a long run by the host's clock.

    Parameters
    ----------
    cupy : module
    run : callable
        Gets the number of steps.
    few, many : int
        Steps of the short and the long run.
    repeats : int
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
    """Those of the contenders that can be built here, and why the others can't; our own, the first, has to.

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
        # Whatever a peer stumbles over in a version nobody has tried, the others are to be measured.
        except Exception as error:
            if index == 0:
                raise
            missing[name] = gist(error)
    return calls, missing


def out_of_memory(error: BaseException) -> bool:
    """Whether CuPy or torch ran out of the device's memory."""
    return "OutOfMemory" in type(error).__name__ or "out of memory" in str(error)


def gist(error: BaseException) -> str:
    """The first line of an error with words in it, not too long."""
    if out_of_memory(error):
        return "out of memory"
    lines = [line.strip() for line in str(error).splitlines() if any(map(str.isalpha, line))]
    text = lines[0] if lines else type(error).__name__
    name = type(error).__name__
    return text[:200] if isinstance(error, (ImportError, Missing)) else f"{name}: {text}"[:200]


def free(cupy: ModuleType) -> None:
    """Give memory that nobody uses back to the device, so that CuPy and torch don't keep it from each other."""
    import sys

    cupy.get_default_memory_pool().free_all_blocks()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
