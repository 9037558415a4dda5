"""k-means: one pass over the rows assigns them to centroids, sums them by cluster, and computes their losses."""

from __future__ import annotations

import numpy as np
from vitnp.kernels import reference
from vitnp.kernels.cpu.codegen import types
from vitnp.kernels.cpu.codegen.jit import IN, OUT, kernel
from vitnp.kernels.cpu.codegen.products import MAX_DOTS, NARROW, products
from vitnp.kernels.cpu.codegen.rows import (
    FAR_AHEAD,
    MATRIX_IN,
    ROWS,
    WORKSPACE,
    add_and_distance,
    add_scaled,
    add_to_float64,
    distance,
    new_row_numbers,
    read_row,
    readable_rows,
    row_norm,
)
from vitnp.kernels.cpu.kmeans_rows import (
    EMPTY,
    FLOAT32_ROWS,
    best_column,
    dot,
    prepare_step,
    step_workspace,
)
from vitnp.kernels.reference import Step
from vitnp.kernels.threads import team

# Rows at a time for few centroids, of narrow and of wide rows. With little to do per row, the next rows have to be
# prefetched into the L1 cache in time.
FEW_NARROW_ROWS, FEW_WIDE_ROWS = 8, 4

SUMS_OUT = types.Array(types.float64, 3, "C")

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
            labels[first:last], losses[first:last], sums[blocks], counts, inertia[blocks], EMPTY, work,
        )  # fmt: skip
        counts_of_threads.append(counts)

    team.parallel_for(run, len(x), block)
    return sum(counts_of_threads, np.zeros(clusters, np.int64))


@kernel(
    types.int64, types.int64, types.int64, MATRIX_IN, types.boolean, IN(1), types.int64,
    OUT(1, types.int32), OUT(1), SUMS_OUT, OUT(1, types.int64), OUT(1, types.float64), IN(1), WORKSPACE,
    shared=True,
)  # fmt: skip
def assign_and_add(
    x, step, dtype_code, centroids, cosine, shift, block, labels, losses, sums, counts, inertia, inverse_norms, work
):
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
    inverse_norms : (N,) or (0,) float32, IN
        One by the norm of each row, if rows can be multiplied where they are: see
        :func:`vitnp.kernels.cpu.kmeans_rows.inverse_norms_in_place`.
    work : float32, OUT
        Workspace, see :func:`vitnp.kernels.cpu.kmeans_rows.step_workspace`.
    """
    clusters, width = centroids.shape
    n, columns, wide, rows, out, offset, packed, bias, centers, cluster_sums = prepare_step(
        work, centroids, shift, cosine
    )
    base = work.ctypes.data
    summing, in_place = sums.shape[0] > 0, inverse_norms.shape[0] > 0
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
                source = base + 4 * rows
                if in_place and count == group:
                    source = x + first * step
                for i in range(count):
                    at = rows + i * n
                    if source == base + 4 * rows:
                        squares = read_row(
                            base + 4 * at, x + (first + i) * step, dtype_code, base + 4 * offset, width, far
                        )
                    if in_place:
                        inverse[i] = inverse_norms[first + i]
                    elif cosine:
                        inverse[i] = np.float32(1) / row_norm(work, at, n, squares)
                products(source, count, n, base + 4 * packed, columns, base + 4 * out, wide, ahead, group * step)
                for i in range(count):
                    row, next_row = source + 4 * i * n, ahead + i * step
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
