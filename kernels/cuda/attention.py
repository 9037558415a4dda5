"""Attention on the GPU: the kernels of ``attention.cu`` under the names of :mod:`vitnp.kernels.reference`."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import numpy as np
from vitnp.kernels import reference
from vitnp.kernels.cuda import bfloat16
from vitnp.kernels.cuda.loader import kernel

if TYPE_CHECKING:
    import cupy

# The one head size that attention.cu is fast for, and the queries of a block there.
_SIZE = 64
_QUERIES = {"half": 128, "float": 64}


@functools.wraps(reference.attention)
def attention(query: cupy.ndarray, key: cupy.ndarray, value: cupy.ndarray, heads: int) -> cupy.ndarray:
    import cupy

    images, rows, width = query.shape
    size = width // heads
    kind, options = _kind(query.dtype)
    if size != _SIZE and options:  # bfloat16 with another head size: rare enough for a detour
        return bfloat16.shorten(attention(*map(bfloat16.lengthen, (query, key, value)), heads))
    arrays = [_readable(x) for x in (query, key, value)]
    out = cupy.empty((images, rows, width), query.dtype)
    sizes = [np.int32(rows), np.int32(key.shape[1])]
    steps = [np.int64(x.strides[axis] // x.itemsize) for x in arrays for axis in (1, 0)]
    scale = np.float32(math.log2(math.e) / math.sqrt(size))
    if size == _SIZE:
        grid = (-(-rows // _QUERIES[kind]), heads, images)
        # Two blocks of attention_half take 96 KB of shared memory, more than the driver may set aside of its own accord.
        launch = kernel("attention", f"attention_{kind}", *options, carveout=100 if kind == "half" else None)
        launch(grid, (128,), (*arrays, out, *sizes, *steps, scale))
    else:
        shared = 4 * 4 * (2 * size + 32)
        arguments = (*arrays, out, np.int32(size), *sizes, *steps, scale)
        launch = kernel("attention", f"attention_any_{kind}", shared=shared)
        launch((-(-rows // 4), heads, images), (128,), arguments, shared_mem=shared)
    return out


@functools.wraps(reference.attention_row)
def attention_row(query: cupy.ndarray, key: cupy.ndarray, heads: int) -> cupy.ndarray:
    import cupy

    images, tokens, width = key.shape
    size = width // heads
    # In float32 whatever comes in: scores of ten, rounded to half precision, would be off by half a percent.
    query = query.astype(np.float32).reshape(images, 1, heads, size) * np.float32(size**-0.5)
    key = key.astype(np.float32).reshape(images, tokens, heads, size)
    # One row a head is no work for cuBLAS, whose arithmetic would be the process's; a sum has its own.
    scores = (key * query).sum(axis=-1).transpose(0, 2, 1)  # (B, H, N)
    weights = cupy.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


class KVCache:
    """Keys and values of some images on the GPU; see :class:`vitnp.kernels.reference.KVCache`.

    Parameters
    ----------
    images, tokens, width, heads : int
    dtype : NumPy type
        Of what is put in and asked; the arrays have the type that suits `precision`.
    slot : int
        Of no concern here: the pool of CuPy hands memory out again.
    precision : {"fp32", "tf32", "fp16", "bf16"}
    """

    def __init__(
        self,
        images: int,
        tokens: int,
        width: int,
        heads: int,
        dtype: type = np.float32,
        *,
        slot: int = 0,
        precision: str = "fp32",
    ):
        import cupy

        self.heads = heads
        held = {"fp16": np.float16, "bf16": np.uint16}.get(precision, dtype)
        self.key, self.value = (cupy.empty((images, tokens, width), held) for _ in range(2))

    def write(self, images: slice, start: int, key: cupy.ndarray, value: cupy.ndarray) -> None:
        """Keys and values (b, n, D) of the tokens from `start` on of these images."""
        rows = slice(start, start + key.shape[1])
        if self.key.dtype == np.uint16:
            key, value = bfloat16.shorten(key), bfloat16.shorten(value)
        self.key[images, rows], self.value[images, rows] = key, value

    def attend(self, query: cupy.ndarray, images: slice, out: cupy.ndarray | None = None) -> cupy.ndarray:
        """What queries (b, M, D) gather from all values of their images, (b, M, D); `out` is of no concern here."""
        short = self.key.dtype == np.uint16
        asked = bfloat16.shorten(query) if short else query.astype(self.key.dtype, copy=False)
        found = attention(asked, self.key[images], self.value[images], self.heads)
        return (bfloat16.lengthen(found) if short else found).astype(query.dtype, copy=False)


def _kind(dtype: np.dtype) -> tuple[str, tuple[str, ...]]:
    """Which kernel takes numbers of this type, and what it's compiled with."""
    if dtype == np.float32:
        return "float", ()
    if dtype == np.float16:
        return "half", ()
    if dtype == np.uint16:
        return "half", ("-DBFLOAT16",)
    raise TypeError(f"attention takes float32, float16 or bfloat16 arrays, not {dtype}")


def _readable(x: cupy.ndarray) -> cupy.ndarray:
    """The array itself if its rows can be read 16 bytes at a time where they are, else a copy."""
    import cupy

    steps = x.strides[:2]
    if x.strides[2] == x.itemsize and all(step % 16 == 0 and step >= 0 for step in steps) and x.data.ptr % 16 == 0:
        return x
    return cupy.ascontiguousarray(x)
