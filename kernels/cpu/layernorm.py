"""Layer normalization: three passes over each row, which is in the L1 cache after the first pass."""

from __future__ import annotations

import numpy as np
from numba import types
from vitnp.kernels import reference
from vitnp.kernels.cpu.codegen.gil import enter_kernel, leave_kernel
from vitnp.kernels.cpu.codegen.jit import IN, OUT, kernel
from vitnp.kernels.cpu.codegen.microkernels import row_squares, row_sum
from vitnp.kernels.cpu.codegen.simd import LANES


def layernorm(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float, out: np.ndarray | None = None
) -> np.ndarray:
    if x.dtype != np.float32:
        return reference.layernorm(x, weight, bias, eps, out)
    if out is None:
        out = np.empty(x.shape, np.float32)
    width = x.shape[-1]
    _layernorm(x.reshape(-1, width), weight, bias, eps, out.reshape(-1, width))
    return out


@kernel(IN(2), IN(1), IN(1), types.float64, OUT(2))
def _layernorm(x, weight, bias, eps, out):
    """Compute ``out = (x - mean) / sqrt(variance + eps) weight + bias`` per row; rows of `x` are contiguous float32."""
    enter_kernel()
    width = x.shape[1]
    whole = width // LANES * LANES
    inverse_width = np.float32(1 / width)
    for i in range(x.shape[0]):
        row = x[i]
        total = row_sum(row.ctypes.data, whole, np.float32(0))
        for j in range(whole, width):
            total += row[j]
        mean = total * inverse_width
        squares = row_squares(row.ctypes.data, whole, mean)
        for j in range(whole, width):
            squares += (row[j] - mean) * (row[j] - mean)
        scale = np.float32(1) / np.sqrt(squares * inverse_width + np.float32(eps))
        for j in range(width):
            out[i, j] = (row[j] - mean) * scale * weight[j] + bias[j]
    leave_kernel()
