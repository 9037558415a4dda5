"""Copy keys and values into the cache of attention, in the order in which the products read them.

Keys are rotated on the way if the network has rotary position embeddings, so that this takes no pass of its own.
"""

from __future__ import annotations

import numpy as np
from vitnp.kernels.cpu.codegen import types
from vitnp.kernels.cpu.codegen.gil import enter_kernel, leave_kernel
from vitnp.kernels.cpu.codegen.jit import IN, OUT, kernel
from vitnp.kernels.cpu.codegen.microkernels import (
    PANEL,
    as_bfloat,
    row_times,
    row_to_pairs,
    rows_to_pairs,
    transpose_tile,
)
from vitnp.kernels.cpu.codegen.simd import LANES
from vitnp.kernels.cpu.rotation import rotate_rows


@kernel
def _rows_to_columns(rows, count, panel, offset):
    """Copy the first `count` rows, at most LANES, to columns of a panel (D/H, PANEL) from `offset` on."""
    size = panel.shape[0]
    evenly = size // LANES * LANES if count == LANES else 0
    for d in range(0, evenly, LANES):
        source, target = rows[0, d:], panel[d, offset:]
        transpose_tile(source.ctypes.data, rows.strides[0] // 4, target.ctypes.data, PANEL)
    for j in range(count):
        for d in range(evenly, size):
            panel[d, offset + j] = rows[j, d]


@kernel
def _next_columns(start, i, n):
    """Return which of n rows to copy next, from row i on: the first, its panel and column, and their number.

    Row 0 is token `start`. There are at most LANES rows, all for one panel. Fewer than LANES would be copied one by
    one, which takes longer than to copy some of the previous ones again.
    """
    panel, offset = divmod(start + i, PANEL)
    count = min(PANEL - offset, n - i, LANES)
    back = LANES - count
    if back <= min(i, offset):
        return i - back, panel, offset - back, LANES
    return i, panel, offset, count


@kernel(IN(2), IN(2), OUT(4, layout="C"), OUT(3, layout="C"), IN(2), OUT(2, layout="C"), types.int64)
def write(key, value, keys, values, rotation, rotated, start):
    """Copy rows of keys and values into the cache.

    Parameters
    ----------
    key, value : (n, D) float32, IN
        Rows are contiguous.
    keys : (H, panels, D/H, PANEL) float32, OUT
    values : (H, N, padded D/H) float32, OUT
    rotation : (n, D/H) or (0, 0) float32, IN
        Rotations of the keys, or none.
    rotated : (LANES, D/H) float32, OUT
        Workspace for rotated keys; no rows without rotations.
    start : int
        Token of the first row.
    """
    enter_kernel()
    heads, size = keys.shape[0], keys.shape[2]
    evenly = size // LANES * LANES
    for head in range(heads):
        column = head * size
        for i in range(len(value)):
            target_row = values[head, start + i]
            row_times(value[i, column:].ctypes.data, target_row.ctypes.data, evenly, np.float32(1))
            for d in range(evenly, size):
                target_row[d] = value[i, column + d]
        i = 0
        while i < len(key):
            i, panel, offset, count = _next_columns(start, i, len(key))
            if len(rotation):
                rotate_rows(
                    key[i, column:].ctypes.data, key.strides[0] // 4,
                    rotation[i].ctypes.data, rotation.strides[0] // 4,
                    rotated.ctypes.data, size, count, size // 2, np.float32(1),
                )  # fmt: skip
                _rows_to_columns(rotated, count, keys[head, panel], offset)
            else:
                _rows_to_columns(key[i:, column:], count, keys[head, panel], offset)
            i += count
    leave_kernel()


@kernel
def _pairs_to_columns(rows, count, panel, offset, block):
    """Copy rows as :func:`_rows_to_columns`, to a panel (ceil(D/H / 2), 2 PANEL) of bfloat16, by way of `block`."""
    size = rows.shape[1]
    evenly = 2 * block.shape[1] if count == LANES else 0
    for j in range(count if evenly else 0):
        row_to_pairs(rows[j].ctypes.data, block[j].ctypes.data, evenly)
    for d in range(0, evenly // 2, LANES):
        source, target = block[0, d:], panel[d, 2 * offset :]
        transpose_tile(source.ctypes.data, block.shape[1], target.ctypes.data, PANEL)
    for j in range(count):
        for d in range(evenly, size):
            panel[d // 2, 2 * (offset + j) + d % 2] = as_bfloat(rows[j, d])


@kernel(
    IN(2), IN(2), OUT(4, types.uint16, layout="C"), OUT(3, types.uint16, layout="C"), IN(2), OUT(2, layout="C"),
    OUT(2, layout="C"), types.int64, types.int64,
)  # fmt: skip
def write_pairs(key, value, keys, values, rotation, rotated, block, size, start):
    """Copy rows of keys and values into a cache of bfloat16 numbers, as :func:`write`.

    Keys are (H, panels, ceil(D/H / 2), 2 PANEL) and values (H, ceil(N / 2), 2 padded D/H), uint16. `block` is a
    workspace (LANES, whole vectors of pairs of features) for rows of keys.
    """
    enter_kernel()
    evenly = size // LANES * LANES
    first = start % 2  # the first row whose value is the first of a pair
    last = first + max(0, len(value) - first) // 2 * 2
    for head in range(keys.shape[0]):
        column = head * size
        for i in range(first, last, 2):
            target = values[head, (start + i) // 2]
            rows_to_pairs(
                value[i, column:].ctypes.data, value[i + 1, column:].ctypes.data, target.ctypes.data, evenly
            )  # fmt: skip
        for i in range(len(value)):
            half, odd = divmod(start + i, 2)
            for d in range(evenly if first <= i < last else 0, size):
                values[head, half, 2 * d + odd] = as_bfloat(value[i, column + d])
        i = 0
        while i < len(key):
            i, panel, offset, count = _next_columns(start, i, len(key))
            if len(rotation):
                rotate_rows(
                    key[i, column:].ctypes.data, key.strides[0] // 4,
                    rotation[i].ctypes.data, rotation.strides[0] // 4,
                    rotated.ctypes.data, size, count, size // 2, np.float32(1),
                )  # fmt: skip
                _pairs_to_columns(rotated, count, keys[head, panel], offset, block)
            else:
                _pairs_to_columns(key[i:, column : column + size], count, keys[head, panel], offset, block)
            i += count
    leave_kernel()
