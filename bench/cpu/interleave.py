"""Contenders timed in turn, with an eye on what else the machine is doing.

A processor runs slower when it's hot, when another program wants it, when its neighbors in the cloud are busy. So
contenders are never timed one after the other but in rounds, each of them once a round, and a ratio is taken between
times of the same round. What other programs have used meanwhile is read from the kernel's own account; a time that was
disturbed is taken anew.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Mapping

from vitnp.errors import VitnpError

# Seconds of others' computing that a sample may contain: so many, for the kernel counts in steps of 10 ms a core, and
# such a share of the sample.
SLACK, SLACK_SHARE = 0.03, 0.06
# How long to wait before each further attempt at a disturbed sample, in seconds.
WAITS = (0.3, 1.0, 3.0)
# Before every sample, so that the threads of whoever came before have stopped spinning.
PAUSE = 0.06
# Fewer clean rounds than this make no median.
FEWEST = 3


class Disturbed(VitnpError):
    """The machine was too busy for figures that mean something."""


def used_by_others() -> float | None:
    """Seconds of computing that this machine has spent on others than this process and its finished children.

    Time that the hypervisor gave to other machines counts too. None where there is no /proc/stat.
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
    """Where the time comes from.

    Attributes
    ----------
    now : callable
        Seconds, from whenever.
    sleep : callable
        Waits for so many seconds.
    others : callable
        Seconds of computing by all other programs since whenever, or None where the system doesn't tell.
    """

    now: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], object] = time.sleep
    others: Callable[[], float | None] = used_by_others


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much to measure.

    Attributes
    ----------
    rounds : int
        At most.
    least : float
        Seconds of a sample, at least: what is faster is repeated within it.
    budget : float
        Seconds after which no further round begins, once there are enough.
    anyway : bool
        Keep disturbed samples too.
    largest : int, optional
        Leave out cases of more rows or tokens.
    """

    rounds: int = 9
    least: float = 0.3
    budget: float = 60.0
    anyway: bool = False
    largest: int | None = None


@dataclasses.dataclass(frozen=True)
class Timing:
    """What one contender took.

    Attributes
    ----------
    samples : tuple of (float or None)
        Seconds of one call, a sample a round; None where every attempt was disturbed.
    calls : int
        Calls in a sample.
    disturbed : int
        Attempts thrown away, or kept in spite of it.
    foreign : float or None
        The most that others used during a sample that counts, in cores; None where the system doesn't tell.
    """

    samples: tuple[float | None, ...]
    calls: int = 1
    disturbed: int = 0
    foreign: float | None = 0.0

    @property
    def clean(self) -> list[float]:
        """The samples that count."""
        return [sample for sample in self.samples if sample is not None]

    @property
    def seconds(self) -> float:
        """Median of one call."""
        return statistics.median(self.clean)

    def shared_by(self, steps: int) -> Timing:
        """Of one of the `steps` of which a call consists.

        Examples
        --------
        >>> Timing((3.0, None)).shared_by(2).samples
        (1.5, None)
        """
        samples = tuple(None if sample is None else sample / steps for sample in self.samples)
        return dataclasses.replace(self, samples=samples)


def interleave(contenders: Mapping[str, Callable[[], object]], plan: Plan, clock: Clock = Clock()) -> dict[str, Timing]:
    """Time several things in turn.

    Every round begins with another contender, so that nobody always follows the one who heats the processor most.

    Parameters
    ----------
    contenders : mapping of str to callable
        What is timed, by name: warm already, since one call tells how often to repeat it in a sample.
    plan : Plan
    clock : Clock

    Returns
    -------
    dict of str to Timing
        All with the same number of rounds.

    Raises
    ------
    Disturbed
        When others left fewer than three rounds in which nobody was disturbed.
    """
    names = list(contenders)
    calls = {name: _calls(contenders[name], plan.least, clock) for name in names}
    taken: dict[str, list[_Sample]] = {name: [] for name in names}
    enough, clean = min(FEWEST, plan.rounds), 0
    began = clock.now()
    for turn in range(plan.rounds):
        if clean >= enough and clock.now() - began > plan.budget:
            break
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            taken[name].append(_sample(contenders[name], calls[name], plan, clock))
        clean += all(samples[-1].seconds is not None for samples in taken.values())
    timings = {name: _timing(calls[name], samples) for name, samples in taken.items()}
    if clean < enough:
        name, timing = max(timings.items(), key=lambda item: item[1].disturbed)
        raise Disturbed(
            f"other programs disturbed {timing.disturbed} samples of {name}, and only {clean} rounds are left of "
            f"{plan.rounds}; stop them and measure again, or take the figures as they are with --anyway"
        )
    return timings


def ratio(ours: Timing, theirs: Timing) -> float | None:
    """How many times as long the other takes: the median over rounds in which both were undisturbed.

    None where there are fewer than three such rounds, and there were more than that to choose from.

    Examples
    --------
    >>> ratio(Timing((1.0, 2.0, 1.0)), Timing((2.0, 4.0, 3.0)))
    2.0
    """
    both = [their / our for our, their in zip(ours.samples, theirs.samples) if our is not None and their is not None]
    return statistics.median(both) if len(both) >= min(FEWEST, len(ours.samples)) else None


@dataclasses.dataclass(frozen=True)
class _Sample:
    """One sample: seconds of a call (None where disturbed), cores that others used, attempts thrown away."""

    seconds: float | None
    foreign: float | None
    disturbed: int


def _calls(call: Callable[[], object], least: float, clock: Clock) -> int:
    """How often to call within a sample."""
    began = clock.now()
    call()
    taken = clock.now() - began
    return max(1, -int(-least // taken)) if taken > 0 else 1


def _sample(call: Callable[[], object], calls: int, plan: Plan, clock: Clock) -> _Sample:
    waits = (0.0,) if plan.anyway else (0.0, *WAITS)
    for attempt, wait in enumerate(waits):
        clock.sleep(PAUSE + wait)
        before, began = clock.others(), clock.now()
        for _ in range(calls):
            call()
        taken = clock.now() - began
        after = clock.others()
        if before is None or after is None:
            return _Sample(taken / calls, None, attempt)
        foreign = max(after - before, 0.0)
        quiet = foreign <= SLACK + SLACK_SHARE * taken
        if quiet or plan.anyway:
            return _Sample(taken / calls, foreign / taken if taken > 0 else 0.0, attempt + (not quiet))
    return _Sample(None, None, len(waits))


def _timing(calls: int, samples: list[_Sample]) -> Timing:
    told = [sample.foreign for sample in samples if sample.foreign is not None]
    foreign = round(max(told), 3) if told else None
    return Timing(
        tuple(sample.seconds for sample in samples), calls, sum(sample.disturbed for sample in samples), foreign
    )
