"""Epilogue of linear layers: bias, GELU, LayerScale and residual of the sums of a panel, and the scales of int8."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from llvmlite import ir
from vitnp.kernels.cpu.codegen import types
from vitnp.kernels.cpu.codegen.jit import intrinsic, kernel
from vitnp.kernels.cpu.codegen.microkernels import PANEL, TILE_ROWS, TILE_VECTORS
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
    bias, scale, residual, ld_residual, has_residual, gelu, coarse, out, ld_out = arguments
    residual, out = v.pointer(residual), v.pointer(out)
    biases, factors = (_columns(v, v.pointer(p)) for p in (bias, scale))

    exact, near = builder.and_(gelu, builder.not_(coarse)), builder.and_(gelu, coarse)

    def body(row, carried):
        def add(values: Sequence[ir.Value]) -> list[ir.Value]:
            return list(map(builder.fadd, _columns(v, v.at(residual, builder.mul(row, ld_residual))), values))

        values = _optionally(v, exact, list(map(builder.fadd, sums(row), biases)), lambda xs: list(map(v.gelu, xs)))
        values = _optionally(v, near, values, lambda xs: list(map(v.coarse_gelu, xs)))
        values = _optionally(v, has_residual, list(map(builder.fmul, values, factors)), add)
        target = v.at(out, builder.mul(row, ld_out))
        for j, value in enumerate(values):
            v.store(value, v.at(target, j * LANES))
        return carried

    loop(builder, 0, count, 1, [], body)


_ARGUMENTS = (*[types.int64] * 4, *[types.boolean] * 3, types.int64, types.int64)


@intrinsic
def _finish(context, sums, count, bias, scale, residual, ld_residual, has_residual, gelu, coarse, out, ld_out):
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
    bias, scale, residual, ld_residual, has_residual, gelu, coarse, out, ld_out,
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


# Workspace of start_panel.
new_panel_rows = stack_array(2 + TILE_ROWS, PANEL)


# Functions of their own, because fastmath would round differently.
@kernel(fastmath=False)
def finish(sums, count, bias, scale, residual, ld_residual, has_residual, gelu, coarse, out, ld_out):
    """Compute rows of a panel, see :func:`_finish`."""
    _finish(sums, count, bias, scale, residual, ld_residual, has_residual, gelu, coarse, out, ld_out)


@kernel(fastmath=False)
def finish_int8(
    sums, count, row_scales, zeros, totals, scales, bias, scale, residual, ld_residual, has_residual, gelu, out, ld_out
):
    """Compute rows of a panel from sums of int8 products, see :func:`_finish_int8`."""
    _finish_int8(
        sums, count, row_scales, zeros, totals, scales,
        bias, scale, residual, ld_residual, has_residual, gelu, True, out, ld_out,
    )  # fmt: skip


@kernel
def start_panel(column, bias, scale, residual, out, work):
    """Prepare the epilogue of a panel, whose first output is `column`.

    Bias and scale are copied to the first rows of `work`, zeros and ones if there are none. Returns whether rows of
    `residual` and `out` can be read and written in place. Rows that are not contiguous, or of fewer outputs than PANEL,
    go by way of `work`, see :func:`copy_residual` and :func:`copy_out`.
    """
    columns = min(PANEL, out.shape[1] - column)
    for j in range(PANEL):
        work[0, j] = bias[column + j] if len(bias) and j < columns else np.float32(0)
        work[1, j] = scale[column + j] if len(scale) and j < columns else np.float32(1)
    return columns == PANEL and out.strides[1] == 4 and (residual.shape[0] == 0 or residual.strides[1] == 4)


@kernel
def copy_residual(residual, first, count, column, work):
    """Copy `count` rows of a panel of `residual`, if there is one, to `work`."""
    for i in range(count if residual.shape[0] else 0):
        for j in range(min(PANEL, residual.shape[1] - column)):
            work[2 + i, j] = residual[first + i, column + j]


@kernel
def copy_out(out, first, count, column, work):
    """Copy `count` rows of a panel from `work` to `out`."""
    for i in range(count):
        for j in range(min(PANEL, out.shape[1] - column)):
            out[first + i, column + j] = work[2 + i, j]
