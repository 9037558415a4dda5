"""bfloat16 numbers on the GPU. NumPy has no type for them: they are their 16 bits, as uint16.

What is multiplied is bfloat16; what comes out, and everything between products, is float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from vitnp.kernels.cuda.loader import contiguous, kernel, require_cupy

if TYPE_CHECKING:
    import cupy

_EACH = 4 * 256  # numbers that a block takes


def shorten(x: cupy.ndarray) -> cupy.ndarray:
    """float32 to the nearest bfloat16, ties to even; of x's shape."""
    out = require_cupy().empty(x.shape, np.uint16)
    _launch("shorten", contiguous(x, np.float32), out)
    return out


def lengthen(x: cupy.ndarray) -> cupy.ndarray:
    """bfloat16 to float32, exactly; of x's shape."""
    out = require_cupy().empty(x.shape, np.float32)
    _launch("lengthen", contiguous(x), out)
    return out


def product(x: cupy.ndarray, weight: cupy.ndarray) -> cupy.ndarray:
    """X W^T, summed in float32.

    Parameters
    ----------
    x : (N, C) float32
    weight : (E, C) bfloat16

    Returns
    -------
    (N, E) float32
    """
    cupy = require_cupy()
    (count, depth), width = x.shape, len(weight)
    out = cupy.empty((count, width), np.float32)
    if not out.size:
        return out
    x, weight = shorten(x), contiguous(weight)
    # CuPy multiplies no such arrays, cuBLAS does. Its matrices go column by column: to it x and out are transposed.
    cublas, kinds = cupy.cuda.cublas, cupy.cuda.runtime
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    cublas.gemmEx(
        cupy.cuda.Device().cublas_handle,
        cublas.CUBLAS_OP_T,
        cublas.CUBLAS_OP_N,
        width,
        count,
        depth,
        one.ctypes.data,
        weight.data.ptr,
        kinds.CUDA_R_16BF,
        depth,
        x.data.ptr,
        kinds.CUDA_R_16BF,
        depth,
        zero.ctypes.data,
        out.data.ptr,
        kinds.CUDA_R_32F,
        width,
        cublas.CUBLAS_COMPUTE_32F,
        cublas.CUBLAS_GEMM_DEFAULT,
    )
    return out


def _launch(name: str, x: cupy.ndarray, out: cupy.ndarray) -> None:
    kernel("bfloat16", name)((-(-x.size // _EACH),), (256,), (x, np.int64(x.size), out))
