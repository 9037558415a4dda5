"""Agglomerative clustering of features on the graph of their nearest neighbors: clusters of very different sizes.

k-means, also as the last step of spectral clustering, prefers clusters of equal size: it divides large ones and joins
small ones. Here rows are first moved to the mean of their neighborhood, twice, which pulls the members of a cluster
together whatever its size (the smoothing of AGC, Zhang et al., IJCAI 2019, and of SGC, Wu et al., ICML 2019); then the
nearest are merged (:mod:`vitnp.clustering.linkage`); then each row joins the cluster with the nearest mean.
"""

from __future__ import annotations

import numpy as np

from vitnp import kernels
from vitnp.clustering.kmeans import KMeans
from vitnp.clustering.linkage import merge_nearest
from vitnp.clustering.rows import check_rows, distinct_rows, sort_by_size
from vitnp.clustering.spectral import neighbor_graph
from vitnp.errors import UsageError
from vitnp.kernels.threads import blas

# More rows than this are first grouped by k-means into this many, which are then merged: the costs of all pairs of
# fifty thousand rows would take 20 GB.
MAX_POINTS = 2000
# Neighbors of a row, and how often it is moved to their mean: more of them reach beyond the smallest clusters.
N_NEIGHBORS = 5
STEPS = 2
# At most this many times all rows join the cluster with the nearest mean; two or three are usually enough.
MAX_REASSIGNMENTS = 5


def agglomerative_clusters(
    x: np.ndarray,
    n_clusters: int,
    *,
    neighbors: int = N_NEIGHBORS,
    size_weight: float = 0.5,
    seed: int = 0,
    n_threads: int | None = None,
) -> np.ndarray:
    """Cluster rows by merging the nearest on the graph of their nearest neighbors.

    Parameters
    ----------
    x : (N, D) float
        Features, such as CLS tokens; only their directions count, seen from the mean direction of all.
    n_clusters : int
        1 to N.
    neighbors : int
        Number of neighbors of each row; of few rows, at most a fifth of them, or two.
    size_weight : float
        0 to 1, see :func:`vitnp.clustering.linkage.merge_nearest`.
    seed : int
        Seed of k-means, which only groups more than :data:`MAX_POINTS` rows: below, the result does not depend on it.
    n_threads : int, optional
        As in :func:`vitnp.kernels.threads.pool.resolve_n_threads`; the result does not depend on it.

    Returns
    -------
    (N,) int64
        Labels by falling cluster size, in order of first appearance if equal. Identical rows get one label; there are
        fewer labels than clusters if there are fewer distinct rows.

    Raises
    ------
    UsageError
        If there are more clusters than rows, or a row is not finite.

    Examples
    --------
    >>> angle = np.array([0.0, 0.05, 0.1, 0.15, 0.2, 1.5, 1.55, 1.6, 3.0, 3.05])
    >>> agglomerative_clusters(np.stack([np.cos(angle), np.sin(angle)], axis=1), 3)
    array([0, 0, 0, 0, 0, 1, 1, 1, 2, 2])
    """
    x = check_rows(x, n_clusters)
    if neighbors < 1:
        raise UsageError(f"neighbors must be at least 1, got {neighbors}")
    if not 0 <= size_weight <= 1:
        raise UsageError(f"size_weight must be between 0 and 1, got {size_weight}")
    first, node = distinct_rows(kernels.for_device().normalize_rows(x.astype(np.float32)))
    unit, _ = center_directions(x)
    unit = unit[first]
    if len(unit) <= n_clusters:
        labels = np.arange(len(unit))
    elif n_clusters == 1:
        labels = np.zeros(len(unit), np.int64)
    else:
        smooth = smooth_rows(unit, min(neighbors, max(2, len(unit) // 5)), STEPS, n_threads=n_threads)
        labels = _reassign(unit, _merge(smooth, n_clusters, size_weight, seed, n_threads))
    return sort_by_size(labels[node])


def center_directions(x: np.ndarray, mean: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Subtract the mean direction, which tokens of a network have largely in common.

    Parameters
    ----------
    x : (N, D) float
        Rows of any length.
    mean : (D,) float, optional
        Mean of other rows normalized to unit length; that of these by default.

    Returns
    -------
    unit : (N, D) float64
        Differences to the mean, normalized to unit length.
    mean : (D,) float64

    Examples
    --------
    >>> center_directions(np.array([[2.0, 0.0], [0.0, 1.0]]))[0].round(3)
    array([[ 0.707, -0.707],
           [-0.707,  0.707]])
    """
    normalize = kernels.for_device().normalize_rows
    unit = normalize(np.asarray(x, np.float64))
    mean = unit.mean(axis=0) if mean is None else np.asarray(mean, np.float64)
    return normalize(unit - mean), mean


def cluster_means(unit: np.ndarray, labels: np.ndarray, n_clusters: int) -> np.ndarray:
    """Return the mean of the rows of each cluster, normalized to unit length: (n_clusters, D) float64."""
    sums = np.zeros((n_clusters, unit.shape[1]))
    np.add.at(sums, labels, unit)
    return np.asarray(kernels.for_device().normalize_rows(sums))


def smooth_rows(unit: np.ndarray, neighbors: int, steps: int, *, n_threads: int | None = None) -> np.ndarray:
    """Move each row to the mean of itself and its neighbors in the graph, `steps` times.

    Parameters
    ----------
    unit : (N, D) float
        N >= 2 rows of unit length.
    neighbors : int
        Neighbors of each row, see :func:`vitnp.clustering.spectral.neighbor_graph`.
    steps : int
    n_threads : int, optional

    Returns
    -------
    (N, D) float64
        Rows of unit length.
    """
    from scipy.sparse import diags, identity

    graph = neighbor_graph(unit, neighbors, n_threads=n_threads) + identity(len(unit), format="csr")
    walk = diags(1 / np.asarray(graph.sum(axis=1)).ravel()) @ graph
    smooth = np.asarray(unit, np.float64)
    for _ in range(steps):
        smooth = walk @ smooth
    return np.asarray(kernels.for_device().normalize_rows(smooth))


def _merge(x: np.ndarray, n_clusters: int, size_weight: float, seed: int, n_threads: int | None) -> np.ndarray:
    """Return labels (N,) of smoothed rows."""
    if len(x) <= MAX_POINTS:
        return merge_nearest(x, n_clusters, size_weight=size_weight)
    # With nearly as many clusters as points there would be nothing to merge: k-means makes the clusters.
    n_points = MAX_POINTS if 2 * n_clusters <= MAX_POINTS else n_clusters
    model = KMeans(n_points, n_init=1, max_iter=10, random_state=seed, n_jobs=n_threads).fit(x)
    used, point = np.unique(model.labels_, return_inverse=True)
    if len(used) <= n_clusters:
        return point.astype(np.int64)
    sizes = np.bincount(point)
    sums = np.zeros((len(used), x.shape[1]))
    np.add.at(sums, point, x)
    return merge_nearest(sums / sizes[:, None], n_clusters, sizes=sizes, size_weight=size_weight)[point]


def _reassign(unit: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Let rows join the cluster with the nearest mean until none changes, or a cluster would lose its last row."""
    n_clusters = int(labels.max()) + 1
    for _ in range(MAX_REASSIGNMENTS):
        with blas.one_blas_thread():
            nearest = (unit @ cluster_means(unit, labels, n_clusters).T).argmax(axis=1)
        if (nearest == labels).all() or len(np.unique(nearest)) < n_clusters:
            break
        labels = nearest
    return labels
