"""Layer normalization: three passes over each row, which is in the L1 cache after the first pass."""

from __future__ import annotations

import numpy as np
from vitnp.kernels import reference
from vitnp.kernels.cpu.codegen import types
from vitnp.kernels.cpu.codegen.gil import enter_kernel, leave_kernel
from vitnp.kernels.cpu.codegen.jit import IN, OUT, kernel
from vitnp.kernels.cpu.codegen.microkernels import row_normalize
from vitnp.kernels.cpu.codegen.reductions import row_squares, row_sum
from vitnp.kernels.cpu.codegen.simd import LANES


def layernorm(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float, out: np.ndarray | None = None
) -> np.ndarray:
    if x.dtype != np.float32:
        return reference.layernorm(x, weight, bias, eps, out)
    if out is None:
        out = np.empty(x.shape, np.float32)
    width = x.shape[-1]
    _layernorm(
        x.reshape(-1, width), np.ascontiguousarray(weight), np.ascontiguousarray(bias), eps, out.reshape(-1, width)
    )
    return out


@kernel
def normalize_row(row, weight, bias, eps, target):
    """Compute ``target = (row - mean) / sqrt(variance + eps) weight + bias`` of contiguous float32 numbers."""
    width = len(row)
    whole = width // LANES * LANES
    inverse_width = np.float32(1 / width)
    total = row_sum(row.ctypes.data, whole, np.float32(0))
    for j in range(whole, width):
        total += row[j]
    mean = total * inverse_width
    squares = row_squares(row.ctypes.data, whole, mean)
    for j in range(whole, width):
        squares += (row[j] - mean) * (row[j] - mean)
    scale = np.float32(1) / np.sqrt(squares * inverse_width + np.float32(eps))
    row_normalize(row.ctypes.data, weight.ctypes.data, bias.ctypes.data, target.ctypes.data, whole, mean, scale)
    for j in range(whole, width):
        target[j] = (row[j] - mean) * scale * weight[j] + bias[j]


@kernel(IN(2), IN(1), IN(1), types.float64, OUT(2))
def _layernorm(x, weight, bias, eps, out):
    """Normalize rows, see :func:`normalize_row`."""
    enter_kernel()
    for i in range(x.shape[0]):
        normalize_row(x[i], weight, bias, eps, out[i])
    leave_kernel()
