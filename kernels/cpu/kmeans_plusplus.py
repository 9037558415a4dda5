"""Greedy k-means++ on rows in memory, in one kernel: the bits of separate passes by :func:`kmeans_closer`.

A pass over the patches of a photograph takes 10 microseconds, less than calling a kernel and adding up its results.
"""

from __future__ import annotations

import numpy as np
from vitnp.kernels import reference
from vitnp.kernels.cpu.codegen import types
from vitnp.kernels.cpu.codegen.jit import array_in, array_out, kernel
from vitnp.kernels.cpu.codegen.products import pack, padded_columns, products
from vitnp.kernels.cpu.codegen.rows import (
    MATRIX_IN,
    ROWS,
    TINY,
    WORKSPACE,
    divide_workspace,
    read_row,
    round_up,
    row_norm,
    workspace_size,
)
from vitnp.kernels.cpu.codegen.workspace import workspace
from vitnp.kernels.cpu.kmeans_rows import at_least_two_vectors


def kmeans_plusplus(x: np.ndarray, n_clusters: int, draws: np.ndarray) -> np.ndarray:
    if x.dtype != np.float32:
        return reference.kmeans_plusplus(x, n_clusters, draws)
    x = np.ascontiguousarray(x)
    count, width = x.shape
    n_candidates = reference.n_candidates(n_clusters)
    wide, n = at_least_two_vectors(n_candidates), at_least_two_vectors(width)
    candidates, drawn = workspace("candidates", n_candidates, width), workspace("drawn", n_candidates, dtype=np.int64)
    totals = workspace("totals of candidates", n_candidates, dtype=np.float64)
    work = workspace("k-means", workspace_size(ROWS, n, wide, wide * n))
    inverse, losses = workspace("inverse norms", count), workspace("losses of candidates", count, n_candidates + 1)
    sums = workspace("cumulative losses", count, dtype=np.float64)
    chosen = np.empty(n_clusters, np.int64)
    _choose(x, draws, n_candidates, inverse, losses, sums, candidates, drawn, totals, work, chosen)
    return chosen


@kernel
def _first_above(sums, target):
    """Return ``np.searchsorted(sums, target, side="right")``, which takes long to compile."""
    first, last = 0, len(sums)
    while first < last:
        middle = (first + last) // 2
        if target < sums[middle]:
            last = middle
        else:
            first = middle + 1
    return first


@kernel(
    MATRIX_IN, array_in(1, types.float64), types.int64, array_out(1), array_out(2), array_out(1, types.float64),
    array_out(2), array_out(1, types.int64), array_out(1, types.float64), WORKSPACE, array_out(1, types.int64),
)  # fmt: skip
def _choose(x, draws, n_candidates, inverse, losses, sums, candidates, drawn, totals, work, chosen):
    """Choose rows as initial centroids.

    Parameters
    ----------
    x : (N, D) float32, IN
    draws : (n_draws,) float64, IN
        See :func:`vitnp.kernels.reference.kmeans_plusplus`.
    n_candidates : int
        M, rows of which each further centroid is the best.
    inverse : (N,) float32, losses : (N, M + 1) float32, sums : (N,) float64, OUT
        Temporary: one by the norm of each row; its loss for each candidate, and for the nearest chosen row; and
        cumulative sums of the latter.
    candidates : (M, D) float32, drawn : (M,) int64, totals : (M,) float64, OUT
        Temporary: the candidates, their rows, and the sums of their losses.
    work : float32, OUT
        Workspace.
    chosen : (K,) int64, OUT
    """
    count, width = x.shape
    n = round_up(width)
    rows, results, offset, packed = divide_workspace(work, ROWS, n, round_up(padded_columns(n_candidates, n)))
    base, step = work.ctypes.data, 4 * width
    nearest = n_candidates
    # Rows that consist of whole vectors are multiplied where they are, unless one is so short that it is scaled.
    in_place = n == width
    for k in range(len(chosen)):
        if k == 0:
            drawn[0] = np.int64(draws[0])
        else:
            total = 0.0
            for i in range(count):
                total += np.float64(losses[i, nearest])
                sums[i] = total
            for j in range(n_candidates):
                target = draws[1 + (k - 1) * n_candidates + j] * total
                drawn[j] = min(_first_above(sums, target), count - 1)
        m = 1 if k == 0 else n_candidates
        for j in range(m):
            for d in range(width):
                candidates[j, d] = x[drawn[j], d]
        columns = padded_columns(m, n)
        wide = round_up(columns)
        pack(candidates[:m], work, packed, n)
        for j in range(m):
            totals[j] = 0
        for first in range(0, count, ROWS):
            group = min(ROWS, count - first)
            address = x.ctypes.data + first * step
            if k > 0 and in_place and group == ROWS:
                source = address
            else:
                source = base + 4 * rows
                for i in range(group):
                    at = rows + i * n
                    squares = read_row(base + 4 * at, address + i * step, 0, base + 4 * offset, width, 0)
                    if k == 0:
                        inverse[first + i] = np.float32(1) / row_norm(work, at, n, squares)
                        in_place = in_place and squares >= TINY
                    else:
                        row_norm(work, at, n, squares)
            products(source, group, n, base + 4 * packed, columns, base + 4 * results, wide, address, 0)
            for i in range(group):
                row = first + i
                for j in range(m):
                    loss = max(np.float32(1) - work[results + i * wide + j] * inverse[row], np.float32(0))
                    if k > 0:
                        loss = min(loss, losses[row, nearest])
                    losses[row, j] = loss
                    totals[j] += np.float64(loss)
        best = 0
        for j in range(1, m):
            if totals[j] < totals[best]:
                best = j
        chosen[k] = drawn[best]
        for i in range(count):
            losses[i, nearest] = losses[i, best]
