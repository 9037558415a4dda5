"""Attention on the GPU: ``attention.cu`` and ``rotation.cu`` under the names of :mod:`vitnp.kernels.reference`.

Heads of 64 16-bit numbers have another form on compute capability 9.0, see :mod:`.attention_wgmma`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from vitnp.kernels.cuda import attention_wgmma, bfloat16
from vitnp.kernels.cuda.loader import contiguous, kernel

if TYPE_CHECKING:
    import cupy

# The head size that attention.cu is optimized for, and the queries per block there.
_SIZE = 64
_QUERIES = {"half": 128, "float": 64}


def attention(
    query: cupy.ndarray, key: cupy.ndarray, value: cupy.ndarray, heads: int, rotation: cupy.ndarray | None = None
) -> cupy.ndarray:
    return attend(query, key, value, heads, rotation)


def attend_rotated(
    query: cupy.ndarray, key: cupy.ndarray, value: cupy.ndarray, heads: int, rotation: cupy.ndarray | None
) -> cupy.ndarray:
    """Compute :func:`attention` of keys that are rotated already, and queries that are rotated by the kernel."""
    import cupy

    images, rows, width = query.shape
    size = width // heads
    variant, options = _variant(query.dtype)
    if size != _SIZE and options:  # bfloat16 with another head size is rare, so it is computed in float32
        query, key, value = (bfloat16.lengthen(x) for x in (query, key, value))
        return bfloat16.shorten(attend_rotated(query, key, value, heads, rotation))
    arrays = [_readable(x) for x in (query, key, value)]
    out = cupy.empty((images, rows, width), query.dtype)
    sizes = [np.int32(rows), np.int32(key.shape[1])]
    steps = [np.int64(x.strides[axis] // x.itemsize) for x in arrays for axis in (1, 0)]
    scale = np.float32(math.log2(math.e) / math.sqrt(size))
    if rotation is not None:
        rotation, options = contiguous(rotation, np.float32), (*options, "-DROTARY")
    if size == _SIZE:
        if variant == "half" and attention_wgmma.attend(arrays[0], arrays[1], arrays[2], out, scale, rotation, options):
            return out
        grid = (-(-rows // _QUERIES[variant]), heads, images)
        # Two blocks of attention_half need 96 KB of shared memory, more than the driver may reserve by default.
        launch = kernel("attention", f"attention_{variant}", *options, carveout=100 if variant == "half" else None)
        launch(grid, (128,), (*arrays, out, *sizes, *steps, scale, rotation))
    else:
        shared = 4 * 4 * (2 * size + 32)
        arguments = (*arrays, out, np.int32(size), *sizes, *steps, scale, rotation)
        launch = kernel("attention", f"attention_any_{variant}", *options, shared=shared)
        launch((-(-rows // 4), heads, images), (128,), arguments, shared_mem=shared)
    return out


def attention_row(
    query: cupy.ndarray, key: cupy.ndarray, heads: int, rotation: cupy.ndarray | None = None
) -> cupy.ndarray:
    import cupy

    if rotation is not None:
        query, key = rotate(query, rotation[:1], heads), rotate(key, rotation, heads)
    images, tokens, width = key.shape
    size = width // heads
    # Always in float32: scores around 10, rounded to half precision, would change weights by half a percent.
    query = query.astype(np.float32).reshape(images, 1, heads, size) * np.float32(size**-0.5)
    key = key.astype(np.float32).reshape(images, tokens, heads, size)
    # A product with one row per head is too small for cuBLAS to be worth it, and a sum does not depend on its compute
    # type.
    scores = (key * query).sum(axis=-1).transpose(0, 2, 1)  # (B, H, N)
    weights = cupy.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def rotate(x: cupy.ndarray, rotation: cupy.ndarray, heads: int) -> cupy.ndarray:
    import cupy

    out = cupy.empty(x.shape, x.dtype)
    _rotate_into(out, x, rotation, heads)
    return out


def _rotate_into(out: cupy.ndarray, x: cupy.ndarray, rotation: cupy.ndarray, heads: int) -> None:
    """Write rotated rows to an array of the same type with contiguous rows, which may be `x` itself."""
    images, tokens, width = x.shape
    half = width // heads // 2
    x = _readable(x)
    options = ("-DHALF",) if x.dtype == np.float16 else ()
    each = math.gcd(half, 16 // x.itemsize)
    steps = [np.int64(array.strides[axis] // array.itemsize) for array in (x, out) for axis in (1, 0)]
    arguments = (x, contiguous(rotation, np.float32), out, np.int32(heads), np.int32(half), *steps)
    kernel("rotation", "rotate", *options, f"-DPER_THREAD={each}")((tokens, images), (64,), arguments)


def attend_fused(
    qkv: cupy.ndarray, heads: int, rotation: cupy.ndarray | None = None, *, precision: str = "fp32"
) -> cupy.ndarray:
    """Compute the attention of a fused product of queries, keys and values, which are read where they lie.

    Parameters
    ----------
    qkv : (B, N, 3 D) float16 or float32
        Keys are overwritten by rotated keys if there is a rotation.
    heads : int
    rotation : (N, D / heads) float32, optional
        Rotary position embedding of each token.
    precision : {"fp32", "tf32", "fp16", "bf16"}
        With "bf16" the product is rounded to bfloat16 first.

    Returns
    -------
    (B, N, D) array
        In the type of `qkv`; bits of bfloat16 as uint16 with "bf16".
    """
    width = qkv.shape[-1] // 3
    if rotation is not None:
        key = qkv[:, :, width : 2 * width]
        _rotate_into(key, key, rotation, heads)
    if precision == "bf16":
        qkv = bfloat16.shorten(qkv)
    query, key, value = (qkv[:, :, part * width : (part + 1) * width] for part in range(3))
    return attend_rotated(query, key, value, heads, rotation)


def attend(
    query: cupy.ndarray,
    key: cupy.ndarray,
    value: cupy.ndarray,
    heads: int,
    rotation: cupy.ndarray | None = None,
    *,
    precision: str = "fp32",
) -> cupy.ndarray:
    """Compute the attention of the first M tokens over all N; arguments and result otherwise as in attend_fused.

    Parameters
    ----------
    query : (B, M, D) float16 or float32
    key, value : (B, N, D) array of the same type
        Before rotation; they stay as they are.
    """
    if rotation is not None:
        key, rotation = rotate(key, rotation, heads), rotation[: query.shape[1]]
    if precision == "bf16":
        query, key, value = (bfloat16.shorten(x) for x in (query, key, value))
    return attend_rotated(query, key, value, heads, rotation)


def _variant(dtype: np.dtype) -> tuple[str, tuple[str, ...]]:
    """Return the name of the kernel variant for a dtype, and its compiler options."""
    if dtype == np.float32:
        return "float", ()
    if dtype == np.float16:
        return "half", ()
    if dtype == np.uint16:
        return "half", ("-DBFLOAT16",)
    raise TypeError(f"attention needs float32, float16 or bfloat16 (as uint16) arrays, got {dtype}")


def _readable(x: cupy.ndarray) -> cupy.ndarray:
    """Return the array unchanged if its rows are contiguous and aligned to 16 bytes, else a copy."""
    import cupy

    steps = x.strides[:2]
    if x.strides[2] == x.itemsize and all(step % 16 == 0 and step >= 0 for step in steps) and x.data.ptr % 16 == 0:
        return x
    return cupy.ascontiguousarray(x)
