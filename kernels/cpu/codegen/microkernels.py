"""Micro-kernels: the innermost loops of matrix products, softmax and layer normalization, for kernels to call.

:func:`product_tile` generates the micro-kernel of all matrix products; :func:`row_maximum` and :func:`row_exponentials`
are the two passes of a softmax; :func:`row_sum` and :func:`row_squares` those of a layer normalization.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from llvmlite import ir
from numba import types
from vitnp.kernels.cpu.codegen.int8 import add_products_of_quads
from vitnp.kernels.cpu.codegen.jit import intrinsic
from vitnp.kernels.cpu.codegen.simd import EXP2, HAS_BF16, I16, I32, I64, LANES, ROUNDER, Vectors, loop

# A tile of results is held in registers: rows x vectors accumulators, one vector of B per column of vectors, and one of
# A. AVX-512 and NEON have 32 registers; AVX2 and SSE2 have 16. More rows per column of B mean fewer loads per
# multiplication.
TILE_ROWS = 8 if LANES == 16 else 4
TILE_VECTORS = 3
PANEL = TILE_VECTORS * LANES  # columns of a tile


def product_tile(rows: int, vectors: int, packed: int = 1, cache: int = 1) -> Callable:
    """Generate a micro-kernel of matrix products: a tile of A B that is held in registers, and stored in or added to C.

    For each k, a row of B is loaded once (`vectors` vectors) and used for all rows; each A[i, k] is loaded once, copied
    to all lanes, and used for all vectors. Every C[i, j] is a sum over k in ascending order for any shape of the tile,
    so that results do not depend on how the work is split.

    Parameters
    ----------
    rows, vectors : int
        Shape of the tile.
    packed : {1, 2, 4}
        Numbers, consecutive along k, that each element of A and B consists of, in the space of one float32: one
        float32, two bfloat16, or four bytes. With bytes C is int32. A micro-kernel of bfloat16 must only be called if
        HAS_BF16, one of bytes only if HAS_INT8.
    cache : int
        Cache level for prefetched memory, 1 or 2.

    Returns
    -------
    callable
        For use in kernels: ``tile(a, rows_a, ld_a, b, ld_b, c, ld_c, inner, add, ahead, every)``. Addresses are in
        bytes, everything else in elements: A is (rows_a, inner) with a row stride of ld_a, B is (inner, vectors *
        LANES), C is (rows, vectors * LANES). If A has fewer rows than the tile, its last row is repeated: C must have
        room for all rows. With `add`, the result is added to C. Iteration k prefetches the memory at ``ahead + every
        k`` for later tiles.
    """

    @intrinsic
    def tile(context, a, rows_a, ld_a, b, ld_b, c, ld_c, inner, add, ahead, every):
        def generate(context, builder, signature, arguments):
            a, rows_a, ld_a, b, ld_b, c, ld_c, inner, add, ahead, every = arguments
            v = Vectors(builder)
            a_rows = _row_pointers(v, a, rows_a, ld_a, rows)
            b, c = v.pointer(b), v.pointer(c)
            slots = [
                v.at(c, builder.add(builder.mul(ld_c, I64(i)), I64(j * LANES)))
                for i in range(rows)
                for j in range(vectors)
            ]
            multiply_add, plus = _multiply_add(v, packed)
            zero = ir.Constant(v.integers if packed == 4 else v.type, None)

            def body(k, sums):
                v.prefetch(builder.add(ahead, builder.mul(k, every)), cache)
                row = v.at(b, builder.mul(k, ld_b))
                columns = [v.load(v.at(row, j * LANES)) for j in range(vectors)]
                updated = []
                for i in range(rows):
                    scalar = v.splat(builder.load(v.at(a_rows[i], k)))
                    updated += [multiply_add(scalar, columns[j], sums[i * vectors + j]) for j in range(vectors)]
                return updated

            _, sums = loop(builder, 0, inner, 1, [zero] * (rows * vectors), body)
            adding = builder.icmp_signed("!=", add, I64(0))
            with builder.if_else(adding) as (then, otherwise):
                with then:
                    for value, slot in zip(sums, slots):
                        v.store(plus(builder.bitcast(v.load(slot), value.type), value), slot)
                with otherwise:
                    for value, slot in zip(sums, slots):
                        v.store(value, slot)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 11), generate

    return tile


def _multiply_add(v: Vectors, packed: int) -> tuple[Callable[..., ir.Value], Callable[..., ir.Value]]:
    """Return the instruction that adds products to sums, and the one that adds sums; see :func:`product_tile`."""
    if packed == 4:
        return functools.partial(add_products_of_quads, v), v.builder.add
    return v.add_products_of_pairs if packed == 2 and HAS_BF16 else v.fma, v.builder.fadd


def _row_pointers(v: Vectors, base: ir.Value, count: ir.Value, step: ir.Value, rows: int) -> list[ir.Value]:
    """Return pointers to `rows` rows, of which `count` exist; the last one is repeated for the others."""
    b, base = v.builder, v.pointer(base)
    last = b.sub(count, I64(1))
    pointers = []
    for row in range(rows):
        exists = b.icmp_signed("<", I64(row), count)
        pointers.append(v.at(base, b.mul(b.select(exists, I64(row), last), step)))
    return pointers


@intrinsic
def as_bfloat(context, x):
    """Round a float to the 16 bits of a bfloat16, ties to even. Infinity stays infinity; NaN may become infinity."""

    def generate(context, builder, signature, arguments):
        bits = builder.bitcast(arguments[0], I32)
        odd = builder.and_(builder.lshr(bits, I32(16)), I32(1))
        rounded = builder.add(bits, builder.add(odd, I32(0x7FFF)))
        return builder.trunc(builder.lshr(rounded, I32(16)), I16)

    return types.uint16(types.float32), generate


@intrinsic
def row_to_pairs(context, source, target, n):
    """Convert n floats at one address to n bfloat16 numbers at another; n is a multiple of LANES."""

    def generate(context, builder, signature, arguments):
        source, target, n = arguments
        v = Vectors(builder)
        source, target = v.pointer(source), v.pointer(target, I16)
        wide, narrow = ir.VectorType(I32, LANES), ir.VectorType(I16, LANES)

        def constant(number):
            return ir.Constant(wide, [number] * LANES)

        def body(index, carried):
            bits = builder.bitcast(v.load(v.at(source, index)), wide)
            odd = builder.and_(builder.lshr(bits, constant(16)), constant(1))
            rounded = builder.lshr(builder.add(bits, builder.add(odd, constant(0x7FFF))), constant(16))
            slot = builder.bitcast(v.at(target, index), narrow.as_pointer())
            builder.store(builder.trunc(rounded, narrow), slot).align = 2
            return carried

        loop(builder, 0, n, LANES, [], body)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), generate


@intrinsic
def transpose_tile(context, source, ld_source, target, ld_target):
    """Transpose LANES x LANES floats at one address, with row stride ld_source, to another, with row stride ld_target.

    The two off-diagonal blocks are exchanged, first for halves of the tile, then for halves of the halves, and so on:
    each exchange is two shuffles of a pair of rows.
    """

    def generate(context, builder, signature, arguments):
        source, ld_source, target, ld_target = arguments
        v = Vectors(builder)
        source, target = v.pointer(source), v.pointer(target)
        rows = [v.load(v.at(source, builder.mul(ld_source, I64(i)))) for i in range(LANES)]

        def mix(a, b, lanes):
            return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, LANES), lanes))

        half = LANES // 2
        while half:
            for i in range(LANES):
                if not i & half:
                    a, b = rows[i], rows[i + half]
                    rows[i] = mix(a, b, [lane + LANES - half if lane & half else lane for lane in range(LANES)])
                    rows[i + half] = mix(a, b, [lane + LANES if lane & half else lane + half for lane in range(LANES)])
            half //= 2
        for i, row in enumerate(rows):
            v.store(row, v.at(target, builder.mul(ld_target, I64(i))))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), generate


@intrinsic
def row_times(context, source, target, n, factor):
    """Multiply n floats at one address by a factor, and store them at another or the same; n is a multiple of LANES."""

    def generate(context, builder, signature, arguments):
        source, target, n, factor = arguments
        v = Vectors(builder)
        source, target, factor = v.pointer(source), v.pointer(target), v.splat(factor)

        def body(index, carried):
            v.store(builder.fmul(v.load(v.at(source, index)), factor), v.at(target, index))
            return carried

        loop(builder, 0, n, LANES, [], body)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.float32), generate


def _over_row(unrolled: int, first: Callable, combine: Callable, each: Callable) -> Callable:
    """Generate a reduction ``f(p, n, x)`` of the n floats at address p, `unrolled` vectors at a time.

    `first(v, x)` is the initial value of every lane; `each(v, pointer, x)` returns the contribution of a vector, and
    may store something; `combine(v, a, b)` combines two vectors. n is a multiple of LANES: the caller handles the
    remaining numbers.
    """

    @intrinsic
    def over(context, p, n, x):
        def generate(context, builder, signature, arguments):
            p, n, x = arguments
            v = Vectors(builder)
            p, x = v.pointer(p), v.splat(x)
            start = first(v, x)

            def iteration(vectors):
                def body(index, carried):
                    values = [each(v, v.at(p, builder.add(index, I64(u * LANES))), x) for u in range(vectors)]
                    return [combine(v, a, b) for a, b in zip(carried, values)]

                return body

            index, partial = loop(builder, 0, n, unrolled * LANES, [start] * unrolled, iteration(unrolled))
            index, total = loop(builder, index, n, LANES, partial[:1], iteration(1))
            for other in partial[1:]:
                total = [combine(v, total[0], other)]
            return v.fold(total[0], lambda a, b: combine(v, a, b))

        return types.float32(types.int64, types.int64, types.float32), generate

    return over


def _exponential(v: Vectors, pointer: ir.Value, x: ir.Value) -> ir.Value:
    """Replace a vector by 2^(vector - x) for an integer x, and return it.

    As :meth:`Vectors.exp2`, but x needs no subtraction of its own: it is part of the number that is added for rounding.
    """
    b, integers = v.builder, ir.VectorType(I32, v.lanes)
    rounder = b.fsub(v.constant(ROUNDER), x)
    value = v.larger(v.load(pointer), b.fsub(x, v.constant(126.0)))
    shifted = b.fadd(value, rounder)
    mantissa = v.polynomial(EXP2, b.fsub(value, b.fsub(shifted, rounder)))
    exponent = b.shl(b.bitcast(shifted, integers), ir.Constant(integers, [23] * v.lanes))
    power = b.bitcast(b.add(b.bitcast(mantissa, integers), exponent), v.type)
    v.store(power, pointer)
    return power


def _squared_deviation(v: Vectors, pointer: ir.Value, x: ir.Value) -> ir.Value:
    difference = v.builder.fsub(v.load(pointer), x)
    return v.builder.fmul(difference, difference)


def _times_zero(v: Vectors, pointer: ir.Value, x: ir.Value) -> ir.Value:
    return v.builder.fmul(v.load(pointer), v.constant(0.0))


def _plus(v: Vectors, a: ir.Value, b: ir.Value) -> ir.Value:
    return v.builder.fadd(a, b)


def _zero(v: Vectors, x: ir.Value) -> ir.Value:
    return v.constant(0.0)


def _load(v: Vectors, pointer: ir.Value, x: ir.Value) -> ir.Value:
    return v.load(pointer)


# Reductions of a row, called with its address, its length (a multiple of LANES), and a float x.
row_maximum = _over_row(4, lambda v, x: x, Vectors.larger, _load)  # the maximum of the row and x
row_minimum = _over_row(4, lambda v, x: x, Vectors.smaller, _load)  # the minimum of the row and x
row_exponentials = _over_row(4, _zero, _plus, _exponential)  # row = 2^(row - x) for an integer x; returns the sum
row_sum = _over_row(4, _zero, _plus, _load)  # the sum of the row; x is not used
row_times_zero = _over_row(4, _zero, _plus, _times_zero)  # 0, or NaN if the row contains NaN or infinity
row_squares = _over_row(4, _zero, _plus, _squared_deviation)  # the sum of (row - x)^2
