"""Layers of a transformer on the GPU: matrix products by cuBLASLt, everything else by ``gelu.cu`` and ``layernorm.cu``.

Arrays are float32 or float16; a layer works in the type of its input, with sums in float32. With bfloat16 weights,
which are stored as uint16, all arrays are float32 and are rounded to bfloat16 for products.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import DTypeLike
from vitnp.kernels.cuda import bfloat16, gemm
from vitnp.kernels.cuda.loader import contiguous, kernel, require_cupy

from vitnp.errors import UsageError

if TYPE_CHECKING:
    import cupy

_THREADS = 256
_ROWS = 4  # rows per block of layernorm
_MAX_WIDTH = 2048  # numbers of a row that layernorm keeps in registers
_VECTOR_BYTES = 16  # bytes that a thread reads at a time
_TYPES: dict[str, type] = {"fp32": np.float32, "tf32": np.float32, "fp16": np.float16}
_lock = threading.RLock()
_local = threading.local()  # `precision`, while a thread is inside `products`


def precisions() -> tuple[str, ...]:
    """Return the precisions that this GPU supports in linear layers and attention."""
    old = int(require_cupy().cuda.Device().compute_capability) < 80
    return ("fp32", "fp16") if old else ("fp32", "tf32", "fp16", "bf16")


@contextlib.contextmanager
def products(precision: str) -> Iterator[None]:
    """Compute float32 products of :func:`linear` in this thread at a precision, as a context manager.

    Only one thread at a time can be inside. No setting of CuPy or cuBLAS is changed, so other threads are not affected.
    """
    with _lock:
        before = getattr(_local, "precision", "fp32")
        _local.precision = precision
        try:
            yield
        finally:
            _local.precision = before


def softmax(x: cupy.ndarray) -> cupy.ndarray:
    cupy = require_cupy()
    y = cupy.exp(x - x.max(axis=-1, keepdims=True))
    return y / y.sum(axis=-1, keepdims=True)


def pack_linear(weight: cupy.ndarray, precision: str = "fp32") -> cupy.ndarray:
    if precision == "bf16":
        return bfloat16.shorten(weight)
    if precision not in _TYPES:
        raise UsageError(f"precision must be one of {', '.join(_TYPES)}, bf16 on a GPU, got {precision}")
    return require_cupy().ascontiguousarray(weight, dtype=_TYPES[precision])


def linear(
    x: cupy.ndarray,
    weight: cupy.ndarray,
    bias: cupy.ndarray | None = None,
    *,
    activation: str | None = None,
    scale: cupy.ndarray | None = None,
    residual: cupy.ndarray | None = None,
    out: cupy.ndarray | None = None,
) -> cupy.ndarray:
    rows = x.reshape(-1, x.shape[-1])
    if weight.dtype == np.uint16 and rows.dtype != np.uint16:
        rows = bfloat16.shorten(rows)
    shape = (*x.shape[:-1], len(weight))
    dtype = np.dtype(np.float16 if rows.dtype == np.float16 else np.float32)
    bias, scale = (None if v is None else contiguous(v, dtype) for v in (bias, scale))
    residual = None if residual is None else contiguous(residual, dtype)
    target = out if _fits(out, shape, dtype) else None
    if activation is None and scale is None:  # cuBLASLt adds bias and residual itself
        added, memory = (None if v is None else v.reshape(-1, shape[-1]) for v in (residual, target))
        y, complete = gemm.multiply(rows, weight, _precision(), bias=bias, residual=added, out=memory)
        y = target if memory is not None and y is memory else y.reshape(shape)
        if complete:
            return _deliver(y, out)
    else:
        y = gemm.multiply(rows, weight, _precision())[0].reshape(shape)
    return epilogue(y, bias, activation == "gelu", scale, residual, out)


def _precision() -> str:
    """Return the precision of float32 products in this thread."""
    return getattr(_local, "precision", "fp32")


def epilogue(
    y: cupy.ndarray,
    bias: cupy.ndarray | None,
    gelu: bool,
    scale: cupy.ndarray | None,
    residual: cupy.ndarray | None,
    out: cupy.ndarray | None,
) -> cupy.ndarray:
    """Compute ``residual + scale f(y + bias)``, where f is GELU or the identity.

    Parameters
    ----------
    y : array, shape (..., D)
    bias, scale : array, shape (D,), or None
    gelu : bool
    residual : array of y's shape, or None
    out : array of y's shape, or None
        Array for the result; None overwrites y.
    """
    target = out if _fits(out, y.shape, y.dtype) else y
    bias, scale, residual = (None if v is None else contiguous(v, y.dtype) for v in (bias, scale, residual))
    sizes = (np.int64(y.size), np.int32(y.shape[-1]))
    _launch("epilogue", y, y, bias, scale, residual, np.int32(gelu), *sizes, target)
    return _deliver(target, out)


def gelu(x: cupy.ndarray) -> cupy.ndarray:
    cupy = require_cupy()
    x = contiguous(x)
    return epilogue(x, None, True, None, None, cupy.empty(x.shape, x.dtype))


def swiglu(x: cupy.ndarray) -> cupy.ndarray:
    cupy = require_cupy()
    x, width = contiguous(x), x.shape[-1] // 2
    out = cupy.empty((*x.shape[:-1], width), x.dtype)
    _launch("swiglu", out, x, np.int64(out.size), np.int32(width), out)
    return out


def layernorm(
    x: cupy.ndarray, weight: cupy.ndarray, bias: cupy.ndarray, eps: float, out: cupy.ndarray | None = None
) -> cupy.ndarray:
    cupy = require_cupy()
    x, width = contiguous(x), x.shape[-1]
    target = out if _fits(out, x.shape, x.dtype) else cupy.empty(x.shape, x.dtype)
    known = width <= _MAX_WIDTH and width * x.itemsize % _VECTOR_BYTES == 0
    options = _options(x.dtype) + ((f"-DWIDTH={width}",) if known else ())
    rows = x.size // width
    gain, offset = (contiguous(v, x.dtype) for v in (weight, bias))
    arguments = (x, gain, offset, np.float32(eps), np.int64(rows), np.int32(width), target)
    kernel("layernorm", "layernorm", *options)((-(-rows // _ROWS),), (_ROWS * 32,), arguments)
    return _deliver(target, out)


def patch_embedding(
    images: cupy.ndarray,
    weight: cupy.ndarray,
    bias: cupy.ndarray,
    stride: int,
    *,
    patch: int | None = None,
    start: int = 0,
    stop: int | None = None,
) -> cupy.ndarray:
    cupy = require_cupy()
    patch = patch or weight.shape[-1]
    batch, channels, height, width = images.shape
    rows, columns = (height - patch) // stride + 1, (width - patch) // stride + 1
    # Gather (B, rows, columns, 3, P, P) with two index tables, in the order of the axes of the weights.
    y = (cupy.arange(rows) * stride)[:, None] + cupy.arange(patch)
    x = (cupy.arange(columns) * stride)[:, None] + cupy.arange(patch)
    windows = images[:, :, y[:, None, :, None], x[None, :, None, :]].transpose(0, 2, 3, 1, 4, 5)
    flat = cupy.ascontiguousarray(windows).reshape(batch, rows * columns, channels * patch * patch)
    matrix = weight.reshape(len(weight), -1)
    flat = flat[:, start:stop].astype(np.float32 if matrix.dtype == np.uint16 else matrix.dtype, copy=False)
    return linear(flat, matrix, bias)


def temporary(name: str, *shape: int, dtype: DTypeLike = np.float32) -> cupy.ndarray:
    return require_cupy().empty(shape, dtype)  # CuPy's pool reuses the memory


def _launch(name: str, like: cupy.ndarray, *arguments: object) -> None:
    """Launch a kernel of gelu.cu for arrays of the shape and type of `like`."""
    width = like.shape[-1]
    if width % 2:
        raise UsageError(f"the width of layers must be even on a GPU, got {width}; choose --device cpu")
    piece = _VECTOR_BYTES // like.itemsize
    each = 2 if width % piece else piece
    function = kernel("gelu", name, *_options(like.dtype), f"-DPER_THREAD={each}")
    function((-(-like.size // (each * _THREADS)),), (_THREADS,), arguments)


def _fits(out: cupy.ndarray | None, shape: tuple[int, ...], dtype: np.dtype) -> bool:
    """Return whether a kernel can write a result of this shape and type to `out` directly."""
    return (
        out is not None
        and out.shape == shape
        and out.dtype == dtype
        and out.flags.c_contiguous
        and out.data.ptr % _VECTOR_BYTES == 0
    )


def _deliver(target: cupy.ndarray, out: cupy.ndarray | None) -> cupy.ndarray:
    """Return the result, copied to `out` if it is not there yet."""
    if out is None or out is target:
        return target
    out[...] = target
    return out


def _options(dtype: np.dtype) -> tuple[str, ...]:
    return ("-DHALF",) if dtype == np.float16 else ()
