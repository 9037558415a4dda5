"""Time contenders in turn, and detect samples that other programs have disturbed.

A processor slows down when it is hot, when other programs run, and when virtual machines on the same host are busy. So
contenders are timed in rounds, once per round each, and ratios are taken between times of the same round. The processor
time of other programs is read from /proc/stat; disturbed samples are repeated.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Mapping

from vitnp.errors import VitnpError

# Processor time of other programs allowed in a sample: seconds (the kernel counts in steps of 10 ms per core) plus a
# share of the sample.
SLACK, SLACK_SHARE = 0.03, 0.06
# Seconds to wait before each repetition of a disturbed sample.
WAITS = (0.3, 1.0, 3.0)
# Seconds to wait before every sample, so that the threads of the previous contender have stopped spinning.
PAUSE = 0.06
# Smallest number of undisturbed rounds for a median.
MIN_ROUNDS = 3


class Disturbed(VitnpError):
    """The machine was too busy for a valid measurement."""


def used_by_others() -> float | None:
    """Return the processor time in seconds used by all but this process and its finished children since boot.

    Time that the hypervisor gave to other machines is included. None if there is no /proc/stat.
    """
    try:
        with open("/proc/stat", encoding="ascii") as account:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, account.readline().split()[1:9])
    except (OSError, ValueError):
        return None
    import resource

    own = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return busy - sum(usage.ru_utime + usage.ru_stime for usage in own)


@dataclasses.dataclass(frozen=True)
class Clock:
    """Source of time, replaced in tests.

    Attributes
    ----------
    now : callable
        Returns the time in seconds, from any origin.
    sleep : callable
        Waits for a number of seconds.
    others : callable
        Returns the processor time of other programs in seconds, from any origin; None if the system doesn't report it.
    """

    now: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], object] = time.sleep
    others: Callable[[], float | None] = used_by_others


SYSTEM_CLOCK = Clock()


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much to measure.

    Attributes
    ----------
    rounds : int
        Largest number of rounds.
    min_seconds : float
        Shortest sample in seconds; faster calls are repeated within a sample.
    budget : float
        Seconds per case after which no further round begins, once there are ``MIN_ROUNDS``.
    keep_disturbed : bool
        Keep disturbed samples instead of repeating them.
    largest : int, optional
        Largest number of rows or tokens of a case; larger cases are skipped.
    """

    rounds: int = 9
    min_seconds: float = 0.3
    budget: float = 60.0
    keep_disturbed: bool = False
    largest: int | None = None


@dataclasses.dataclass(frozen=True)
class Timing:
    """Times of one contender.

    Attributes
    ----------
    samples : tuple of (float or None)
        Seconds per call in each round; None if every attempt was disturbed.
    calls : int
        Calls per sample.
    disturbed : int
        Number of disturbed attempts, discarded or kept.
    foreign : float, optional
        Most cores used by other programs during a valid sample; None if the system doesn't report it.
    """

    samples: tuple[float | None, ...]
    calls: int = 1
    disturbed: int = 0
    foreign: float | None = 0.0

    @property
    def clean(self) -> list[float]:
        """The valid samples."""
        return [sample for sample in self.samples if sample is not None]

    @property
    def seconds(self) -> float:
        """Median of the valid samples."""
        return statistics.median(self.clean)

    def per_step(self, steps: int) -> Timing:
        """Return the times per step, for calls that consist of several.

        Examples
        --------
        >>> Timing((3.0, None)).per_step(2).samples
        (1.5, None)
        """
        samples = tuple(None if sample is None else sample / steps for sample in self.samples)
        return dataclasses.replace(self, samples=samples)


def interleave(
    contenders: Mapping[str, Callable[[], object]], plan: Plan, clock: Clock = SYSTEM_CLOCK
) -> dict[str, Timing]:
    """Time several calls in turn.

    Each round begins with another contender, so that none always follows the one that heats the processor most.

    Parameters
    ----------
    contenders : mapping of str to callable
        Calls by name. They should be warm: the first call determines how often to repeat it within a sample.
    plan : Plan
    clock : Clock

    Returns
    -------
    dict of str to Timing
        All with the same number of rounds.

    Raises
    ------
    Disturbed
        When fewer than ``MIN_ROUNDS`` rounds were undisturbed for all contenders.
    """
    names = list(contenders)
    calls = {name: _calls_per_sample(contenders[name], plan.min_seconds, clock) for name in names}
    samples: dict[str, list[_Sample]] = {name: [] for name in names}
    enough, clean = min(MIN_ROUNDS, plan.rounds), 0
    began = clock.now()
    for turn in range(plan.rounds):
        if clean >= enough and clock.now() - began > plan.budget:
            break
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            samples[name].append(_sample(contenders[name], calls[name], plan, clock))
        clean += all(of_name[-1].seconds is not None for of_name in samples.values())
    timings = {name: _timing(calls[name], of_name) for name, of_name in samples.items()}
    if clean < enough:
        name, timing = max(timings.items(), key=lambda item: item[1].disturbed)
        raise Disturbed(
            f"other programs disturbed {timing.disturbed} samples of {name}, which leaves {clean} of {plan.rounds} "
            "rounds; stop them and measure again, or keep disturbed samples with --anyway"
        )
    return timings


def ratio(ours: Timing, theirs: Timing) -> float | None:
    """Return the median ratio of their time to ours, over rounds in which both were undisturbed.

    None if there are fewer than ``MIN_ROUNDS`` such rounds, unless fewer were measured.

    Examples
    --------
    >>> ratio(Timing((1.0, 2.0, 1.0)), Timing((2.0, 4.0, 3.0)))
    2.0
    """
    ratios = [their / our for our, their in zip(ours.samples, theirs.samples) if our is not None and their is not None]
    return statistics.median(ratios) if len(ratios) >= min(MIN_ROUNDS, len(ours.samples)) else None


@dataclasses.dataclass(frozen=True)
class _Sample:
    """One sample: seconds per call (None if disturbed), cores used by other programs, number of disturbed attempts."""

    seconds: float | None
    foreign: float | None
    disturbed: int


def _calls_per_sample(call: Callable[[], object], min_seconds: float, clock: Clock) -> int:
    began = clock.now()
    call()
    seconds = clock.now() - began
    return max(1, -int(-min_seconds // seconds)) if seconds > 0 else 1


def _sample(call: Callable[[], object], calls: int, plan: Plan, clock: Clock) -> _Sample:
    waits = (0.0,) if plan.keep_disturbed else (0.0, *WAITS)
    for attempt, wait in enumerate(waits):
        clock.sleep(PAUSE + wait)
        before, began = clock.others(), clock.now()
        for _ in range(calls):
            call()
        seconds = clock.now() - began
        after = clock.others()
        if before is None or after is None:
            return _Sample(seconds / calls, None, attempt)
        foreign = max(after - before, 0.0)
        quiet = foreign <= SLACK + SLACK_SHARE * seconds
        if quiet or plan.keep_disturbed:
            return _Sample(seconds / calls, foreign / seconds if seconds > 0 else 0.0, attempt + (not quiet))
    return _Sample(None, None, len(waits))


def _timing(calls: int, samples: list[_Sample]) -> Timing:
    known = [sample.foreign for sample in samples if sample.foreign is not None]
    foreign = round(max(known), 3) if known else None
    return Timing(
        tuple(sample.seconds for sample in samples), calls, sum(sample.disturbed for sample in samples), foreign
    )
