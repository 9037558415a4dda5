"""Exact nearest neighbours by cosine, in blocks: the matrix of all pairs never exists."""

from __future__ import annotations

import functools

import numpy as np

from vitnp import kernels, threads
from vitnp.errors import UsageError

# A block of similarities is 512 x 4,096 float32 = 8 MB a thread: products still run at full speed, the selection that follows
# reads it from a near cache. The sizes are fixed because a matrix product may round differently in another shape.
QUERY_ROWS = 512
OTHER_ROWS = 4096


def nearest_neighbours(
    queries: np.ndarray, others: np.ndarray, count: int, *, exclude_self: bool = False, thread_count: int | None = None
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
        The queries are the others themselves, and no row is its own neighbour.
    thread_count : int, optional
        As in :func:`vitnp.threads.thread_count`.

    Returns
    -------
    index : (M, count) int64
        Nearest first.
    cosine : (M, count) float32

    Raises
    ------
    UsageError
        When there are fewer rows than neighbours wanted.

    Examples
    --------
    >>> index, cosine = nearest_neighbours(np.array([[2.0, 0.0]]), np.array([[0.0, 1.0], [0.8, 0.6], [1.0, 0.0]]), 2)
    >>> index, cosine
    (array([[2, 1]]), array([[1. , 0.8]], dtype=float32))
    """
    available = len(others) - exclude_self
    if not 1 <= count <= available:
        raise UsageError(f"{count} neighbours of each row were asked for, but there are {available} other rows")
    unit = kernels.for_device().normalise_rows
    others = unit(np.asarray(others, np.float32))
    queries = others if exclude_self else unit(np.asarray(queries, np.float32))
    search = functools.partial(_search, queries, others, count, exclude_self)
    with threads.one_blas_thread():
        found = list(threads.in_order(search, range(0, len(queries), QUERY_ROWS), threads.thread_count(thread_count)))
    if not found:
        return np.empty((0, count), np.int64), np.empty((0, count), np.float32)
    return tuple(np.concatenate(part) for part in zip(*found))


def _search(
    queries: np.ndarray, others: np.ndarray, count: int, exclude_self: bool, first: int
) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours of one block of queries, which starts at row `first`.

    Only what beats a query's worst neighbour so far is looked at again. Candidates are pooled until there are as many as
    neighbours: then the sorting costs little beside the products, and the bar still rises often enough to keep the pool small.
    """
    block = queries[first : first + QUERY_ROWS]
    rows = len(block)
    best = (np.zeros((rows, count), np.int64), np.full((rows, count), -np.inf, np.float32))
    pool, pooled = [], 0
    for start in range(0, len(others), OTHER_ROWS):
        cosine = block @ others[start : start + OTHER_ROWS].T  # (rows, columns)
        columns = cosine.shape[1]
        if exclude_self:
            own = np.arange(max(first, start), min(first + rows, start + columns))
            cosine[own - first, own - start] = -np.inf
        if start == 0 and columns > count:
            # No bar yet: the block's own count-th best is one.
            hits = cosine >= np.partition(cosine, -count, axis=1)[:, -count, None]
        else:
            # Later rows lose a tie, so equal isn't enough.
            hits = cosine > best[1][:, -1:]
        hits = np.flatnonzero(hits)
        pool.append((hits // columns, hits % columns + start, cosine.ravel()[hits]))
        pooled += len(hits)
        if pooled >= rows * count:
            best, pool, pooled = _merge(best, pool), [], 0
    return _merge(best, pool)


def _merge(
    best: tuple[np.ndarray, np.ndarray], pool: list[tuple[np.ndarray, np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """The best of the neighbours so far and the candidates (query, row, cosine) of the pool."""
    rows, count = best[0].shape
    so_far = (np.repeat(np.arange(rows), count), best[0].ravel(), best[1].ravel())
    query, row, cosine = (np.concatenate(part) for part in zip(so_far, *pool))
    order = np.lexsort((row, -cosine, query))
    members = np.bincount(query, minlength=rows)
    rank = np.arange(len(order)) - np.repeat(np.cumsum(members) - members, members)
    kept = order[rank < count]
    return row[kept].reshape(rows, count), cosine[kept].reshape(rows, count)
