"""Neighbors of the vertices of a bilateral grid, in one pass over the sorted vertices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import types
from vitnp.kernels.cpu.codegen.jit import kernel
from vitnp.kernels.cpu.lattice_build import array_in, array_out


def grid_neighbors(occupied: np.ndarray, strides: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    occupied = np.ascontiguousarray(occupied, np.int64)
    indptr = np.empty(len(occupied) + 1, np.int32)
    indices = np.empty(2 * len(strides) * len(occupied), np.int32)
    # From the smallest offset to the largest, so that the neighbors of a vertex are found in ascending order.
    offsets = np.array([*(-stride for stride in strides), *reversed(strides)], np.int64)
    _neighbors(occupied, offsets, np.zeros(len(offsets), np.int64), indptr, indices)
    return indptr, indices[: indptr[-1]].copy()


@kernel(
    array_in(1, types.int64),
    array_in(1, types.int64),
    array_out(1, types.int64),
    array_out(1, types.int32),
    array_out(1, types.int32),
)
def _neighbors(occupied, offsets, places, indptr, indices):
    """Write the neighbors of each vertex; `places` has, for each offset, where the search for the next one goes on."""
    n = len(occupied)
    end = 0
    indptr[0] = 0
    for i in range(n):
        for k in range(len(offsets)):
            wanted = occupied[i] + offsets[k]
            place = places[k]
            while place < n and occupied[place] < wanted:
                place += 1
            places[k] = place
            if place < n and occupied[place] == wanted:
                indices[end] = place
                end += 1
        indptr[i + 1] = end
