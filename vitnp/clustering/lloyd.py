"""Lloyd's algorithm, and the relocation of empty clusters."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from vitnp import kernels
from vitnp.clustering.metric import Metric
from vitnp.clustering.step import TotalStep


class LloydResult(NamedTuple):
    """Result of Lloyd's algorithm.

    Attributes
    ----------
    centroids : (K, D) float
    total : TotalStep
        Labels, counts and inertia for these centroids.
    history : list of float
        Inertia of every pass over the data.
    n_moves : int
        Number of times the centroids moved.
    """

    centroids: np.ndarray
    total: TotalStep
    history: list[float]
    n_moves: int


def lloyd(
    step: Callable[[np.ndarray], TotalStep],
    centroids: np.ndarray,
    max_iterations: int,
    tolerance: float,
    metric: Metric,
    rows: np.ndarray | None = None,
    block: int | None = None,
) -> LloydResult:
    """Assign rows to the nearest centroid, move centroids to the mean of their rows, and repeat.

    Parameters
    ----------
    step : callable
        One pass over all rows: the sum of :func:`~vitnp.clustering.step.partial_step` for given centroids.
    centroids : (K, D) float
        Initial centroids.
    max_iterations : int
        Largest number of moves.
    tolerance : float
        Stop when the inertia falls by no more than this fraction of itself; 0 stops when the labels no longer change.
    metric : Cosine or Euclidean
    rows : (N, D) array, optional
        All rows, if they are in memory: one kernel then does all ordinary iterations, with the same result.
    block : int, optional
        As in :func:`~vitnp.clustering.step.partial_step`, for `rows`.

    Returns
    -------
    LloydResult
    """
    history: list[float] = []
    previous: TotalStep | None = None
    if rows is not None:
        moves = kernels.for_array(rows).kmeans_moves(
            rows, centroids, max_iterations, tolerance, **metric.kernel_options(rows), block=block
        )
        centroids, history = moves.centroids, moves.history
        if history:
            previous = TotalStep(moves.labels, moves.sums, moves.counts, history[-1], None)
            if moves.ended:
                return LloydResult(centroids, previous, history, len(history) - 1)
    for n_moves in range(len(history), max_iterations):
        total = step(centroids)
        history.append(total.inertia)
        if previous is not None and _converged(previous, total, tolerance):
            return LloydResult(centroids, total, history, n_moves)
        previous = total
        centroids = move_centroids(total, centroids, metric)
    total = step(centroids)
    return LloydResult(centroids, total, [*history, total.inertia], max_iterations)


def _converged(previous: TotalStep, total: TotalStep, tolerance: float) -> bool:
    """Whether the inertia fell by at most the tolerated fraction, or all labels stayed."""
    if previous.inertia - total.inertia <= tolerance * previous.inertia:
        return True
    return bool(kernels.array_module(total.labels).array_equal(total.labels, previous.labels))


def move_centroids(total: TotalStep, centroids: np.ndarray, metric: Metric) -> np.ndarray:
    """Move each centroid to the mean of its rows, with the cosine to the direction of the mean.

    An empty cluster takes over the row farthest from its own centroid, the next empty cluster the next farthest; ties
    go to the lower row, so the result is deterministic. The last row of a cluster is never taken, because two clusters
    would then exchange it forever. Each occupied cluster can thus refuse one candidate and each empty one takes one, so
    K candidates always suffice.

    Parameters
    ----------
    total : TotalStep
    centroids : (K, D) float
    metric : Cosine or Euclidean

    Returns
    -------
    (K, D) float
    """
    sums, counts = total.sums, total.counts
    if total.farthest is not None:
        sums, counts = sums.copy(), counts.copy()
        empty = iter(np.flatnonzero(counts == 0))
        for label, row in zip(total.farthest.labels, total.farthest.rows):
            if counts[label] == 1:
                continue
            cluster = next(empty, None)
            if cluster is None:
                break
            sums[label] -= row
            counts[label] -= 1
            sums[cluster], counts[cluster] = row, 1
    return kernels.for_device("cpu").kmeans_move(sums, counts, centroids, metric=metric.name)
