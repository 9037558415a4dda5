"""Linear layers: packed weights, a micro-kernel of 8 x 48 outputs, an epilogue of bias, GELU, LayerScale and residual.

The loops, from outer to inner: a block of ROWS rows, a panel of PANEL outputs, a chunk of DEPTH inputs, a tile of rows.
The innermost loop reads the same DEPTH x PANEL weights again and again; they stay in the L1 cache (37 KB with AVX-512),
the sums of the block (ROWS x PANEL) and the rows themselves in the L2 cache. Weights are packed once so that a panel is
contiguous.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from vitnp.kernels import reference
from vitnp.kernels.cpu.codegen import types
from vitnp.kernels.cpu.codegen.gil import enter_kernel, leave_kernel
from vitnp.kernels.cpu.codegen.jit import IN, OUT, kernel
from vitnp.kernels.cpu.codegen.microkernels import PANEL, TILE_ROWS, TILE_VECTORS, product_tile, row_to_pairs
from vitnp.kernels.cpu.codegen.simd import LANES
from vitnp.kernels.cpu.codegen.workspace import workspace
from vitnp.kernels.cpu.epilogue import copy_out, copy_residual, epilogue, finish, new_panel_rows, start_panel
from vitnp.kernels.reference.int8 import QuantizedRows, QuantizedWeight

ROWS = 256
DEPTH, DEPTH_OF_PAIRS = 96, 192

_tile = product_tile(TILE_ROWS, TILE_VECTORS, cache=2)
_tile_of_pairs = product_tile(TILE_ROWS, TILE_VECTORS, packed=2)


@dataclasses.dataclass(frozen=True)
class PackedLinear:
    """Weights of a linear layer in the order in which the micro-kernel reads them.

    Attributes
    ----------
    panels : (panels, C, PANEL) float32
        Panel p contains the outputs from p * PANEL on, one row per input; the last panel is padded with zeros. With
        `pairs` the shape is (panels, ceil(C / 2), PANEL), and each element holds two consecutive inputs in bfloat16.
    outputs, inputs : int
        E and C.
    pairs : bool
        True for bfloat16.
    """

    panels: np.ndarray
    outputs: int
    inputs: int
    pairs: bool = False


@dataclasses.dataclass(frozen=True)
class PackedInt8:
    """Weights of a linear layer in 8 bits, in the order in which the micro-kernel reads them.

    Attributes
    ----------
    panels : (panels, ceil(C / 4), PANEL) float32
        As those of :class:`vitnp.kernels.cpu.linear.PackedLinear`; each element holds four consecutive inputs.
    totals : (panels * PANEL,) int32
        Sum of the weights of each output, which the zero point of a row is multiplied with.
    scales : (panels * PANEL,) float32
    outputs, inputs : int
        E and C.
    """

    panels: np.ndarray
    totals: np.ndarray
    scales: np.ndarray
    outputs: int
    inputs: int


def pack_linear(
    weight: np.ndarray, precision: str = "fp32"
) -> PackedLinear | PackedInt8 | QuantizedWeight | np.ndarray:
    if weight.dtype != np.float32:
        return reference.pack_linear(weight, precision)
    if precision == "int8":
        from vitnp.kernels.cpu.int8 import pack_int8

        return pack_int8(weight)
    return _pack(weight, precision)


def _pack(weight: np.ndarray, precision: str = "fp32") -> PackedLinear:
    outputs, inputs = weight.shape
    if precision == "bf16":
        panels = np.zeros((-(-outputs // PANEL), -(-inputs // 2), PANEL), np.float32)
        pairs = panels.view(np.uint16).reshape(*panels.shape, 2)
        for number, panel in enumerate(pairs):
            part = _bfloat(weight[number * PANEL : (number + 1) * PANEL]).T  # (C, outputs of the panel)
            for odd in (0, 1):
                panel[: len(part[odd::2]), : part.shape[1], odd] = part[odd::2]
        return PackedLinear(panels, outputs, inputs, pairs=True)
    panels = np.empty((-(-outputs // PANEL), inputs, PANEL), np.float32)
    for number, panel in enumerate(panels):
        part = weight[number * PANEL : (number + 1) * PANEL]
        panel[:, : len(part)] = part.T
        panel[:, len(part) :] = 0
    return PackedLinear(panels, outputs, inputs)


def _bfloat(x: np.ndarray) -> np.ndarray:
    """Round float32 to the bits of bfloat16, as uint16; ties to even."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    return ((bits + (0x7FFF + (bits >> 16 & 1))) >> 16).astype(np.uint16)


def linear(
    x: np.ndarray | QuantizedRows,
    weight: np.ndarray | PackedLinear | PackedInt8,
    bias: np.ndarray | None = None,
    *,
    activation: str | None = None,
    scale: np.ndarray | None = None,
    residual: np.ndarray | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    if isinstance(weight, PackedInt8):
        from vitnp.kernels.cpu.int8 import linear_int8

        return linear_int8(x, weight, bias, activation=activation, scale=scale, residual=residual, out=out)
    if isinstance(x, QuantizedRows) or x.dtype != np.float32:
        plain = unpacked(weight)
        return reference.linear(x, plain, bias, activation=activation, scale=scale, residual=residual, out=out)
    packed = weight if isinstance(weight, PackedLinear) else _pack(weight)
    if out is None:
        out = np.empty((*x.shape[:-1], packed.outputs), np.float32)
    rows = x.reshape(-1, packed.inputs)
    flat = out.reshape(len(rows), packed.outputs)
    if len(rows) == 0:
        return out
    sums = workspace("linear sums", ROWS + TILE_ROWS, PANEL)
    arguments = rows, packed.panels, *epilogue(bias, activation, scale, residual, flat), sums
    if packed.pairs:
        _linear_bf16(*arguments, workspace("linear pairs", ROWS, -(-packed.inputs // (2 * LANES)) * LANES))
    else:
        _linear(*arguments, None)
    return out


def unpacked(weight: np.ndarray | PackedLinear | PackedInt8) -> np.ndarray:
    """Check that weights are a plain array, as the reference needs for inputs that are not float32.

    Raises
    ------
    TypeError
        If the weights are packed.
    """
    if isinstance(weight, (PackedLinear, PackedInt8)):
        raise TypeError("packed weights are for float32 inputs only; convert the inputs to float32")
    return weight


@kernel
def _rows_to_pairs(x, first, count, pairs, work):
    """Convert `count` rows from `first` on to bfloat16, with a zero appended if their length is odd."""
    inputs = x.shape[1]
    whole = inputs // LANES * LANES
    for i in range(count):
        row, target = x[first + i], pairs[i]
        row_to_pairs(row.ctypes.data, target.ctypes.data, whole)
        if whole < inputs:
            work[0, :LANES] = np.float32(0)
            for j in range(whole, inputs):
                work[0, j - whole] = row[j]
            row_to_pairs(work[0].ctypes.data, target[whole // 2 :].ctypes.data, LANES)


def _linear_rows(x, panels, bias, gelu, scale, residual, out, sums, pairs):
    """Compute ``out = residual + scale gelu(x W + bias)``.

    Parameters
    ----------
    x : (N, C) float32, IN
        Rows are contiguous.
    panels : (panels, C, PANEL) float32, IN
        See :class:`PackedLinear`.
    bias, scale : (E,) or (0,) float32, IN
    gelu : bool
    residual : (N, E) or (0, 0) float32, IN
        May be `out`.
    out : (N, E) float32, OUT
    sums : (ROWS + TILE_ROWS, PANEL) float32, OUT
        Workspace.
    pairs : (ROWS, C / 2 or more) float32, OUT, or None
        Workspace for rows as pairs of bfloat16 numbers; None if the panels are float32.
    """
    enter_kernel()
    inputs = panels.shape[1]
    longest = DEPTH if pairs is None else DEPTH_OF_PAIRS
    work = new_panel_rows()
    has_residual, ld_residual = residual.shape[0] > 0, residual.strides[0] // 4
    for first in range(0, x.shape[0], ROWS):
        count = min(ROWS, x.shape[0] - first)
        if pairs is not None:
            _rows_to_pairs(x, first, count, pairs, work)
            rows, step = pairs.ctypes.data, pairs.strides[0]
        else:
            rows, step = x.ctypes.data + first * x.strides[0], x.strides[0]
        for panel in range(panels.shape[0]):
            column = panel * PANEL
            in_place = start_panel(column, bias, scale, residual, out, work)
            for start in range(0, inputs, longest):
                depth = min(longest, inputs - start)
                weights = panels.ctypes.data + 4 * (panel * inputs + start) * PANEL
                # The next chunk of weights follows in memory. Each tile prefetches its part of it.
                every = -(-4 * PANEL // -(-count // TILE_ROWS))
                ahead = weights + 4 * depth * PANEL
                for i in range(0, count, TILE_ROWS):
                    a, target = rows + i * step + 4 * start, sums[i].ctypes.data
                    if pairs is not None:
                        _tile_of_pairs(
                            a, count - i, step // 4, weights, PANEL, target, PANEL, depth, start, ahead, every
                        )
                    else:
                        _tile(a, count - i, step // 4, weights, PANEL, target, PANEL, depth, start, ahead, every)
                    ahead += every * depth
                    if start + depth < inputs:
                        continue
                    # The epilogue of each tile, while its sums are in the L1 cache.
                    done, row = min(TILE_ROWS, count - i), first + i
                    added, ld_added = residual.ctypes.data + row * residual.strides[0] + 4 * column, ld_residual
                    result, ld_result = out.ctypes.data + row * out.strides[0] + 4 * column, out.strides[0] // 4
                    if not in_place:
                        copy_residual(residual, row, done, column, work)
                        added = result = work.ctypes.data + 8 * PANEL
                        ld_added = ld_result = PANEL
                    finish(
                        target, done, work.ctypes.data, work.ctypes.data + 4 * PANEL,
                        added, ld_added, has_residual, gelu, pairs is not None, result, ld_result,
                    )  # fmt: skip
                    if not in_place:
                        copy_out(out, row, done, column, work)
    leave_kernel()


_SIGNATURE = IN(2), IN(3), IN(1), types.boolean, IN(1), IN(2), OUT(2), OUT(2)
_linear, _linear_bf16 = kernel(*_SIGNATURE, types.none)(_linear_rows), kernel(*_SIGNATURE, OUT(2))(_linear_rows)
