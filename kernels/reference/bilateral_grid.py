"""Vertices of a bilateral grid and their neighbors; see :mod:`vitnp.refine.bilateral_solver`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def grid_neighbors(occupied: np.ndarray, strides: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Find the neighbors of each vertex of a grid: those whose number is one stride smaller or larger.

    Parameters
    ----------
    occupied : (M,) int64
        Numbers of the vertices, ascending and distinct.
    strides : sequence of int
        Positive strides of the axes, descending and distinct.

    Returns
    -------
    indptr : (M + 1,) int32
    indices : (nnz,) int32
        Positions of the neighbors of vertex i in ``indices[indptr[i]:indptr[i + 1]]``, ascending: the structure of a
        matrix in compressed sparse row format.

    Examples
    --------
    >>> indptr, indices = grid_neighbors(np.array([0, 1, 4, 5]), [4, 1])
    >>> [indices[start:end].tolist() for start, end in zip(indptr, indptr[1:])]
    [[1, 2], [0, 3], [0, 3], [1, 2]]
    """
    lower, upper = [], []
    for stride in strides:
        candidate = np.searchsorted(occupied, occupied + stride).clip(max=len(occupied) - 1)
        matched = np.flatnonzero(occupied[candidate] == occupied + stride)
        lower.append(matched)
        upper.append(candidate[matched])
    i, j = np.concatenate(lower), np.concatenate(upper)
    row, column = np.concatenate((i, j)), np.concatenate((j, i))
    order = np.lexsort((column, row))
    indptr = np.zeros(len(occupied) + 1, np.int32)
    np.cumsum(np.bincount(row, minlength=len(occupied)), out=indptr[1:])
    return indptr, column[order].astype(np.int32)
