"""Metrics of unsupervised semantic segmentation: clusters are matched to true classes, then scored.

All metrics are computed from one confusion matrix, summed over the pixels of all images::

    pooled = sum(confusion_matrix(truth, predicted, 21, 21) for truth, predicted in images)
    scores = semantic_scores(pooled, match_one_to_one(pooled))

Its rows are true classes, its columns predicted clusters; index 0 is the background in both. All counts are int64, so
that the sum over any number of images is exact and independent of their order. Wrong arguments raise ValueError.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

# Label of true pixels that are not evaluated, as in PASCAL VOC.
IGNORE = 255


@dataclasses.dataclass(frozen=True)
class SemanticScores:
    """Scores of a data set.

    Attributes
    ----------
    miou : float
        Mean of `per_class` over the classes that occur, background included.
    per_class : (C,) float64
        Intersection over union of each class, background first. NaN for a class that occurs neither in the truth nor in
        the matched prediction, and 0 for a class that occurs in one of them only.
    pixel_accuracy : float
        Share of pixels whose class is correct.
    foreground_iou : float
        Intersection over union of all pixels that are not background, regardless of class; 1 if there are none.
    assignment : (K,) int64
        Class of each cluster.
    """

    miou: float
    per_class: np.ndarray
    pixel_accuracy: float
    foreground_iou: float
    assignment: np.ndarray


def confusion_matrix(
    truth: np.ndarray, predicted: np.ndarray, classes: int, clusters: int | None = None, *, ignore: int | None = IGNORE
) -> np.ndarray:
    """Count the pixels of each true class in each predicted cluster.

    Parameters
    ----------
    truth : integer array, any shape
        True classes 0 ... `classes` - 1, or `ignore`.
    predicted : integer array of the same shape
        Clusters 0 ... `clusters` - 1. `ignore` has no special meaning here: 255 is an ordinary cluster.
    classes : int
        Number of true classes, background included.
    clusters : int, optional
        Number of clusters, background included; by default as many as classes.
    ignore : int, optional
        True label of pixels that are not counted. None counts every pixel.

    Returns
    -------
    int64 (classes, clusters)

    Raises
    ------
    ValueError
        When the arrays aren't integers of the same shape, or a label is out of range.

    Examples
    --------
    >>> confusion_matrix(np.array([0, 0, 1, 255]), np.array([0, 1, 1, 1]), 2)
    array([[1, 1],
           [0, 1]])
    """
    clusters = classes if clusters is None else clusters
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    if truth.shape != predicted.shape:
        raise ValueError(f"predicted must have the shape of truth, {truth.shape}, got {predicted.shape}")
    for name, labels in (("truth", truth), ("predicted", predicted)):
        if not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"{name} must be an array of integers, got {labels.dtype}")
    if ignore is not None:
        counted = truth != ignore
        truth, predicted = truth[counted], predicted[counted]
    for name, labels, count in (("truth", truth, classes), ("predicted", predicted, clusters)):
        if labels.size and not 0 <= labels.min() <= labels.max() < count:
            raise ValueError(f"{name} must have labels 0 to {count - 1}, got {labels.min()} to {labels.max()}")
    cell = truth.astype(np.int64).ravel() * clusters + predicted.astype(np.int64).ravel()
    return np.bincount(cell, minlength=classes * clusters).astype(np.int64, copy=False).reshape(classes, clusters)


def iou_matrix(matrix: np.ndarray) -> np.ndarray:
    """Return the IoU of every class with every cluster, (classes, clusters) float64; 0 where both are empty.

    Examples
    --------
    >>> iou_matrix(np.array([[1, 1], [0, 2]]))
    array([[0.5       , 0.25      ],
           [0.        , 0.66666667]])
    """
    matrix = _check_matrix(matrix)
    union = matrix.sum(axis=1, keepdims=True) + matrix.sum(axis=0, keepdims=True) - matrix
    return matrix / np.maximum(union, 1)


def match_one_to_one(matrix: np.ndarray) -> np.ndarray:
    """Match each class with at most one cluster so that the sum of their IoUs is maximal (the Hungarian method).

    Cluster 0 always is class 0, the background: foreground and background were separated before the classes were found.
    Only pairs with at least one common pixel match. Clusters without a class, because they overlap no free class or
    because there are more clusters than classes, count as background, as in Leopart.

    Parameters
    ----------
    matrix : integer (classes, clusters)
        Pooled, see :func:`confusion_matrix`.

    Returns
    -------
    int64 (clusters,)
        Class of each cluster, for :func:`semantic_scores`.

    References
    ----------
    Kuhn, "The Hungarian method for the assignment problem", 1955, as solved by scipy's ``linear_sum_assignment``.
    Maximizing the IoU follows Van Gansbeke et al. (MaskContrast), "Unsupervised semantic segmentation by contrasting
    object mask proposals", ICCV 2021; surplus clusters follow Ziegler and Asano (Leopart), CVPR 2022.

    Examples
    --------
    >>> match_one_to_one(np.array([[9, 0, 0], [0, 1, 8], [0, 5, 1]]))
    array([0, 2, 1])
    """
    from scipy.optimize import linear_sum_assignment

    iou = iou_matrix(matrix)[1:, 1:]
    classes, clusters = linear_sum_assignment(iou, maximize=True)
    matched = iou[classes, clusters] > 0
    assignment = np.zeros(matrix.shape[1], np.int64)
    assignment[clusters[matched] + 1] = classes[matched] + 1
    return assignment


def match_many_to_one(matrix: np.ndarray, by: str = "precision") -> np.ndarray:
    """Assign each cluster the class that fits it best; several clusters may share a class.

    This is the protocol for over-clustering, with many more clusters than classes. It uses the truth more than a
    one-to-one match does, and scores increase with the number of clusters: compare only results with equally many.

    Cluster 0 is class 0, the background. Every other cluster may get any class, the background included. Ties go to the
    lower class, so an empty cluster becomes background.

    Parameters
    ----------
    matrix : integer (classes, clusters)
        Pooled, see :func:`confusion_matrix`.
    by : {"precision", "iou"}
        Choose the class with most of the cluster's pixels (the majority, Leopart's precision-based match), or the class
        with the largest IoU (as in MaskContrast). IoU favors small classes, the more so the more clusters there are.

    Returns
    -------
    int64 (clusters,)
        Class of each cluster, for :func:`semantic_scores`.

    Raises
    ------
    ValueError
        For another `by`.

    References
    ----------
    Ziegler and Asano, "Self-supervised learning of object parts for semantic segmentation" (Leopart), CVPR 2022;
    Van Gansbeke et al. (MaskContrast), ICCV 2021.

    Examples
    --------
    >>> match_many_to_one(np.array([[9, 0, 1, 0], [0, 4, 8, 0], [0, 5, 1, 3]]))
    array([0, 2, 1, 2])
    """
    if by not in ("precision", "iou"):
        raise ValueError(f"by must be 'precision' or 'iou', got {by!r}")
    # Within a column, precision is proportional to the count.
    assignment = (iou_matrix(matrix) if by == "iou" else _check_matrix(matrix)).argmax(axis=0).astype(np.int64)
    assignment[0] = 0
    return assignment


def merge_clusters(matrix: np.ndarray, assignment: Sequence[int] | np.ndarray) -> np.ndarray:
    """Sum the columns of clusters with the same class; returns the confusion of classes, int64 (classes, classes).

    Examples
    --------
    >>> merge_clusters(np.array([[9, 0, 1], [0, 4, 2]]), [0, 1, 1])
    array([[9, 1],
           [0, 6]])
    """
    matrix, assignment = _check_matrix(matrix), np.asarray(assignment)
    classes, clusters = matrix.shape
    if assignment.shape != (clusters,) or not ((assignment >= 0) & (assignment < classes)).all():
        raise ValueError(
            f"assignment must hold a class from 0 to {classes - 1} for each of {clusters} clusters, got an array of "
            f"shape {assignment.shape}"
        )
    merged = np.zeros((classes, classes), np.int64)
    np.add.at(merged.T, assignment, matrix.T)
    return merged


def semantic_scores(matrix: np.ndarray, assignment: Sequence[int] | np.ndarray | None = None) -> SemanticScores:
    """Compute mean IoU, IoU per class, pixel accuracy and foreground IoU.

    Parameters
    ----------
    matrix : integer (classes, clusters)
        Pooled, see :func:`confusion_matrix`.
    assignment : (clusters,) int, optional
        Class of each cluster, from :func:`match_one_to_one` or :func:`match_many_to_one`; by default cluster k has
        class k.

    Returns
    -------
    SemanticScores

    Raises
    ------
    ValueError
        When no pixel was counted, or the assignment doesn't fit.

    Examples
    --------
    >>> scores = semantic_scores(np.array([[2, 1, 0], [0, 1, 0], [0, 0, 0]]))
    >>> scores.per_class.round(3), round(scores.miou, 3), scores.pixel_accuracy
    (array([0.667, 0.5  ,   nan]), 0.583, 0.75)
    """
    matrix = _check_matrix(matrix)
    assignment = np.arange(matrix.shape[1]) if assignment is None else np.asarray(assignment)
    merged = merge_clusters(matrix, assignment)
    total = int(merged.sum())
    if total == 0:
        raise ValueError("matrix must count at least one pixel, got only zeros")
    correct = merged.diagonal()
    union = merged.sum(axis=1) + merged.sum(axis=0) - correct
    per_class = np.full(len(merged), np.nan)
    np.divide(correct, union, out=per_class, where=union > 0)
    foreground = total - int(merged[0, 0])
    return SemanticScores(
        miou=float(per_class[union > 0].mean()),
        per_class=per_class,
        pixel_accuracy=float(correct.sum() / total),
        foreground_iou=float(merged[1:, 1:].sum() / foreground) if foreground else 1.0,
        assignment=assignment.astype(np.int64),
    )


def _check_matrix(matrix: np.ndarray) -> np.ndarray:
    matrix = np.asarray(matrix)
    if matrix.ndim != 2 or 0 in matrix.shape or not np.issubdtype(matrix.dtype, np.integer) or matrix.min() < 0:
        raise ValueError(
            "matrix must be a two-dimensional array of counts (classes, clusters), got an array of "
            f"{matrix.dtype} with shape {matrix.shape}"
        )
    return matrix
