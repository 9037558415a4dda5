"""Loops over a row that return one number: the passes of softmax, layer normalization and quantization.

:func:`row_maximum` and :func:`row_exponentials` are the two passes of a softmax; :func:`row_sum` and
:func:`row_squares` those of a layer normalization.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llvmlite import ir
from vitnp.kernels.cpu.codegen import types
from vitnp.kernels.cpu.codegen.jit import intrinsic
from vitnp.kernels.cpu.codegen.simd import EXP2, I16, I64, LANES, ROUNDER, Vectors, loop

# 2^r for r in -1/2..1/2, lowest power first: a fit of degree 3, relative error 8e-5, for results in bfloat16.
EXP2_BFLOAT = (0.9999280736083698, 0.6932609868108184, 0.24261112163301296, 0.05517166174322487)


def _over_row(unrolled: int, first: Callable, combine: Callable, each: Callable) -> Callable:
    """Generate a reduction ``f(p, n, x)`` of the n floats at address p, `unrolled` vectors at a time.

    `first(v, x)` is the initial value of every lane; `each(v, pointer, index, x)` returns the contribution of the
    vector at pointer + index, and may store something; `combine(v, a, b)` combines two vectors. n is a multiple of
    LANES: the caller handles the remaining numbers.
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
                    values = [each(v, p, builder.add(index, I64(u * LANES)), x) for u in range(vectors)]
                    return [combine(v, a, b) for a, b in zip(carried, values)]

                return body

            index, partial = loop(builder, 0, n, unrolled * LANES, [start] * unrolled, iteration(unrolled))
            index, total = loop(builder, index, n, LANES, partial[:1], iteration(1))
            for other in partial[1:]:
                total = [combine(v, total[0], other)]
            return v.fold(total[0], lambda a, b: combine(v, a, b))

        return types.float32(types.int64, types.int64, types.float32), generate

    return over


def _power(v: Vectors, value: ir.Value, x: ir.Value, polynomial: Sequence[float]) -> ir.Value:
    """Return 2^(value - x) for an integer x.

    As :meth:`Vectors.exp2`, but x needs no subtraction of its own: it is part of the number that is added for rounding.
    """
    b = v.builder
    rounder = b.fsub(v.constant(ROUNDER), x)
    value = v.larger(value, b.fsub(x, v.constant(126.0)))
    shifted = b.fadd(value, rounder)
    mantissa = v.polynomial(polynomial, b.fsub(value, b.fsub(shifted, rounder)))
    exponent = b.shl(b.bitcast(shifted, v.integers), ir.Constant(v.integers, [23] * v.lanes))
    return b.bitcast(b.add(b.bitcast(mantissa, v.integers), exponent), v.type)


def _exponential(v: Vectors, row: ir.Value, index: ir.Value, x: ir.Value) -> ir.Value:
    """Replace a vector by 2^(vector - x), and return it."""
    power = _power(v, v.load(v.at(row, index)), x, EXP2)
    v.store(power, v.at(row, index))
    return power


def _exponential_in_bfloat(v: Vectors, row: ir.Value, index: ir.Value, x: ir.Value) -> ir.Value:
    """Store 2^(vector - x) as bfloat16 numbers, one after the other from the start of the row on, and return it."""
    power = _power(v, v.load(v.at(row, index)), x, EXP2_BFLOAT)
    v.store(v.to_bfloat(power), v.at(v.builder.bitcast(row, I16.as_pointer()), index), 2)
    return power


def _squared_deviation(v: Vectors, row: ir.Value, index: ir.Value, x: ir.Value) -> ir.Value:
    difference = v.builder.fsub(v.load(v.at(row, index)), x)
    return v.builder.fmul(difference, difference)


def _plus(v: Vectors, a: ir.Value, b: ir.Value) -> ir.Value:
    return v.builder.fadd(a, b)


def _zero(v: Vectors, x: ir.Value) -> ir.Value:
    return v.constant(0.0)


def _load(v: Vectors, row: ir.Value, index: ir.Value, x: ir.Value) -> ir.Value:
    return v.load(v.at(row, index))


# Reductions of a row, called with its address, its length (a multiple of LANES), and a float x.
row_maximum = _over_row(4, lambda v, x: x, Vectors.larger, _load)  # the maximum of the row and x
row_exponentials = _over_row(4, _zero, _plus, _exponential)  # row = 2^(row - x) for an integer x; returns the sum
# The same with two bfloat16 numbers in the place of each float, of which there are half as many afterwards.
row_exponentials_in_bfloat = _over_row(4, _zero, _plus, _exponential_in_bfloat)
row_sum = _over_row(4, _zero, _plus, _load)  # the sum of the row; x is not used
row_squares = _over_row(4, _zero, _plus, _squared_deviation)  # the sum of (row - x)^2
