"""Unsupervised semantic segmentation: match clusters to true classes, and score them against label maps."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

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
from vitnp.evaluate.protocol import Evaluation, score_one_by_one, separate_failures
from vitnp.evaluate.report import Case, draw_labels
from vitnp.io.decode import read_image
from vitnp.segmenter import Segmenter

# Ways to assign clusters to true classes.
MATCHING: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "hungarian": match_one_to_one,
    "many-to-one": match_many_to_one,
}


def score_classes(labeled: LabeledSet, segmenter: Segmenter, matching: str = "hungarian") -> Evaluation:
    """Fit a data set, and evaluate the classes found.

    Parameters
    ----------
    labeled : LabeledSet
    segmenter : Segmenter
        Not fitted yet, with `n_classes`.
    matching : {"hungarian", "many-to-one"}
        How clusters are matched to true classes; the background always matches the background.

    Raises
    ------
    UsageError
        When `segmenter` finds no classes, there are more classes than regions, or the truth contains a label that is no
        class of the set.
    ImageError
        When no photograph could be read.
    """
    if segmenter.n_classes is None:
        raise UsageError("evaluating classes needs a Segmenter that finds some, got n_classes=None; set n_classes")
    segmenter.fit([sample.image for sample in labeled.samples])
    return score_labels(
        labeled, segmenter.labels, segmenter.n_classes, matching,
        failures=segmenter.failures, n_threads=segmenter.n_threads,
    )  # fmt: skip


def score_labels(
    labeled: LabeledSet,
    predicted: Sequence[np.ndarray | None],
    n_clusters: int,
    matching: str = "hungarian",
    *,
    failures: Mapping[int, ImageError] | None = None,
    n_threads: int | None = None,
) -> Evaluation:
    """Evaluate label maps.

    Only the non-zero counts of each photograph's confusion matrix are kept in memory.

    Parameters
    ----------
    labeled : LabeledSet
        The data set, with C classes including the background.
    predicted : sequence of (rows, columns) integer arrays or None
        Label map per photograph: 0 for the background, clusters from 1. It may be decoded on access.
    n_clusters : int
        Number of clusters without the background.
    matching : {"hungarian", "many-to-one"}
        How clusters are matched to true classes.
    failures : mapping of int to ImageError, optional
        Reasons why photographs have no label map, by index.
    n_threads : int, optional
        Photographs in progress at a time; by default one per core.

    Returns
    -------
    Evaluation
        ``scores`` has miou, pixel_accuracy and foreground_iou over all pixels of the set, ``classes`` the IoU of each
        class. A photograph's own score is the mean IoU of its true and predicted classes, with the matching of the set.

    Raises
    ------
    UsageError
        When no photograph could be scored, or the truth contains a label that is no class of the set.
    """
    if matching not in MATCHING:
        raise UsageError(f"matching must be {' or '.join(MATCHING)}, got {matching!r}")
    failures = failures or {}
    shape = len(labeled.classes), n_clusters + 1

    def count(index: int) -> _Counts:
        labels = None if index in failures else predicted[index]
        if labels is None:
            raise failures[index]
        truth = labeled.samples[index].load_truth(labels.shape)
        return _Counts.from_matrix(confusion_matrix(truth, labels, *shape))

    indices = range(len(labeled.samples))
    counts, failed = separate_failures(list(score_one_by_one(count, indices, n_threads)))
    pooled = np.zeros(shape, np.int64)
    for each in counts.values():
        each.add_to(pooled)
    if not pooled.any():
        raise UsageError("every pixel of the label maps is ignored; name another data set")
    assignment = MATCHING[matching](pooled)
    scores = semantic_scores(pooled, assignment)

    ranking = {}
    for index, each in counts.items():
        if len(each.cells):
            matrix = np.zeros(shape, np.int64)
            each.add_to(matrix)
            ranking[index] = semantic_scores(merge_clusters(matrix, assignment)).miou
    return Evaluation(
        images=len(counts),
        scores={
            "miou": scores.miou, "pixel_accuracy": scores.pixel_accuracy, "foreground_iou": scores.foreground_iou,
        },
        ranking=ranking,
        failures=failed,
        picture=functools.partial(_picture, labeled, predicted, assignment),
        classes=dict(zip(labeled.classes, scores.per_class.tolist())),
    )  # fmt: skip


class _Counts(NamedTuple):
    """Non-zero entries of a confusion matrix: indices into the flat matrix, and their counts."""

    cells: np.ndarray
    values: np.ndarray

    @classmethod
    def from_matrix(cls, matrix: np.ndarray) -> _Counts:
        flat = matrix.ravel()
        cells = np.flatnonzero(flat)
        return cls(cells, flat[cells])

    def add_to(self, matrix: np.ndarray) -> None:
        matrix.ravel()[self.cells] += self.values


def _picture(labeled: LabeledSet, predicted: Sequence[np.ndarray | None], assignment: np.ndarray, index: int) -> Case:
    sample, labels = labeled.samples[index], assignment[predicted[index]].astype(np.uint8)
    # No limit of size: the photograph has been read before.
    rgb, truth = read_image(sample.image, max_pixels=sys.maxsize), sample.load_truth(labels.shape)

    def names(labels: np.ndarray) -> str:
        present = (labeled.classes[label] for label in np.unique(labels) if label not in (0, IGNORE))
        return ", ".join(present) or "nothing"

    caption = f"{sample.name}  ·  truth: {names(truth)}  ·  vitnp: {names(labels)}"
    return Case(rgb, draw_labels(rgb, truth), draw_labels(rgb, labels), caption)
