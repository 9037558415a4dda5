"""Spectral clustering of features: groups connected through near neighbors, whatever their shape.

The exact graph of nearest neighbors by cosine, the leading eigenvectors of its normalized adjacency matrix, and k-means
on the rows of these (Ng, Jordan and Weiss 2001; von Luxburg 2007). Memory grows with the number of rows, not with its
square.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from vitnp import kernels
from vitnp.clustering.kmeans import KMeans
from vitnp.clustering.neighbors import nearest_neighbors
from vitnp.clustering.rows import check_rows, distinct_rows, sort_by_size
from vitnp.errors import UsageError
from vitnp.kernels.threads import blas

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

# Up to this many rows all eigenvectors of the dense matrix are computed: under a second, 32 MB, and no iteration to
# converge.
DENSE_ROWS = 1500
# Up to this many eigenvectors are iterated as a block (LOBPCG), which finds all vectors of a multiple eigenvalue and
# takes its random numbers from us. Its cost grows with the square of their number; beyond, Lanczos iterates one vector
# at a time.
BLOCK_VECTORS = 64
# Additional vectors, with which the last of the requested ones converge faster, and the limits of the iterations:
# directions that are not separated by then should not decide a clustering.
EXTRA_VECTORS = 8
MAX_ITERATIONS = 200
TOLERANCE = 1e-4


def spectral_clusters(
    x: np.ndarray,
    n_clusters: int,
    *,
    neighbors: int = 30,
    starts: int = 10,
    seed: int = 0,
    n_threads: int | None = None,
) -> np.ndarray:
    """Cluster rows by the graph of their nearest neighbors.

    Identical rows are one node of the graph and get one label. If the graph has more connected components than
    clusters, whole components are clustered instead, by their mean directions, in the same way.

    Parameters
    ----------
    x : (N, D) float
        Features, such as CLS tokens; only their directions count.
    n_clusters : int
        1 to N.
    neighbors : int
        Number of neighbors of each row; all other rows if there are fewer.
    starts : int
        Number of k-means++ starts on the eigenvectors.
    seed : int
        Seed of the initial vectors and of k-means.
    n_threads : int, optional
        As in :func:`vitnp.kernels.threads.pool.resolve_n_threads`; the result does not depend on it.

    Returns
    -------
    (N,) int64
        Labels by falling cluster size, in order of first appearance if equal. There are fewer labels than clusters if
        there are fewer distinct rows.

    Raises
    ------
    UsageError
        If there are more clusters than rows, or a row is not finite.

    Examples
    --------
    >>> angle = np.array([0.0, 0.1, 0.2, 1.5, 1.6])
    >>> spectral_clusters(np.stack([np.cos(angle), np.sin(angle)], axis=1), 2, neighbors=1)
    array([0, 0, 0, 1, 1])
    """
    x = check_rows(x, n_clusters)
    for name, value in ("neighbors", neighbors), ("starts", starts):
        if value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}")
    unit = kernels.for_device().normalize_rows(x.astype(np.float32))
    first, node = distinct_rows(unit)
    labels = _cluster(unit[first], n_clusters, neighbors, starts, seed, n_threads)[node]
    return sort_by_size(labels)


def neighbor_graph(x: np.ndarray, neighbors: int, *, n_threads: int | None = None) -> csr_matrix:
    """Build the symmetric graph of nearest neighbors by cosine.

    Parameters
    ----------
    x : (N, D) float
        N >= 2.
    neighbors : int
        Number of neighbors of each row; all other rows if there are fewer.
    n_threads : int, optional

    Returns
    -------
    (N, N) scipy.sparse.csr_matrix, float64
        1 where two rows are neighbors of each other, 1/2 where only one is a neighbor of the other: the mean of the
        directed graph and its transpose. Cosines as weights cluster no better, and differ little where all rows are
        similar.

    Examples
    --------
    >>> neighbor_graph(np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), 1).toarray()
    array([[0. , 1. , 0. ],
           [1. , 0. , 0.5],
           [0. , 0.5, 0. ]])
    """
    from scipy.sparse import csr_matrix

    n_rows, degree = len(x), min(neighbors, len(x) - 1)
    indices, _ = nearest_neighbors(x, x, degree, exclude_self=True, n_threads=n_threads)
    indptr = np.arange(0, n_rows * degree + 1, degree)
    directed = csr_matrix((np.full(n_rows * degree, 0.5), indices.ravel(), indptr), shape=(n_rows, n_rows))
    return (directed + directed.T).tocsr()


def spectral_embedding(graph: csr_matrix, n_components: int, *, seed: int = 0) -> np.ndarray:
    """Compute the leading eigenvectors of the normalized adjacency matrix D^-1/2 A D^-1/2 of a graph.

    They are the eigenvectors of the smallest eigenvalues of the normalized Laplacian. Those of eigenvalue 1 are known
    in closed form, one per connected component of the graph, and the others are computed orthogonal to them: so a graph
    in several components, where this eigenvalue is multiple, needs no special care.

    Parameters
    ----------
    graph : (N, N) scipy.sparse matrix, float
        Symmetric, non-negative, with an entry in every row.
    n_components : int
        Number of eigenvectors: at least the number of connected components, at most N.
    seed : int
        Seed of the initial vectors.

    Returns
    -------
    (N, n_components) float64
        Orthonormal columns by falling eigenvalue. In each column the entry of largest magnitude (the first one if
        equal) is positive.

    Examples
    --------
    >>> from scipy.sparse import csr_matrix
    >>> path = csr_matrix(np.diag([1.0, 1.0], 1) + np.diag([1.0, 1.0], -1))
    >>> spectral_embedding(path, 2).round(3) + 0.0  # no negative zero
    array([[ 0.5  ,  0.707],
           [ 0.707,  0.   ],
           [ 0.5  , -0.707]])
    """
    from scipy.sparse import diags
    from scipy.sparse.csgraph import connected_components

    n_parts, part = connected_components(graph, directed=False)
    degree = np.asarray(graph.sum(axis=1)).ravel()
    scale = diags(1 / np.sqrt(degree))
    adjacency = (scale @ graph @ scale).tocsr()
    known = np.sqrt(degree)[:, None] * (part[:, None] == np.arange(n_parts))  # (N, n_parts)
    known /= np.sqrt(np.square(known).sum(axis=0))
    vectors = np.concatenate([known, _eigenvectors(adjacency, known, n_components - n_parts, seed)], axis=1)
    # Entries that are equal except for rounding count as equal.
    magnitude = np.abs(vectors)
    peak = (magnitude > 0.999 * magnitude.max(axis=0)).argmax(axis=0)
    return vectors * np.where(vectors[peak, np.arange(n_components)] < 0, -1.0, 1.0)


def _eigenvectors(adjacency: csr_matrix, known: np.ndarray, n_vectors: int, seed: int) -> np.ndarray:
    """Compute the leading eigenvectors orthogonal to the known ones, (N, n_vectors), by falling eigenvalue.

    The largest eigenvalues of the adjacency matrix are the smallest of the Laplacian, but iterations reach them with
    products alone, without a factorization.
    """
    from scipy.sparse.linalg import LinearOperator, eigsh, lobpcg

    rows = adjacency.shape[0]
    if n_vectors == 0:
        return np.empty((rows, 0))
    rng = np.random.default_rng(seed)
    with blas.one_blas_thread():  # entered after the import, because SciPy brings a BLAS of its own
        if rows <= DENSE_ROWS:
            # The spectrum lies within [-1, 1]; this moves the known vectors from its upper end to below its lower one.
            values, vectors = np.linalg.eigh(adjacency.toarray() - 3 * known @ known.T)
        elif n_vectors <= BLOCK_VECTORS:
            start = rng.standard_normal((rows, n_vectors + EXTRA_VECTORS))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # not converged: accepted, see TOLERANCE
                values, vectors = lobpcg(adjacency, start, Y=known, largest=True, tol=TOLERANCE, maxiter=MAX_ITERATIONS)
        else:
            shifted = LinearOperator(
                adjacency.shape, lambda vector: adjacency @ vector - 3 * (known @ (known.T @ vector)), dtype=np.float64
            )
            values, vectors = eigsh(shifted, n_vectors, which="LA", v0=rng.standard_normal(rows), tol=TOLERANCE)
    return vectors[:, np.argsort(-values, kind="stable")[:n_vectors]]


def _cluster(
    x: np.ndarray, n_clusters: int, neighbors: int, starts: int, seed: int, n_threads: int | None
) -> np.ndarray:
    """Return labels (N,) of distinct unit rows."""
    from scipy.sparse.csgraph import connected_components

    if len(x) <= n_clusters:
        return np.arange(len(x))
    if n_clusters == 1:
        return np.zeros(len(x), np.int64)
    graph = neighbor_graph(x, neighbors, n_threads=n_threads)
    n_parts, part = connected_components(graph, directed=False)
    if n_parts >= n_clusters:
        sums = np.stack([np.bincount(part, weights=column, minlength=n_parts) for column in x.T], axis=1)
        means = kernels.for_device().normalize_rows(sums).astype(np.float32)
        return _cluster(means, n_clusters, neighbors, starts, seed, n_threads)[part]
    vectors = spectral_embedding(graph, n_clusters, seed=seed)
    # Spherical k-means uses the rows of the eigenvectors by their direction, as Ng et al. do.
    model = KMeans(n_clusters, n_init=starts, max_iter=100, random_state=seed, n_jobs=n_threads)
    return model.fit(vectors).labels_.astype(np.int64)
