"""Matrix products by cuBLAS, each with the arithmetic that it's asked for.

CuPy's matmul takes the arithmetic of float32 products from one setting for the whole process, which other threads and a
user's own code see too. cuBLAS takes it from each call, so it's called directly; the handle is CuPy's own, one a thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from vitnp.kernels.cuda.loader import contiguous, require_cupy

if TYPE_CHECKING:
    import cupy

# By precision, the name of cuBLAS's arithmetic. The plain type lets cuBLAS choose among kernels of reduced precision for
# float32; the pedantic one doesn't.
_ARITHMETIC = {"fp32": "CUBLAS_COMPUTE_32F_PEDANTIC", "tf32": "CUBLAS_COMPUTE_32F_FAST_TF32"}
# By type of the operands, the name of cuBLAS's type. NumPy has none for bfloat16, whose bits are uint16.
_TYPES = {"float32": "CUDA_R_32F", "float16": "CUDA_R_16F", "uint16": "CUDA_R_16BF"}


def multiply(x: cupy.ndarray, weight: cupy.ndarray, precision: str = "fp32") -> cupy.ndarray:
    """Multiply x W^T, summed in float32.

    Parameters
    ----------
    x : (N, C) array
    weight : (E, C) array of the same type
        float32, float16, or the bits of bfloat16 as uint16.
    precision : str
        Of float32 products: "tf32" takes 11 bits of each number, anything else all of them.

    Returns
    -------
    (N, E) array
        float16 for float16, else float32.

    Raises
    ------
    TypeError
        For arrays of different types, or of another type.
    """
    cupy = require_cupy()
    if x.dtype != weight.dtype or x.dtype.name not in _TYPES:
        raise TypeError(f"a product of {x.dtype} and {weight.dtype}; cast both to float32, float16 or bfloat16 bits")
    (count, depth), width = x.shape, len(weight)
    out = cupy.empty((count, width), np.float16 if x.dtype == np.float16 else np.float32)
    if not out.size:
        return out
    x, weight = contiguous(x), contiguous(weight)
    # cuBLAS's matrices go column by column: to it x and out are transposed.
    cublas, types = cupy.cuda.cublas, cupy.cuda.runtime
    kind, result = (getattr(types, _TYPES[array.dtype.name]) for array in (x, out))
    wide = x.dtype == np.float32
    numerics = _ARITHMETIC.get(precision, _ARITHMETIC["fp32"]) if wide else "CUBLAS_COMPUTE_32F"
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
        kind,
        depth,
        x.data.ptr,
        kind,
        depth,
        zero.ctypes.data,
        out.data.ptr,
        result,
        width,
        getattr(cublas, numerics),
        cublas.CUBLAS_GEMM_DEFAULT,
    )
    return out
