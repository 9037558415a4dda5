"""Cosine similarity between rows of two matrices.

Letters in shapes: N rows of x, K rows of y, D features.
"""

from __future__ import annotations

import numpy as np
from vitnp.kernels.reference.kmeans import kmeans_rows

# A block of cosines is 512 x 4,096 float32 = 8 MB. Products still run at full speed, and the selection that follows
# reads the block from a near cache. The sizes are fixed because a matrix product may round differently in another
# shape.
QUERY_ROWS = 512
OTHER_ROWS = 4096


def normalize_rows(x: np.ndarray) -> np.ndarray:
    """Scale rows to unit length; a row of zeros stays zero.

    Parameters
    ----------
    x : (..., D) float

    Returns
    -------
    (..., D) float

    Examples
    --------
    >>> normalize_rows(np.array([[3.0, 4.0], [0.0, 0.0]]))
    array([[0.6, 0.8],
           [0. , 0. ]])
    """
    length = np.sqrt(np.square(x).sum(axis=-1, keepdims=True))
    return x / np.where(length > 0, length, 1)


def similarity(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Compute the cosine similarity of every row of one matrix to every row of another.

    Parameters
    ----------
    x : (N, D) float
    y : (K, D) float
        Rows of either may have any length. A row of zeros has the cosine 0 to every other row.

    Returns
    -------
    (N, K) float
        float64 if either input is, else float32.

    Examples
    --------
    >>> similarity(np.array([[3.0, 4.0]]), np.array([[2.0, 0.0], [0.0, 0.0]]))
    array([[0.6, 0. ]])
    """
    dtype = np.result_type(x, y, np.float32)
    with np.errstate(invalid="ignore"):
        return kmeans_rows(x, dtype=dtype) @ kmeans_rows(y, dtype=dtype).T


def similarity_top(
    x: np.ndarray, y: np.ndarray, count: int, *, own: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Find the `count` rows of `y` that are most similar to each row of `x`, without storing all cosines.

    Parameters
    ----------
    x : (N, D) float
    y : (K, D) float
        As in :func:`similarity`.
    count : int
        1 to K, or to K - 1 with `own`.
    own : int, optional
        Declares that `x` is ``y[own : own + N]``. No row is then its own neighbor.

    Returns
    -------
    values : (N, count) float
        Cosines in descending order; float64 if either input is, else float32.
    indices : (N, count) int64
        Rows of `y`. Of equally similar rows the one with the lower index comes first.

    Examples
    --------
    >>> values, indices = similarity_top(np.array([[2.0, 0.0]]), np.array([[0.0, 1.0], [0.8, 0.6], [1.0, 0.0]]), 2)
    >>> values, indices
    (array([[1. , 0.8]]), array([[2, 1]]))
    """
    dtype = np.result_type(x, y, np.float32)
    others = kmeans_rows(y, dtype=dtype)
    values, indices = np.empty((len(x), count), dtype), np.empty((len(x), count), np.int64)
    for first in range(0, len(x), QUERY_ROWS):
        part = slice(first, first + QUERY_ROWS)
        rows = kmeans_rows(x[part], dtype=dtype)
        indices[part], values[part] = _search(rows, others, count, None if own is None else own + first)
    return values, indices


def _search(queries: np.ndarray, others: np.ndarray, count: int, own: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Find the neighbors of one block of queries: indices, then cosines, both (rows, count).

    Only cosines above the worst of a query's neighbors so far become candidates. Candidates are merged into the
    neighbors when there are as many candidates as neighbors: sorting then takes little time compared with the products,
    and the threshold still rises often enough to keep the list of candidates short.
    """
    rows = len(queries)
    best = (np.zeros((rows, count), np.int64), np.full((rows, count), -np.inf, queries.dtype))
    candidates: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    n_candidates = 0
    for start in range(0, len(others), OTHER_ROWS):
        with np.errstate(invalid="ignore"):
            cosine = queries @ others[start : start + OTHER_ROWS].T  # (rows, columns)
        columns = cosine.shape[1]
        if own is not None:
            selves = np.arange(max(own, start), min(own + rows, start + columns))
            cosine[selves - own, selves - start] = -np.inf
        if start == 0 and columns > count:
            # There is no threshold yet: use the count-th largest cosine of this block.
            above = cosine >= np.partition(cosine, -count, axis=1)[:, -count, None]
        else:
            # Of equal cosines the lower row wins, so a later row has to be strictly better.
            above = cosine > best[1][:, -1:]
        hits = np.flatnonzero(above)
        candidates.append((hits // columns, hits % columns + start, cosine.ravel()[hits]))
        n_candidates += len(hits)
        if n_candidates >= rows * count:
            best, candidates, n_candidates = _merge(best, candidates), [], 0
    return _merge(best, candidates)


def _merge(
    best: tuple[np.ndarray, np.ndarray], candidates: list[tuple[np.ndarray, np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """Merge candidates, as triples of arrays (query, row, cosine), into the neighbors found so far."""
    rows, count = best[0].shape
    neighbors = (np.repeat(np.arange(rows), count), best[0].ravel(), best[1].ravel())
    query, row, cosine = (np.concatenate(part) for part in zip(neighbors, *candidates))
    order = np.lexsort((row, -cosine, query))
    per_query = np.bincount(query, minlength=rows)
    rank = np.arange(len(order)) - np.repeat(np.cumsum(per_query) - per_query, per_query)
    kept = order[rank < count]
    return row[kept].reshape(rows, count), cosine[kept].reshape(rows, count)
