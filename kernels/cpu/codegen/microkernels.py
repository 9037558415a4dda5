"""Micro-kernels: the innermost loops of matrix products, and of conversions of rows, for kernels to call.

:func:`product_tile` generates the micro-kernel of all matrix products. The loops of softmax and layer normalization are
in :mod:`vitnp.kernels.cpu.codegen.reductions`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from llvmlite import ir
from vitnp.kernels.cpu.codegen import types
from vitnp.kernels.cpu.codegen.int8 import add_products_of_quads
from vitnp.kernels.cpu.codegen.jit import intrinsic
from vitnp.kernels.cpu.codegen.simd import HAS_BF16, I16, I32, I64, LANES, Vectors, loop

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
            a_rows = row_pointers(v, a, rows_a, ld_a, rows)
            b, c = v.pointer(b), v.pointer(c)
            slots = [
                v.at(c, builder.add(builder.mul(ld_c, I64(i)), I64(j * LANES)))
                for i in range(rows)
                for j in range(vectors)
            ]
            _, plus = _multiply_add(v, packed)
            zero = ir.Constant(v.integers if packed == 4 else v.type, None)
            sums = add_products(v, a_rows, (b, ld_b), inner, [zero] * (rows * vectors), packed, (ahead, every, cache))
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


def add_products(
    v: Vectors,
    a_rows: Sequence[ir.Value],
    b: tuple[ir.Value, ir.Value],
    inner: ir.Value,
    sums: Sequence[ir.Value],
    packed: int,
    prefetch: tuple[ir.Value, ir.Value, int],
) -> list[ir.Value]:
    """Append the loop of a micro-kernel, see :func:`product_tile`; return the sums, row by row.

    `b` is a pointer and the row stride, `sums` the vectors to begin with, and `prefetch` is (ahead, every, cache).
    """
    builder, vectors = v.builder, len(sums) // len(a_rows)
    multiply_add, _ = _multiply_add(v, packed)
    (pointer, ld_b), (ahead, every, cache) = b, prefetch

    def body(k: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
        v.prefetch(builder.add(ahead, builder.mul(k, every)), cache)
        row = v.at(pointer, builder.mul(k, ld_b))
        columns = [v.load(v.at(row, j * LANES)) for j in range(vectors)]
        updated = []
        for i, a_row in enumerate(a_rows):
            scalar = v.splat(builder.load(v.at(a_row, k)))
            updated += [multiply_add(scalar, columns[j], sums[i * vectors + j]) for j in range(vectors)]
        return updated

    return loop(builder, 0, inner, 1, sums, body)[1]


def _multiply_add(v: Vectors, packed: int) -> tuple[Callable[..., ir.Value], Callable[..., ir.Value]]:
    """Return the instruction that adds products to sums, and the one that adds sums; see :func:`product_tile`."""
    if packed == 4:
        return functools.partial(add_products_of_quads, v), v.builder.add
    return v.add_products_of_pairs if packed == 2 and HAS_BF16 else v.fma, v.builder.fadd


def row_pointers(v: Vectors, base: ir.Value, count: ir.Value, step: ir.Value, rows: int) -> list[ir.Value]:
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

        def body(index, carried):
            v.store(v.to_bfloat(v.load(v.at(source, index))), v.at(target, index), 2)
            return carried

        loop(builder, 0, n, LANES, [], body)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), generate


@intrinsic
def rows_to_pairs(context, first, second, target, n):
    """Convert two rows of n floats to n pairs of bfloat16 numbers, one of each row; n is a multiple of LANES."""

    def generate(context, builder, signature, arguments):
        first, second, target, n = arguments
        v = Vectors(builder)
        first, second, target = v.pointer(first), v.pointer(second), v.pointer(target)
        sixteen = ir.Constant(v.integers, [16] * LANES)

        def body(index, carried):
            low, high = (builder.zext(v.to_bfloat(v.load(v.at(p, index))), v.integers) for p in (first, second))
            v.store(builder.or_(low, builder.shl(high, sixteen)), v.at(target, index))
            return carried

        loop(builder, 0, n, LANES, [], body)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), generate


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


@intrinsic
def row_normalize(context, source, weight, bias, target, n, mean, scale):
    """Write ``(x - mean) scale weight + bias`` of n floats; n is a multiple of LANES, arrays are given by addresses."""

    def generate(context, builder, signature, arguments):
        *addresses, n, mean, scale = arguments
        v = Vectors(builder)
        source, weight, bias, target = map(v.pointer, addresses)
        mean, scale = v.splat(mean), v.splat(scale)

        def body(index, carried):
            x, w, shift = (v.load(v.at(p, index)) for p in (source, weight, bias))
            normalized = builder.fmul(builder.fsub(x, mean), scale)
            v.store(builder.fadd(builder.fmul(normalized, w), shift), v.at(target, index))
            return carried

        loop(builder, 0, n, LANES, [], body)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5, types.float32, types.float32), generate
