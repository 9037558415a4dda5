"""What ``python -m bench folders`` prints: medians, a table for the documents, and whether bars are met."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

# How many times as many photographs a second as another checkout and as the assembled pipeline, at least; and how many
# times the time of the network alone, at most.
BARS = {"against": 1.5, "assembled": 2.0, "network": 1.2}

_TITLES = {
    "vitnp": "vitnp",
    "against": "earlier checkout",
    "network": "network alone",
    "assembled": "onnxruntime, scikit-learn, pydensecrf2",
    "u2netp": "another method: U^2-Net-p, random weights",
}


class Sample(NamedTuple):
    """Seconds of one run: by the clock, and of the processor in all threads."""

    wall: float
    processor: float


@dataclasses.dataclass
class Contender:
    """What is timed, how many photographs it gets, its samples, and the seconds of its last run with its start."""

    run: Callable[[], Sample]
    count: int
    samples: list[Sample] = dataclasses.field(default_factory=list)
    seconds: float = 0.0


Summary = Mapping[str, float]


def summarize(contenders: Mapping[str, Contender]) -> dict[str, dict[str, float]]:
    """Return medians by contender; those that have not run are left out."""
    own = contenders["vitnp"]

    def ratio(pairs: Iterable[tuple[float, float]], count: int) -> float:
        return round(statistics.median((each / count) / (mine / own.count) for each, mine in pairs), 3)

    return {
        name: {
            "photographs_per_second": round(one.count / statistics.median(run.wall for run in one.samples), 3),
            "processor_seconds": round(statistics.median(run.processor for run in one.samples) / one.count, 4),
            "times_vitnp": ratio(((run.wall, mine.wall) for run, mine in zip(one.samples, own.samples)), one.count),
            "times_vitnp_processor": ratio(
                ((run.processor, mine.processor) for run, mine in zip(one.samples, own.samples)), one.count
            ),
        }
        for name, one in contenders.items()
        if one.samples
    }


def table(results: Mapping[str, Mapping[str, Summary]]) -> str:
    """Return photographs a second, and how many times vitnp's time that is, as a table in Markdown."""
    names = [name for name in _TITLES if any(name in found for found in results.values())]
    rows = [["photographs a second (times the time of vitnp)", *(_TITLES[name] for name in names)]]
    for case, found in results.items():
        cells = [
            f"{found[name]['photographs_per_second']:.3g} ({found[name]['times_vitnp']:.2f})" if name in found else ""
            for name in names
        ]
        rows.append([case, *cells])
    rows.insert(1, ["---", *["---:"] * len(names)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def verdicts(results: Mapping[str, Mapping[str, Summary]], differing: Mapping[str, float | None]) -> list[str]:
    """Return a sentence for each bar of each case, by the clock; and the share of pixels that differ in masks."""
    lines = []
    for case, found in results.items():
        for name, bar in BARS.items():
            if name not in found:
                continue
            ratios = found[name]["times_vitnp"], found[name]["times_vitnp_processor"]
            if name == "network":
                wall, processor = (1 / ratio for ratio in ratios)
                met, what = wall <= bar, f"x the time of the network alone (bar: at most {bar})"
            else:
                wall, processor = ratios
                met, what = wall >= bar, f"x as many photographs a second as {_TITLES[name]} (bar: at least {bar})"
            lines.append(f"{case}: {'met' if met else 'MISSED'}, {wall:.2f} {what}; processor time {processor:.2f} x")
        share = differing[case]
        if share is not None:
            lines.append(f"{case}: {share:.4%} of the pixels of masks differ from those of the {_TITLES['against']}")
        if not found:
            lines.append(f"{case}: UNFINISHED")
    return lines
