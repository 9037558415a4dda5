"""Compare the contenders of one case: who takes part, the ratios of their times, and whether these reach the bar."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from typing import Any

from bench.cpu.interleave import SYSTEM_CLOCK, Clock, Disturbed, Plan, Timing, interleave, ratio
from vitnp.errors import VitnpError

# A bar counts as met if the ratio falls short of it by at most this share, as much as two runs differ.
TOLERANCE = 0.03
EXTRA = "pip install '.[bench]'"

# Runs a case once; the results are compared with each other before anything is timed.
Call = Callable[[], Any]


class WrongAnswer(VitnpError):
    """Contenders don't compute the same, so their times can't be compared."""


class Missing(VitnpError):
    """A contender can't take part on this machine; the message says why."""


@dataclasses.dataclass(frozen=True)
class Bar:
    """Required ratio between the times of two contenders.

    Attributes
    ----------
    ours, theirs : str
        Names of contenders.
    least : float, optional
        Smallest ratio of their time to ours; None if the ratio is only reported.
    stretch : float, optional
        A larger ratio to aim at.
    """

    ours: str
    theirs: str
    least: float | None = None
    stretch: float | None = None


def met(measured: float, least: float) -> bool:
    """Return whether a ratio reaches the bar, within ``TOLERANCE``.

    Examples
    --------
    >>> met(1.94, 2.0), met(1.93, 2.0)
    (True, False)
    """
    return measured >= least * (1 - TOLERANCE)


def gather(builders: Mapping[str, Callable[[], Call]]) -> tuple[dict[str, Call], dict[str, str]]:
    """Build the contenders that can take part.

    Parameters
    ----------
    builders : mapping of str to callable
        Each imports what it needs, and returns the call to be timed.

    Returns
    -------
    contenders : dict of str to callable
        The calls by name.
    missing : dict of str to str
        Reasons why the other contenders can't take part.
    """
    contenders, missing = {}, {}
    for name, build in builders.items():
        try:
            contenders[name] = build()
        except ImportError as error:
            missing[name] = f"{error.name or error} isn't installed; {EXTRA}"
        except Missing as error:
            missing[name] = str(error)
    return contenders, missing


def compare(
    label: str,
    case: Mapping[str, Any],
    builders: Mapping[str, Callable[[], Call]],
    bars: Sequence[Bar],
    plan: Plan,
    *,
    check: Callable[[str, Any], None],
    work: Mapping[str, Mapping[str, float | None]] | None = None,
    steps: int = 1,
    clock: Clock = SYSTEM_CLOCK,
) -> dict[str, Any]:
    """Build the contenders, check that they agree, and time them in turn.

    Parameters
    ----------
    label : str
        Description of the case, for tables.
    case : mapping
        Facts about the case, for the record.
    builders : mapping of str to callable
        As for :func:`gather`.
    bars : sequence of Bar
        Ratios to report.
    plan : Plan
        How much to measure.
    check : callable
        ``check(name, result)`` raises WrongAnswer if a contender's result is wrong.
    work : mapping, optional
        ``{"flops": ..., "peak": ...}`` by contender: operations per call, and the most per second on this machine.
    steps : int
        Number of equal steps in a call; times are given per step.
    clock : Clock

    Returns
    -------
    dict
        The record of the case for the result file. If the machine was too busy it has "unmeasured" and no times.

    Raises
    ------
    WrongAnswer
        When contenders don't agree.
    """
    contenders, missing = gather(builders)
    for name, contender in contenders.items():
        check(name, contender())
    record: dict[str, Any] = {"label": label, **case, "contenders": {}, "missing": missing, "comparisons": []}
    try:
        timings = {name: timing.per_step(steps) for name, timing in interleave(contenders, plan, clock).items()}
    except Disturbed as error:
        return {**record, "unmeasured": str(error)}
    for name, timing in timings.items():
        record["contenders"][name] = _facts(timing) | _fraction(timing, (work or {}).get(name))
    record["comparisons"] = [_compare_pair(bar, timings, missing) for bar in bars]
    return record


def geometric_mean(records: Iterable[Mapping[str, Any]], bar: Bar, what: str) -> dict[str, Any]:
    """Compute the geometric mean of a ratio over cases, and compare it with a bar.

    Parameters
    ----------
    records : iterable of dict
        From :func:`compare`.
    bar : Bar
        The two contenders, and the required mean.
    what : str
        Name of the mean, for tables.

    Returns
    -------
    dict
        The same fields as a comparison of :func:`compare`, with "what" and the number of "cases".
    """
    ratios = [
        comparison["ratio"]
        for record in records
        for comparison in record["comparisons"]
        if (comparison["ours"], comparison["theirs"]) == (bar.ours, bar.theirs) and comparison["ratio"] is not None
    ]
    mean = math.exp(math.fsum(map(math.log, ratios)) / len(ratios)) if ratios else None
    return {"what": what, "cases": len(ratios), **_rate(bar, mean)}


def versions(names: Iterable[str]) -> dict[str, str | None]:
    """Return the versions of installed packages; None for missing ones.

    Examples
    --------
    >>> versions(["a-package-of-no-name"])
    {'a-package-of-no-name': None}
    """
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def _facts(timing: Timing) -> dict[str, Any]:
    clean = timing.clean
    return {
        "seconds": float(f"{timing.seconds:.5g}"),
        "fastest": float(f"{min(clean):.5g}"),
        "slowest": float(f"{max(clean):.5g}"),
        "rounds": len(clean),
        "calls_per_round": timing.calls,
        "foreign_cores": timing.foreign,
        "disturbed": timing.disturbed,
    }


def _fraction(timing: Timing, work: Mapping[str, Any] | None) -> dict[str, float]:
    if not work:
        return {}
    rate = work["flops"] / timing.seconds
    return {"gflops": round(rate / 1e9, 1), "peak_fraction": round(rate / work["peak"], 3)}


def _compare_pair(bar: Bar, timings: Mapping[str, Timing], missing: Mapping[str, str]) -> dict[str, Any]:
    if bar.ours in missing or bar.theirs in missing:
        return _rate(bar, None)
    return _rate(bar, ratio(timings[bar.ours], timings[bar.theirs]))


def _rate(bar: Bar, measured: float | None) -> dict[str, Any]:
    """Return a ratio with its bar and whether it is met; "met" is None without a ratio or a bar."""
    rating: dict[str, Any] = {
        "ours": bar.ours,
        "theirs": bar.theirs,
        "ratio": None if measured is None else round(measured, 3),
        "bar": bar.least,
        "met": None if measured is None or bar.least is None else met(measured, bar.least),
    }
    if bar.stretch is not None:
        rating |= {"stretch": bar.stretch, "stretch_met": None if measured is None else met(measured, bar.stretch)}
    return rating
