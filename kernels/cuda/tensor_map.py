"""Tensor maps: how the tensor memory accelerator of compute capability 9.0 finds boxes of an array.

The driver writes them (cuTensorMapEncodeTiled, CUDA 12). CuPy has no binding of that, so it is called by ctypes; the
numbers below are those of cuda.h. A map is a value of 128 bytes and an argument of a kernel. It holds an address and
sizes, no memory.
"""

from __future__ import annotations

import ctypes
import functools
from typing import TYPE_CHECKING

import numpy as np
from vitnp.kernels.cuda.loader import driver

if TYPE_CHECKING:
    import cupy

_BYTES = 128
_RANK = 3
# CUtensorMapDataType, by the dtype of an array; bfloat16 is uint16.
_TYPES = {"float16": 6, "uint16": 9}
# No interleaving, rows of 128 bytes swizzled, 256 bytes fetched into the L2 cache at once, zeros outside of the array.
_INTERLEAVE, _SWIZZLE, _PROMOTION, _FILL = 0, 3, 3, 0


def fits(x: cupy.ndarray) -> bool:
    """Return whether the driver can map an array (B, N, D): aligned rows, images that are whole rows apart."""
    image, row, item = x.strides
    regular = row > 0 and row % 16 == 0 and (len(x) == 1 or (image > 0 and image % row == 0))
    return x.dtype.name in _TYPES and item == x.itemsize and x.data.ptr % 16 == 0 and regular and x.size > 0


def encode(x: cupy.ndarray, columns: int, rows: int) -> np.void:
    """Return the tensor map of an array (B, N, D) for boxes of (1, rows, columns).

    Raises
    ------
    OSError
        If the driver is missing.
    RuntimeError
        If it refuses the array, or is too old.
    """
    image = x.strides[0] if len(x) > 1 else x.shape[1] * x.strides[1]
    return _encode(_TYPES[x.dtype.name], x.data.ptr, x.shape[::-1], (x.strides[1], image), (columns, rows, 1))


@functools.lru_cache(maxsize=1024)
def _encode(kind: int, address: int, sizes: tuple[int, ...], steps: tuple[int, ...], box: tuple[int, ...]) -> np.void:
    try:
        function = driver().cuTensorMapEncodeTiled
    except AttributeError as error:
        raise RuntimeError("the NVIDIA driver is too old for tensor maps") from error
    room = ctypes.create_string_buffer(2 * _BYTES)
    offset = -ctypes.addressof(room) % 64
    status = function(
        ctypes.c_void_p(ctypes.addressof(room) + offset), ctypes.c_int(kind), ctypes.c_uint32(_RANK),
        ctypes.c_void_p(address), (ctypes.c_uint64 * _RANK)(*sizes), (ctypes.c_uint64 * (_RANK - 1))(*steps),
        (ctypes.c_uint32 * _RANK)(*box), (ctypes.c_uint32 * _RANK)(*[1] * _RANK),
        ctypes.c_int(_INTERLEAVE), ctypes.c_int(_SWIZZLE), ctypes.c_int(_PROMOTION), ctypes.c_int(_FILL),
    )  # fmt: skip
    if status:
        raise RuntimeError(f"cuTensorMapEncodeTiled failed with status {status}")
    return np.void(room.raw[offset : offset + _BYTES])
