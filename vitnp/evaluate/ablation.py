"""What each piece of the method is worth on a data set: levels alone, in pairs and together; consistency; facets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from vitnp.errors import ImageError
from vitnp.evaluate.data.pairs import Pair, read_truth
from vitnp.evaluate.metrics.saliency import iou
from vitnp.evaluate.protocol import over_seeds, sort_out, together
from vitnp.evaluate.table import Table
from vitnp.method.agreement import CONSISTENCY, combine_levels
from vitnp.method.cleaning import clean
from vitnp.refine.refine import refine
from vitnp.result import HALF, Segmentation
from vitnp.segmenter import Segmenter

FACETS = ("key", "query", "value", "token")

# Image, data set, category, by their place among a result's levels.
LEVELS = {
    "image": (0,),
    "data set": (1,),
    "category": (2,),
    "image + data set": (0, 1),
    "image + category": (0, 2),
    "data set + category": (1, 2),
    "all three": (0, 1, 2),
}


# Group and name of a row.
Row = tuple[str, str]


class Variant(NamedTuple):
    """A row of the table: mean foreground IoU of cleaned scores enlarged as they are, and of refined ones."""

    group: str
    name: str
    coarse: float
    refined: float


def ablate(
    pairs: Sequence[Pair], make: Callable[..., Segmenter], facet: str = "key"
) -> tuple[list[Variant], int, list[ImageError]]:
    """Vary the method piece by piece.

    Five fits give fourteen rows: subsets of the levels are read off one fit, and intersection off majority's.

    Parameters
    ----------
    pairs : sequence of Pair
    make : callable
        ``make(facet=..., consistency=...)`` gives a fresh Segmenter; features that it keeps are used again.
    facet : str
        The one with which levels and consistency are varied.

    Returns
    -------
    rows : list of Variant
    images : int
        Photographs that every row counts.
    failures : list of ImageError
        Why the others don't count.

    Raises
    ------
    UsageError
        When no photograph could be scored.
    """
    photographs = [pair.image for pair in pairs]
    outcomes: list[dict[Row, tuple[float, float]] | ImageError] = [{} for _ in pairs]

    def run(segmenter: Segmenter, rows: Mapping[Row, Callable[[Sequence[np.ndarray]], np.ndarray]]) -> None:
        def score(index: int, result: Segmentation) -> dict[Row, tuple[float, float]]:
            truth = read_truth(pairs[index].mask, result.mask.shape)
            return {row: _ious(result, truth, combine(result.levels)) for row, combine in rows.items()}

        for index, outcome in enumerate(together(segmenter, photographs, score)):
            if isinstance(outcome, ImageError):
                outcomes[index] = outcome
            elif not isinstance(outcomes[index], ImageError):
                outcomes[index].update(outcome)

    run(
        make(facet=facet, consistency="mean"),
        {
            ("levels", name): lambda levels, taken=taken: combine_levels([levels[i] for i in taken])
            for name, taken in LEVELS.items()
        },
    )
    run(
        make(facet=facet, consistency="majority"),
        {
            ("consistency", how): lambda levels, how=how: combine_levels(levels, how)
            for how in ("majority", "intersection")
        },
    )
    for other in FACETS:
        if other != facet:
            run(make(facet=other, consistency="mean"), {("facet", other): combine_levels})

    scores, failures = sort_out(outcomes)
    # Whatever group the whole method belongs to, it's the same.
    alias = {("consistency", "mean"): ("levels", "all three"), ("facet", facet): ("levels", "all three")}
    order = [("levels", name) for name in LEVELS]
    order += [("consistency", how) for how in CONSISTENCY]
    order += [("facet", name) for name in FACETS]
    rows = []
    for row in order:
        pairs_of_ious = [score[alias.get(row, row)] for score in scores.values()]
        rows.append(Variant(*row, *(math.fsum(column) / len(column) for column in zip(*pairs_of_ious))))
    return rows, len(scores), failures


def _ious(result: Segmentation, truth: np.ndarray, score: np.ndarray) -> tuple[float, float]:
    """IoU of a score's mask before and after refinement."""
    cleaned = clean(score.reshape(result.score.shape))
    coarse = refine(cleaned, result.image, method="none") >= HALF
    if np.array_equal(cleaned, result.score):
        return iou(coarse, truth), iou(result.mask, truth)
    refined = refine(cleaned, result.image, method=str(result.parameters["refine"])) >= HALF
    return iou(coarse, truth), iou(refined, truth)


def tabulate(runs: Sequence[Sequence[Variant]], refinement: str, *, deviations: bool) -> tuple[Table, list[dict]]:
    """An ablation for people and for programs.

    Parameters
    ----------
    runs : sequence of sequence of Variant
        One a seed, each from :func:`ablate`.
    refinement : str
        What the refined scores were refined by.
    deviations : bool
        Whether to give sample deviations over the runs beside the means.

    Returns
    -------
    Table, list of dict
        A row, and a record, for each variant.
    """
    after, own = f"+ {refinement}", 2 if deviations else 1
    lines, records = [], []
    for variants in zip(*runs):
        group, name = variants[0][:2]
        means, spread = over_seeds([{"coarse": each.coarse, "refined": each.refined} for each in variants])
        records.append({"group": group, "name": name, **means, **({"deviation": spread} if deviations else {})})
        lines.append((group, name, *(part[key] for key in means for part in (means, spread)[:own])))
    columns = ("cleaned", "deviation", after, "deviation") if deviations else ("cleaned", after)
    return Table(("vary", "to", *columns), tuple(lines)), records
