"""One case, several contenders: who was there, by how much ours is faster, and whether that reaches the bar."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata

from bench.cpu.interleave import Clock, Disturbed, Plan, Timing, interleave, ratio
from vitnp.errors import VitnpError

# A bar counts as met when the ratio is within this share of it: two runs differ by as much.
TOLERANCE = 0.03
EXTRA = "pip install '.[bench]'"

# Runs the case once; what it returns is compared with the others' before anything is timed.
Call = Callable[[], object]


class WrongAnswer(VitnpError):
    """Contenders that don't compute the same: their times say nothing."""


class Missing(VitnpError):
    """A contender that can't take part here, and why: half a sentence."""


@dataclasses.dataclass(frozen=True)
class Bar:
    """By how much one contender is to beat another.

    Attributes
    ----------
    ours, theirs : str
        Names of contenders.
    least : float or None
        Ratio of their time to ours; None where it's reported only.
    stretch : float, optional
        What would be better still.
    """

    ours: str
    theirs: str
    least: float | None = None
    stretch: float | None = None


def met(measured: float, least: float) -> bool:
    """Whether a ratio reaches the bar, give or take what two runs differ by.

    Examples
    --------
    >>> met(1.94, 2.0), met(1.93, 2.0)
    (True, False)
    """
    return measured >= least * (1 - TOLERANCE)


def gather(builders: Mapping[str, Callable[[], Call]]) -> tuple[dict[str, Call], dict[str, str]]:
    """Those who can take part, and why the others can't.

    Parameters
    ----------
    builders : mapping of str to callable
        Each imports what it needs, and gives what is to be timed.

    Returns
    -------
    contenders : dict of str to callable
    missing : dict of str to str
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
    case: Mapping[str, object],
    builders: Mapping[str, Callable[[], Call]],
    bars: Sequence[Bar],
    plan: Plan,
    *,
    check: Callable[[str, object], None],
    work: Mapping[str, Mapping[str, float]] | None = None,
    steps: int = 1,
    clock: Clock = Clock(),
) -> dict[str, object]:
    """Build contenders, see that they agree, time them in turn.

    Parameters
    ----------
    label : str
        The case in words.
    case : mapping
        The same for programs.
    builders : mapping of str to callable
        As for :func:`gather`.
    bars : sequence of Bar
    plan : Plan
    check : callable
        Gets a name and what the contender returned; raises WrongAnswer.
    work : mapping, optional
        Facts for the record by contender, such as the share of a peak: ``{"flops": …, "peak": …}`` becomes
        ``peak_fraction``.
    steps : int
        Of which a call consists, and one of which is what times are given of.
    clock : Clock

    Returns
    -------
    dict
        What the result file keeps of this case. With "unmeasured" and no times when the machine was too busy.

    Raises
    ------
    WrongAnswer
    """
    contenders, missing = gather(builders)
    for name, contender in contenders.items():
        check(name, contender())
    record: dict[str, object] = {"label": label, **case, "contenders": {}, "missing": missing, "comparisons": []}
    try:
        timings = {name: timing.shared_by(steps) for name, timing in interleave(contenders, plan, clock).items()}
    except Disturbed as error:
        return {**record, "unmeasured": str(error)}
    for name, timing in timings.items():
        record["contenders"][name] = _facts(timing) | _fraction(timing, (work or {}).get(name))
    record["comparisons"] = [_compared(bar, timings, missing) for bar in bars]
    return record


def geometric_mean(records: Iterable[Mapping[str, object]], bar: Bar, what: str) -> dict[str, object]:
    """The geometric mean of a comparison over cases, against its bar.

    Parameters
    ----------
    records : iterable of dict
        From :func:`compare`.
    bar : Bar
    what : str
        Name of the summary.

    Returns
    -------
    dict
    """
    wanted = [
        comparison
        for record in records
        for comparison in record["comparisons"]
        if (comparison["ours"], comparison["theirs"]) == (bar.ours, bar.theirs)
    ]
    found = [comparison["ratio"] for comparison in wanted if comparison["ratio"] is not None]
    mean = math.exp(math.fsum(map(math.log, found)) / len(found)) if found else None
    return {"what": what, "cases": len(found), **_judged(bar, mean)}


def versions(names: Iterable[str]) -> dict[str, str | None]:
    """Versions of installed packages; None for those that are missing.

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


def _facts(timing: Timing) -> dict[str, object]:
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


def _fraction(timing: Timing, work: Mapping[str, float] | None) -> dict[str, float]:
    if not work:
        return {}
    rate = work["flops"] / timing.seconds
    return {"gflops": round(rate / 1e9, 1), "peak_fraction": round(rate / work["peak"], 3)}


def _compared(bar: Bar, timings: Mapping[str, Timing], missing: Mapping[str, str]) -> dict[str, object]:
    if bar.ours in missing or bar.theirs in missing:
        return _judged(bar, None)
    return _judged(bar, ratio(timings[bar.ours], timings[bar.theirs]))


def _judged(bar: Bar, measured: float | None) -> dict[str, object]:
    """A ratio beside its bars; `met` is None where there is nothing to judge."""
    judged: dict[str, object] = {
        "ours": bar.ours,
        "theirs": bar.theirs,
        "ratio": None if measured is None else round(measured, 3),
        "bar": bar.least,
        "met": None if measured is None or bar.least is None else met(measured, bar.least),
    }
    if bar.stretch is not None:
        judged |= {"stretch": bar.stretch, "stretch_met": None if measured is None else met(measured, bar.stretch)}
    return judged
