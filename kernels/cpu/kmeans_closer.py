"""Losses of all rows for candidate centroids: one pass over the rows for each centroid that k-means++ chooses."""

from __future__ import annotations

import numpy as np
from vitnp.kernels import reference
from vitnp.kernels.cpu.codegen import types
from vitnp.kernels.cpu.codegen.jit import IN, OUT, kernel
from vitnp.kernels.cpu.codegen.products import copy_rows, distances, pack, padded_columns, products
from vitnp.kernels.cpu.codegen.rows import (
    FAR_AHEAD,
    MATRIX_IN,
    ROWS,
    WORKSPACE,
    divide_workspace,
    new_row_numbers,
    read_row,
    readable_rows,
    round_up,
    row_norm,
    workspace_size,
)
from vitnp.kernels.cpu.codegen.workspace import workspace
from vitnp.kernels.cpu.kmeans_rows import EMPTY, FLOAT32_ROWS, at_least_two_vectors
from vitnp.kernels.threads import team

# Multiplications that take as long as waking another thread, which is not worth it for fewer.
MIN_WORK_PER_THREAD = 2**22


def kmeans_closer(
    x: np.ndarray,
    candidates: np.ndarray,
    nearest: np.ndarray | None,
    *,
    metric: str = "cosine",
    shift: np.ndarray | None = None,
) -> np.ndarray:
    if candidates.dtype != np.float32:
        return reference.kmeans_closer(x, candidates, nearest, metric=metric, shift=shift)
    x, dtype_code = readable_rows(x)
    candidates = np.ascontiguousarray(candidates)
    out = np.empty((len(x), len(candidates)), np.float32)
    wide, n = at_least_two_vectors(len(candidates)), at_least_two_vectors(x.shape[1])
    shift = EMPTY if shift is None else shift

    def run(first: int, last: int) -> None:
        work = workspace("k-means", workspace_size(ROWS, n, wide, wide * n))
        rows = x.ctypes.data + first * x.strides[0]
        limits = EMPTY if nearest is None else nearest[first:last]
        _closer(rows, x.strides[0], dtype_code, candidates, metric == "cosine", shift, limits, out[first:last], work)

    team.parallel_for(run, len(x), max(MIN_WORK_PER_THREAD // max(candidates.size, 1), FLOAT32_ROWS))
    return out


@kernel(types.int64, types.int64, types.int64, MATRIX_IN, types.boolean, IN(1), IN(1), OUT(2), WORKSPACE)
def _closer(x, step, dtype_code, candidates, cosine, shift, nearest, out, work):
    """Set ``out[i, j]`` to the loss of row i for candidate j, or to ``nearest[i]`` if that is smaller.

    Parameters
    ----------
    x, step, dtype_code, cosine, shift, work
        As in :func:`vitnp.kernels.cpu.kmeans.assign_and_add`.
    candidates : (M, D) float32, IN
    nearest : (N,) or (0,) float32, IN
    out : (N, M) float32, OUT
    """
    count, width = candidates.shape
    n = round_up(width)
    columns = padded_columns(count, n) if cosine else (count + 3) // 4 * 4
    wide = round_up(columns)
    rows, results, offset, packed = divide_workspace(work, ROWS, n, wide)
    base = work.ctypes.data
    for d in range(shift.shape[0]):
        work[offset + d] = shift[d]
    if cosine:
        pack(candidates, work, packed, n)
    else:
        copy_rows(candidates, work, packed, columns, n)
    inverse = new_row_numbers()
    for first in range(0, out.shape[0], ROWS):
        group = min(ROWS, out.shape[0] - first)
        for i in range(group):
            at = rows + i * n
            squares = read_row(base + 4 * at, x + (first + i) * step, dtype_code, base + 4 * offset, width, FAR_AHEAD)
            if cosine:
                inverse[i] = np.float32(1) / row_norm(work, at, n, squares)
        if cosine:
            products(base + 4 * rows, group, n, base + 4 * packed, columns, base + 4 * results, wide, x, 0)
        else:
            distances(base + 4 * rows, group, n, base + 4 * packed, columns, base + 4 * results, wide)
        for i in range(group):
            limit = nearest[first + i] if nearest.shape[0] else np.float32(np.inf)
            for j in range(count):
                loss = work[results + i * wide + j]
                if cosine:
                    loss = max(np.float32(1) - loss * inverse[i], np.float32(0))
                out[first + i, j] = min(loss, limit)
