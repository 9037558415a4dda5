"""What all passes of k-means over rows share: the centroids in the workspace, the nearest one, the cosine's loss."""

from __future__ import annotations

import numpy as np
from vitnp.kernels.cpu.codegen import types
from vitnp.kernels.cpu.codegen.jit import OUT, intrinsic, kernel
from vitnp.kernels.cpu.codegen.products import copy_rows, pack, padded_columns
from vitnp.kernels.cpu.codegen.rows import (
    MATRIX_IN,
    ROWS,
    TINY,
    WORKSPACE,
    argmax,
    divide_workspace,
    read_row,
    round_up,
    row_norm,
    workspace_size,
)
from vitnp.kernels.cpu.codegen.simd import LANES, Vectors, loop
from vitnp.kernels.cpu.codegen.workspace import workspace

EMPTY = np.empty(0, np.float32)

# Rows whose sum is kept in float32; these sums are added in float64.
FLOAT32_ROWS = 1024

# Up to this number of columns a scalar loop finds the maximum faster than vectors do.
SCALAR_COLUMNS = 4


def at_least_two_vectors(n: int) -> int:
    """Round up to whole vectors, at least two, the narrowest tile of products."""
    return max(-(-n // LANES), 2) * LANES


def step_workspace(clusters: int, width: int, more: int = 0) -> np.ndarray:
    """Return this thread's workspace for :func:`prepare_step`, with `more` numbers behind it."""
    wide, n = at_least_two_vectors(clusters), at_least_two_vectors(width)
    return workspace("k-means", workspace_size(ROWS, n, wide, wide + (wide + 2 * clusters) * n + more))


@kernel
def prepare_step(work, centroids, shift, cosine):
    """Divide a workspace for a pass over the rows, and copy shift and centroids into it.

    Returns
    -------
    n, columns, wide : int
        Width of a row in whole vectors, products of a row, and distance between the products of two rows.
    rows, out, offset, packed, bias, centers, cluster_sums : int
        Index in `work` of ROWS rows, of their products, of the shift, of the packed centroids, of what is added to the
        products (wide,), of the centroids as rows (K, n), and of the sums (K, n).
    """
    clusters, width = centroids.shape
    n = round_up(width)
    columns = padded_columns(clusters, n)
    wide = round_up(columns)
    rows, out, offset, packed = divide_workspace(work, ROWS, n, wide)
    bias = packed + columns * n
    centers = bias + wide
    cluster_sums = centers + clusters * n
    for d in range(shift.shape[0]):
        work[offset + d] = shift[d]
    pack(centroids, work, packed, n)
    copy_rows(centroids, work, centers, clusters, n)
    # The nearest centroid has the largest x.c - |c|^2 / 2; see kmeans_assign in vitnp.kernels.reference.
    for j in range(wide):
        if j >= clusters:
            work[bias + j] = -np.inf
        elif cosine:
            work[bias + j] = 0
        else:
            square = 0.0
            for d in range(width):
                square += np.float64(centroids[j, d]) * centroids[j, d]
            work[bias + j] = -0.5 * square
    return n, columns, wide, rows, out, offset, packed, bias, centers, cluster_sums


@kernel
def best_column(work, at, bias, columns, wide):
    """Return the index of the largest of the sums ``work[at + j] + work[bias + j]``, the lowest one on ties."""
    base = work.ctypes.data
    if columns > SCALAR_COLUMNS:
        return argmax(base + 4 * at, base + 4 * bias, wide)
    label, maximum = 0, np.float32(-np.inf)
    for j in range(columns):
        value = work[at + j] + work[bias + j]
        if value > maximum:
            label, maximum = j, value
    return label


@intrinsic
def dot(context, row, other, n):
    """Return the product of two rows, to the bit as the products by dots; n is a multiple of LANES."""

    def generate(context, builder, signature, arguments):
        row, other, n = arguments
        v = Vectors(builder)
        row, other = v.pointer(row), v.pointer(other)

        def body(index, sums):
            return [v.fma(v.load(v.at(row, index)), v.load(v.at(other, index)), sums[0])]

        _, sums = loop(builder, 0, n, LANES, [v.constant(0.0)], body)
        return v.fold(sums[0], builder.fadd)

    return types.float32(*[types.int64] * 3), generate


def inverse_norms_in_place(x: np.ndarray) -> np.ndarray:
    """Return one by the norm of each row (N, D), if rows can be multiplied where they are, else an empty array.

    They can if they are contiguous float32 numbers, whole vectors, and none is so short that it has to be scaled.
    """
    width = x.shape[1]
    if x.dtype != np.float32 or not x.flags.c_contiguous or width % LANES or width < 2 * LANES:
        return EMPTY
    inverse = np.empty(len(x), np.float32)
    work = workspace("k-means", workspace_size(1, width, 0, 0))
    return inverse if _invert_norms(x, inverse, work) else EMPTY


@kernel(MATRIX_IN, OUT(1), WORKSPACE)
def _invert_norms(x, inverse, work):
    """Fill `inverse` (N,), and return True; or return False where a row has to be scaled."""
    count, width = x.shape
    row, _, offset, _ = divide_workspace(work, 1, width, 0)
    base = work.ctypes.data
    for i in range(count):
        squares = read_row(base + 4 * row, x.ctypes.data + 4 * i * width, 0, base + 4 * offset, width, 0)
        if squares < TINY:
            return False
        inverse[i] = np.float32(1) / row_norm(work, row, width, squares)
    return True
