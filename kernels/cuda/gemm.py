"""Matrix products by cuBLASLt, or by cuBLAS where that is missing, with a compute type per call.

CuPy's matmul reads the compute type of float32 products from one setting of the process, which also affects other
threads and the user's own code. cuBLAS takes it as an argument, so it is called directly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from vitnp.kernels.cuda import cublaslt
from vitnp.kernels.cuda.loader import contiguous, require_cupy

if TYPE_CHECKING:
    import cupy

# Compute types of cuBLAS by precision. With CUBLAS_COMPUTE_32F cuBLAS may use kernels of reduced precision for float32;
# with the pedantic type it may not.
_COMPUTE_TYPES = {"fp32": "CUBLAS_COMPUTE_32F_PEDANTIC", "tf32": "CUBLAS_COMPUTE_32F_FAST_TF32"}
# Data types of CUDA by the dtype of the operands. NumPy has no bfloat16, so its bits are uint16.
_TYPES = {"float32": "CUDA_R_32F", "float16": "CUDA_R_16F", "uint16": "CUDA_R_16BF"}


def multiply(
    x: cupy.ndarray,
    weight: cupy.ndarray,
    precision: str = "fp32",
    *,
    bias: cupy.ndarray | None = None,
    residual: cupy.ndarray | None = None,
    out: cupy.ndarray | None = None,
) -> tuple[cupy.ndarray, bool]:
    """Compute ``x W^T``, summed in float32, and add bias and residual where cuBLASLt can.

    Parameters
    ----------
    x : (N, C) array
    weight : (E, C) array of the same type
        float32, float16, or the bits of bfloat16 as uint16.
    precision : str
        Precision of float32 products: "tf32" uses 11 bits of each mantissa, anything else all bits.
    bias : (E,) array of the result's type, optional
    residual : (N, E) array of the result's type, optional
    out : (N, E) array of the result's type, optional
        Contiguous memory for the result; may be `residual`, which is overwritten only if it has been added.

    Returns
    -------
    result : (N, E) array
        float16 for float16, else float32.
    complete : bool
        Whether bias and residual have been added; else `result` is the product alone.

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
    shape, dtype = (len(x), len(weight)), np.float16 if x.dtype == np.float16 else np.float32
    target = cupy.empty(shape, dtype) if out is None else out
    if not target.size:
        return target, True
    x, weight = contiguous(x), contiguous(weight)
    if cublaslt.multiply(x, weight, precision, bias=bias, residual=residual, out=target):
        return target, True
    if residual is not None and target.data.ptr == residual.data.ptr:
        target = cupy.empty(shape, dtype)
    if bias is None or not cublaslt.multiply(x, weight, precision, out=target):
        _by_cublas(x, weight, precision, target)
    return target, bias is None and residual is None


def _by_cublas(x: cupy.ndarray, weight: cupy.ndarray, precision: str, out: cupy.ndarray) -> None:
    """Compute ``x W^T`` by cuBLAS, with CuPy's handle of the thread."""
    cupy = require_cupy()
    (count, depth), width = x.shape, len(weight)
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
