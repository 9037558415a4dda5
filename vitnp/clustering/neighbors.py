"""Exact nearest neighbors by cosine, without the matrix of all pairs."""

from __future__ import annotations

import numpy as np

from vitnp import kernels
from vitnp.errors import UsageError
from vitnp.kernels.threads import blas, pool, team

# Queries per kernel call, each of which packs all points again. Fixed, because a matrix product may round differently
# in another shape.
QUERY_ROWS = 4096


def nearest_neighbors(
    queries: np.ndarray,
    points: np.ndarray,
    n_neighbors: int,
    *,
    exclude_self: bool = False,
    n_threads: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Find the points with the highest cosine to each query, ties to the lower row.

    Computing takes as long as one product of all pairs; memory grows with the result only. The result does not depend
    on the number of threads.

    Parameters
    ----------
    queries : (M, D) float
        Rows of any length; a row of zeros has cosine 0 to every point.
    points : (N, D) float
    n_neighbors : int
        Number of neighbors per query: 1 to N, or to N - 1 with `exclude_self`.
    exclude_self : bool
        The queries are the points themselves, and no row is its own neighbor.
    n_threads : int, optional
        As in :func:`vitnp.kernels.threads.pool.resolve_n_threads`.

    Returns
    -------
    indices : (M, n_neighbors) int64
        Row numbers, nearest first.
    cosines : (M, n_neighbors) float32

    Raises
    ------
    UsageError
        If `n_neighbors` is less than 1, or more than there are points to choose from.

    Examples
    --------
    >>> queries, points = np.array([[2.0, 0.0]]), np.array([[0.0, 1.0], [0.8, 0.6], [1.0, 0.0]])
    >>> nearest_neighbors(queries, points, 2)
    (array([[2, 1]]), array([[1. , 0.8]], dtype=float32))
    """
    available = len(points) - exclude_self
    if not 1 <= n_neighbors <= available:
        raise UsageError(f"n_neighbors must be between 1 and the number of other rows, {available}, got {n_neighbors}")
    queries, points = np.asarray(queries, np.float32), np.asarray(points, np.float32)
    top = kernels.for_device().similarity_top
    indices = np.empty((len(queries), n_neighbors), np.int64)
    cosines = np.empty((len(queries), n_neighbors), np.float32)

    def search(first: int, last: int) -> None:
        own = first if exclude_self else None
        cosines[first:last], indices[first:last] = top(queries[first:last], points, n_neighbors, own=own)

    with blas.one_blas_thread(), pool.thread_limit(pool.resolve_n_threads(n_threads)):
        team.parallel_for(search, len(queries), QUERY_ROWS)
    return indices, cosines
