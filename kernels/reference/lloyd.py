"""Lloyd's algorithm: update centroids, and iterate until convergence.

Letters in shapes: N rows, D features, K centroids.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from vitnp.kernels.reference.kmeans import kmeans_step


def kmeans_move(sums: np.ndarray, counts: np.ndarray, centroids: np.ndarray, *, metric: str = "cosine") -> np.ndarray:
    """Move each centroid to the mean of its rows; with the cosine, to the direction of the mean.

    Parameters
    ----------
    sums : (K, D) float64
        Sum of the rows of each cluster.
    counts : (K,) int
        Number of rows of each cluster.
    centroids : (K, D) float
        Present centroids. A centroid keeps its position if it has no rows, or with the cosine if its rows cancel out.
    metric : {"cosine", "euclidean"}

    Returns
    -------
    (K, D) of the centroids' dtype

    Examples
    --------
    >>> kmeans_move(np.array([[0.0, 3.0], [0.0, 0.0]]), np.array([4, 0]), np.eye(2))
    array([[0., 1.],
           [0., 1.]])
    """
    sizes = counts if metric == "euclidean" else np.sqrt(np.einsum("kd,kd->k", sums, sums))
    stuck = (counts == 0) | (sizes == 0)
    with np.errstate(over="ignore", invalid="ignore"):
        moved = (sums / np.where(stuck, 1, sizes)[:, None]).astype(centroids.dtype)
    moved[stuck] = centroids[stuck]
    return moved


class Moves(NamedTuple):
    """State of Lloyd's algorithm after :func:`kmeans_moves`.

    Attributes
    ----------
    centroids : (K, D) float
        Last centroids.
    labels : (N,) int32 or None
        Labels of the last completed pass over the rows; None if no pass was completed.
    sums, counts : (K, D) float64, (K,) int64
        Sum and number of the rows of each cluster in that pass.
    history : list of float
        Inertia of each completed pass.
    ended : bool
        True if the algorithm ended; the last pass then used `centroids`. False if the next pass with `centroids` leaves
        a cluster empty or meets NaN or infinity, which the caller has to handle.
    """

    centroids: np.ndarray
    labels: np.ndarray | None
    sums: np.ndarray
    counts: np.ndarray
    history: list[float]
    ended: bool


def kmeans_moves(
    x: np.ndarray,
    centroids: np.ndarray,
    most: int,
    tolerance: float = 0.0,
    *,
    metric: str = "cosine",
    shift: np.ndarray | None = None,
    block: int | None = None,
) -> Moves:
    """Run Lloyd iterations until convergence, or until a cluster is empty or the inertia is not finite.

    Parameters
    ----------
    x, metric, shift, block
        As in :func:`kmeans_step`.
    centroids : (K, D) float
        Initial centroids.
    most : int
        Maximum number of times that the centroids move.
    tolerance : float
        Stop when the inertia decreases by no more than this fraction of itself. With 0, stop when no label changes.

    Returns
    -------
    Moves

    Examples
    --------
    >>> state = kmeans_moves(np.array([[0.0], [1.0], [9.0]]), np.array([[0.0], [1.0]]), 10, metric="euclidean")
    >>> state.centroids.ravel(), state.labels, state.history
    (array([0.5, 9. ]), array([0, 0, 1], dtype=int32), [64.0, 17.0, 0.5])
    """
    history: list[float] = []
    labels, sums, counts = None, np.zeros(centroids.shape), np.zeros(len(centroids), np.int64)
    while True:
        step = kmeans_step(x, centroids, metric=metric, shift=shift, block=block)
        inertia = 0.0
        for part in step.inertia.tolist():  # in order, so that every implementation rounds alike
            inertia += part
        if not step.counts.all() or not math.isfinite(inertia):
            return Moves(centroids, labels, sums, counts, history, False)
        decrease = history[-1] - inertia if history else math.inf
        ended = len(history) == most or (
            labels is not None and (decrease <= tolerance * history[-1] or np.array_equal(labels, step.labels))
        )
        history.append(inertia)
        labels, sums, counts = step.labels, sum(step.sums, np.zeros(centroids.shape)), step.counts
        if ended:
            return Moves(centroids, labels, sums, counts, history, True)
        centroids = kmeans_move(sums, counts, centroids, metric=metric)
