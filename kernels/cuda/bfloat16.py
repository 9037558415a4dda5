"""bfloat16 numbers on the GPU. NumPy has no type for them: they are their 16 bits, as uint16.

What is multiplied is bfloat16; what comes out, and everything between products, is float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from vitnp.kernels.cuda import gemm
from vitnp.kernels.cuda.loader import contiguous, kernel, require_cupy

if TYPE_CHECKING:
    import cupy

_EACH = 4 * 256  # numbers that a block takes


def shorten(x: cupy.ndarray) -> cupy.ndarray:
    """float32 to the nearest bfloat16, ties to even; of x's shape."""
    out = require_cupy().empty(x.shape, np.uint16)
    _launch("shorten", contiguous(x, np.float32), out)
    return out


def lengthen(x: cupy.ndarray) -> cupy.ndarray:
    """bfloat16 to float32, exactly; of x's shape."""
    out = require_cupy().empty(x.shape, np.float32)
    _launch("lengthen", contiguous(x), out)
    return out


def product(x: cupy.ndarray, weight: cupy.ndarray) -> cupy.ndarray:
    """X W^T, summed in float32.

    Parameters
    ----------
    x : (N, C) float32
    weight : (E, C) bfloat16

    Returns
    -------
    (N, E) float32
    """
    return gemm.multiply(shorten(x), weight)


def _launch(name: str, x: cupy.ndarray, out: cupy.ndarray) -> None:
    kernel("bfloat16", name)((-(-x.size // _EACH),), (256,), (x, np.int64(x.size), out))
