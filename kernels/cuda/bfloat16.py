"""Conversion and products of bfloat16 numbers on the GPU, stored as uint16 because NumPy has no such dtype.

The operands of products are bfloat16; results, and everything between products, are float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from vitnp.kernels.cuda.loader import contiguous, kernel, require_cupy

if TYPE_CHECKING:
    import cupy

_NUMBERS_PER_BLOCK = 4 * 256


def shorten(x: cupy.ndarray) -> cupy.ndarray:
    """Round float32 to bfloat16, ties to even; return an array of the same shape."""
    out = require_cupy().empty(x.shape, np.uint16)
    _launch("shorten", contiguous(x, np.float32), out)
    return out


def lengthen(x: cupy.ndarray) -> cupy.ndarray:
    """Convert bfloat16 to float32, exactly; return an array of the same shape."""
    out = require_cupy().empty(x.shape, np.float32)
    _launch("lengthen", contiguous(x), out)
    return out


def _launch(name: str, x: cupy.ndarray, out: cupy.ndarray) -> None:
    kernel("bfloat16", name)((-(-x.size // _NUMBERS_PER_BLOCK),), (256,), (x, np.int64(x.size), out))
