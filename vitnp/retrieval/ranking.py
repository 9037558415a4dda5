"""Exact search: the rows with the highest cosine to a query, in bounded memory."""

from __future__ import annotations

import numpy as np

from vitnp import kernels
from vitnp.kernels.threads import blas, pool

# Rows and queries whose cosines are held at a time: 16 MB. Fixed, so that the work is the same on every machine.
_ROWS, _QUERIES = 16_384, 256

# More than a cosine in float32 may be off; candidates this close to the last one are compared in float64.
_SLACK = 1e-4


def nearest_rows(
    queries: np.ndarray, vectors: np.ndarray, rows: np.ndarray, count: int, *, n_threads: int | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Find the vectors with the highest cosine to each query; of equal ones, those that come first.

    The cosines in float32 only choose candidates: what is returned, and the order, is that of float64.

    Parameters
    ----------
    queries : (M, D) float32
        Of length 1, or zeros.
    vectors : (N, D) float32
        Of length 1.
    rows : (n,) int
        Rows of `vectors` to search, in the order that decides ties.
    count : int
        Number of neighbors per query; fewer if there are fewer rows.
    n_threads : int, optional
        As in :func:`vitnp.kernels.threads.pool.resolve_n_threads`; the result does not depend on it.

    Returns
    -------
    list of ((count,) int64, (count,) float64)
        For each query positions in `rows`, nearest first, and their cosines.

    Examples
    --------
    >>> vectors = np.array([[1, 0], [0, 1], [0.6, 0.8], [1, 0]], np.float32)
    >>> [(positions, cosines)] = nearest_rows(vectors[:1], vectors, np.array([1, 2, 3, 0]), 3)
    >>> positions, cosines.round(3)
    (array([2, 3, 1]), array([1. , 1. , 0.6]))
    """
    found: list[tuple[np.ndarray, np.ndarray]] = []
    with blas.one_blas_thread(), pool.thread_limit(pool.resolve_n_threads(n_threads)):
        for first in range(0, len(queries), _QUERIES):
            found += _search(queries[first : first + _QUERIES], vectors, rows, count)
    return found


def _search(
    queries: np.ndarray, vectors: np.ndarray, rows: np.ndarray, count: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    best = [(np.empty(0, np.int64), np.empty(0)) for _ in queries]
    similarity = kernels.for_device().similarity
    for start in range(0, len(rows), _ROWS):
        block = vectors[rows[start : start + _ROWS]]
        cosines = similarity(queries, block)
        for index, query in enumerate(queries):
            near = _candidates(cosines[index], best[index][1], count)
            positions = np.concatenate([best[index][0], start + near])
            exact = np.concatenate([best[index][1], exact_cosines(query, block[near])])
            order = np.lexsort((positions, -exact))[:count]
            best[index] = positions[order], exact[order]
    return best


def _candidates(cosines: np.ndarray, best: np.ndarray, count: int) -> np.ndarray:
    """Return where cosines may be among the `count` largest ones, given the best so far."""
    limits = [best[-1]] if len(best) == count else []
    if len(cosines) > count:
        limits.append(np.partition(cosines, -count)[-count])
    return np.flatnonzero(cosines >= max(limits) - _SLACK) if limits else np.arange(len(cosines))


def exact_cosines(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the cosines of pairs of vectors in float64; equal pairs have equal ones to the bit, wherever they are.

    Parameters
    ----------
    x, y : (n, D) or (D,) float
        None of zeros only.

    Returns
    -------
    (n,) float64

    Examples
    --------
    >>> exact_cosines(np.array([2.0, 0.0]), np.array([[3.0, 4.0], [1.0, 0.0]]))
    array([0.6, 1. ])
    """
    # Sums over rows, not a product of matrices, whose rounding depends on the place of a row.
    x, y = x.astype(np.float64), y.astype(np.float64)
    lengths = np.sqrt(np.square(x).sum(axis=-1) * np.square(y).sum(axis=-1))
    return (x * y).sum(axis=-1) / lengths
