"""Epilogue of linear layers: bias, GELU, LayerScale and residual of the sums of a panel, and the scales of int8."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from llvmlite import ir
from vitnp.kernels.cpu.codegen import types
from vitnp.kernels.cpu.codegen.jit import intrinsic, kernel
from vitnp.kernels.cpu.codegen.microkernels import PANEL, TILE_VECTORS
from vitnp.kernels.cpu.codegen.simd import I32, LANES, Vectors, loop
from vitnp.kernels.cpu.codegen.stack import stack_array


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


def _columns(v: Vectors, pointer: ir.Value) -> list[ir.Value]:
    """Load the vectors of a row of a panel."""
    return [v.load(v.at(pointer, j * LANES)) for j in range(TILE_VECTORS)]


def _optionally(
    v: Vectors, condition: ir.Value, values: Sequence[ir.Value], change: Callable[[Sequence[ir.Value]], list[ir.Value]]
) -> list[ir.Value]:
    """Append a branch that changes values under a condition."""
    before = v.builder.block
    with v.builder.if_then(condition):
        changed = change(values)
        inside = v.builder.block
    results = []
    for value, other in zip(values, changed):
        result = v.builder.phi(v.type)
        result.add_incoming(value, before)
        result.add_incoming(other, inside)
        results.append(result)
    return results


def _finish_rows(
    v: Vectors,
    sums: Callable[[ir.Value], list[ir.Value]],
    count: ir.Value,
    arguments: Sequence[ir.Value],
) -> None:
    """Append ``out = residual + scale f(sums + bias)`` of the rows of a panel, where f is GELU or the identity.

    `sums(row)` appends the sums of a row as floats; arguments are those of :func:`_finish` from `bias` on.
    """
    builder = v.builder
    bias, scale, residual, ld_residual, has_residual, gelu, out, ld_out = arguments
    residual, out = v.pointer(residual), v.pointer(out)
    biases, factors = (_columns(v, v.pointer(p)) for p in (bias, scale))

    def activate(values: Sequence[ir.Value]) -> list[ir.Value]:
        return [v.gelu(value) for value in values]

    def body(row, carried):
        def add(values: Sequence[ir.Value]) -> list[ir.Value]:
            return list(map(builder.fadd, _columns(v, v.at(residual, builder.mul(row, ld_residual))), values))

        values = _optionally(v, gelu, list(map(builder.fadd, sums(row), biases)), activate)
        values = _optionally(v, has_residual, list(map(builder.fmul, values, factors)), add)
        target = v.at(out, builder.mul(row, ld_out))
        for j, value in enumerate(values):
            v.store(value, v.at(target, j * LANES))
        return carried

    loop(builder, 0, count, 1, [], body)


_ARGUMENTS = (*[types.int64] * 4, types.boolean, types.boolean, types.int64, types.int64)


@intrinsic
def _finish(context, sums, count, bias, scale, residual, ld_residual, has_residual, gelu, out, ld_out):
    """Compute rows of a panel, ``out = residual + scale gelu(sums + bias)``.

    Arrays are given by addresses. Rows of `residual` and `out` are `ld_residual` and `ld_out` elements apart.
    """

    def generate(context, builder, signature, arguments):
        v = Vectors(builder)
        pointer = v.pointer(arguments[0])
        _finish_rows(v, lambda row: _columns(v, v.at(pointer, builder.mul(row, ir.Constant(row.type, PANEL)))),
                     arguments[1], arguments[2:])  # fmt: skip
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, *_ARGUMENTS), generate


@intrinsic
def _finish_int8(
    context, sums, count, row_scales, zeros, totals, scales,
    bias, scale, residual, ld_residual, has_residual, gelu, out, ld_out,
):  # fmt: skip
    """Compute rows of a panel as :func:`_finish`, from ``(sums - zero total) row_scale scale`` instead of sums.

    Every operation is rounded by itself, as in the reference.
    """

    def generate(context, builder, signature, arguments):
        v = Vectors(builder)
        sums, row_scales, totals, scales = (v.pointer(arguments[i]) for i in (0, 2, 4, 5))
        zeros = v.pointer(arguments[3], I32)
        of_outputs = _columns(v, scales)
        integers = [builder.bitcast(total, v.integers) for total in _columns(v, totals)]

        def dequantized(row: ir.Value) -> list[ir.Value]:
            of_row, zero = v.splat(builder.load(v.at(row_scales, row))), v.splat(builder.load(v.at(zeros, row)))
            values = []
            line = _columns(v, v.at(sums, builder.mul(row, ir.Constant(row.type, PANEL))))
            for value, total, of_output in zip(line, integers, of_outputs):
                exact = builder.sub(builder.bitcast(value, v.integers), builder.mul(zero, total))
                values.append(builder.fmul(builder.sitofp(exact, v.type), builder.fmul(of_row, of_output)))
            return values

        _finish_rows(v, dequantized, arguments[1], arguments[6:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6, *_ARGUMENTS), generate


# Workspace of finish_panel.
new_panel_rows = stack_array(4, PANEL)


@kernel(fastmath=False)
def finish_panel(sums, first, count, column, bias, gelu, scale, residual, out, work, quantized):
    """Apply the epilogue to the sums of a panel, and write them to `out` from row `first` and column `column` on.

    Parameters
    ----------
    sums : (count or more, PANEL) float32, or int32 of int8 products, IN
    first, count, column : int
    bias, scale : (E,) or (0,) float32, IN
    gelu : bool
    residual : (N, E) or (0, 0) float32, IN
        May be `out`.
    out : (N, E) float32, OUT
    work : (4, PANEL) float32, OUT
        Workspace: bias, scale, residual and output of a row.
    quantized : None or (row_scales, zeros, totals, scales)
        For int8 products: scale and zero point of each of the `count` rows, sum of the weights and scale of each
        output.
    """
    columns = min(PANEL, out.shape[1] - column)
    for j in range(PANEL):
        work[0, j] = bias[column + j] if len(bias) and j < columns else np.float32(0)
        work[1, j] = scale[column + j] if len(scale) and j < columns else np.float32(1)
    has_residual = residual.shape[0] > 0
    added, ld_added = residual.ctypes.data + first * residual.strides[0] + 4 * column, residual.strides[0] // 4
    target, ld_target = out.ctypes.data + first * out.strides[0] + 4 * column, out.strides[0] // 4
    in_place = columns == PANEL and out.strides[1] == 4 and (not has_residual or residual.strides[1] == 4)
    if not in_place:
        added, target = work[2].ctypes.data, work[3].ctypes.data
    at_once = count if in_place else 1
    for i in range(0, count, at_once):
        if has_residual and not in_place:
            for j in range(columns):
                work[2, j] = residual[first + i, column + j]
        if quantized is None:
            _finish(
                sums[i].ctypes.data, at_once, work[0].ctypes.data, work[1].ctypes.data,
                added, ld_added, has_residual, gelu, target, ld_target,
            )  # fmt: skip
        else:
            row_scales, zeros, totals, scales = quantized
            _finish_int8(
                sums[i].ctypes.data, at_once, row_scales[i:].ctypes.data, zeros[i:].ctypes.data,
                totals[column:].ctypes.data, scales[column:].ctypes.data, work[0].ctypes.data, work[1].ctypes.data,
                added, ld_added, has_residual, gelu, target, ld_target,
            )  # fmt: skip
        if not in_place:
            for j in range(columns):
                out[first + i, column + j] = work[3, j]
