"""Mutual nearest neighbors, and a choice of them that is spread over the photograph."""

from __future__ import annotations

import numpy as np

from vitnp.clustering.neighbors import nearest_neighbors


def mutual_neighbors(
    x: np.ndarray, y: np.ndarray, *, n_threads: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the pairs of rows that are each other's nearest neighbor by cosine.

    Parameters
    ----------
    x : (N, D) float
        Rows of any length but zero.
    y : (K, D) float
    n_threads : int, optional
        As in :func:`vitnp.kernels.threads.pool.resolve_n_threads`.

    Returns
    -------
    first, second : (M,) int64
        Rows of `x` and `y`, by ascending row of `x`. Of equally near rows the lower one is the neighbor.
    cosines : (M,) float32

    Examples
    --------
    >>> mutual_neighbors(np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), np.array([[0.0, 2.0], [2.0, 0.0]]))[:2]
    (array([0, 2]), array([1, 0]))
    """
    if not len(x) or not len(y):
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
    to_y, cosines = nearest_neighbors(x, y, 1, n_threads=n_threads)
    to_x, _ = nearest_neighbors(y, x, 1, n_threads=n_threads)
    first = np.flatnonzero(to_x[to_y[:, 0], 0] == np.arange(len(x)))
    return first, to_y[first, 0], cosines[first, 0]


def spread_out(points: np.ndarray, scores: np.ndarray, count: int) -> np.ndarray:
    """Choose points with high scores that are far from each other: adaptive non-maximal suppression.

    The radius of a point is its distance to the nearest point with a higher score; those with the largest radii are
    chosen. So the best point is among them, and of a crowd of points its best.

    Parameters
    ----------
    points : (N, 2) float
    scores : (N,) float
        Of equal scores the first counts as higher.
    count : int
        Number of points; all of them if there are fewer.

    Returns
    -------
    (min(count, N),) int64
        Indices of the chosen points, by falling score.

    References
    ----------
    M. Brown, R. Szeliski and S. Winder, "Multi-image matching using multi-scale oriented patches", CVPR 2005.

    Examples
    --------
    >>> points = np.array([[0.0, 0.0], [1.0, 0.0], [9.0, 0.0]])
    >>> spread_out(points, np.array([0.9, 0.8, 0.3]), 2)
    array([0, 2])
    """
    order = np.lexsort((np.arange(len(scores)), -scores))
    ranked = points[order].astype(np.float64)
    radii = np.full(len(ranked), np.inf)
    for rank in range(1, len(ranked)):  # one point at a time: the matrix of all distances may be large
        radii[rank] = np.square(ranked[:rank] - ranked[rank]).sum(axis=1).min()
    chosen = np.lexsort((np.arange(len(radii)), -radii))[:count]
    return order[np.sort(chosen)]
