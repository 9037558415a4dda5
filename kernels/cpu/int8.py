"""Linear layers in 8-bit integers, see :mod:`vitnp.kernels.reference.int8`, with the loops of float32 layers.

Four consecutive inputs, a *quad*, take the place of one float32: rows are quantized into quads when they are normalized
or first read, weights are packed as quads, and the micro-kernel adds four products per lane.
"""

from __future__ import annotations

import numpy as np
from vitnp.kernels import reference
from vitnp.kernels.cpu.codegen import types
from vitnp.kernels.cpu.codegen.gil import enter_kernel, leave_kernel
from vitnp.kernels.cpu.codegen.int8 import quantize_row
from vitnp.kernels.cpu.codegen.jit import IN, OUT, kernel
from vitnp.kernels.cpu.codegen.microkernels import PANEL, TILE_ROWS, TILE_VECTORS, product_tile
from vitnp.kernels.cpu.codegen.simd import LANES
from vitnp.kernels.cpu.codegen.workspace import workspace
from vitnp.kernels.cpu.epilogue import copy_out, copy_residual, epilogue, finish_int8, new_panel_rows, start_panel
from vitnp.kernels.cpu.layernorm import normalize_row
from vitnp.kernels.cpu.linear import PackedInt8, unpacked
from vitnp.kernels.reference.int8 import QuantizedRows, check_inputs, quantize_weight

ROWS = 256
DEPTH = 192  # quads
QUAD = 4

_tile = product_tile(TILE_ROWS, TILE_VECTORS, packed=4, cache=2)


def pack_int8(weight: np.ndarray) -> PackedInt8:
    """Quantize and pack float32 weights (E, C)."""
    outputs, inputs = weight.shape
    check_inputs(inputs)
    quantized = quantize_weight(weight)
    n_panels, quads = -(-outputs // PANEL), -(-inputs // QUAD)
    values = np.zeros((n_panels * PANEL, quads * QUAD), np.int8)
    values[:outputs, :inputs] = quantized.values
    panels = values.reshape(n_panels, PANEL, quads, QUAD).transpose(0, 2, 1, 3)
    scales = np.zeros(len(values), np.float32)
    scales[:outputs] = quantized.scale
    return PackedInt8(
        np.ascontiguousarray(panels).view(np.float32)[..., 0], values.sum(axis=1, dtype=np.int32), scales, outputs,
        inputs,
    )  # fmt: skip


def _empty_rows(name: str, shape: tuple[int, ...]) -> QuantizedRows:
    """Return memory for quantized rows, valid until the same thread asks for the same name again."""
    *rows, inputs = shape
    padded = -(-inputs // (QUAD * LANES)) * QUAD * LANES
    return QuantizedRows(
        workspace(f"{name} bytes", *rows, padded, dtype=np.uint8), workspace(f"{name} scales", *rows),
        workspace(f"{name} zeros", *rows, dtype=np.int32), inputs,
    )  # fmt: skip


def _flat(rows: QuantizedRows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return rows.values.reshape(-1, rows.values.shape[-1]), rows.scale.reshape(-1), rows.zero.reshape(-1)


def quantize_rows(x: np.ndarray) -> QuantizedRows:
    if x.dtype != np.float32:
        return reference.quantize_rows(x)
    rows = _empty_rows("rows", x.shape)
    _quantize(x.reshape(-1, x.shape[-1]), *_flat(rows))
    return rows


def layernorm_int8(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> QuantizedRows:
    if x.dtype != np.float32:
        return reference.layernorm_int8(x, weight, bias, eps)
    rows = _empty_rows("normed", x.shape)
    work = workspace("normed", x.shape[-1])
    _layernorm_int8(
        x.reshape(-1, x.shape[-1]), np.ascontiguousarray(weight), np.ascontiguousarray(bias), eps, *_flat(rows), work
    )  # fmt: skip
    return rows


def linear_int8(
    x: np.ndarray | QuantizedRows,
    weight: PackedInt8,
    bias: np.ndarray | None = None,
    *,
    activation: str | None = None,
    scale: np.ndarray | None = None,
    residual: np.ndarray | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Apply a linear layer with packed weights, see :func:`vitnp.kernels.reference.linear`."""
    if isinstance(x, np.ndarray) and x.dtype != np.float32:
        unpacked(weight)  # raises
    rows = x if isinstance(x, QuantizedRows) else quantize_rows(x)
    if out is None:
        out = np.empty((*x.shape[:-1], weight.outputs), np.float32)
    flat = out.reshape(-1, weight.outputs)
    if len(flat):
        sums = workspace("int8 sums", ROWS + TILE_ROWS, PANEL, dtype=np.int32)
        arguments = epilogue(bias, activation, scale, residual, flat)
        _linear_int8(*_flat(rows), weight.panels, weight.totals, weight.scales, *arguments, sums)
    return out


# Rounding must be that of the reference, so that these kernels are compiled without fastmath.
@kernel(IN(2), OUT(2, types.uint8), OUT(1), OUT(1, types.int32), fastmath=False)
def _quantize(x, values, scales, zeros):
    """Quantize rows, which are contiguous, see :func:`quantize_row`."""
    enter_kernel()
    for i in range(x.shape[0]):
        scales[i], zeros[i] = quantize_row(x[i].ctypes.data, x.shape[1], values[i].ctypes.data, values.shape[1])
    leave_kernel()


@kernel(IN(2), IN(1), IN(1), types.float64, OUT(2, types.uint8), OUT(1), OUT(1, types.int32), OUT(1), fastmath=False)
def _layernorm_int8(x, weight, bias, eps, values, scales, zeros, row):
    """Normalize and quantize rows, see :func:`normalize_row` and :func:`quantize_row`; `row` is a workspace."""
    enter_kernel()
    for i in range(x.shape[0]):
        normalize_row(x[i], weight, bias, eps, row)
        scales[i], zeros[i] = quantize_row(row.ctypes.data, x.shape[1], values[i].ctypes.data, values.shape[1])
    leave_kernel()


@kernel(
    IN(2, types.uint8), IN(1), IN(1, types.int32), IN(3), IN(1, types.int32), IN(1), IN(1), types.boolean, IN(1),
    IN(2), OUT(2), OUT(2, types.int32),
)  # fmt: skip
def _linear_int8(values, row_scales, zeros, panels, totals, scales, bias, gelu, scale, residual, out, sums):
    """Compute ``out = residual + scale gelu(x W + bias)``.

    Parameters
    ----------
    values, row_scales, zeros
        Rows as :func:`quantize_row` writes them.
    panels, totals, scales
        See :class:`PackedInt8`.
    bias, scale : (E,) or (0,) float32, IN
    gelu : bool
    residual : (N, E) or (0, 0) float32, IN
        May be `out`.
    out : (N, E) float32, OUT
    sums : (ROWS + TILE_ROWS, PANEL) int32, OUT
        Workspace.
    """
    enter_kernel()
    inputs = panels.shape[1]
    work = new_panel_rows()
    step = values.strides[0]
    has_residual, ld_residual = residual.shape[0] > 0, residual.strides[0] // 4
    for first in range(0, values.shape[0], ROWS):
        count = min(ROWS, values.shape[0] - first)
        for panel in range(panels.shape[0]):
            column = panel * PANEL
            in_place = start_panel(column, bias, scale, residual, out, work)
            for start in range(0, inputs, DEPTH):
                depth = min(DEPTH, inputs - start)
                weights = panels.ctypes.data + 4 * (panel * inputs + start) * PANEL
                # The next chunk of weights follows in memory. Each tile prefetches its part of it.
                every = -(-4 * PANEL // -(-count // TILE_ROWS))
                ahead = weights + 4 * depth * PANEL
                for i in range(0, count, TILE_ROWS):
                    a, target = values.ctypes.data + (first + i) * step + 4 * start, sums[i].ctypes.data
                    _tile(a, count - i, step // 4, weights, PANEL, target, PANEL, depth, start, ahead, every)
                    ahead += every * depth
                    if start + depth < inputs:
                        continue
                    done, row = min(TILE_ROWS, count - i), first + i
                    added, ld_added = residual.ctypes.data + row * residual.strides[0] + 4 * column, ld_residual
                    result, ld_result = out.ctypes.data + row * out.strides[0] + 4 * column, out.strides[0] // 4
                    if not in_place:
                        copy_residual(residual, row, done, column, work)
                        added = result = work.ctypes.data + 8 * PANEL
                        ld_added = ld_result = PANEL
                    finish_int8(
                        target, done, row_scales[row:].ctypes.data, zeros[row:].ctypes.data,
                        totals[column:].ctypes.data, scales[column:].ctypes.data,
                        work.ctypes.data, work.ctypes.data + 4 * PANEL,
                        added, ld_added, has_residual, gelu, result, ld_result,
                    )  # fmt: skip
                    if not in_place:
                        copy_out(out, row, done, column, work)
    leave_kernel()
