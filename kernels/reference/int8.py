"""Linear layers in 8-bit integers: unsigned activations, signed weights, exact integer sums.

Every row of activations has a scale and a zero point of its own, computed from its smallest and largest number when it
is used (Dettmers et al. 2022, arXiv 2208.07339, quantize rows alike); every output of a layer has a scale, computed
when the weights are packed. No photographs are needed to calibrate anything, and a row's result depends on that row
alone. Integer sums are exact, so that compiled kernels return the same bits on every processor and for any number of
threads.

Letters in shapes: N rows, C inputs and E outputs of a linear layer.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

# Largest number of a quantized row without its zero point: one less than a byte holds, since both of them are rounded.
STEPS = 254

# Most inputs of a layer, so that no sum exceeds 32 bits: 255 x 127 x 66,311 < 2^31.
MAX_INPUTS = 66_311


@dataclasses.dataclass(frozen=True)
class QuantizedWeight:
    """Weights of a linear layer in 8 bits: ``values * scale[:, None]`` approximates them.

    Attributes
    ----------
    values : (E, C) int8
        Between -127 and 127.
    scale : (E,) float
    """

    values: np.ndarray
    scale: np.ndarray


def quantize_weight(weight: np.ndarray) -> QuantizedWeight:
    """Round every output's weights to multiples of 1/127 of the largest among them.

    Parameters
    ----------
    weight : (E, C) float
        A row of zeros stays zeros.

    Returns
    -------
    QuantizedWeight

    Examples
    --------
    >>> quantize_weight(np.array([[1.0, -2.0, 0.5]])).values
    array([[  64, -127,   32]], dtype=int8)
    """
    scale = np.abs(weight).max(axis=1, initial=0) / weight.dtype.type(127)
    divisor = np.maximum(scale, np.finfo(weight.dtype).tiny)
    return QuantizedWeight(np.rint(weight / divisor[:, None]).astype(np.int8), divisor)


def quantize_rows(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Round rows to unsigned bytes: ``(values - zero[:, None]) * scale[:, None]`` approximates them.

    The range of a row contains zero, which is represented exactly.

    Parameters
    ----------
    x : (N, C) float

    Returns
    -------
    values : (N, C) uint8
    scale : (N,) float
        At least the smallest normal number; NaN for rows with NaN or infinity, whose values mean nothing.
    zero : (N,) int32
        Byte that means 0.

    Examples
    --------
    >>> quantize_rows(np.array([[0.0, 1.0, 2.0]]))[0]
    array([[  0, 127, 254]], dtype=uint8)
    """
    real: Any = x.dtype.type
    low, high = x.min(axis=1, initial=0), x.max(axis=1, initial=0)
    with np.errstate(invalid="ignore"):
        scale = np.maximum(high / real(STEPS) - low / real(STEPS), np.finfo(x.dtype).tiny)
        scale = np.where(np.isfinite(x).all(axis=1), scale, real(np.nan))
    usable = np.where(np.isnan(scale), 0, x.T).T
    inverse = real(1) / np.where(np.isnan(scale), real(1), scale)
    zero = np.rint(-usable.min(axis=1, initial=0) * inverse)
    values = np.rint((usable * inverse[:, None]).astype(np.float64) + zero[:, None].astype(np.float64))
    return values.astype(np.uint8), scale, zero.astype(np.int32)


def linear_int8(x: np.ndarray, weight: QuantizedWeight) -> np.ndarray:
    """Multiply rows with weights in 8-bit integers.

    Parameters
    ----------
    x : (N, C) float
    weight : QuantizedWeight

    Returns
    -------
    (N, E) float
        ``x W^T`` up to rounding to 8 bits; rows with NaN or infinity become NaN.

    Examples
    --------
    >>> linear_int8(np.array([[127.0, -127.0]]), quantize_weight(np.array([[1.0, 0.5]])))
    array([[63.]])
    """
    values, scale, zero = quantize_rows(x)
    # float64 adds these integers exactly, and much faster than NumPy adds integers.
    centered = values.astype(np.float64) - zero[:, None]
    sums = centered @ weight.values.T.astype(np.float64)
    return sums.astype(x.dtype) * (scale[:, None] * weight.scale.astype(x.dtype))
