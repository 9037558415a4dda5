"""Rotation of queries and keys by the positions of their tokens, as they are packed for the products of attention."""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir
from vitnp.kernels.cpu.codegen import types
from vitnp.kernels.cpu.codegen.jit import intrinsic
from vitnp.kernels.cpu.codegen.simd import LANES, Vectors, loop


@intrinsic
def rotate_rows(context, x, ld_x, rotation, ld_rotation, target, ld_target, rows, half, factor):
    """Compute one head of ``factor * rotate(x, rotation, heads)`` for a few tokens; see rotate in the reference.

    Everything is given by addresses and row strides in elements: x and target are (rows, 2 half) float32, and rotation
    (rows, 2 half) has the cosines of each token's angles, then their sines. The target is other memory than x.
    """

    def generate(context, builder, signature, arguments):
        x, ld_x, rotation, ld_rotation, target, ld_target, rows, half, factor = arguments
        v = Vectors(builder)
        x, rotation, target = map(v.pointer, (x, rotation, target))

        def row(index, carried):
            pointers = (
                v.at(x, builder.mul(index, ld_x)),
                v.at(rotation, builder.mul(index, ld_rotation)),
                v.at(target, builder.mul(index, ld_target)),
            )
            done, _ = loop(builder, 0, half, LANES, [], _rotate_points(v, pointers, half, factor))
            loop(builder, done, half, 1, [], _rotate_points(Vectors(builder, 1), pointers, half, factor))
            return carried

        loop(builder, 0, rows, 1, [], row)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 8, types.float32), generate


def _rotate_points(
    v: Vectors, row: tuple[ir.Value, ir.Value, ir.Value], half: ir.Value, factor: ir.Value
) -> Callable[[ir.Value, list[ir.Value]], list[ir.Value]]:
    """Return the body of a loop over the points of a row, as many at a time as a vector has lanes.

    The row is given by its pointers in x, the rotation and the target.
    """
    x, rotation, target = row
    b, factor = v.builder, v.splat(factor)

    def body(index: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
        second = b.add(index, half)
        a, c = v.load(v.at(x, index)), v.load(v.at(rotation, index))
        a2, s = v.load(v.at(x, second)), v.load(v.at(rotation, second))
        minus = b.fsub(v.constant(0.0), b.fmul(a2, s))
        v.store(b.fmul(v.fma(a, c, minus), factor), v.at(target, index))
        v.store(b.fmul(v.fma(a2, c, b.fmul(a, s)), factor), v.at(target, second))
        return carried

    return body
