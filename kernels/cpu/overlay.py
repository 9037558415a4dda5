"""Colors of an overlay in one pass over the pixels, with the bits of the reference."""

from __future__ import annotations

import numpy as np
from vitnp.kernels.cpu.codegen import types
from vitnp.kernels.cpu.codegen.jit import array_in, array_out, intrinsic, kernel
from vitnp.kernels.cpu.codegen.pixels import load_pixels, load_splats, store_pixels, weighted_channels
from vitnp.kernels.cpu.codegen.simd import LANES, Vectors
from vitnp.kernels.cpu.codegen.stack import stack_array

_new_matrix, _new_accent = stack_array(3, 3), stack_array(4)


def paint_overlay(
    rgb: np.ndarray, soft: np.ndarray, opacity: np.ndarray, outside: np.ndarray, tint: float, lines: np.ndarray
) -> np.ndarray:
    rgb, soft = np.ascontiguousarray(rgb), np.ascontiguousarray(soft)
    result = np.empty_like(rgb)
    matrix, colors = np.ascontiguousarray(outside, np.float32), np.ascontiguousarray(lines, np.int32)
    tables = np.ascontiguousarray(opacity, np.int32)
    _paint(rgb.reshape(-1, 3), soft.reshape(-1), tables, matrix, np.float32(tint), colors, result.reshape(-1, 3))
    return result


@intrinsic
def _dim(context, rgb, matrix, result):
    """Paint LANES pixels outside of the mask; all arguments are addresses."""

    def generate(context, builder, signature, arguments):
        rgb, matrix, result = arguments
        v = Vectors(builder)
        weights, channels = load_splats(v, matrix, 9), load_pixels(v, rgb)
        painted = []
        for channel in range(3):
            mixed = weighted_channels(v, weights[3 * channel : 3 * channel + 3], channels)
            mixed = builder.fadd(mixed, v.constant(0.5))
            mixed = v.smaller(v.larger(mixed, v.constant(0.0)), v.constant(255.0))
            painted.append(builder.fptosi(mixed, v.integers))
        store_pixels(v, painted, result)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), generate


@intrinsic
def _tint(context, rgb, accent, result):
    """Paint LANES pixels inside of the mask; `accent` is the address of the line's color and the tint's share."""

    def generate(context, builder, signature, arguments):
        rgb, accent, result = arguments
        v = Vectors(builder)
        *line, share = load_splats(v, accent, 4)
        painted = [
            builder.fptosi(builder.fadd(own, builder.fmul(share, builder.fsub(color, own))), v.integers)
            for color, own in zip(line, load_pixels(v, rgb))
        ]
        store_pixels(v, painted, result)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), generate


@kernel
def _over(below, above, opacity):
    mixed = below * np.int32(255 - opacity) + above * opacity + np.int32(128)
    return np.int32(((mixed >> 8) + mixed) >> 8)


@kernel(
    array_in(2, types.uint8),
    array_in(1, types.uint8),
    array_in(2, types.int32),
    array_in(2),
    types.float32,
    array_in(2, types.int32),
    array_out(2, types.uint8),
    fastmath=False,
)
def _paint(rgb, soft, opacity, outside, tint, lines, result):
    matrix, accent = _new_matrix(), _new_accent()
    for channel in range(3):
        accent[channel] = lines[1, channel]
        for other in range(3):
            matrix[channel, other] = outside[channel, other]
    accent[3] = tint
    # Far from the outline the blurred mask is 0 or 255, and all pixels of a vector are painted alike.
    dimmed = (opacity[0, 0] | opacity[1, 0] | opacity[2, 0]) == 0
    tinted_only = opacity[0, 255] == 255 and (opacity[1, 255] | opacity[2, 255]) == 0
    for first in range(0, len(rgb), LANES):
        last = min(first + LANES, len(rgb))
        lowest, highest = np.uint8(255), np.uint8(0)
        for i in range(first, last):
            lowest, highest = min(lowest, soft[i]), max(highest, soft[i])
        source, target = rgb.ctypes.data + 3 * first, result.ctypes.data + 3 * first
        if highest == 0 and dimmed and last == first + LANES:
            _dim(source, matrix.ctypes.data, target)
        elif lowest == 255 and tinted_only and last == first + LANES:
            _tint(source, accent.ctypes.data, target)
        else:
            for i in range(first, last):
                r, g, b = np.float32(rgb[i, 0]), np.float32(rgb[i, 1]), np.float32(rgb[i, 2])
                value = soft[i]
                tinted, outer, inner = opacity[0, value], opacity[1, value], opacity[2, value]
                for channel in range(3):
                    mixed = (
                        outside[channel, 0] * r + outside[channel, 1] * g + outside[channel, 2] * b + np.float32(0.5)
                    )
                    color = np.int32(min(max(mixed, np.float32(0)), np.float32(255)))
                    if tinted:
                        own = np.float32(rgb[i, channel])
                        color = _over(color, np.int32(own + tint * (np.float32(lines[1, channel]) - own)), tinted)
                    if outer | inner:
                        color = _over(_over(color, lines[0, channel], outer), lines[1, channel], inner)
                    result[i, channel] = color
