"""Matrix products by cuBLASLt, with bias and residual in the epilogue; the library is called by ctypes.

CuPy has no binding of cuBLASLt, and its binding of cuBLAS refuses every call while a stream is captured as a CUDA
graph. cuBLASLt takes stream and workspace as arguments, and so can be captured. It is a part of cuBLAS, which CuPy has
loaded already; the numbers below are those of cublasLt.h.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import os
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
from vitnp.kernels.cuda.loader import require_cupy

if TYPE_CHECKING:
    import cupy

# cudaDataType, by the dtype of an array; bfloat16 is uint16. Bias and residual have the type of the result.
_TYPES = {"float32": 0, "float16": 2, "uint16": 14}
# cublasComputeType_t: float32 sums; float32 operands in full ("pedantic") or as TF32.
_SUMS, _PEDANTIC, _TF32 = 68, 69, 77
# cublasLtMatmulDescAttributes_t and the values that are set.
_TRANSPOSE_A, _EPILOGUE, _BIAS_POINTER, _TRANSPOSED, _ADD_BIAS = 3, 7, 8, 1, 4
# cublasLtMatmulPreferenceAttributes_t: bytes of workspace, and the alignment of A, B, C and D.
_WORKSPACE, _ALIGNMENTS = 1, (5, 6, 7, 8)
_WORKSPACE_BYTES, _ALIGNMENT = 32 << 20, 16

_lock = threading.Lock()  # the pointer of the bias is an attribute of a plan


class _Found(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = [
        ("algorithm", ctypes.c_uint64 * 8),
        ("workspace", ctypes.c_size_t),
        ("status", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    ]


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Descriptors and algorithm of all products of one shape; they are kept as long as the process runs."""

    operation: ctypes.c_void_p
    layouts: tuple[ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]  # of weight, rows and result, column by column
    found: _Found


def multiply(
    x: cupy.ndarray,
    weight: cupy.ndarray,
    precision: str = "fp32",
    *,
    bias: cupy.ndarray | None = None,
    residual: cupy.ndarray | None = None,
    out: cupy.ndarray,
) -> bool:
    """Compute ``x W^T + bias + residual``, summed in float32 and rounded once.

    Parameters
    ----------
    x : (N, C) array
    weight : (E, C) array of the same type
        float32, float16, or the bits of bfloat16 as uint16.
    precision : str
        Precision of float32 products: "tf32" uses 11 bits of each mantissa, anything else all bits.
    bias : (E,) array of out's type, optional
    residual : (N, E) array of out's type, optional
        May be `out`.
    out : (N, E) array
        Memory for the result: float16 for float16, else float32. All arrays are contiguous and aligned to 16 bytes.

    Returns
    -------
    bool
        False if cuBLASLt is missing or has no algorithm for this product; nothing has been computed then.
    """
    cupy, library = require_cupy(), load()
    if library is None:
        return False
    device = cupy.cuda.Device()
    compute = _SUMS if x.dtype != np.float32 else _TF32 if precision == "tf32" else _PEDANTIC
    kinds = _TYPES[x.dtype.name], _TYPES[out.dtype.name]
    with _lock:
        # Handles of cuBLAS are handles of cuBLASLt too.
        plan = _plan(device.id, device.cublas_handle, len(weight), *x.shape, *kinds, compute, bias is not None)
        if plan is None:
            return False
        if bias is not None:
            _set(library, "MatmulDesc", plan.operation, _BIAS_POINTER, ctypes.c_void_p(bias.data.ptr))
        # From CuPy's pool, which belongs to the stream: no other stream writes to it meanwhile.
        workspace = cupy.empty(plan.found.workspace, np.uint8) if plan.found.workspace else None
        one, beta = ctypes.c_float(1), ctypes.c_float(residual is not None)
        added = out if residual is None else residual
        of_weight, of_rows, of_out = plan.layouts
        status = library.cublasLtMatmul(
            ctypes.c_void_p(device.cublas_handle), plan.operation,
            ctypes.byref(one), _pointer(weight), of_weight, _pointer(x), of_rows,
            ctypes.byref(beta), _pointer(added), of_out, _pointer(out), of_out,
            ctypes.byref(plan.found), _pointer(workspace), ctypes.c_size_t(plan.found.workspace),
            ctypes.c_void_p(cupy.cuda.get_current_stream().ptr),
        )  # fmt: skip
    if status:
        raise RuntimeError(f"cublasLtMatmul failed with status {status}")
    return True


@functools.cache
def load() -> Any:
    """Return the library cuBLASLt that belongs to CuPy's cuBLAS, or None if it cannot be loaded."""
    cupy = require_cupy()
    version = cupy.cuda.runtime.runtimeGetVersion() // 1000
    try:
        library = ctypes.CDLL(f"cublasLt64_{version}.dll" if os.name == "nt" else f"libcublasLt.so.{version}")
        for name in ("MatmulDescCreate", "MatrixLayoutCreate", "MatmulPreferenceCreate", "MatmulAlgoGetHeuristic"):
            getattr(library, f"cublasLt{name}")
    except (OSError, AttributeError):
        return None
    return library


@functools.cache
def _plan(
    device: int, handle: int, width: int, count: int, depth: int, operand: int, result: int, compute: int, bias: bool
) -> _Plan | None:
    """Return descriptors and the best algorithm of a product, or None if cuBLASLt has none."""
    library = load()
    operation = _create(library, "MatmulDesc", ctypes.c_int(compute), ctypes.c_int(_TYPES["float32"]))
    _set(library, "MatmulDesc", operation, _TRANSPOSE_A, ctypes.c_int(_TRANSPOSED))
    if bias:
        _set(library, "MatmulDesc", operation, _EPILOGUE, ctypes.c_int(_ADD_BIAS))
    # cuBLASLt stores matrices column by column: for it, all of them are transposed.
    sizes = ((operand, depth, width), (operand, depth, count), (result, width, count))
    layouts = [
        _create(
            library, "MatrixLayout",
            ctypes.c_int(kind), ctypes.c_uint64(rows), ctypes.c_uint64(columns), ctypes.c_int64(rows),
        )
        for kind, rows, columns in sizes
    ]  # fmt: skip
    preference = _create(library, "MatmulPreference")
    _set(library, "MatmulPreference", preference, _WORKSPACE, ctypes.c_size_t(_WORKSPACE_BYTES))
    for which in _ALIGNMENTS:
        _set(library, "MatmulPreference", preference, which, ctypes.c_uint32(_ALIGNMENT))
    found, count_found = _Found(), ctypes.c_int()
    status = library.cublasLtMatmulAlgoGetHeuristic(
        ctypes.c_void_p(handle), operation, *layouts, layouts[2], preference,
        ctypes.c_int(1), ctypes.byref(found), ctypes.byref(count_found),
    )  # fmt: skip
    library.cublasLtMatmulPreferenceDestroy(preference)
    if status or not count_found.value or found.status:
        return None
    return _Plan(operation, (layouts[0], layouts[1], layouts[2]), found)


def _create(library: Any, what: str, *arguments: object) -> ctypes.c_void_p:
    created = ctypes.c_void_p()
    status = getattr(library, f"cublasLt{what}Create")(ctypes.byref(created), *arguments)
    if status:
        raise RuntimeError(f"cublasLt{what}Create failed with status {status}")
    return created


def _set(library: Any, what: str, of: ctypes.c_void_p, attribute: int, value: Any) -> None:
    size = ctypes.c_size_t(ctypes.sizeof(value))
    status = getattr(library, f"cublasLt{what}SetAttribute")(of, ctypes.c_int(attribute), ctypes.byref(value), size)
    if status:
        raise RuntimeError(f"cublasLt{what}SetAttribute({attribute}) failed with status {status}")


def _pointer(array: cupy.ndarray | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if array is None else array.data.ptr)
