"""Spherical k-means of the patches of one image."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from vitnp import kernels
from vitnp.clustering.chunks import rows_per_block
from vitnp.clustering.kmeans_plusplus import draw_numbers, kmeans_plusplus
from vitnp.clustering.lloyd import LloydResult, lloyd
from vitnp.clustering.metric import Cosine
from vitnp.clustering.step import TotalStep, partial_step, sum_partials


@dataclasses.dataclass(frozen=True)
class Clustering:
    """Result of spherical k-means.

    Attributes
    ----------
    centroids : (K, D) float
        Unit rows.
    labels : (N,) int64
        Nearest centroid of each row, ties to the lower one. On the device of the rows; everything else is in host
        memory.
    counts : (K,) int64
        Number of rows of each cluster; 0 is possible if there are fewer distinct rows than clusters.
    inertia : float
        Sum over rows of 1 - cosine to the row's centroid; the quantity that k-means minimizes.
    """

    centroids: np.ndarray
    labels: np.ndarray
    counts: np.ndarray
    inertia: float


def spherical_kmeans(
    x: np.ndarray,
    n_clusters: int,
    rng: np.random.Generator,
    *,
    starts: int = 1,
    max_iterations: int = 30,
    tolerance: float = 0.0,
) -> Clustering:
    """Cluster unit vectors by cosine (Dhillon and Modha 2001), and keep the best of several starts.

    Parameters
    ----------
    x : (N, D) float
        Unit rows, at least `n_clusters` of them, on any device.
    n_clusters : int
        K.
    rng : numpy.random.Generator
        Source of the random numbers of k-means++.
    starts : int
        Number of independent k-means++ starts. The result with the lowest inertia is kept, the earlier one if equal.
    max_iterations : int
        Largest number of Lloyd iterations of each start.
    tolerance : float
        Stop when the inertia falls by no more than this fraction of itself; 0 stops when the labels no longer change.

    Returns
    -------
    Clustering

    Raises
    ------
    ValueError
        If there are fewer rows than clusters, or values that are not finite.

    Examples
    --------
    >>> x = np.array([[1.0, 0.0], [0.96, 0.28], [0.0, 1.0]])
    >>> result = spherical_kmeans(x, 2, np.random.default_rng(0))
    >>> bool(result.labels[0] == result.labels[1] != result.labels[2])
    True
    """
    if not 1 <= n_clusters <= len(x):
        raise ValueError(f"n_clusters must be between 1 and the number of rows, {len(x)}, got {n_clusters}")
    k, xp, device = kernels.for_array(x), kernels.array_module(x), kernels.device_of(x)
    if not xp.isfinite(x).all():
        raise ValueError("features must be finite, but contain NaN or infinity")
    metric, block = Cosine(), rows_per_block(len(x)) if device == "cpu" else None

    def start() -> np.ndarray:
        if device == "cpu":
            centroids: np.ndarray = x[k.kmeans_plusplus(x, n_clusters, draw_numbers(rng, len(x), n_clusters))]
            return centroids
        return kmeans_plusplus(len(x), n_clusters, rng, rows_at, min_distances)

    def rows_at(indices: Sequence[int]) -> np.ndarray:
        return kernels.to_host(x[xp.asarray(indices)])

    def min_distances(candidates: np.ndarray, nearest: list[np.ndarray] | None) -> list[np.ndarray]:
        return [k.kmeans_closer(x, kernels.to_device(candidates, device), None if nearest is None else nearest[0])]

    def step(centroids: np.ndarray) -> TotalStep:
        return sum_partials([partial_step(x, centroids, metric, block=block)])

    def run() -> LloydResult:
        return lloyd(step, start(), max_iterations, tolerance, metric, x if device == "cpu" else None, block)

    best = min((run() for _ in range(starts)), key=lambda result: result.total.inertia)
    return Clustering(best.centroids, best.total.labels.astype(np.int64), best.total.counts, best.total.inertia)
