"""k-means: one pass over the rows assigns them to centroids, sums them by cluster, and computes their losses."""

from __future__ import annotations

import numpy as np
from vitnp.kernels.cpu.codegen import types
from vitnp.kernels import reference
from vitnp.kernels.cpu.codegen.jit import IN, OUT, kernel
from vitnp.kernels.cpu.codegen.products import MAX_DOTS, NARROW, copy_rows, distances, pack, padded_columns, products
from vitnp.kernels.cpu.codegen.rows import (
    FAR_AHEAD,
    MATRIX_IN,
    ROWS,
    WORKSPACE,
    add_and_distance,
    add_scaled,
    add_to_float64,
    distance,
    divide_workspace,
    new_row_numbers,
    read_row,
    readable_rows,
    round_up,
    row_norm,
    workspace_size,
)
from vitnp.kernels.cpu.codegen.workspace import workspace
from vitnp.kernels.cpu.kmeans_rows import (
    FLOAT32_ROWS,
    at_least_two_vectors,
    best_column,
    dot,
    prepare_step,
    step_workspace,
)
from vitnp.kernels.reference import Step
from vitnp.kernels.threads import team

# Multiplications that take as long as waking another thread, which is not worth it for fewer.
MIN_WORK_PER_THREAD = 2**22

# Rows at a time for few centroids, of narrow and of wide rows. With little to do per row, the next rows have to be
# prefetched into the L1 cache in time.
FEW_NARROW_ROWS, FEW_WIDE_ROWS = 8, 4

SUMS_OUT = types.Array(types.float64, 3, "C")

EMPTY = np.empty(0, np.float32)
_NO_SUMS = np.empty((0, 0, 0))


def kmeans_step(
    x: np.ndarray,
    centroids: np.ndarray,
    *,
    metric: str = "cosine",
    shift: np.ndarray | None = None,
    block: int | None = None,
) -> Step:
    if centroids.dtype != np.float32:
        return reference.kmeans_step(x, centroids, metric=metric, shift=shift, block=block)
    block = block or max(len(x), 1)
    blocks = -(-len(x) // block)
    labels, losses = np.empty(len(x), np.int32), np.empty(len(x), np.float32)
    sums, inertia = np.empty((blocks, *centroids.shape)), np.empty(blocks)
    counts = _assign(x, centroids, metric, shift, block, labels, losses, sums, inertia)
    return Step(labels, losses, sums, counts, inertia)


def kmeans_assign(
    x: np.ndarray, centroids: np.ndarray, *, metric: str = "cosine", shift: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    if centroids.dtype != np.float32:
        return reference.kmeans_assign(x, centroids, metric=metric, shift=shift)
    labels, losses = np.empty(len(x), np.int32), np.empty(len(x), np.float32)
    inertia = np.empty(-(-len(x) // FLOAT32_ROWS))
    _assign(x, centroids, metric, shift, FLOAT32_ROWS, labels, losses, _NO_SUMS, inertia)
    return labels, losses


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


def _assign(
    x: np.ndarray,
    centroids: np.ndarray,
    metric: str,
    shift: np.ndarray | None,
    block: int,
    labels: np.ndarray,
    losses: np.ndarray,
    sums: np.ndarray,
    inertia: np.ndarray,
) -> np.ndarray:
    """Fill the arrays by :func:`assign_and_add`, with whole blocks in each thread; return the counts (K,)."""
    x, dtype_code = readable_rows(x)
    centroids, (clusters, width) = np.ascontiguousarray(centroids), centroids.shape
    shift = EMPTY if shift is None else shift
    counts_of_threads = []

    def run(first: int, last: int) -> None:
        work = step_workspace(clusters, width)
        counts = np.zeros(clusters, np.int64)
        blocks = slice(first // block, -(-last // block))
        assign_and_add(
            x.ctypes.data + first * x.strides[0], x.strides[0], dtype_code, centroids, metric == "cosine", shift, block,
            labels[first:last], losses[first:last], sums[blocks], counts, inertia[blocks], work,
        )  # fmt: skip
        counts_of_threads.append(counts)

    team.parallel_for(run, len(x), block)
    return sum(counts_of_threads, np.zeros(clusters, np.int64))


@kernel(
    types.int64, types.int64, types.int64, MATRIX_IN, types.boolean, IN(1), types.int64,
    OUT(1, types.int32), OUT(1), SUMS_OUT, OUT(1, types.int64), OUT(1, types.float64), WORKSPACE,
    shared=True,
)  # fmt: skip
def assign_and_add(x, step, dtype_code, centroids, cosine, shift, block, labels, losses, sums, counts, inertia, work):
    """Assign every row to a centroid, and sum the rows of each cluster.

    Parameters
    ----------
    x, step, dtype_code : int
        Address of the rows, bytes from row to row, and their type, see :func:`readable_rows`.
    centroids : (K, D) float32, IN
    cosine : bool
        Cosine or Euclidean metric.
    shift : (D,) or (0,) float32, IN
        Subtracted from the rows.
    block : int
        Rows per block of sums.
    labels : (N,) int32, OUT
    losses : (N,) float32, OUT
    sums : (N / block, K, D) float64, OUT
        Not computed if there are no blocks.
    counts : (K,) int64, IN and OUT
        The counts of these rows are added.
    inertia : (N / block,) float64, OUT
        Sum of the losses of each block.
    work : float32, OUT
        Workspace, see :func:`vitnp.kernels.cpu.kmeans_rows.step_workspace`.
    """
    clusters, width = centroids.shape
    n, columns, wide, rows, out, offset, packed, bias, centers, cluster_sums = prepare_step(
        work, centroids, shift, cosine
    )
    base = work.ctypes.data
    summing = sums.shape[0] > 0
    inverse = new_row_numbers()
    far = FAR_AHEAD if columns <= MAX_DOTS else 0  # tiles by columns prefetch on their own
    group = ROWS if columns > MAX_DOTS else FEW_NARROW_ROWS if n <= NARROW else FEW_WIDE_ROWS
    for index in range((labels.shape[0] + block - 1) // block):
        end = min((index + 1) * block, labels.shape[0])
        if summing:
            sums[index] = 0
        total = 0.0
        for start in range(index * block, end, FLOAT32_ROWS):
            stop = min(start + FLOAT32_ROWS, end)
            if summing:
                work[cluster_sums : cluster_sums + clusters * n] = 0
            for first in range(start, stop, group):
                count = min(group, stop - first)
                ahead = x + (first + group) * step
                for i in range(count):
                    at = rows + i * n
                    squares = read_row(base + 4 * at, x + (first + i) * step, dtype_code, base + 4 * offset, width, far)
                    if cosine:
                        inverse[i] = np.float32(1) / row_norm(work, at, n, squares)
                products(
                    base + 4 * rows, count, n, base + 4 * packed, columns, base + 4 * out, wide, ahead, group * step
                )
                for i in range(count):
                    row, next_row = base + 4 * (rows + i * n), ahead + i * step
                    label = best_column(work, out + i * wide, bias, columns, wide)
                    cluster_sum = base + 4 * (cluster_sums + label * n)
                    if cosine:
                        product = work[out + i * wide + label]
                        if columns > MAX_DOTS:  # by columns it is added up in another order
                            product = dot(row, base + 4 * (centers + label * n), n)
                        loss = np.float32(1) - product * inverse[i]
                        if summing:
                            add_scaled(row, cluster_sum, n, inverse[i], next_row)
                    elif summing:
                        loss = add_and_distance(row, cluster_sum, n, base + 4 * (centers + label * n), next_row)
                    else:
                        loss = distance(row, base + 4 * (centers + label * n), n)
                    labels[first + i] = label
                    losses[first + i] = loss
                    counts[label] += 1
                    total += loss
            if summing:
                for j in range(clusters):
                    target = sums.ctypes.data + 8 * (index * clusters + j) * width
                    add_to_float64(base + 4 * (cluster_sums + j * n), width, target)
        inertia[index] = total


@kernel(types.int64, types.int64, types.int64, MATRIX_IN, types.boolean, IN(1), IN(1), OUT(2), WORKSPACE)
def _closer(x, step, dtype_code, candidates, cosine, shift, nearest, out, work):
    """Set ``out[i, j]`` to the loss of row i for candidate j, or to ``nearest[i]`` if that is smaller.

    Parameters
    ----------
    x, step, dtype_code, cosine, shift, work
        As in :func:`assign_and_add`.
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
