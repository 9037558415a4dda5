"""Spherical k-means for one image."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from vitnp import kernels
from vitnp.clustering.chunks import rows_summed_together
from vitnp.clustering.kmeans_plusplus import kmeans_plusplus
from vitnp.clustering.lloyd import Cosine, Total, lloyd, partial_step, sum_partials


@dataclasses.dataclass(frozen=True)
class Clustering:
    """What k-means found.

    Attributes
    ----------
    centroids : (K, D) float
        Unit rows.
    labels : (N,) int64
        Cluster of each row; of equally near ones the lower. Where the rows are; all else is in the host's memory.
    counts : (K,) int64
        Rows of each cluster; 0 where there are fewer distinct rows than clusters.
    inertia : float
        Sum over rows of 1 - cosine to the row's centroid; what the iterations lower.
    """

    centroids: np.ndarray
    labels: np.ndarray
    counts: np.ndarray
    inertia: float


def spherical_kmeans(
    x: np.ndarray,
    clusters: int,
    rng: np.random.Generator,
    *,
    starts: int = 1,
    max_iterations: int = 30,
    tolerance: float = 0.0,
) -> Clustering:
    """Cluster unit vectors by cosine; the best of several starts.

    Parameters
    ----------
    x : (N, D) float
        Unit rows, N >= `clusters`; on whatever device.
    clusters : int
        K.
    rng : numpy.random.Generator
        Decides the starts, hence the answer.
    starts : int
        Independent k-means++ starts; the lowest inertia wins, the earlier start among equals.
    max_iterations : int
        Of Lloyd's algorithm, for each start.
    tolerance : float
        Stop when the inertia falls by no more than this share of itself. With 0 until the labels stay.

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
    >>> found = spherical_kmeans(x, 2, np.random.default_rng(0))
    >>> bool(found.labels[0] == found.labels[1] != found.labels[2])
    True
    """
    if not 1 <= clusters <= len(x):
        raise ValueError(f"{clusters} clusters can't be made of {len(x)} rows")
    k, xp, device = kernels.for_array(x), kernels.array_module(x), kernels.device_of(x)
    if not xp.isfinite(x).all():
        raise ValueError("the features hold values that are not finite")
    geometry, block = Cosine(), rows_summed_together(len(x)) if device == "cpu" else None

    def pick(rows: Sequence[int]) -> np.ndarray:
        return kernels.to_host(x[xp.asarray(rows)])

    def closer(candidates: np.ndarray, nearest: list[np.ndarray] | None) -> list[np.ndarray]:
        return [k.kmeans_closer(x, kernels.to_device(candidates, device), None if nearest is None else nearest[0])]

    def step(centroids: np.ndarray) -> Total:
        return sum_partials([partial_step(x, centroids, geometry, block=block)])

    best = None
    for _ in range(starts):
        seeds = kmeans_plusplus(len(x), clusters, rng, pick, closer)
        found = lloyd(step, seeds, max_iterations, tolerance, geometry, x if device == "cpu" else None, block)
        if best is None or found.total.inertia < best.total.inertia:
            best = found
    return Clustering(best.centroids, best.total.labels.astype(np.int64), best.total.counts, best.total.inertia)
