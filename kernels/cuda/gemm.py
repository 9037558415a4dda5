"""Matrix products by cuBLAS, with a compute type per call.

CuPy's matmul reads the compute type of float32 products from one setting of the process, which also affects other
threads and the user's own code. cuBLAS takes it as an argument, so it is called directly, with CuPy's handle of the
thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from vitnp.kernels.cuda.loader import contiguous, require_cupy

if TYPE_CHECKING:
    import cupy

# Compute types of cuBLAS by precision. With CUBLAS_COMPUTE_32F cuBLAS may use kernels of reduced precision for float32;
# with the pedantic type it may not.
_COMPUTE_TYPES = {"fp32": "CUBLAS_COMPUTE_32F_PEDANTIC", "tf32": "CUBLAS_COMPUTE_32F_FAST_TF32"}
# Data types of CUDA by the dtype of the operands. NumPy has no bfloat16, so its bits are uint16.
_TYPES = {"float32": "CUDA_R_32F", "float16": "CUDA_R_16F", "uint16": "CUDA_R_16BF"}


def multiply(x: cupy.ndarray, weight: cupy.ndarray, precision: str = "fp32") -> cupy.ndarray:
    """Compute ``x W^T``, summed in float32.

    Parameters
    ----------
    x : (N, C) array
    weight : (E, C) array of the same type
        float32, float16, or the bits of bfloat16 as uint16.
    precision : str
        Precision of float32 products: "tf32" uses 11 bits of each mantissa, anything else all bits.

    Returns
    -------
    (N, E) array
        float16 for float16, else float32.

    Raises
    ------
    TypeError
        If the types differ or are not supported.
    """
    cupy = require_cupy()
    if x.dtype != weight.dtype or x.dtype.name not in _TYPES:
        raise TypeError(
            f"both operands must be float32, float16 or bfloat16 (as uint16), got {x.dtype} and {weight.dtype}"
        )
    (count, depth), width = x.shape, len(weight)
    out = cupy.empty((count, width), np.float16 if x.dtype == np.float16 else np.float32)
    if not out.size:
        return out
    x, weight = contiguous(x), contiguous(weight)
    # cuBLAS stores matrices column by column: for cuBLAS, x and out are transposed.
    cublas, types = cupy.cuda.cublas, cupy.cuda.runtime
    operand_type, result_type = (getattr(types, _TYPES[array.dtype.name]) for array in (x, out))
    float32 = x.dtype == np.float32
    compute_type = _COMPUTE_TYPES.get(precision, _COMPUTE_TYPES["fp32"]) if float32 else "CUBLAS_COMPUTE_32F"
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
        operand_type,
        depth,
        x.data.ptr,
        operand_type,
        depth,
        zero.ctypes.data,
        out.data.ptr,
        result_type,
        width,
        getattr(cublas, compute_type),
        cublas.CUBLAS_GEMM_DEFAULT,
    )
    return out
