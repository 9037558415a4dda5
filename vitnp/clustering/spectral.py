"""Spectral clustering of features: groups that hang together through near neighbors, whatever their shape.

Exact graph of the nearest neighbors by cosine, leading eigenvectors of its normalized adjacency matrix, k-means on their rows
(Ng, Jordan and Weiss 2001; von Luxburg 2007). Memory grows with the number of rows, never with its square.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from vitnp import kernels
from vitnp.clustering.kmeans import KMeans
from vitnp.clustering.neighbors import nearest_neighbors
from vitnp.errors import UsageError
from vitnp.kernels.threads import blas

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

# Up to here all eigenvectors of the full matrix are found at once: under a second, 32 MB, and no iteration that may end early.
DENSE_ROWS = 1500
# Up to so many vectors are iterated together. A block finds all vectors of a multiple eigenvalue and uses no random numbers but
# ours; its cost grows with the square of the vectors, so for more Lanczos takes over, which goes one vector at a time.
BLOCK_VECTORS = 64
# Vectors beyond those wanted, which let the last of those converge, and where the iterations end: what they haven't told
# apart by then are directions that no clustering should hang on.
SPARE_VECTORS = 8
MAX_ITERATIONS = 200
TOLERANCE = 1e-4


def spectral_clusters(
    x: np.ndarray,
    clusters: int,
    *,
    neighbors: int = 30,
    starts: int = 10,
    seed: int = 0,
    n_threads: int | None = None,
) -> np.ndarray:
    """Cluster rows by the graph of their nearest neighbors.

    Rows alike to the bit are one node of the graph and get one label. Where the graph falls into more pieces than clusters,
    whole pieces are clustered instead, by their mean directions, in the same way.

    Parameters
    ----------
    x : (N, D) float
        CLS tokens, of any length: only directions count.
    clusters : int
        1 to N.
    neighbors : int
        Of each row; all the others where there are fewer.
    starts : int
        Of k-means on the eigenvectors.
    seed : int
        Decides where the iterations begin, hence the answer.
    n_threads : int, optional
        As in :func:`vitnp.kernels.threads.pool.resolve_n_threads`; the answer doesn't depend on it.

    Returns
    -------
    (N,) int64
        Labels by falling size of the clusters, the one that appears first among equals; fewer labels than clusters when fewer
        rows differ.

    Raises
    ------
    UsageError
        For more clusters than rows, or rows that are not finite.

    Examples
    --------
    >>> angle = np.array([0.0, 0.1, 0.2, 1.5, 1.6])
    >>> spectral_clusters(np.stack([np.cos(angle), np.sin(angle)], axis=1), 2, neighbors=1)
    array([0, 0, 0, 1, 1])
    """
    x = np.asarray(x)
    if x.ndim != 2:
        raise UsageError(f"spectral clustering needs rows of numbers, (N, D), but the shape is {x.shape}")
    if not 1 <= clusters <= len(x):
        raise UsageError(f"{clusters} clusters can't be made of {len(x)} rows; ask for 1 to {len(x)}")
    for name, value in ("neighbors", neighbors), ("starts", starts):
        if value < 1:
            raise UsageError(f"the number of {name} is {value}; choose 1 or more")
    finite = np.isfinite(x).all(axis=1)
    if not finite.all():
        raise UsageError(f"row {int(finite.argmin())} of the features is not finite; leave it out or repair it")
    unit = kernels.for_device().normalize_rows(x.astype(np.float32))
    first, node = _distinct(unit)
    labels = _cluster(unit[first], clusters, neighbors, starts, seed, n_threads)[node]
    return _by_size(labels)


def neighbor_graph(x: np.ndarray, neighbors: int, *, n_threads: int | None = None) -> csr_matrix:
    """Symmetric graph of the nearest neighbors by cosine.

    Parameters
    ----------
    x : (N, D) float
        N >= 2.
    neighbors : int
        Of each row; all the others where there are fewer.
    n_threads : int, optional

    Returns
    -------
    (N, N) scipy.sparse.csr_matrix, float64
        1 where two rows are among each other's neighbors, 1/2 where one alone sees the other, as in the mean of the graph and
        its transpose. Cosines as weights cluster no better, and say little where all rows are alike.

    Examples
    --------
    >>> neighbor_graph(np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), 1).toarray()
    array([[0. , 1. , 0. ],
           [1. , 0. , 0.5],
           [0. , 0.5, 0. ]])
    """
    from scipy.sparse import csr_matrix

    rows, count = len(x), min(neighbors, len(x) - 1)
    index, _ = nearest_neighbors(x, x, count, exclude_self=True, n_threads=n_threads)
    seen = csr_matrix(
        (np.full(rows * count, 0.5), index.ravel(), np.arange(0, rows * count + 1, count)), shape=(rows, rows)
    )
    return (seen + seen.T).tocsr()


def spectral_embedding(graph: csr_matrix, dimensions: int, *, seed: int = 0) -> np.ndarray:
    """Leading eigenvectors of the normalized adjacency matrix, those of the normalized Laplacian's smallest eigenvalues.

    The eigenvectors to the eigenvalue 1 are known beforehand: one for each connected piece of the graph. The others are
    found beside them, so pieces can't hide one another and a multiple eigenvalue is no trouble.

    Parameters
    ----------
    graph : (N, N) scipy.sparse matrix, float
        Symmetric, non-negative, every row with an entry.
    dimensions : int
        Number of vectors, at least the number of connected pieces, at most N.
    seed : int
        Of the vectors that the iterations begin with.

    Returns
    -------
    (N, dimensions) float64
        Orthonormal columns by falling eigenvalue; in each the entry largest in size, the first of equal ones, is positive.

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

    pieces, piece = connected_components(graph, directed=False)
    degree = np.asarray(graph.sum(axis=1)).ravel()
    scale = diags(1 / np.sqrt(degree))
    adjacency = (scale @ graph @ scale).tocsr()
    known = np.sqrt(degree)[:, None] * (piece[:, None] == np.arange(pieces))  # (N, pieces)
    known /= np.sqrt(np.square(known).sum(axis=0))
    vectors = np.concatenate([known, _eigenvectors(adjacency, known, dimensions - pieces, seed)], axis=1)
    # Where two entries are equally large but for rounding, the first one decides.
    size = np.abs(vectors)
    peak = (size > 0.999 * size.max(axis=0)).argmax(axis=0)
    return vectors * np.where(vectors[peak, np.arange(dimensions)] < 0, -1.0, 1.0)


def _eigenvectors(adjacency: csr_matrix, known: np.ndarray, wanted: int, seed: int) -> np.ndarray:
    """Eigenvectors (N, wanted) to the largest eigenvalues beside the known ones, by falling eigenvalue.

    The largest of the adjacency matrix are the smallest of the Laplacian, and there products alone reach them: no factorisation.
    """
    from scipy.sparse.linalg import LinearOperator, eigsh, lobpcg

    rows = adjacency.shape[0]
    if wanted == 0:
        return np.empty((rows, 0))
    rng = np.random.default_rng(seed)
    with blas.one_blas_thread():  # entered after the import: SciPy brings a BLAS of its own
        if rows <= DENSE_ROWS:
            # The spectrum lies within [-1, 1]; the known vectors are moved from its top to below its end.
            values, vectors = np.linalg.eigh(adjacency.toarray() - 3 * known @ known.T)
        elif wanted <= BLOCK_VECTORS:
            begin = rng.standard_normal((rows, wanted + SPARE_VECTORS))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # an early end is accepted, see above
                values, vectors = lobpcg(adjacency, begin, Y=known, largest=True, tol=TOLERANCE, maxiter=MAX_ITERATIONS)
        else:
            moved = LinearOperator(
                adjacency.shape, lambda vector: adjacency @ vector - 3 * (known @ (known.T @ vector)), dtype=np.float64
            )
            values, vectors = eigsh(moved, wanted, which="LA", v0=rng.standard_normal(rows), tol=TOLERANCE)
    return vectors[:, np.argsort(-values, kind="stable")[:wanted]]


def _cluster(x: np.ndarray, clusters: int, neighbors: int, starts: int, seed: int, n_threads: int | None) -> np.ndarray:
    """Labels of distinct unit rows, (N,)."""
    from scipy.sparse.csgraph import connected_components

    if len(x) <= clusters:
        return np.arange(len(x))
    if clusters == 1:
        return np.zeros(len(x), np.int64)
    graph = neighbor_graph(x, neighbors, n_threads=n_threads)
    pieces, piece = connected_components(graph, directed=False)
    if pieces >= clusters:
        sums = np.stack([np.bincount(piece, weights=column, minlength=pieces) for column in x.T], axis=1)
        means = kernels.for_device().normalize_rows(sums).astype(np.float32)
        return _cluster(means, clusters, neighbors, starts, seed, n_threads)[piece]
    vectors = spectral_embedding(graph, clusters, seed=seed)
    model = KMeans(clusters, n_init=starts, max_iter=100, seed=seed, n_threads=n_threads)
    return model.fit(vectors).labels_.astype(np.int64)  # by cosine: rows count by their direction, as in Ng et al.


def _distinct(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First row of each kind in order, and every row's kind."""
    kinds: dict[bytes, int] = {}
    kind = np.array(
        [kinds.setdefault(row.tobytes(), len(kinds)) for row in x + 0.0]
    )  # + 0.0 makes -0.0 and 0.0 the same
    return np.unique(kind, return_index=True)[1], kind


def _by_size(labels: np.ndarray) -> np.ndarray:
    """Labels renumbered by falling size, first appearance among equals."""
    _, first, inverse, counts = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(counts), np.int64)
    rank[np.lexsort((first, -counts))] = np.arange(len(counts))
    return rank[inverse]
