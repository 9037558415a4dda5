"""The table that ``python -m bench cpu`` prints: the time of each contender, and its ratio to vitnp's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

WIDTHS = (32, 18, 11, 9)


def heading(machine: Mapping[str, Any], n_threads: int, limits: Mapping[str, float | None]) -> str:
    """Return machine, limits and column titles."""
    bf16 = limits["bf16_flops"]
    limit = f"at most {limits['fp32_flops'] / 1e9:.0f} GFLOP/s in fp32, "
    limit += f"{bf16 / 1e9:.0f} in bf16" if bf16 else "no AVX512-BF16"
    copies = f"copies {limits['copied_bytes'] / 1e9:.1f} GB/s"
    titles = _row("case", "contender", "time", "of peak", "how many times vitnp's")
    return f"{machine['processor']}, {n_threads} threads; {limit}; {copies}\n\n{titles}"


def lines(case: Mapping[str, Any]) -> list[str]:
    """Return the lines of one case.

    Parameters
    ----------
    case : mapping
        From :func:`bench.cpu.comparison.compare`.

    Returns
    -------
    list of str
    """
    if "unmeasured" in case:
        return [_row(case["label"], "not measured:"), f"  {case['unmeasured']}"]
    verdicts = _verdicts(case["comparisons"])
    rows = []
    for name, facts in sorted(case["contenders"].items(), key=lambda item: not item[0].startswith("vitnp")):
        fraction = facts.get("peak_fraction")
        rows.append(
            (name, duration(facts["seconds"]), "" if fraction is None else f"{fraction:.0%}", verdicts.get(name, ""))
        )
    rows += [(name, "missing", "", reason) for name, reason in case["missing"].items()]
    return [_row(case["label"] if not index else "", *row) for index, row in enumerate(rows)]


def mean_lines(means: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return one line per mean over cases."""
    return [f"{mean['what']} of {mean['cases']} cases: {verdict(mean)}" for mean in means]


def ending(cases: Sequence[Mapping[str, Any]]) -> str:
    """Return how many bars were met, and what was missing or could not be measured."""
    comparisons = [comparison for case in cases for comparison in case["comparisons"]]
    met = [each["met"] for each in comparisons if each["bar"] is not None and each["met"] is not None]
    text = f"\n{sum(met)} of {len(met)} bars met"
    missing = sorted({name for case in cases for name in case["missing"]})
    if missing:
        text += f"; missing: {', '.join(missing)}"
    unmeasured = sum("unmeasured" in case for case in cases)
    if unmeasured:
        text += f"; {unmeasured} of {len(cases)} cases not measured, the machine was busy"
    disturbed = sum(facts["disturbed"] for case in cases for facts in case["contenders"].values())
    return text + (f"; {disturbed} samples disturbed by other programs" if disturbed else "")


def duration(seconds: float) -> str:
    """Format a duration with three digits and a unit.

    Examples
    --------
    >>> duration(0.0123456), duration(2.5), duration(0.00091)
    ('12.3 ms', '2.50 s', '0.910 ms')
    """
    value, unit = (seconds, "s") if seconds >= 1 else (1e3 * seconds, "ms")
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3}f} {unit}"


def verdict(comparison: Mapping[str, Any]) -> str:
    """Format a ratio, its bar, and whether it is met.

    Examples
    --------
    >>> verdict({"ratio": 1.2, "bar": 1.15, "met": True})
    '1.20 x, bar 1.15: met'
    """
    if comparison["ratio"] is None:
        return "nothing to compare"
    text = f"{comparison['ratio']:.2f} x"
    if comparison["bar"] is not None:
        text += f", bar {comparison['bar']:g}: {'met' if comparison['met'] else 'NOT met'}"
    if comparison.get("stretch_met"):
        text += f" ({comparison['stretch']:g} too)"
    return text


def _verdicts(comparisons: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return the verdicts of each contender; in parentheses what it is compared with, unless that is "vitnp"."""
    texts: dict[str, str] = {}
    for comparison in comparisons:
        ours, theirs = comparison["ours"], comparison["theirs"]
        if theirs == "vitnp":
            texts[ours] = f"{verdict(comparison)} (vitnp's whole pass)"
        else:
            text = verdict(comparison) if ours == "vitnp" else f"{verdict(comparison)} ({ours})"
            texts[theirs] = f"{texts[theirs]}; {text}" if theirs in texts else text
    return texts


def _row(*cells: str) -> str:
    padded = [
        f"{cell:<{width}}" if index < 2 else f"{cell:>{width}}"
        for index, (cell, width) in enumerate(zip(cells, WIDTHS))
    ]
    return " ".join([*padded, *(f"   {cell}" for cell in cells[len(WIDTHS) :])]).rstrip()
