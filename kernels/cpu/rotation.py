"""Rotation of queries and keys by the positions of their tokens, as they are packed for the products of attention."""

from __future__ import annotations

from numba import types
from vitnp.kernels.cpu.codegen.jit import intrinsic, kernel
from vitnp.kernels.cpu.codegen.simd import LANES, Vectors, loop


@kernel
def rotate_row(source, rotation, target, factor):
    """Compute one head of ``factor * rotate(x, rotation, heads)`` for one token; see rotate in the reference.

    Parameters
    ----------
    source : (d or more,) float32, IN
    rotation : (d,) float32, IN
        Cosines of the d / 2 angles, then their sines.
    target : (d or more,) float32, OUT
        Other memory than that of `source`.
    factor : float32
    """
    half = len(rotation) // 2
    evenly = half // LANES * LANES
    _rotate_vectors(
        source.ctypes.data, source[half:].ctypes.data, rotation.ctypes.data, rotation[half:].ctypes.data,
        target.ctypes.data, target[half:].ctypes.data, evenly, factor,
    )  # fmt: skip
    for i in range(evenly, half):
        x, y, cos, sin = source[i], source[half + i], rotation[i], rotation[half + i]
        target[i] = (x * cos - y * sin) * factor
        target[half + i] = (y * cos + x * sin) * factor


@intrinsic
def _rotate_vectors(context, x, y, cos, sin, new_x, new_y, n, factor):
    """Rotate the points (x, y), given by addresses, and multiply them by a factor; n is a multiple of LANES."""

    def generate(context, builder, signature, arguments):
        *addresses, n, factor = arguments
        v = Vectors(builder)
        x, y, cos, sin, new_x, new_y = map(v.pointer, addresses)
        factor = v.splat(factor)

        def body(index, carried):
            a, b, c, s = (v.load(v.at(pointer, index)) for pointer in (x, y, cos, sin))
            minus_s = builder.fsub(v.constant(0.0), s)
            for pointer, value in (
                (new_x, v.fma(a, c, builder.fmul(b, minus_s))),
                (new_y, v.fma(b, c, builder.fmul(a, s))),
            ):
                v.store(builder.fmul(value, factor), v.at(pointer, index))
            return carried

        loop(builder, 0, n, LANES, [], body)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7, types.float32), generate
