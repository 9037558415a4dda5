"""Loops over a row that return one number.

:func:`row_sum` and :func:`row_squares` are the passes of a layer normalization. Those of a softmax are in
:mod:`vitnp.kernels.cpu.codegen.softmax`.
"""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir
from vitnp.kernels.cpu.codegen import types
from vitnp.kernels.cpu.codegen.jit import intrinsic
from vitnp.kernels.cpu.codegen.simd import I64, LANES, Vectors, loop


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


def _squared_deviation(v: Vectors, row: ir.Value, index: ir.Value, x: ir.Value) -> ir.Value:
    difference = v.builder.fsub(v.load(v.at(row, index)), x)
    return v.builder.fmul(difference, difference)


def _plus(v: Vectors, a: ir.Value, b: ir.Value) -> ir.Value:
    return v.builder.fadd(a, b)


def _zero(v: Vectors, x: ir.Value) -> ir.Value:
    return v.constant(0.0)


def _load(v: Vectors, row: ir.Value, index: ir.Value, x: ir.Value) -> ir.Value:
    return v.load(v.at(row, index))


def _times_zero(v: Vectors, row: ir.Value, index: ir.Value, x: ir.Value) -> ir.Value:
    return v.builder.fmul(v.load(v.at(row, index)), v.constant(0.0))


# Reductions of a row, called with its address, its length (a multiple of LANES), and a float x.
row_maximum = _over_row(4, lambda v, x: x, Vectors.larger, _load)  # the maximum of the row and x
row_sum = _over_row(4, _zero, _plus, _load)  # the sum of the row; x is not used
row_squares = _over_row(4, _zero, _plus, _squared_deviation)  # the sum of (row - x)^2
row_times_zero = _over_row(1, _zero, _plus, _times_zero)  # 0 if all are finite, else NaN; x is not used
