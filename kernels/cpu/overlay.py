"""Colors of an overlay in one pass over the pixels, with the bits of the reference."""

from __future__ import annotations

import numpy as np
from vitnp.kernels.cpu.codegen import types
from vitnp.kernels.cpu.codegen.jit import array_in, array_out, kernel


def paint_overlay(
    rgb: np.ndarray, soft: np.ndarray, opacity: np.ndarray, outside: np.ndarray, tint: float, lines: np.ndarray
) -> np.ndarray:
    rgb, soft = np.ascontiguousarray(rgb), np.ascontiguousarray(soft)
    result = np.empty_like(rgb)
    matrix, colors = np.ascontiguousarray(outside, np.float32), np.ascontiguousarray(lines, np.int32)
    tables = np.ascontiguousarray(opacity, np.int32)
    _paint(rgb.reshape(-1, 3), soft.reshape(-1), tables, matrix, np.float32(tint), colors, result.reshape(-1, 3))
    return result


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
    for i in range(len(rgb)):
        r, g, b = np.float32(rgb[i, 0]), np.float32(rgb[i, 1]), np.float32(rgb[i, 2])
        value = soft[i]
        tinted, outer, inner = opacity[0, value], opacity[1, value], opacity[2, value]
        for channel in range(3):
            mixed = outside[channel, 0] * r + outside[channel, 1] * g + outside[channel, 2] * b + np.float32(0.5)
            color = np.int32(min(max(mixed, np.float32(0)), np.float32(255)))
            if tinted:
                own = np.float32(rgb[i, channel])
                color = _over(color, np.int32(own + tint * (np.float32(lines[1, channel]) - own)), tinted)
            if outer | inner:
                color = _over(_over(color, lines[0, channel], outer), lines[1, channel], inner)
            result[i, channel] = color
