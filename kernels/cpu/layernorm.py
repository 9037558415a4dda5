"""Layer normalization: three passes over a row that lies in the first cache after the first of them."""

from __future__ import annotations

import numpy as np
from numba import types
from vitnp.kernels import reference
from vitnp.kernels.cpu.codegen.gil import lay_down, take_up
from vitnp.kernels.cpu.codegen.jit import IN, OUT, kernel
from vitnp.kernels.cpu.codegen.simd import LANES, row_squares, row_sum


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
    """``out = (x - mean) / sqrt(variance + eps) weight + bias``, row by row; rows of `x` in one piece, float32."""
    lay_down()
    width = x.shape[1]
    whole = width // LANES * LANES
    share = np.float32(1 / width)
    for i in range(x.shape[0]):
        row = x[i]
        total = row_sum(row.ctypes.data, whole, np.float32(0))
        for j in range(whole, width):
            total += row[j]
        mean = total * share
        squares = row_squares(row.ctypes.data, whole, mean)
        for j in range(whole, width):
            squares += (row[j] - mean) * (row[j] - mean)
        scale = np.float32(1) / np.sqrt(squares * share + np.float32(eps))
        for j in range(width):
            out[i, j] = (row[j] - mean) * scale * weight[j] + bias[j]
    take_up()
