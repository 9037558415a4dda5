"""Cosines of all pairs of rows, and the largest of them without ever keeping all."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from vitnp.kernels import reference
from vitnp.kernels.cpu.codegen.jit import OUT, kernel
from vitnp.kernels.cpu.codegen.rows import ROWS, aligned, length, pack, padded, products, read_row, rows_of, whole
from vitnp.kernels.cpu.codegen.simd import LANES, Vectors, loop
from vitnp.kernels.cpu.codegen.workspace import scratch
from vitnp.kernels.threads import team

ROWS_C = types.Array(types.float32, 2, "C", readonly=True, aligned=True)
WORK = types.Array(types.float32, 1, "C")

# Rows of x that are held while all of y goes by, in the second cache at usual widths: the more, the less often y is laid out.
HELD = 20 * ROWS
# Rows of y at a time.
PANEL = 3 * LANES
# Beyond, lists grow too long for new entries to be put in their places one by one.
MOST = 256


def similarity(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if np.float64 in (x.dtype, y.dtype):
        return reference.similarity(x, y)
    out = np.empty((len(x), len(y)), np.float32)
    x, kind = rows_of(x)
    y = _unit(y)
    n = whole.py_func(x.shape[1])

    def share(first: int, last: int) -> None:
        for column in range(0, len(y), HELD):
            part = y[column : column + HELD]
            wide = max(whole.py_func(len(part)), 2 * LANES)
            work = scratch("similarity", 16 + ROWS * (n + wide) + n + wide * n)
            into = out[first:last, column : column + len(part)]
            _similarity(x.ctypes.data + first * x.strides[0], x.strides[0], kind, part, into, work)

    team.parallel_for(share, len(x), ROWS)
    return out


def similarity_top(
    x: np.ndarray, y: np.ndarray, count: int, *, own: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    if np.float64 in (x.dtype, y.dtype) or count > MOST:
        return reference.similarity_top(x, y, count, own=own)
    values, indices = np.empty((len(x), count), np.float32), np.empty((len(x), count), np.int64)
    x, kind = rows_of(x)
    y = _unit(y)
    n = whole.py_func(x.shape[1])

    def share(first: int, last: int) -> None:
        work = scratch("similarity", 16 + HELD * n + ROWS * PANEL + n + PANEL + PANEL * n)
        none = -1 if own is None else own + first
        start = x.ctypes.data + first * x.strides[0]
        _similarity_top(start, x.strides[0], kind, y, none, values[first:last], indices[first:last], work)

    team.parallel_for(share, len(x), ROWS)
    return values, indices


def _unit(y: np.ndarray) -> np.ndarray:
    """Rows at unit length, (K, D) float32."""
    y, kind = rows_of(y)
    out = np.empty(y.shape, np.float32)
    n = whole.py_func(y.shape[1])

    def share(first: int, last: int) -> None:
        work = scratch("similarity", 16 + 2 * n)
        _unit_rows(y.ctypes.data + first * y.strides[0], y.strides[0], kind, out[first:last], work)

    team.parallel_for(share, len(y), 1024)
    return out


@intrinsic
def _any_above(context, row, n, limit):
    """Whether one of n numbers, a multiple of LANES, is above a limit."""

    def generate(context, builder, signature, arguments):
        row, n, limit = arguments
        v = Vectors(builder)
        row, limit = v.pointer(row), v.splat(limit)
        flags, word = ir.VectorType(ir.IntType(1), LANES), ir.IntType(LANES)

        def turn(index, found):
            return [builder.or_(found[0], builder.fcmp_ordered(">", v.load(v.at(row, index)), limit))]

        nothing = ir.Constant(flags, [0] * LANES)
        _, found = loop(builder, 0, n, LANES, [nothing], turn)
        return builder.icmp_unsigned("!=", builder.bitcast(found[0], word), ir.Constant(word, 0))

    return types.boolean(types.int64, types.int64, types.float32), generate


@kernel(fastmath=False)  # rows of one direction and different lengths shall become the same
def _divide(work, at, n, by, out):
    for d in range(n):
        out[d] = work[at + d] / by


@kernel(types.int64, types.int64, types.int64, OUT(2), WORK)
def _unit_rows(x, step, kind, out, work):
    width = out.shape[1]
    row = aligned(work)
    shift = row + whole(width)
    base = work.ctypes.data
    work[shift : shift + width] = 0
    for i in range(out.shape[0]):
        squares = read_row(base + 4 * row, x + i * step, kind, base + 4 * shift, width, 0)
        _divide(work, row, width, length(work, row, width, squares), out[i])


@kernel(types.int64, types.int64, types.int64, ROWS_C, OUT(2), WORK)
def _similarity(x, step, kind, y, out, work):
    """``out = unit(x) y^T``.

    Parameters
    ----------
    x, step, kind : int
        Address of the rows, bytes from one to the next, their type.
    y : (K, D) float32, IN
        Unit rows.
    out : (N, K) float32, OUT
    work : float32, OUT
        Scratch.
    """
    count, width = y.shape
    n = whole(width)
    columns = padded(count, n)
    wide = whole(columns)
    rows = aligned(work)
    found = rows + ROWS * n
    shift = found + ROWS * wide
    packed = shift + n
    base = work.ctypes.data
    work[rows:found] = 0
    work[shift:packed] = 0
    pack(y, work, packed, n)
    inverse = np.empty(ROWS, np.float32)
    for first in range(0, out.shape[0], ROWS):
        here = min(ROWS, out.shape[0] - first)
        for i in range(here):
            at = rows + i * n
            squares = read_row(base + 4 * at, x + (first + i) * step, kind, base + 4 * shift, width, 0)
            inverse[i] = np.float32(1) / length(work, at, n, squares)
        ahead = x + (first + ROWS) * step
        products(base + 4 * rows, here, n, base + 4 * packed, columns, base + 4 * found, wide, ahead, ROWS * step)
        for i in range(here):
            for j in range(count):
                out[first + i, j] = work[found + i * wide + j] * inverse[i]


@kernel(types.int64, types.int64, types.int64, ROWS_C, types.int64, OUT(2), OUT(2, types.int64), WORK)
def _similarity_top(x, step, kind, y, own, values, indices, work):
    """The largest cosines of each row and where they are, by falling size.

    Parameters
    ----------
    x, step, kind, y, work
        As in :func:`_similarity`.
    own : int
        Row of y that is the first row of x, which isn't compared with itself; negative if none is.
    values : (N, count) float32, OUT
    indices : (N, count) int64, OUT
    """
    total, width = y.shape
    count = values.shape[1]
    n = whole(width)
    rows = aligned(work)
    found = rows + HELD * n
    shift = found + ROWS * PANEL
    packed = shift + n
    base = work.ctypes.data
    work[rows:found] = 0
    work[shift:packed] = 0
    for start in range(0, values.shape[0], HELD):
        held = min(HELD, values.shape[0] - start)
        for i in range(held):
            at = rows + i * n
            squares = read_row(base + 4 * at, x + (start + i) * step, kind, base + 4 * shift, width, 0)
            _divide(work, at, width, length(work, at, n, squares), work[at : at + width])
            for place in range(count):
                values[start + i, place] = -np.inf
                indices[start + i, place] = 0
        for column in range(0, total, PANEL):
            here = min(PANEL, total - column)
            columns = padded(here, n)
            pack(y[column : column + here], work, packed, n)
            for first in range(0, held, ROWS):
                some = min(ROWS, held - first)
                products(
                    base + 4 * (rows + first * n), some, n, base + 4 * packed, columns, base + 4 * found, PANEL, x, 0
                )
                for i in range(some):
                    row = start + first + i
                    line = found + i * PANEL
                    for j in range(here, whole(here)):
                        work[line + j] = -np.inf
                    if own >= 0 and column <= own + row < column + here:
                        work[line + own + row - column] = -np.inf
                    limit = values[row, count - 1]
                    if not _any_above(base + 4 * line, whole(here), limit):
                        continue
                    for j in range(here):
                        value = work[line + j]
                        if value > values[row, count - 1]:
                            # Those that were equal or larger before stay in front: ties go to the lower row.
                            place = count - 1
                            while place > 0 and values[row, place - 1] < value:
                                values[row, place] = values[row, place - 1]
                                indices[row, place] = indices[row, place - 1]
                                place -= 1
                            values[row, place] = value
                            indices[row, place] = column + j
