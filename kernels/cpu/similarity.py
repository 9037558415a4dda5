"""Cosine similarity of all pairs of rows, and the most similar rows without storing all similarities."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from vitnp.kernels import reference
from vitnp.kernels.cpu.codegen import types
from vitnp.kernels.cpu.codegen.jit import OUT, intrinsic, kernel
from vitnp.kernels.cpu.codegen.products import pack, padded_columns, products
from vitnp.kernels.cpu.codegen.rows import (
    MATRIX_IN,
    ROWS,
    WORKSPACE,
    divide_workspace,
    new_row_numbers,
    read_row,
    readable_rows,
    round_up,
    round_up_to_vectors,
    row_norm,
    workspace_size,
)
from vitnp.kernels.cpu.codegen.simd import LANES, Vectors, loop
from vitnp.kernels.cpu.codegen.workspace import workspace
from vitnp.kernels.threads import team

# Rows of x that stay in the workspace during one pass over y. They fit into the L2 cache at usual widths; the more
# rows, the less often y is packed.
X_ROWS = 20 * ROWS
# Rows of y at a time.
PANEL = 3 * LANES
# For more neighbors than this, inserting them into sorted lists one by one is too slow.
MAX_COUNT = 256


def similarity(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if np.float64 in (x.dtype, y.dtype):
        return reference.similarity(x, y)
    out = np.empty((len(x), len(y)), np.float32)
    x, dtype_code = readable_rows(x)
    y = _unit(y)
    n = round_up_to_vectors(x.shape[1])

    def run(first: int, last: int) -> None:
        for column in range(0, len(y), X_ROWS):
            part = y[column : column + X_ROWS]
            wide = max(round_up_to_vectors(len(part)), 2 * LANES)
            work = workspace("similarity", workspace_size(ROWS, n, wide, wide * n))
            target = out[first:last, column : column + len(part)]
            _similarity(x.ctypes.data + first * x.strides[0], x.strides[0], dtype_code, part, target, work)

    team.parallel_for(run, len(x), ROWS)
    return out


def similarity_top(
    x: np.ndarray, y: np.ndarray, count: int, *, own: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    if np.float64 in (x.dtype, y.dtype) or count > MAX_COUNT:
        return reference.similarity_top(x, y, count, own=own)
    values, indices = np.empty((len(x), count), np.float32), np.empty((len(x), count), np.int64)
    x, dtype_code = readable_rows(x)
    y = _unit(y)
    n = round_up_to_vectors(x.shape[1])

    def run(first: int, last: int) -> None:
        work = workspace("similarity", workspace_size(X_ROWS, n, PANEL, PANEL * n))
        own_row = -1 if own is None else own + first
        start = x.ctypes.data + first * x.strides[0]
        _similarity_top(start, x.strides[0], dtype_code, y, own_row, values[first:last], indices[first:last], work)

    team.parallel_for(run, len(x), ROWS)
    return values, indices


def _unit(y: np.ndarray) -> np.ndarray:
    """Return the rows scaled to unit length, (K, D) float32."""
    y, dtype_code = readable_rows(y)
    out = np.empty(y.shape, np.float32)
    n = round_up_to_vectors(y.shape[1])

    def run(first: int, last: int) -> None:
        work = workspace("similarity", workspace_size(1, n, 0, 0))
        _unit_rows(y.ctypes.data + first * y.strides[0], y.strides[0], dtype_code, out[first:last], work)

    team.parallel_for(run, len(y), 1024)
    return out


@intrinsic
def _any_above(context, row, n, limit):
    """Return whether any of n numbers is above a limit; n is a multiple of LANES."""

    def generate(context, builder, signature, arguments):
        row, n, limit = arguments
        v = Vectors(builder)
        row, limit = v.pointer(row), v.splat(limit)
        flags, word = ir.VectorType(ir.IntType(1), LANES), ir.IntType(LANES)

        def body(index, carried):
            return [builder.or_(carried[0], builder.fcmp_ordered(">", v.load(v.at(row, index)), limit))]

        none = ir.Constant(flags, [0] * LANES)
        _, above = loop(builder, 0, n, LANES, [none], body)
        return builder.icmp_unsigned("!=", builder.bitcast(above[0], word), ir.Constant(word, 0))

    return types.boolean(types.int64, types.int64, types.float32), generate


@kernel(fastmath=False)  # an exact division, so that rows of the same direction become the same unit row
def _divide(work, at, n, divisor, out):
    """Divide n numbers of the workspace by a number."""
    for d in range(n):
        out[d] = work[at + d] / divisor


@kernel(types.int64, types.int64, types.int64, OUT(2), WORKSPACE)
def _unit_rows(x, step, dtype_code, out, work):
    """Scale rows to unit length; parameters as in :func:`_similarity`."""
    width = out.shape[1]
    row, _, shift, _ = divide_workspace(work, 1, round_up(width), 0)
    base = work.ctypes.data
    for i in range(out.shape[0]):
        squares = read_row(base + 4 * row, x + i * step, dtype_code, base + 4 * shift, width, 0)
        _divide(work, row, width, row_norm(work, row, width, squares), out[i])


@kernel(types.int64, types.int64, types.int64, MATRIX_IN, OUT(2), WORKSPACE)
def _similarity(x, step, dtype_code, y, out, work):
    """Compute ``out = unit(x) y^T``.

    Parameters
    ----------
    x, step, dtype_code : int
        Address of the rows, bytes from row to row, and their type, see :func:`readable_rows`.
    y : (K, D) float32, IN
        Unit rows.
    out : (N, K) float32, OUT
    work : float32, OUT
        Workspace.
    """
    count, width = y.shape
    n = round_up(width)
    columns = padded_columns(count, n)
    wide = round_up(columns)
    rows, cosines, shift, packed = divide_workspace(work, ROWS, n, wide)
    base = work.ctypes.data
    pack(y, work, packed, n)
    inverse = new_row_numbers()
    for first in range(0, out.shape[0], ROWS):
        group = min(ROWS, out.shape[0] - first)
        for i in range(group):
            at = rows + i * n
            squares = read_row(base + 4 * at, x + (first + i) * step, dtype_code, base + 4 * shift, width, 0)
            inverse[i] = np.float32(1) / row_norm(work, at, n, squares)
        ahead = x + (first + ROWS) * step
        products(base + 4 * rows, group, n, base + 4 * packed, columns, base + 4 * cosines, wide, ahead, ROWS * step)
        for i in range(group):
            for j in range(count):
                out[first + i, j] = work[cosines + i * wide + j] * inverse[i]


@kernel(types.int64, types.int64, types.int64, MATRIX_IN, types.int64, OUT(2), OUT(2, types.int64), WORKSPACE)
def _similarity_top(x, step, dtype_code, y, own, values, indices, work):
    """Find the largest cosines of each row in descending order, and their indices.

    Parameters
    ----------
    x, step, dtype_code, y, work
        As in :func:`_similarity`.
    own : int
        Index in y of the first row of x, if x is a part of y: no row is compared with itself. Otherwise negative.
    values : (N, count) float32, OUT
    indices : (N, count) int64, OUT
    """
    total, width = y.shape
    count = values.shape[1]
    n = round_up(width)
    rows, cosines, shift, packed = divide_workspace(work, X_ROWS, n, PANEL)
    base = work.ctypes.data
    for start in range(0, values.shape[0], X_ROWS):
        x_rows = min(X_ROWS, values.shape[0] - start)
        for i in range(x_rows):
            at = rows + i * n
            squares = read_row(base + 4 * at, x + (start + i) * step, dtype_code, base + 4 * shift, width, 0)
            _divide(work, at, width, row_norm(work, at, n, squares), work[at : at + width])
            for rank in range(count):
                values[start + i, rank] = -np.inf
                indices[start + i, rank] = 0
        for column in range(0, total, PANEL):
            y_rows = min(PANEL, total - column)
            columns = padded_columns(y_rows, n)
            pack(y[column : column + y_rows], work, packed, n)
            for first in range(0, x_rows, ROWS):
                group = min(ROWS, x_rows - first)
                products(
                    base + 4 * (rows + first * n), group, n, base + 4 * packed, columns, base + 4 * cosines, PANEL, x, 0
                )
                for i in range(group):
                    row = start + first + i
                    line = cosines + i * PANEL
                    for j in range(y_rows, round_up(y_rows)):
                        work[line + j] = -np.inf
                    if own >= 0 and column <= own + row < column + y_rows:
                        work[line + own + row - column] = -np.inf
                    limit = values[row, count - 1]
                    if not _any_above(base + 4 * line, round_up(y_rows), limit):
                        continue
                    for j in range(y_rows):
                        value = work[line + j]
                        if value > values[row, count - 1]:
                            # Insert it behind earlier values that are equal or larger: ties go to the lower row.
                            rank = count - 1
                            while rank > 0 and values[row, rank - 1] < value:
                                values[row, rank] = values[row, rank - 1]
                                indices[row, rank] = indices[row, rank - 1]
                                rank -= 1
                            values[row, rank] = value
                            indices[row, rank] = column + j
