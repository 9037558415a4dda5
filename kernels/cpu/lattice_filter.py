"""Kernels that filter on the permutohedral lattice, and the updates of mean-field inference.

Splatting and slicing are products of a sparse matrix and a dense one: a vertex is a weighted sum of points, a point a
weighted sum of vertices. Both gather, so each sum is computed by one thread in a fixed order, and results do not depend
on the number of threads.
"""

from __future__ import annotations

import numpy as np
from vitnp.kernels.cpu.codegen import types
from vitnp.kernels.cpu.codegen.jit import array_in, array_out, intrinsic, kernel
from vitnp.kernels.cpu.codegen.simd import I32, I64, LOG2_E, Vectors, loop
from vitnp.kernels.cpu.codegen.stack import stack_array

# Numbers of a row that are processed together on any processor. Rows are padded to a multiple: 21 classes take 24.
WIDTH = 8
# Marginals below 2^-60 of the largest one of a point become 0: no label depends on them, and floats near 1e-38 are
# slow.
MIN_EXPONENT = -60.0


@intrinsic
def _gather(context, index, weight, entries, gain, values, add, target, width):
    """Compute ``target = gain * sum over k of weight[k] * values[index[k]]``, or ``+=`` if `add` is not 0.

    Arrays are given by their addresses; rows consist of `width` floats, a multiple of WIDTH.
    """

    def generate(context, builder, signature, arguments):
        index, weight, entries, gain, values, add, target, width = arguments
        v = Vectors(builder, WIDTH)
        index = builder.inttoptr(index, I32.as_pointer())
        weight, values, target = v.pointer(weight), v.pointer(values), v.pointer(target)
        gain, adding = v.splat(gain), builder.icmp_signed("!=", add, I64(0))

        def columns(column, _):
            def body(k, total):
                row = builder.mul(builder.sext(builder.load(v.at(index, k)), I64), width)
                scalar = v.splat(builder.load(v.at(weight, k)))
                return [v.fma(scalar, v.load(v.at(values, builder.add(row, column))), total[0])]

            _, (total,) = loop(builder, 0, entries, 1, [v.constant(0.0)], body)
            slot = v.at(target, column)
            v.store(v.fma(gain, total, builder.select(adding, v.load(slot), v.constant(0.0))), slot)
            return []

        loop(builder, 0, width, WIDTH, [], columns)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.float32, *[types.int64] * 4), generate


@intrinsic
def _softmax(context, row, width):
    """Replace the row at an address by its softmax; `width` is a multiple of WIDTH."""

    def generate(context, builder, signature, arguments):
        row, width = arguments
        v = Vectors(builder, WIDTH)
        row = v.pointer(row)

        def larger(a, b):
            return builder.select(builder.fcmp_ordered(">", a, b), a, b)

        def maximum(column, top):
            return [larger(v.load(v.at(row, column)), top[0])]

        def exponential(column, total):
            slot = v.at(row, column)
            exponent = builder.fmul(builder.fsub(v.load(slot), top), v.constant(LOG2_E))
            large_enough = builder.fcmp_ordered(">", exponent, v.constant(MIN_EXPONENT))
            value = builder.select(large_enough, v.exp2(exponent), v.constant(0.0))
            v.store(value, slot)
            return [builder.fadd(total[0], value)]

        def scale(column, _):
            v.store(builder.fmul(v.load(v.at(row, column)), scaling), v.at(row, column))
            return []

        _, (top,) = loop(builder, 0, width, WIDTH, [v.constant(-np.inf)], maximum)
        top = v.splat(v.fold(top, larger))
        _, (total,) = loop(builder, 0, width, WIDTH, [v.constant(0.0)], exponential)
        scaling = builder.fdiv(v.constant(1.0), v.splat(v.fold(total, builder.fadd)))
        loop(builder, 0, width, WIDTH, [], scale)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def _tanh_of_half(context, row, width):
    """Replace each x of the row at an address by tanh(x / 2); `width` is a multiple of WIDTH."""

    def generate(context, builder, signature, arguments):
        row, width = arguments
        v = Vectors(builder, WIDTH)
        row, one = v.pointer(row), v.constant(1.0)

        def body(column, _):
            slot = v.at(row, column)
            x = v.load(slot)
            exponential = v.exp2(builder.fmul(v.call("fabs", x), v.constant(-LOG2_E)))
            size = builder.fdiv(builder.fsub(one, exponential), builder.fadd(one, exponential))
            v.store(v.call("copysign", size, x), slot)
            return []

        loop(builder, 0, width, WIDTH, [], body)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@kernel(
    array_in(1, types.int64),
    array_in(1, types.int32),
    array_in(1),
    types.float32,
    array_in(2),
    types.int64,
    types.int64,
    array_out(2),
)
def splat(start, point, share, gain, values, first, last, vertices):
    """Set a range of vertices to the weighted sums of their points.

    Parameters
    ----------
    start, point, share : IN
        See :class:`vitnp.kernels.cpu.lattice.Lattice`.
    gain : float32
        Factor of all weights.
    values : (N, C) float32, IN
        C is 1 or a multiple of WIDTH, here and below.
    first, last : int
        Range of vertices.
    vertices : (M + 1, C) float32, OUT
    """
    width = values.shape[1]
    if width == 1:
        for e in range(first, last):
            total = np.float32(0)
            for k in range(start[e], start[e + 1]):
                total += share[k] * values[point[k], 0]
            vertices[e, 0] = gain * total
        return
    points, shares, rows, targets = point.ctypes.data, share.ctypes.data, values.ctypes.data, vertices.ctypes.data
    for e in range(first, last):
        at = 4 * start[e]
        entries, target = start[e + 1] - start[e], targets + 4 * width * e
        _gather(points + at, shares + at, entries, gain, rows, np.int64(0), target, width)


@kernel(array_in(2, types.int32), array_in(2), array_in(2), types.int64, types.int64, array_out(2))
def slice_add(vertex, weight, vertices, first, last, values):
    """Add the weighted sums of their corners to a range of points.

    Parameters
    ----------
    vertex, weight : IN
        See :class:`vitnp.kernels.cpu.lattice.Lattice`.
    vertices : (M + 1, C) float32, IN
    first, last : int
        Range of points.
    values : (N, C) float32, IN and OUT
    """
    axes, width = vertex.shape[1], vertices.shape[1]
    if width == 1:
        for p in range(first, last):
            total = values[p, 0]
            for r in range(axes):
                total += weight[p, r] * vertices[vertex[p, r], 0]
            values[p, 0] = total
        return
    corners, weights, rows, targets = vertex.ctypes.data, weight.ctypes.data, vertices.ctypes.data, values.ctypes.data
    for p in range(first, last):
        at = 4 * axes * p
        _gather(corners + at, weights + at, axes, np.float32(1), rows, np.int64(1), targets + 4 * width * p, width)


@kernel(array_in(2, types.int32), array_in(2), types.int64, types.int64, array_out(2))
def blur(neighbor, vertices, first, last, blurred):
    """Filter a range of vertices by [1/2 1 1/2] along one axis.

    Parameters
    ----------
    neighbor : (M, 2) int32, IN
    vertices : (M + 1, C) float32, IN
        The last row is 0.
    first, last : int
    blurred : (M + 1, C) float32, OUT
    """
    half, width = np.float32(0.5), vertices.shape[1]
    if width == 1:
        for e in range(first, last):
            blurred[e, 0] = vertices[e, 0] + half * (vertices[neighbor[e, 0], 0] + vertices[neighbor[e, 1], 0])
        return
    for e in range(first, last):
        back, ahead = neighbor[e, 0], neighbor[e, 1]
        for c in range(width):
            blurred[e, c] = vertices[e, c] + half * (vertices[back, c] + vertices[ahead, c])


@kernel(array_out(2), types.int64, types.int64)
def to_marginals(state, first, last):
    """Replace a range of rows of logits, (N, C) float32, by their softmax."""
    width = state.shape[1]
    for p in range(first, last):
        _softmax(state.ctypes.data + 4 * width * p, width)


_new_vector = stack_array(WIDTH)


@kernel(array_out(2), types.int64, types.int64)
def to_differences(state, first, last):
    """Replace a range of log-odds x, (N, 1) float32, by tanh(x / 2), the difference of the two probabilities."""
    whole = (last - first) // WIDTH * WIDTH
    _tanh_of_half(state[first:].ctypes.data, whole)
    rest = _new_vector()
    rest[:] = 0
    for p in range(first + whole, last):
        rest[p - first - whole] = state[p, 0]
    _tanh_of_half(rest.ctypes.data, WIDTH)
    for p in range(first + whole, last):
        state[p, 0] = rest[p - first - whole]
