"""Conversion of bfloat16, a type that NumPy lacks."""

from __future__ import annotations

import numpy as np


def bfloat16_to_float32(bits: np.ndarray) -> np.ndarray:
    """Convert the bits of bfloat16 numbers, the upper halves of float32 numbers, to float32.

    Parameters
    ----------
    bits : uint16 array

    Returns
    -------
    float32 array of the same shape

    Examples
    --------
    >>> bfloat16_to_float32(np.array([0x3F80, 0xC000], np.uint16))
    array([ 1., -2.], dtype=float32)
    """
    return (bits.astype(np.uint32) << 16).view(np.float32)


def float32_to_bfloat16(numbers: np.ndarray) -> np.ndarray:
    """Round finite float32 numbers to the nearest bfloat16 numbers, ties to even, and return their bits.

    Returns
    -------
    uint16 array of the same shape

    Examples
    --------
    >>> bfloat16_to_float32(float32_to_bfloat16(np.array([3.1622777], np.float32)))
    array([3.15625], dtype=float32)
    """
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
