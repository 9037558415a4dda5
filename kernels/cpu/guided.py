"""Parts of the guided filter, with the bits of the reference: the same operations in the same order."""

from __future__ import annotations

import numpy as np
from vitnp.kernels.cpu.codegen import types
from vitnp.kernels.cpu.codegen.jit import array_in, array_out, kernel
from vitnp.kernels.cpu.codegen.workspace import workspace
from vitnp.kernels.reference.guided import Taps, window_edges

INDICES, WEIGHTS = array_in(1, types.int64), array_in(1)


def box_mean(values: np.ndarray, radius: int) -> np.ndarray:
    values = np.ascontiguousarray(values, np.float64)
    means, work = np.empty_like(values), workspace("window sums", 3, values.shape[1] + 1, dtype=np.float64)
    _box_mean(values, *window_edges(len(values), radius), *window_edges(values.shape[1], radius), work, means)
    return means


def linear_in_color(planes: np.ndarray, rgb: np.ndarray, vertical: Taps, horizontal: Taps) -> np.ndarray:
    result = np.empty(rgb.shape[:2], np.uint16)
    rows = workspace("rows of planes", planes.shape[2], len(planes))
    _linear_in_color(np.ascontiguousarray(planes), np.ascontiguousarray(rgb), *vertical, *horizontal, rows, result)
    return result


@kernel(
    array_in(2, types.float64), INDICES, INDICES, INDICES, INDICES, array_out(2, types.float64),
    array_out(2, types.float64), fastmath=False,
)  # fmt: skip
def _box_mean(values, top, bottom, left, right, work, means):
    """Average over windows: running sums of columns at both ends of the window, then differences of those of rows."""
    height, width = values.shape
    begin, end, sums = work[0], work[1], work[2]
    work[:] = 0
    first = last = 0
    for y in range(height):
        while first < top[y]:
            for x in range(width):
                begin[x] += values[first, x]
            first += 1
        while last < bottom[y]:
            for x in range(width):
                end[x] += values[last, x]
            last += 1
        total = 0.0
        for x in range(width):
            total += end[x] - begin[x]
            sums[x + 1] = total
        for x in range(width):
            area = (last - first) * (right[x] - left[x])
            means[y, x] = (sums[right[x]] - sums[left[x]]) / np.float64(area)


@kernel(
    array_in(3),
    array_in(3, types.uint8),
    INDICES,
    INDICES,
    WEIGHTS,
    INDICES,
    INDICES,
    WEIGHTS,
    array_out(2),
    array_out(2, types.uint16),
    fastmath=False,
)
def _linear_in_color(planes, rgb, top, bottom, down, left, right, across, rows, result):
    n_planes, _, width = planes.shape
    for y in range(len(top)):
        for k in range(n_planes):
            for x in range(width):
                start = planes[k, top[y], x]
                rows[x, k] = (planes[k, bottom[y], x] - start) * down[y] + start
        for x in range(len(left)):
            i, j, weight = np.uint64(left[x]), np.uint64(right[x]), across[x]
            value = (rows[j, 3] - rows[i, 3]) * weight + rows[i, 3]
            for k in range(3):
                value += ((rows[j, k] - rows[i, k]) * weight + rows[i, k]) * np.float32(rgb[y, x, k])
            value = min(max(value, np.float32(0)), np.float32(1))
            result[y, x] = np.uint16(np.rint(value * np.float32(65535)))
