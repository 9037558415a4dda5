"""Bins of color of a bilateral grid: those that occur, and that of each pixel."""

from __future__ import annotations

import numpy as np
from vitnp.kernels.cpu.codegen import types
from vitnp.kernels.cpu.codegen.jit import array_in, array_out, intrinsic, kernel
from vitnp.kernels.cpu.codegen.pixels import load_pixels, load_splats, weighted_channels
from vitnp.kernels.cpu.codegen.simd import I32, I64, LANES, Vectors, loop
from vitnp.kernels.cpu.codegen.stack import stack_array
from vitnp.kernels.cpu.codegen.workspace import workspace
from vitnp.kernels.reference.bilateral_grid import color_bins, color_bounds

# Bins of color that are looked up in a table; more of them, with sides of a bin near one level, are sorted.
MAX_TABLE = 1 << 20

_new_matrix, _new_vector = stack_array(3, 3), stack_array(3, dtype=types.int32)


def number_colors(rgb: np.ndarray, sigma_luma: float, sigma_chroma: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Assign numbers to the bins of color that occur.

    Returns
    -------
    colors : (P,) int64
        Key of each color, ascending.
    color : (pixels,) uint32
        Number of the color of each pixel.
    steps : (3, P) uint32
        Number of the next color along luma, U and V; P if it does not occur.
    """
    weights, lowest, extents = color_bounds(sigma_luma, sigma_chroma)
    strides = [extents[1] * extents[2], extents[2], 1]
    pixels, size = rgb.shape[0] * rgb.shape[1], extents[0] * strides[0]
    color = workspace("color", pixels, dtype=np.uint32)
    if size <= MAX_TABLE:
        table, found = np.zeros(size, np.uint32), np.empty(min(size, pixels), np.int64)
        low, factors = np.array(lowest, np.int32), np.array(strides, np.int32)
        colors = found[
            : _number_colors(np.ascontiguousarray(rgb).reshape(-1, 3), weights, low, factors, table, found, color)
        ]
    else:
        bins = color_bins(rgb, sigma_luma, sigma_chroma)
        colors, place = np.unique(sum(axis * stride for axis, stride in zip(bins, strides)), return_inverse=True)
        color[:] = place.ravel()
    steps = np.empty((3, len(colors)), np.uint32)
    for axis, stride in enumerate(strides):
        place = np.searchsorted(colors, colors + stride).clip(max=len(colors) - 1)
        steps[axis] = np.where(colors[place] == colors + stride, place, len(colors))
    return colors, color, steps


@intrinsic
def _color_keys(context, rgb, weights, low, luma, blue, color, count):
    """Write the keys of whole vectors of pixels, and return the index of the first of the rest.

    Parameters
    ----------
    rgb, weights, low, color : int
        Addresses of pixels, of (3, 3) float32 and (3,) int32 as in :func:`_number_colors`, and of the keys.
    luma, blue : int32
        Strides.
    count : int
        Number of pixels.
    """

    def generate(context, builder, signature, arguments):
        rgb, weights, low, luma, blue, color, count = arguments
        v = Vectors(builder)
        factors = load_splats(v, weights, 9)
        lowest = [v.splat(builder.load(v.at(v.pointer(low, I32), axis))) for axis in range(3)]
        strides = [v.splat(luma), v.splat(blue)]

        def body(index, _):
            channels = load_pixels(v, builder.add(rgb, builder.mul(index, I64(3))))
            bins = []
            for axis in range(3):
                value = v.call("rint", weighted_channels(v, factors[3 * axis : 3 * axis + 3], channels))
                bins.append(builder.sub(builder.fptosi(value, v.integers), lowest[axis]))
            keys = builder.add(builder.mul(bins[0], strides[0]), builder.add(builder.mul(bins[1], strides[1]), bins[2]))
            v.store(keys, v.at(v.pointer(color, I32), index))
            return []

        return loop(builder, 0, count, LANES, [], body)[0]

    return types.int64(*[types.int64] * 3, types.int32, types.int32, types.int64, types.int64), generate


@kernel(
    array_in(2, types.uint8),
    array_in(2),
    array_in(1, types.int32),
    array_in(1, types.int32),
    array_out(1, types.uint32),
    array_out(1, types.int64),
    array_out(1, types.uint32),
    fastmath=False,
)
def _number_colors(rgb, weights, low, strides, table, colors, color):
    """Write the key of each color that occurs, ascending, and each pixel's color; return how many colors there are.

    `table` has a number for each possible key, all of them 0.
    """
    w, lowest, luma, blue = _new_matrix(), _new_vector(), strides[0], strides[1]  # copies: nothing else writes to them
    for i in range(3):
        lowest[i] = low[i]
        for j in range(3):
            w[i, j] = weights[i, j]
    first = _color_keys(rgb.ctypes.data, w.ctypes.data, lowest.ctypes.data, luma, blue, color.ctypes.data, len(rgb))
    for i in range(first, len(rgb)):
        r, g, b = np.float32(rgb[i, 0]), np.float32(rgb[i, 1]), np.float32(rgb[i, 2])
        y = np.int32(np.rint(w[0, 0] * r + w[0, 1] * g + w[0, 2] * b)) - lowest[0]
        u = np.int32(np.rint(w[1, 0] * r + w[1, 1] * g + w[1, 2] * b)) - lowest[1]
        v = np.int32(np.rint(w[2, 0] * r + w[2, 1] * g + w[2, 2] * b)) - lowest[2]
        color[i] = y * luma + u * blue + v
    for i in range(len(color)):
        table[color[i]] = 1
    count = 0
    for key in range(len(table)):
        if table[key]:
            table[key] = count
            colors[count] = key
            count += 1
    for i in range(len(color)):
        color[i] = table[color[i]]
    return count
