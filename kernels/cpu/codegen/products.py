"""Products and squared distances of a few rows with many others, for k-means and similarity.

There are two forms. *By columns*, a vector holds the products of one row with LANES other rows. *By dots*, a vector
holds LANES partial sums of one product, which are added at the end; this is for few other rows, where most lanes of a
column would be idle.
"""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir
from vitnp.kernels.cpu.codegen import types
from vitnp.kernels.cpu.codegen.jit import intrinsic, kernel
from vitnp.kernels.cpu.codegen.rows import MATRIX_IN, WORKSPACE
from vitnp.kernels.cpu.codegen.simd import I32, I64, LANES, Vectors, loop

# Tiles by columns, rows x vectors: accumulators, columns and one number of a row fill the registers. Any number of
# vectors from 2 on is a sum of twos and threes, and rows.ROWS is a multiple of both numbers of rows.
TWO_ROWS, THREE_ROWS = (12, 8) if LANES == 16 else (6, 4)
DEPTH = 192  # numbers of a row multiplied at a time: those of 48 other rows take 37 KB and stay in the L1 cache

# Tiles by dots, rows x other rows: as many sums as a vector has lanes, so that the sums of lanes fit into one vector.
PAIR_ROWS = LANES // 2
QUAD_ROWS = {16: 4, 8: 2, 4: 1}[LANES]
MAX_DOTS = LANES  # up to this number of other rows dots are faster
NARROW = 512  # rows of up to this width are multiplied by two other rows as a pair, without padding to four


def _column_tile(rows: int, vectors: int) -> Callable:
    """Generate ``tile(a, ld, b, out, ld_out, n, add, ahead, every)``: `rows` rows times ``vectors * LANES`` others.

    Row k of b contains the k-th number of all others. The rest is as in
    :func:`vitnp.kernels.cpu.codegen.microkernels.product_tile`, including the prefetch of memory at ``ahead + every k``
    in iteration k: memory takes about as long to arrive as the products take to compute.
    """

    @intrinsic
    def tile(context, a, ld, b, out, ld_out, n, add, ahead, every):
        def generate(context, builder, signature, arguments):
            a, ld, b, out, ld_out, n, add, ahead, every = arguments
            v = Vectors(builder)
            a, b, out = v.pointer(a), v.pointer(b), v.pointer(out)
            a_rows = [v.at(a, builder.mul(ld, I64(i))) for i in range(rows)]

            def body(k, sums):
                v.prefetch(builder.add(ahead, builder.mul(k, every)), cache=2)
                others = v.at(b, builder.mul(k, I64(vectors * LANES)))
                columns = [v.load(v.at(others, j * LANES)) for j in range(vectors)]
                updated = []
                for i in range(rows):
                    number = v.splat(builder.load(v.at(a_rows[i], k)))
                    updated += [v.fma(number, columns[j], sums[i * vectors + j]) for j in range(vectors)]
                return updated

            zero = v.constant(0.0)
            _, sums = loop(builder, 0, n, 1, [zero] * (rows * vectors), body)
            adding = builder.icmp_signed("!=", add, I64(0))
            for i in range(rows):
                for j in range(vectors):
                    slot = v.at(out, builder.add(builder.mul(ld_out, I64(i)), I64(j * LANES)))
                    before = builder.select(adding, v.load(slot), zero)
                    v.store(builder.fadd(sums[i * vectors + j], before), slot)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 9), generate

    return tile


def _dot_tile(rows: int, others: int, distances: bool) -> Callable:
    """Generate ``tile(a, b, ld, n, out, ld_out)``: products or squared distances of `rows` rows and `others` others.

    Addresses are in bytes, row strides in elements; n is a multiple of LANES. The lanes of the rows * others = LANES
    vectors are summed together, see :func:`sum_lanes`.
    """

    @intrinsic
    def tile(context, a, b, ld, n, out, ld_out):
        def generate(context, builder, signature, arguments):
            a, b, ld, n, out, ld_out = arguments
            v = Vectors(builder)
            a_rows = [v.at(v.pointer(a), builder.mul(ld, I64(i))) for i in range(rows)]
            b_rows = [v.at(v.pointer(b), builder.mul(ld, I64(j))) for j in range(others)]

            def body(index, sums):
                right = [v.load(v.at(row, index)) for row in b_rows]
                updated = []
                for i in range(rows):
                    left = v.load(v.at(a_rows[i], index))
                    for j in range(others):
                        if distances:
                            difference = builder.fsub(left, right[j])
                            updated.append(v.fma(difference, difference, sums[i * others + j]))
                        else:
                            updated.append(v.fma(left, right[j], sums[i * others + j]))
                return updated

            _, sums = loop(builder, 0, n, LANES, [v.constant(0.0)] * (rows * others), body)
            sums = sum_lanes(v, sums)
            for i in range(rows):
                part = ir.Constant(ir.VectorType(I32, others), [i * others + j for j in range(others)])
                v.store(builder.shuffle_vector(sums, sums, part), v.at(v.pointer(out), builder.mul(ld_out, I64(i))))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), generate

    return tile


def sum_lanes(v: Vectors, values: list[ir.Value]) -> ir.Value:
    """Sum the lanes of LANES vectors at once: lane i of the result is the sum of all lanes of vector i."""
    width = v.lanes
    indices = ir.VectorType(I32, v.lanes)
    while width > 1:
        # Each vector contains runs of `width` lanes that belong to one sum. Adding the halves of the runs of two
        # vectors gives one vector with twice as many runs of half the width.
        half, runs = width // 2, v.lanes // width
        low, high = (
            ir.Constant(
                indices,
                [
                    part * half + run * width + lane + vector * v.lanes
                    for vector in (0, 1)
                    for run in range(runs)
                    for lane in range(half)
                ],
            )
            for part in (0, 1)
        )
        values = [
            v.builder.fadd(v.builder.shuffle_vector(a, b, low), v.builder.shuffle_vector(a, b, high))
            for a, b in zip(values[::2], values[1::2])
        ]
        width = half
    return values[0]


_two, _three = _column_tile(TWO_ROWS, 2), _column_tile(THREE_ROWS, 3)
_pair, _quad = _dot_tile(PAIR_ROWS, 2, False), _dot_tile(QUAD_ROWS, 4, False)
_distance_tile = _dot_tile(QUAD_ROWS, 4, True)


@kernel
def padded_columns(count, n):
    """Return the number of products per row of n numbers for `count` others: whole vectors and whole tiles."""
    if count <= 2 and n <= NARROW:
        return 2
    if count <= MAX_DOTS:
        return (count + 3) // 4 * 4
    return max((count + LANES - 1) // LANES, 2) * LANES


@kernel(MATRIX_IN, WORKSPACE, types.int64, types.int64, types.int64, shared=True)
def copy_rows(others, work, at, rows, n):
    """Copy a matrix (K, D) to ``work[at:]`` as `rows` x n numbers, padded with zeros."""
    count, width = others.shape
    work[at : at + rows * n] = 0
    for j in range(count):
        for d in range(width):
            work[at + j * n + d] = others[j, d]


@kernel(MATRIX_IN, WORKSPACE, types.int64, types.int64, shared=True)
def pack(others, work, at, n):
    """Pack a matrix (K, D) for :func:`products` into ``work[at:]``, as ``padded_columns(K, n) * n`` numbers; n >= D."""
    count, width = others.shape
    columns = padded_columns(count, n)
    if columns <= MAX_DOTS:
        copy_rows(others, work, at, columns, n)
        return
    work[at : at + columns * n] = 0
    column = 0
    while column < columns:
        step = panel_vectors(columns - column) * LANES
        target = at + column * n
        for start in range(
            0, width, 2 * LANES
        ):  # few cache lines of the target at a time, so that they stay in the cache
            for j in range(min(step, count - column)):
                for d in range(start, min(start + 2 * LANES, width)):
                    work[target + d * step + j] = others[column + j, d]
        column += step


@kernel
def panel_vectors(columns):
    """Return the number of vectors of the next panel: 2 until the remaining vectors are a multiple of 3."""
    return 3 if columns % (3 * LANES) == 0 else 2


@kernel(*[types.int64] * 9, shared=True)
def products(rows, count, n, packed, columns, out, step, ahead, bytes_ahead):
    """Compute ``out = rows others^T`` for `count` rows of n numbers and packed others.

    Parameters
    ----------
    rows, packed, out : int
        Addresses. Rows and `out` have room for whole tiles, a multiple of ROWS rows.
    count, n, columns : int
        Number and width of the rows, and products per row, see :func:`padded_columns`.
    step : int
        Numbers from row to row of `out`.
    ahead, bytes_ahead : int
        Address and size of memory to prefetch meanwhile; products by dots are too short for that.
    """
    if columns == 2:
        for i in range(0, count, PAIR_ROWS):
            _pair(rows + 4 * i * n, packed, n, n, out + 4 * i * step, step)
    elif columns <= MAX_DOTS:
        for i in range(0, count, QUAD_ROWS):
            for j in range(0, columns, 4):
                _quad(rows + 4 * i * n, packed + 4 * j * n, n, n, out + 4 * (i * step + j), step)
    else:
        panels = (columns + 2 * LANES) // (3 * LANES)
        every = bytes_ahead * TWO_ROWS // (count * n * panels) + 1
        column = 0
        while column < columns:
            vectors = panel_vectors(columns - column)
            wide = vectors * LANES
            for start in range(0, n, DEPTH):
                depth = min(DEPTH, n - start)
                part = packed + 4 * (column * n + start * wide)
                if vectors == 2:
                    for i in range(0, count, TWO_ROWS):
                        source, target = rows + 4 * (i * n + start), out + 4 * (i * step + column)
                        _two(source, n, part, target, step, depth, start, ahead, every)
                        ahead += depth * every
                else:
                    for i in range(0, count, THREE_ROWS):
                        source, target = rows + 4 * (i * n + start), out + 4 * (i * step + column)
                        _three(source, n, part, target, step, depth, start, ahead, every)
                        ahead += depth * every
            column += wide


@kernel(*[types.int64] * 7, shared=True)
def distances(rows, count, n, others, columns, out, step):
    """Compute squared distances as :func:`products`; `columns` is a multiple of 4, the others are rows of n numbers."""
    for i in range(0, count, QUAD_ROWS):
        for j in range(0, columns, 4):
            _distance_tile(rows + 4 * i * n, others + 4 * j * n, n, n, out + 4 * (i * step + j), step)
