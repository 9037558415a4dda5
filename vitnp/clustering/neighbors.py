"""Exact nearest neighbors by cosine; the matrix of all pairs never exists."""

from __future__ import annotations

import numpy as np

from vitnp import kernels
from vitnp.errors import UsageError
from vitnp.kernels.threads import blas, pool, team

# Queries of one call of the kernel, which lays all others out anew. Fixed, because a matrix product may round differently in
# another shape.
QUERY_ROWS = 4096


def nearest_neighbors(
    queries: np.ndarray, others: np.ndarray, count: int, *, exclude_self: bool = False, n_threads: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The `count` rows of `others` with the highest cosine to each query; of equal ones the lower row.

    Time is one product of all pairs, memory grows with the answer alone. The answer doesn't depend on the number of threads.

    Parameters
    ----------
    queries : (M, D) float
        Of any length; a row of zeros has cosine 0 to everything.
    others : (N, D) float
    count : int
        1 to N, or to N - 1 with `exclude_self`.
    exclude_self : bool
        The queries are the others themselves, and no row is its own neighbor.
    n_threads : int, optional
        As in :func:`vitnp.kernels.threads.pool.resolve_n_threads`.

    Returns
    -------
    index : (M, count) int64
        Nearest first.
    cosine : (M, count) float32

    Raises
    ------
    UsageError
        When there are fewer rows than neighbors wanted.

    Examples
    --------
    >>> index, cosine = nearest_neighbors(np.array([[2.0, 0.0]]), np.array([[0.0, 1.0], [0.8, 0.6], [1.0, 0.0]]), 2)
    >>> index, cosine
    (array([[2, 1]]), array([[1. , 0.8]], dtype=float32))
    """
    available = len(others) - exclude_self
    if not 1 <= count <= available:
        raise UsageError(f"{count} neighbors of each row were asked for, but there are {available} other rows")
    queries, others = np.asarray(queries, np.float32), np.asarray(others, np.float32)
    top = kernels.for_device().similarity_top
    index, cosine = np.empty((len(queries), count), np.int64), np.empty((len(queries), count), np.float32)

    def search(first: int, last: int) -> None:
        own = first if exclude_self else None
        cosine[first:last], index[first:last] = top(queries[first:last], others, count, own=own)

    with blas.one_blas_thread(), pool.thread_limit(pool.resolve_n_threads(n_threads)):
        team.parallel_for(search, len(queries), QUERY_ROWS)
    return index, cosine
