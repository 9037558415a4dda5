"""Scores of unsupervised classes: what was found against label maps, clusters matched to true classes."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from vitnp.errors import ImageError, UsageError
from vitnp.evaluate.data.labeled import LabeledSet
from vitnp.evaluate.metrics.semantic import (
    IGNORE,
    confusion_matrix,
    match_many_to_one,
    match_one_to_one,
    merge_clusters,
    semantic_scores,
)
from vitnp.evaluate.protocol import Scored, by_themselves, sort_out
from vitnp.evaluate.report import Case, paint
from vitnp.io.decode import read_image
from vitnp.segmenter import Segmenter

MATCHING: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "hungarian": match_one_to_one,
    "many-to-one": match_many_to_one,
}


def score_classes(labeled: LabeledSet, segmenter: Segmenter, matching: str = "hungarian") -> Scored:
    """Fit a data set, and score the classes that were found.

    Parameters
    ----------
    labeled : LabeledSet
    segmenter : Segmenter
        Not fitted yet, with `n_classes`.
    matching : {"hungarian", "many-to-one"}
        How clusters get their classes; the background is fixed.

    Raises
    ------
    UsageError
        When there are more classes than regions, or the truth holds a label that the set doesn't know.
    ImageError
        When no photograph could be read.
    """
    segmenter.fit([sample.image for sample in labeled.samples])
    own = {"failures": segmenter.failures, "threads": segmenter.n_threads}
    return score_labels(labeled, segmenter.labels, segmenter.n_classes, matching, **own)


def score_labels(
    labeled: LabeledSet,
    found: Sequence[np.ndarray | None],
    clusters: int,
    matching: str = "hungarian",
    *,
    failures: Mapping[int, ImageError] | None = None,
    threads: int | None = None,
) -> Scored:
    """Score label maps.

    One photograph's maps are looked at after the other; what remains of each is the few counts that aren't 0.

    Parameters
    ----------
    labeled : LabeledSet
        C classes, the background included.
    found : sequence of (height, width) integer array
        For each photograph: 0 for background, clusters from 1; decoded when asked for. None where it failed.
    clusters : int
        Without the background.
    matching : {"hungarian", "many-to-one"}
    failures : mapping of int to ImageError, optional
        Why some photographs have no map.
    threads : int, optional

    Returns
    -------
    Scored
        miou, pixel_accuracy and foreground_iou over all pixels of the set; for each class its IoU. A photograph's own
        score is the mean IoU of the classes that it shows or was given, with the set's matching.

    Raises
    ------
    UsageError
        When no photograph could be scored, or the truth holds a label that the set doesn't know.
    """
    if matching not in MATCHING:
        raise UsageError(f"there is no matching {matching!r}; choose {' or '.join(MATCHING)}")
    failures = failures or {}
    shape = len(labeled.classes), clusters + 1

    def count(index: int) -> tuple[np.ndarray, np.ndarray]:
        if index in failures:
            raise failures[index]
        labels = found[index]
        matrix = confusion_matrix(labeled.samples[index].load_truth(labels.shape), labels, *shape).ravel()
        cells = np.flatnonzero(matrix)
        return cells, matrix[cells]

    counts, failed = sort_out(list(by_themselves(count, range(len(labeled.samples)), threads)))
    pooled = np.zeros(shape, np.int64)
    for cells, numbers in counts.values():
        pooled.ravel()[cells] += numbers
    if not pooled.any():
        raise UsageError("no pixel of the truth counts, all are to be ignored; name another set")
    assignment = MATCHING[matching](pooled)
    scores = semantic_scores(pooled, assignment)

    ranking = {}
    for index, (cells, numbers) in counts.items():
        if len(cells):
            matrix = np.zeros(shape, np.int64)
            matrix.ravel()[cells] = numbers
            ranking[index] = semantic_scores(merge_clusters(matrix, assignment)).miou
    return Scored(
        images=len(counts),
        scores={
            "miou": scores.miou, "pixel_accuracy": scores.pixel_accuracy, "foreground_iou": scores.foreground_iou,
        },
        ranking=ranking,
        failures=failed,
        picture=functools.partial(_picture, labeled, found, assignment),
        classes=dict(zip(labeled.classes, scores.per_class.tolist())),
    )  # fmt: skip


def _picture(labeled: LabeledSet, found: Sequence[np.ndarray], assignment: np.ndarray, index: int) -> Case:
    sample, labels = labeled.samples[index], assignment[found[index]].astype(np.uint8)
    # It was small enough to be scored.
    rgb, truth = read_image(sample.image, max_pixels=sys.maxsize), sample.load_truth(labels.shape)

    def names(labels: np.ndarray) -> str:
        shown = (labeled.classes[label] for label in np.unique(labels) if label not in (0, IGNORE))
        return ", ".join(shown) or "nothing"

    caption = f"{sample.name}  ·  truth: {names(truth)}  ·  vitnp: {names(labels)}"
    return Case(rgb, paint(rgb, truth), paint(rgb, labels), caption)
