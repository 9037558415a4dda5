"""Agglomerative merging of weighted points, between the centroid method and Ward's.

All methods of this family merge, again and again, the two clusters with the lowest cost

    (a b / (a + b))^w * d^2,

where a and b are their sizes and d is the distance of their means. With w = 1 this is Ward's method (1963), which
prefers to merge small clusters, and so makes all about equally large; with w = 0 it is the centroid method, which
ignores sizes, and so leaves every outlier a cluster of its own while it joins large neighbors.
"""

from __future__ import annotations

import numpy as np

from vitnp.kernels.threads import blas


def merge_nearest(
    points: np.ndarray, n_clusters: int, *, sizes: np.ndarray | None = None, size_weight: float = 0.5
) -> np.ndarray:
    """Merge points into clusters.

    Time and memory grow with the square of the number of points: 2,000 take a second or less, and 32 MB.

    Parameters
    ----------
    points : (N, D) float
    n_clusters : int
        1 to N.
    sizes : (N,) float, optional
        Number of rows that each point stands for; 1 by default.
    size_weight : float
        The exponent w, 0 to 1.

    Returns
    -------
    (N,) int64
        Labels from 0, in order of first appearance. Of pairs with equal cost the one of the lowest points is merged.

    References
    ----------
    Ward, "Hierarchical grouping to optimize an objective function", JASA 1963. Distances are updated by the formula of
    Lance and Williams, "A general theory of classificatory sorting strategies", The Computer Journal 1967.

    Examples
    --------
    Two clusters of 20 rows each, and a single row farther away: Ward's method keeps the large ones apart, the centroid
    method the far one.

    >>> points, sizes = np.array([[0.0], [1.0], [2.2]]), np.array([20, 20, 1])
    >>> merge_nearest(points, 2, sizes=sizes, size_weight=1.0)
    array([0, 1, 1])
    >>> merge_nearest(points, 2, sizes=sizes, size_weight=0.0)
    array([0, 0, 1])
    """
    points = np.asarray(points, np.float64)
    n_points = len(points)
    weight = np.ones(n_points) if sizes is None else np.asarray(sizes, np.float64).copy()
    with blas.one_blas_thread():
        square = np.square(points).sum(axis=1)
        distance = np.maximum(square[:, None] + square - 2 * (points @ points.T), 0)
    np.fill_diagonal(distance, np.inf)

    def costs(row: int) -> np.ndarray:
        cost: np.ndarray = (weight[row] * weight / (weight[row] + weight)) ** size_weight * distance[row]
        return cost

    nearest, lowest = np.empty(n_points, np.int64), np.empty(n_points)
    parent, alive = np.arange(n_points), np.ones(n_points, bool)

    def find_nearest(row: int) -> None:
        cost = costs(row)
        nearest[row] = cost.argmin()
        lowest[row] = cost[nearest[row]]

    for row in range(n_points):
        find_nearest(row)
    for _ in range(n_points - n_clusters):
        first = int(lowest.argmin())
        kept, gone = sorted((first, int(nearest[first])))
        a, b = weight[kept], weight[gone]
        between = distance[kept, gone]
        merged = (a * distance[kept] + b * distance[gone]) / (a + b) - a * b * between / (a + b) ** 2
        merged[[kept, gone]] = np.inf
        # Rounding may leave a distance of zero below zero.
        distance[kept] = distance[:, kept] = np.maximum(merged, 0)
        distance[gone] = distance[:, gone] = np.inf
        weight[kept], alive[gone], lowest[gone] = a + b, False, np.inf
        parent[parent == gone] = kept
        cost = costs(kept)
        stale = alive & ((nearest == kept) | (nearest == gone))
        closer = alive & ~stale & ((cost < lowest) | ((cost == lowest) & (kept < nearest)))
        nearest[closer], lowest[closer] = kept, cost[closer]
        stale[kept] = True
        for row in np.flatnonzero(stale).tolist():
            find_nearest(row)
    return np.unique(parent, return_inverse=True)[1].astype(np.int64)
