"""Linear layers: packed weights, a micro-kernel of 8 x 48, bias, GELU, LayerScale and residual in the epilogue.

The loops, outside in: a block of rows (ROWS) · a panel of PANEL output columns · a stretch of DEPTH inputs · a tile of rows. What
the innermost loop reads again and again, DEPTH x PANEL weights, stays in the first cache (37 KB with AVX-512), the block's sums
(ROWS x PANEL) and the rows themselves in the second. Weights are packed once so that a panel lies in one piece.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numba import types
from numba.extending import intrinsic
from vitnp.kernels import reference
from vitnp.kernels.cpu.codegen.gil import lay_down, take_up
from vitnp.kernels.cpu.codegen.jit import IN, OUT, kernel
from vitnp.kernels.cpu.codegen.simd import LANES, PANEL, TILE_ROWS, TILE_VECTORS, Vectors, product_tile, row_to_pairs
from vitnp.kernels.cpu.codegen.workspace import scratch

ROWS = 128
DEPTH = 96

_tile = product_tile(TILE_ROWS, TILE_VECTORS, cache=2)
_tile_of_pairs = product_tile(TILE_ROWS, TILE_VECTORS, pairs=True)


@dataclasses.dataclass(frozen=True)
class PackedLinear:
    """Weights of a linear layer in the order in which the micro-kernel reads them.

    Attributes
    ----------
    panels : (panels, C, PANEL) float32
        Panel p holds outputs p * PANEL on, one row an input; the last is filled up with zeros. Or (panels, ceil(C / 2), PANEL),
        with two inputs in bfloat16 in the place of each float32.
    outputs, inputs : int
        E and C.
    pairs : bool
        Whether it is the latter.
    """

    panels: np.ndarray
    outputs: int
    inputs: int
    pairs: bool = False


def pack_linear(weight: np.ndarray, precision: str = "fp32") -> PackedLinear | np.ndarray:
    if weight.dtype != np.float32:
        return reference.pack_linear(weight, precision)
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
    """The bits of the nearest bfloat16 numbers, ties to the even one."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    return ((bits + (0x7FFF + (bits >> 16 & 1))) >> 16).astype(np.uint16)


def linear(
    x: np.ndarray,
    weight: np.ndarray | PackedLinear,
    bias: np.ndarray | None = None,
    *,
    activation: str | None = None,
    scale: np.ndarray | None = None,
    residual: np.ndarray | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    if x.dtype != np.float32:
        return reference.linear(x, weight, bias, activation=activation, scale=scale, residual=residual, out=out)
    if isinstance(weight, np.ndarray):
        weight = pack_linear(weight)
    if out is None:
        out = np.empty((*x.shape[:-1], weight.outputs), np.float32)
    rows = x.reshape(-1, weight.inputs)
    flat = out.reshape(len(rows), weight.outputs)
    if len(rows) == 0:
        return out
    sums = scratch("linear sums", ROWS + TILE_ROWS, PANEL)
    pairs = scratch("linear pairs", ROWS if weight.pairs else 0, -(-weight.inputs // (2 * LANES)) * LANES)
    _linear(rows, weight.panels, *epilogue(bias, activation, scale, residual, flat), sums, pairs)
    return out


def epilogue(
    bias: np.ndarray | None,
    activation: str | None,
    scale: np.ndarray | None,
    residual: np.ndarray | None,
    out: np.ndarray,
) -> tuple[np.ndarray, bool, np.ndarray, np.ndarray, np.ndarray]:
    """Arguments of a kernel with an epilogue: what is not wanted is an empty array."""
    return (
        _NOTHING if bias is None else bias,
        activation == "gelu",
        _NOTHING if scale is None else scale,
        _NOTHING_2 if residual is None else residual.reshape(out.shape),
        out,
    )


_NOTHING, _NOTHING_2 = np.empty(0, np.float32), np.empty((0, 0), np.float32)


@intrinsic
def _finish(context, sums, bias, scale, residual, has_residual, gelu, out):
    """One row of a panel, ``out = residual + scale gelu(sums + bias)``; addresses in bytes."""

    def generate(context, builder, signature, arguments):
        sums, bias, scale, residual, has_residual, gelu, out = arguments
        v = Vectors(builder)
        sums, bias, scale, residual, out = map(v.pointer, (sums, bias, scale, residual, out))
        for j in range(TILE_VECTORS):
            value = builder.fadd(v.load(v.at(sums, j * LANES)), v.load(v.at(bias, j * LANES)))
            before = builder.block
            with builder.if_then(gelu):
                bent, inside = v.gelu(value), builder.block
            chosen = builder.phi(v.type)
            chosen.add_incoming(value, before)
            chosen.add_incoming(bent, inside)
            value = builder.fmul(chosen, v.load(v.at(scale, j * LANES)))
            before = builder.block
            with builder.if_then(has_residual):
                added, inside = builder.fadd(v.load(v.at(residual, j * LANES)), value), builder.block
            chosen = builder.phi(v.type)
            chosen.add_incoming(value, before)
            chosen.add_incoming(added, inside)
            v.store(chosen, v.at(out, j * LANES))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4, types.boolean, types.boolean, types.int64), generate


@kernel
def finish_panel(sums, first, count, column, bias, gelu, scale, residual, out, work):
    """Rows `first` on of the columns from `column` on: what the panel's sums become in `out`. `work` is (4, PANEL)."""
    columns = min(PANEL, out.shape[1] - column)
    for j in range(PANEL):
        work[0, j] = bias[column + j] if len(bias) and j < columns else np.float32(0)
        work[1, j] = scale[column + j] if len(scale) and j < columns else np.float32(1)
    has_residual = residual.shape[0] > 0
    here = columns == PANEL and out.strides[1] == 4 and (not has_residual or residual.strides[1] == 4)
    for i in range(count):
        row = first + i
        if here:
            added = residual.ctypes.data + row * residual.strides[0] + 4 * column
            into = out.ctypes.data + row * out.strides[0] + 4 * column
            _finish(
                sums[i].ctypes.data, work[0].ctypes.data, work[1].ctypes.data, added, has_residual, gelu, into
            )  # fmt: skip
            continue
        if has_residual:
            for j in range(columns):
                work[2, j] = residual[row, column + j]
        _finish(
            sums[i].ctypes.data, work[0].ctypes.data, work[1].ctypes.data, work[2].ctypes.data, has_residual, gelu,
            work[3].ctypes.data,
        )  # fmt: skip
        for j in range(columns):
            out[row, column + j] = work[3, j]


@kernel
def _rows_to_pairs(x, first, count, pairs, work):
    """Rows `first` on in bfloat16, filled up with a zero where their number is odd."""
    inputs = x.shape[1]
    whole = inputs // LANES * LANES
    for i in range(count):
        row, into = x[first + i], pairs[i]
        row_to_pairs(row.ctypes.data, into.ctypes.data, whole)
        if whole < inputs:
            work[0, :LANES] = np.float32(0)
            work[0, : inputs - whole] = row[whole:]
            row_to_pairs(work[0].ctypes.data, into[whole // 2 :].ctypes.data, LANES)


@kernel(IN(2), IN(3), IN(1), types.boolean, IN(1), IN(2), OUT(2), OUT(2), OUT(2))
def _linear(x, panels, bias, gelu, scale, residual, out, sums, pairs):
    """``out = residual + scale gelu(x W + bias)``.

    Parameters
    ----------
    x : (N, C) float32, IN
        Numbers of a row side by side.
    panels : (panels, C, PANEL) float32, IN
    bias, scale : (E,) or (0,) float32, IN
    gelu : bool
    residual : (N, E) or (0, 0) float32, IN
        May be `out`.
    out : (N, E) float32, OUT
    sums : (ROWS + TILE_ROWS, PANEL) float32, OUT
        Scratch.
    pairs : (ROWS, C / 2 or more) float32, OUT
        Scratch for rows as pairs of bfloat16 numbers; (0, 0) where the panels are float32.
    """
    lay_down()
    inputs = panels.shape[1]
    in_pairs = pairs.shape[0] > 0
    work = np.empty((4, PANEL), np.float32)
    for first in range(0, x.shape[0], ROWS):
        count = min(ROWS, x.shape[0] - first)
        if in_pairs:
            _rows_to_pairs(x, first, count, pairs, work)
            rows, step = pairs.ctypes.data, pairs.strides[0]
        else:
            rows, step = x.ctypes.data + first * x.strides[0], x.strides[0]
        for panel in range(panels.shape[0]):
            for start in range(0, inputs, DEPTH):
                depth = min(DEPTH, inputs - start)
                weights = panels.ctypes.data + 4 * (panel * inputs + start) * PANEL
                # The next stretch of weights follows in memory. Each tile fetches its part of it.
                every = -(-4 * PANEL // -(-count // TILE_ROWS))
                ahead = weights + 4 * depth * PANEL
                for i in range(0, count, TILE_ROWS):
                    a, into = rows + i * step + 4 * start, sums[i].ctypes.data
                    if in_pairs:
                        _tile_of_pairs(a, count - i, step // 4, weights, PANEL, into, PANEL, depth, start, ahead, every)
                    else:
                        _tile(a, count - i, step // 4, weights, PANEL, into, PANEL, depth, start, ahead, every)
                    ahead += every * depth
            finish_panel(sums, first, count, panel * PANEL, bias, gelu, scale, residual, out, work)
    take_up()
