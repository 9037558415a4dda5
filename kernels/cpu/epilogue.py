"""Epilogue of linear layers: bias, GELU, LayerScale and residual of the sums of a panel, and the scales of int8."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from llvmlite import ir
from numba import types
from vitnp.kernels.cpu.codegen.jit import intrinsic, kernel
from vitnp.kernels.cpu.codegen.microkernels import PANEL, TILE_VECTORS
from vitnp.kernels.cpu.codegen.simd import LANES, Vectors

def epilogue(
    bias: np.ndarray | None,
    activation: str | None,
    scale: np.ndarray | None,
    residual: np.ndarray | None,
    out: np.ndarray,
) -> tuple[np.ndarray, bool, np.ndarray, np.ndarray, np.ndarray]:
    """Return the arguments of a kernel with an epilogue: missing arrays become empty ones."""
    return (
        _EMPTY if bias is None else bias,
        activation == "gelu",
        _EMPTY if scale is None else scale,
        _EMPTY_2D if residual is None else residual.reshape(out.shape),
        out,
    )


_EMPTY, _EMPTY_2D = np.empty(0, np.float32), np.empty((0, 0), np.float32)


def _finish_vectors(
    v: Vectors,
    values: Sequence[ir.Value],
    scale: ir.Value,
    residual: ir.Value,
    has_residual: ir.Value,
    gelu: ir.Value,
    out: ir.Value,
) -> None:
    """Append ``out = residual + scale f(values)`` of a row of a panel, where f is GELU or the identity."""
    builder = v.builder

    def optionally(condition: ir.Value, values: Sequence[ir.Value], compute: Callable[..., ir.Value]) -> list[ir.Value]:
        before = builder.block
        with builder.if_then(condition):
            changed = [compute(j, value) for j, value in enumerate(values)]
            inside = builder.block
        results = []
        for value, other in zip(values, changed):
            result = builder.phi(v.type)
            result.add_incoming(value, before)
            result.add_incoming(other, inside)
            results.append(result)
        return results

    values = optionally(gelu, values, lambda j, value: v.gelu(value))
    values = [builder.fmul(value, v.load(v.at(scale, j * LANES))) for j, value in enumerate(values)]
    values = optionally(
        has_residual, values, lambda j, value: builder.fadd(v.load(v.at(residual, j * LANES)), value)
    )  # fmt: skip
    for j, value in enumerate(values):
        v.store(value, v.at(out, j * LANES))


@intrinsic
def _finish(context, sums, bias, scale, residual, has_residual, gelu, out):
    """Compute one row of a panel, ``out = residual + scale gelu(sums + bias)``; arrays are given by their addresses."""

    def generate(context, builder, signature, arguments):
        sums, bias, scale, residual, has_residual, gelu, out = arguments
        v = Vectors(builder)
        sums, bias, scale, residual, out = map(v.pointer, (sums, bias, scale, residual, out))
        values = [
            builder.fadd(v.load(v.at(sums, j * LANES)), v.load(v.at(bias, j * LANES))) for j in range(TILE_VECTORS)
        ]
        _finish_vectors(v, values, scale, residual, has_residual, gelu, out)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4, types.boolean, types.boolean, types.int64), generate


@intrinsic
def _finish_int8(context, sums, row_scale, zero, totals, scales, bias, scale, residual, has_residual, gelu, out):
    """Compute one row of a panel as :func:`_finish`, from ``(sums - zero totals) row_scale scales`` instead of sums."""

    def generate(context, builder, signature, arguments):
        sums, row_scale, zero, totals, scales, bias, scale, residual, has_residual, gelu, out = arguments
        v = Vectors(builder)
        sums, totals, scales, bias, scale, residual, out = map(
            v.pointer, (sums, totals, scales, bias, scale, residual, out)
        )
        row_scale, zero = v.splat(row_scale), v.splat(zero)
        values = []
        for j in range(TILE_VECTORS):
            total, integers = (builder.bitcast(v.load(v.at(p, j * LANES)), v.integers) for p in (totals, sums))
            value = builder.sitofp(builder.sub(integers, builder.mul(zero, total)), v.type)
            value = builder.fmul(value, builder.fmul(row_scale, v.load(v.at(scales, j * LANES))))
            values.append(builder.fadd(value, v.load(v.at(bias, j * LANES))))
        _finish_vectors(v, values, scale, residual, has_residual, gelu, out)
        return context.get_dummy_value()

    signature = types.void(
        types.int64, types.float32, types.int32, *[types.int64] * 5, types.boolean, types.boolean, types.int64
    )
    return signature, generate


@kernel
def finish_panel(sums, first, count, column, bias, gelu, scale, residual, out, work, quantized):
    """Apply the epilogue to the sums of a panel, and write them to `out` from row `first` and column `column` on.

    Parameters
    ----------
    sums : (count or more, PANEL) float32, IN
    first, count, column : int
    bias, gelu, scale, residual, out
        As in :func:`_linear`.
    work : (4, PANEL) float32, OUT
        Workspace: bias, scale, residual and output of a row.
    quantized : None or (row_scales, zeros, totals, scales)
        For sums of int8 products: scale and zero point of each of the `count` rows, sum of the weights and scale of
        each output.
    """
    columns = min(PANEL, out.shape[1] - column)
    for j in range(PANEL):
        work[0, j] = bias[column + j] if len(bias) and j < columns else np.float32(0)
        work[1, j] = scale[column + j] if len(scale) and j < columns else np.float32(1)
    has_residual = residual.shape[0] > 0
    in_place = columns == PANEL and out.strides[1] == 4 and (not has_residual or residual.strides[1] == 4)
    for i in range(count):
        row = first + i
        if has_residual and not in_place:
            for j in range(columns):
                work[2, j] = residual[row, column + j]
        if in_place:
            added = residual.ctypes.data + row * residual.strides[0] + 4 * column
            target = out.ctypes.data + row * out.strides[0] + 4 * column
        else:
            added, target = work[2].ctypes.data, work[3].ctypes.data
        if quantized is None:
            _finish(
                sums[i].ctypes.data, work[0].ctypes.data, work[1].ctypes.data, added, has_residual, gelu, target
            )  # fmt: skip
        else:
            row_scales, zeros, totals, scales = quantized
            _finish_int8(
                sums[i].ctypes.data, row_scales[i], zeros[i], totals[column:].ctypes.data, scales[column:].ctypes.data,
                work[0].ctypes.data, work[1].ctypes.data, added, has_residual, gelu, target,
            )  # fmt: skip
        if not in_place:
            for j in range(columns):
                out[row, column + j] = work[3, j]
