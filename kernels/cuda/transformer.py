"""Layers of a transformer on the GPU: products by cuBLAS, what follows in one pass of ``gelu.cu`` or ``layernorm.cu``.

Arrays are float32 or float16; a layer works in its input's type, with sums in float32. With weights of bfloat16, which
are held as uint16, all arrays are float32, and rounded when they are multiplied.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from vitnp.kernels.cuda import bfloat16, gemm
from vitnp.kernels.cuda.loader import contiguous, kernel, require_cupy

from vitnp.errors import UsageError

if TYPE_CHECKING:
    import cupy

_THREADS = 256
_ROWS = 4  # that a block of layernorm takes
_WIDEST = 2048  # numbers that layernorm keeps in registers
_PIECE = 16  # bytes that a thread reads in one go
_TYPES = {"fp32": np.float32, "tf32": np.float32, "fp16": np.float16}
_turn = threading.RLock()
_here = threading.local()  # `precision`, while a thread is within `products`


def precisions() -> tuple[str, ...]:
    """Of linear layers and attention, those that this GPU has."""
    old = int(require_cupy().cuda.Device().compute_capability) < 80
    return ("fp32", "fp16") if old else ("fp32", "tf32", "fp16", "bf16")


@contextlib.contextmanager
def products(precision: str) -> Iterator[None]:
    """Have this thread's float32 products made as the precision says while the context lasts, in one context at a time.

    Only :func:`linear` looks at it. Nothing of CuPy's or cuBLAS's own is changed: other threads go on as they were.
    """
    with _turn:
        before = getattr(_here, "precision", "fp32")
        _here.precision = precision
        try:
            yield
        finally:
            _here.precision = before


def softmax(x: cupy.ndarray) -> cupy.ndarray:
    cupy = require_cupy()
    y = cupy.exp(x - x.max(axis=-1, keepdims=True))
    return y / y.sum(axis=-1, keepdims=True)


def pack_linear(weight: cupy.ndarray, precision: str = "fp32") -> cupy.ndarray:
    if precision == "bf16":
        return bfloat16.shorten(weight)
    if precision not in _TYPES:
        raise UsageError(f"there is no precision {precision} on a GPU; choose among {', '.join(_TYPES)}, bf16")
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
    if weight.dtype == np.uint16:
        y = bfloat16.product(rows, weight)
    else:
        y = gemm.multiply(rows, weight, getattr(_here, "precision", "fp32"))
    y = y.reshape(*x.shape[:-1], len(weight))
    if bias is None and activation is None and scale is None and residual is None:
        return _deliver(y, out)
    return epilogue(y, bias, activation == "gelu", scale, residual, out)


def epilogue(
    y: cupy.ndarray,
    bias: cupy.ndarray | None,
    gelu: bool,
    scale: cupy.ndarray | None,
    residual: cupy.ndarray | None,
    out: cupy.ndarray | None,
) -> cupy.ndarray:
    """Do what follows a product: residual + scale f(y + bias), f being GELU or nothing.

    Parameters
    ----------
    y : array, shape (..., D)
    bias, scale : array, shape (D,), or None
    gelu : bool
    residual : array of y's shape, or None
    out : array of y's shape, or None
        Where the result goes; into y itself without it.
    """
    target = out if _fits(out, y) else y
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
    target = out if _fits(out, x) else cupy.empty(x.shape, x.dtype)
    known = width <= _WIDEST and width * x.itemsize % _PIECE == 0
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
    # (B, rows, columns, 3, P, P), gathered with two index tables: the order of the weight's own axes.
    down = (cupy.arange(rows) * stride)[:, None] + cupy.arange(patch)
    right = (cupy.arange(columns) * stride)[:, None] + cupy.arange(patch)
    windows = images[:, :, down[:, None, :, None], right[None, :, None, :]].transpose(0, 2, 3, 1, 4, 5)
    flat = cupy.ascontiguousarray(windows).reshape(batch, rows * columns, channels * patch * patch)
    matrix = weight.reshape(len(weight), -1)
    flat = flat[:, start:stop].astype(np.float32 if matrix.dtype == np.uint16 else matrix.dtype, copy=False)
    return linear(flat, matrix, bias)


def temporary(name: str, *shape: int, dtype: type = np.float32) -> cupy.ndarray:
    return require_cupy().empty(shape, dtype)  # CuPy's pool hands the same memory out again


def _launch(name: str, like: cupy.ndarray, *arguments: object) -> None:
    """A kernel of gelu.cu for arrays of the shape and type of `like`."""
    width = like.shape[-1]
    if width % 2:
        raise UsageError(f"layers on a GPU have an even width, and {width} is odd; choose --device cpu")
    piece = _PIECE // like.itemsize
    each = 2 if width % piece else piece
    function = kernel("gelu", name, *_options(like.dtype), f"-DPER_THREAD={each}")
    function((-(-like.size // (each * _THREADS)),), (_THREADS,), arguments)


def _fits(out: cupy.ndarray | None, like: cupy.ndarray) -> bool:
    """Whether a kernel can write its result where it's asked for."""
    return out is not None and out.flags.c_contiguous and out.dtype == like.dtype and out.data.ptr % _PIECE == 0


def _deliver(target: cupy.ndarray, out: cupy.ndarray | None) -> cupy.ndarray:
    """The result where it was asked for."""
    if out is None or out is target:
        return target
    out[...] = target
    return out


def _options(dtype: np.dtype) -> tuple[str, ...]:
    return ("-DHALF",) if dtype == np.float16 else ()
