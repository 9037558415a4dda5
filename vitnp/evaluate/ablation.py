"""Ablation on a data set: single levels, some of them, and all; consistency between levels; facets."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from vitnp.errors import ImageError
from vitnp.evaluate.data.pairs import Pair, read_truth
from vitnp.evaluate.metrics.saliency import iou
from vitnp.evaluate.protocol import Statistics, aggregate, score_as_set, separate_failures
from vitnp.evaluate.table import Cell, Table
from vitnp.method.agreement import OWN_PHOTOGRAPHS, combine_levels, level_weights
from vitnp.method.cleaning import clean
from vitnp.method.texture import default_cleaning, smaller_side
from vitnp.options import CONSISTENCIES
from vitnp.refine.refine import refine
from vitnp.result import HALF, Segmentation
from vitnp.segmenter import Segmenter

# Weights of a result's `levels`: image, data set, category and readout level.
LEVELS: dict[str, tuple[int, ...]] = {
    "image": (1, 0, 0, 0),
    "data set": (0, 1, 0, 0),
    "category": (0, 0, 1, 0),
    "readout": (0, 0, 0, 1),
    "image + data set": (1, 1, 0, 0),
    "image + category": (1, 0, 1, 0),
    "data set + category": (0, 1, 1, 0),
    "image + data set + category": (1, 1, 1, 0),
}


# What is varied, and to what: the key of a row.
Row: TypeAlias = tuple[str, str]
FULL_METHOD: Row = ("levels", "all")

# Combines the levels of a photograph, (N,) each, into one score, (N,).
Combine: TypeAlias = Callable[[Sequence[np.ndarray]], np.ndarray]


class Variant(NamedTuple):
    """Mean foreground IoU of one variant of the method.

    Attributes
    ----------
    group, name : str
        What is varied, and to what.
    coarse : float
        IoU of the cleaned patch scores, enlarged without refinement.
    refined : float
        IoU of the refined masks.
    """

    group: str
    name: str
    coarse: float
    refined: float


class Ablation(NamedTuple):
    """Result of :func:`ablate`.

    Attributes
    ----------
    variants : list of Variant
        Rows of the table.
    images : int
        Number of photographs that were scored, the same for every variant.
    failures : list of ImageError
        Reasons why the other photographs were not scored.
    """

    variants: list[Variant]
    images: int
    failures: list[ImageError]


def ablate(pairs: Sequence[Pair], make: Callable[..., Segmenter], facet: str = "key") -> Ablation:
    """Vary one component of the method at a time.

    Five fits yield sixteen variants: one fit is enough for all subsets of levels, and one for majority and
    intersection.

    Parameters
    ----------
    pairs : sequence of Pair
    make : callable
        ``make(facet=..., consistency=...)`` returns a new Segmenter; with a cache, each facet is computed once.
    facet : str
        Facet for the variants of levels and consistency.

    Raises
    ------
    UsageError
        When no photograph could be scored.
    """
    outcomes: list[dict[Row, _IoUs] | ImageError] = [{} for _ in pairs]
    facets = make(facet=facet, consistency="mean").vit.config.facets
    for segmenter, rows in _fits(make, facet, facets):
        for index, outcome in enumerate(_score_rows(pairs, segmenter, rows)):
            earlier = outcomes[index]
            if isinstance(outcome, ImageError):
                outcomes[index] = outcome
            elif not isinstance(earlier, ImageError):
                earlier.update(outcome)
    scores, failures = separate_failures(outcomes)
    # The full method is part of each group.
    alias = {("consistency", "mean"): FULL_METHOD, ("facet", facet): FULL_METHOD}
    order = [*(("levels", name) for name in LEVELS), FULL_METHOD]
    order += [("consistency", consistency) for consistency in CONSISTENCIES]
    order += [("facet", name) for name in facets]
    variants = []
    for row in order:
        ious = [score[alias.get(row, row)] for score in scores.values()]
        variants.append(Variant(*row, _mean([each.coarse for each in ious]), _mean([each.refined for each in ious])))
    return Ablation(variants, len(scores), failures)


def _fits(
    make: Callable[..., Segmenter], facet: str, facets: Sequence[str]
) -> Iterator[tuple[Segmenter, dict[Row, Combine]]]:
    """Yield the segmenters to fit, each with the rows that its levels yield."""
    yield (
        make(facet=facet, consistency="mean"),
        {("levels", name): partial(combine_levels, weights=weights) for name, weights in LEVELS.items()}
        | {FULL_METHOD: _combine_as_fitted},
    )
    yield (
        make(facet=facet, consistency="majority"),
        {
            ("consistency", consistency): partial(combine_levels, consistency=consistency)
            for consistency in ("majority", "intersection")
        },
    )
    for other in facets:
        if other != facet:
            yield make(facet=other, consistency="mean"), {("facet", other): _combine_as_fitted}


def _combine_as_fitted(levels: Sequence[np.ndarray]) -> np.ndarray:
    return combine_levels(levels, weights=level_weights(levels, OWN_PHOTOGRAPHS))


class _IoUs(NamedTuple):
    """Foreground IoU of a photograph's mask before and after refinement."""

    coarse: float
    refined: float


def _score_rows(
    pairs: Sequence[Pair], segmenter: Segmenter, rows: Mapping[Row, Combine]
) -> list[dict[Row, _IoUs] | ImageError]:
    """Fit the photographs, and score each of them for all rows."""

    def score(index: int, result: Segmentation) -> dict[Row, _IoUs]:
        truth = read_truth(pairs[index].mask, result.mask.shape)
        return {row: _ious(result, truth, combine(result.levels or ())) for row, combine in rows.items()}

    return score_as_set(segmenter, [pair.image for pair in pairs], score)


def _ious(result: Segmentation, truth: np.ndarray, score: np.ndarray) -> _IoUs:
    cleaned = clean(score.reshape(result.score.shape), default_cleaning(str(result.parameters.get("domain", "photo"))))
    coarse = refine(cleaned, result.image, method="none") >= HALF
    if np.array_equal(cleaned, result.score):
        return _IoUs(iou(coarse, truth), iou(result.mask, truth))
    refined = refine(cleaned, result.image, method=str(result.parameters["refine"]))
    refined = smaller_side(refined) if result.parameters.get("domain") == "texture" else refined
    return _IoUs(iou(coarse, truth), iou(refined >= HALF, truth))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


@dataclasses.dataclass(frozen=True)
class _Row:
    """Statistics of one variant over seeds."""

    group: str
    name: str
    means: Statistics
    deviations: Statistics


def tabulate(
    runs: Sequence[Sequence[Variant]], refinement: str, *, deviations: bool
) -> tuple[Table, list[dict[str, Any]]]:
    """Tabulate ablations over seeds, as a table and as dicts for JSON.

    Parameters
    ----------
    runs : sequence of sequence of Variant
        Variants of :func:`ablate`, for each seed.
    refinement : str
        Name of the refinement, for the title of its column.
    deviations : bool
        Whether to include sample deviations over the runs.

    Returns
    -------
    table : Table
    records : list of dict
        ``{"group", "name", "coarse", "refined"}`` per variant; with `deviations` also ``"deviation"``, a dict.
    """
    rows = []
    for variants in zip(*runs):
        group, name, _, _ = variants[0]
        scores = [{"coarse": variant.coarse, "refined": variant.refined} for variant in variants]
        rows.append(_Row(group, name, *aggregate(scores)))
    if deviations:
        columns: tuple[str, ...] = ("cleaned", "deviation", f"+ {refinement}", "deviation")
    else:
        columns = ("cleaned", f"+ {refinement}")
    lines: list[tuple[Cell, ...]] = []
    records: list[dict[str, Any]] = []
    for row in rows:
        records.append({"group": row.group, "name": row.name, **row.means})
        cells = [[mean] for mean in row.means.values()]
        if deviations:
            records[-1]["deviation"] = row.deviations
            cells = [[mean, row.deviations[score]] for score, mean in row.means.items()]
        lines.append((row.group, row.name, *(cell for each in cells for cell in each)))
    return Table(("vary", "to", *columns), tuple(lines)), records
