"""Linear layers in 8-bit integers, see :mod:`vitnp.kernels.reference.int8`, with the loops of float32 layers.

Four consecutive inputs, a quad, take the place of one float32: a block of rows is quantized into quads when it is read,
weights are packed as quads, and the micro-kernel adds four products per lane.
"""

from __future__ import annotations

import numpy as np
from numba import types
from vitnp.kernels import reference
from vitnp.kernels.cpu.codegen.gil import enter_kernel, leave_kernel
from vitnp.kernels.cpu.codegen.int8 import OFFSET, row_to_bytes
from vitnp.kernels.cpu.codegen.jit import IN, OUT, kernel
from vitnp.kernels.cpu.codegen.microkernels import PANEL, TILE_ROWS, TILE_VECTORS, product_tile
from vitnp.kernels.cpu.codegen.reductions import row_maximum, row_minimum, row_times_zero
from vitnp.kernels.cpu.codegen.simd import LANES
from vitnp.kernels.cpu.codegen.workspace import workspace
from vitnp.kernels.cpu.epilogue import epilogue, finish_panel
from vitnp.kernels.cpu.linear import PackedInt8
from vitnp.kernels.reference.int8 import MAX_INPUTS, STEPS, quantize_weight

from vitnp.errors import UsageError

ROWS = 128
DEPTH = 96  # quads
QUAD = 4

STEPS_F, TINY = np.float32(STEPS), np.finfo(np.float32).tiny

_tile = product_tile(TILE_ROWS, TILE_VECTORS, packed=4, cache=2)


def pack_int8(weight: np.ndarray) -> PackedInt8:
    """Quantize and pack float32 weights (E, C)."""
    outputs, inputs = weight.shape
    quantized = quantize_weight(weight)
    n_panels, quads = -(-outputs // PANEL), -(-inputs // QUAD)
    values = np.zeros((n_panels * PANEL, quads * QUAD), np.int8)
    values[:outputs, :inputs] = quantized.values
    panels = values.reshape(n_panels, PANEL, quads, QUAD).transpose(0, 2, 1, 3)
    totals = values.sum(axis=1, dtype=np.int32)
    scales = np.zeros(len(values), np.float32)
    scales[:outputs] = quantized.scale
    return PackedInt8(np.ascontiguousarray(panels).view(np.float32)[..., 0], totals, scales, outputs, inputs)


def linear_int8(
    x: np.ndarray,
    weight: PackedInt8,
    bias: np.ndarray | None = None,
    *,
    activation: str | None = None,
    scale: np.ndarray | None = None,
    residual: np.ndarray | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Apply a linear layer with packed weights to float32 rows, see :func:`vitnp.kernels.reference.linear`."""
    if out is None:
        out = np.empty((*x.shape[:-1], weight.outputs), np.float32)
    rows = x.reshape(-1, weight.inputs)
    flat = out.reshape(len(rows), weight.outputs)
    if len(rows) == 0:
        return out
    sums = workspace("int8 sums", ROWS + TILE_ROWS, PANEL, dtype=np.int32)
    quads = workspace("int8 rows", ROWS, -(-weight.inputs // (QUAD * LANES)) * QUAD * LANES, dtype=np.uint8)
    scales, zeros = workspace("int8 scales", ROWS), workspace("int8 zeros", ROWS, dtype=np.int32)
    arguments = epilogue(bias, activation, scale, residual, flat)
    _linear_int8(rows, weight.panels, weight.totals, weight.scales, *arguments, sums, quads, scales, zeros)
    return out


@kernel(fastmath=False)
def _row_range(row, work):
    """Return the scale of a row and its zero point, as the reference does."""
    whole = len(row) // LANES * LANES
    address = row.ctypes.data
    high = row_maximum(address, whole, np.float32(0))
    low = row_minimum(address, whole, np.float32(0))
    nothing = row_times_zero(address, whole, np.float32(0))  # NaN if there is NaN or infinity
    for j in range(whole, len(row)):
        high, low, nothing = max(high, row[j]), min(low, row[j]), nothing + row[j] * np.float32(0)
    scale = max(high / STEPS_F - low / STEPS_F, TINY) + nothing
    return scale, np.rint(-low * (np.float32(1) / scale))


@kernel
def quantize_rows(x, first, count, quads, scales, zeros, work):
    """Quantize `count` rows from `first` on, with the bytes of zero appended up to a multiple of 4 LANES.

    Parameters
    ----------
    x : (N, C) float32, IN
        Rows are contiguous.
    first, count : int
    quads : (count or more, C or more) uint8, OUT
    scales : (count or more,) float32, OUT
    zeros : (count or more,) int32, OUT
        Zero points of the bytes as they are stored, see OFFSET.
    work : (LANES or more,) float32, OUT
        Workspace.
    """
    inputs = x.shape[1]
    whole = inputs // LANES * LANES
    for i in range(count):
        row, target = x[first + i], quads[i]
        scale, zero = _row_range(row, work)
        inverse = np.float32(1) / scale
        scales[i] = scale
        zeros[i] = np.int32(zero) + OFFSET if scale == scale else np.int32(0)
        zero += np.float32(OFFSET)
        row_to_bytes(row.ctypes.data, target.ctypes.data, whole, inverse, zero)
        for j in range(whole, len(target), LANES):
            work[:LANES] = np.float32(0)
            for lane in range(min(LANES, inputs - j)):
                work[lane] = row[j + lane]
            row_to_bytes(work.ctypes.data, target[j:].ctypes.data, LANES, inverse, zero)


@kernel(
    IN(2), IN(3), IN(1, types.int32), IN(1), IN(1), types.boolean, IN(1), IN(2), OUT(2), OUT(2, types.int32),
    OUT(2, types.uint8), OUT(1), OUT(1, types.int32),
)  # fmt: skip
def _linear_int8(x, panels, totals, scales, bias, gelu, scale, residual, out, sums, quads, row_scales, zeros):
    """Compute ``out = residual + scale gelu(x W + bias)``.

    Parameters
    ----------
    x : (N, C) float32, IN
        Rows are contiguous.
    panels, totals, scales
        See :class:`PackedInt8`.
    bias, scale : (E,) or (0,) float32, IN
    gelu : bool
    residual : (N, E) or (0, 0) float32, IN
        May be `out`.
    out : (N, E) float32, OUT
    sums : (ROWS + TILE_ROWS, PANEL) int32, OUT
        Workspace, as all that follow.
    quads : (ROWS, C or more) uint8, OUT
    row_scales : (ROWS,) float32, OUT
    zeros : (ROWS,) int32, OUT
    """
    enter_kernel()
    inputs = panels.shape[1]
    work = np.empty((4, PANEL), np.float32)
    step = quads.strides[0]
    for first in range(0, x.shape[0], ROWS):
        count = min(ROWS, x.shape[0] - first)
        quantize_rows(x, first, count, quads, row_scales, zeros, work[0])
        for panel in range(panels.shape[0]):
            for start in range(0, inputs, DEPTH):
                depth = min(DEPTH, inputs - start)
                weights = panels.ctypes.data + 4 * (panel * inputs + start) * PANEL
                # The next chunk of weights follows in memory. Each tile prefetches its part of it.
                every = -(-4 * PANEL // -(-count // TILE_ROWS))
                ahead = weights + 4 * depth * PANEL
                for i in range(0, count, TILE_ROWS):
                    a, target = quads.ctypes.data + i * step + 4 * start, sums[i].ctypes.data
                    _tile(a, count - i, step // 4, weights, PANEL, target, PANEL, depth, start, ahead, every)
                    ahead += every * depth
            quantized = row_scales, zeros, totals, scales
            finish_panel(sums, first, count, panel * PANEL, bias, gelu, scale, residual, out, work, quantized)
    leave_kernel()
