"""Activations as separate operations. GELU after a linear layer is part of that layer's epilogue instead."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from llvmlite import ir
from vitnp.kernels import reference
from vitnp.kernels.cpu.codegen import types
from vitnp.kernels.cpu.codegen.gil import enter_kernel, leave_kernel
from vitnp.kernels.cpu.codegen.jit import IN, OUT, intrinsic, kernel
from vitnp.kernels.cpu.codegen.simd import LANES, Vectors
from vitnp.kernels.cpu.codegen.stack import stack_array


def gelu(x: np.ndarray) -> np.ndarray:
    if x.dtype != np.float32:
        return reference.gelu(x)
    out = np.empty(x.shape, np.float32)
    _gelu(np.ascontiguousarray(x).reshape(-1), out.reshape(-1))
    return out


def swiglu(x: np.ndarray) -> np.ndarray:
    if x.dtype != np.float32:
        return reference.swiglu(x)
    out = np.empty((*x.shape[:-1], x.shape[-1] // 2), np.float32)
    _swiglu(np.ascontiguousarray(x).reshape(-1, x.shape[-1]), out.reshape(-1, out.shape[-1]))
    return out


def _elementwise(arguments: int, compute: Callable[..., ir.Value]) -> Callable:
    """Generate ``f(a[, b], out)``, which applies `compute` to the vectors at the addresses a and b."""

    def generate(context, builder, signature, addresses):
        v = Vectors(builder)
        *pointers, out = map(v.pointer, addresses)
        v.store(compute(v, *map(v.load, pointers)), out)
        return context.get_dummy_value()

    if arguments == 1:
        return intrinsic(lambda context, a, out: (types.void(types.int64, types.int64), generate))
    return intrinsic(lambda context, a, b, out: (types.void(types.int64, types.int64, types.int64), generate))


_vector = stack_array(LANES)
_gelu_vector = _elementwise(1, Vectors.gelu)
_swiglu_vector = _elementwise(2, lambda v, gate, value: v.builder.fmul(v.sigmoid_times(gate), value))


@kernel(IN(1), OUT(1))
def _gelu(x, out):
    """Compute ``x Phi(x)`` of contiguous numbers."""
    enter_kernel()
    whole = len(x) // LANES * LANES
    for i in range(0, whole, LANES):
        _gelu_vector(x[i:].ctypes.data, out[i:].ctypes.data)
    if whole < len(x):
        rest = _vector()
        rest[:] = 0
        for i in range(whole, len(x)):
            rest[i - whole] = x[i]
        _gelu_vector(rest.ctypes.data, rest.ctypes.data)
        for i in range(whole, len(x)):
            out[i] = rest[i - whole]
    leave_kernel()


@kernel(IN(2), OUT(2))
def _swiglu(x, out):
    """Compute ``silu(a) b`` of the halves of each row; rows are contiguous."""
    enter_kernel()
    width = out.shape[1]
    whole = width // LANES * LANES
    gate, value = _vector(), _vector()
    gate[:] = 0
    value[:] = 0
    for i in range(len(out)):
        for j in range(0, whole, LANES):
            _swiglu_vector(x[i, j:].ctypes.data, x[i, width + j :].ctypes.data, out[i, j:].ctypes.data)
        if whole < width:
            for j in range(whole, width):
                gate[j - whole], value[j - whole] = x[i, j], x[i, width + j]
            _swiglu_vector(gate.ctypes.data, value.ctypes.data, gate.ctypes.data)
            for j in range(whole, width):
                out[i, j] = gate[j - whole]
    leave_kernel()
