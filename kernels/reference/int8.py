"""Linear layers in 8-bit integers: unsigned activations, signed weights, exact integer sums.

Every row of activations has a scale and a zero point of its own, computed from its smallest and largest number when it
is used, and every output of a layer has a scale, computed when the weights are packed (Dettmers et al. 2022, arXiv
2208.07339, section 2.1, where rows have no zero point). No photographs are needed to calibrate anything, and the result
of a row depends on that row alone. Integer sums are exact, so that compiled kernels return the same bits for every
width of vectors and any number of threads.

Letters in shapes: C inputs and E outputs of a linear layer.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from vitnp.errors import UsageError

# Largest byte of a row whose zero point is 0: one less than a byte holds, since the numbers and the zero point are
# both rounded.
STEPS = 254

# Most inputs of a layer for which no sum exceeds 32 bits: 255 * 127 * 66_311 < 2^31.
MAX_INPUTS = 66_311


@dataclasses.dataclass(frozen=True)
class QuantizedRows:
    """Rows of activations in 8 bits: ``(values - zero[..., None]) * scale[..., None]`` approximates them.

    Attributes
    ----------
    values : (..., C or more) uint8
    scale : (...) float
        NaN for a row with NaN or infinity, whose values mean nothing.
    zero : (...) int32
        Byte that means 0.
    inputs : int
        C; numbers after the first C of a row are padding.
    """

    values: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    inputs: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the rows, without padding."""
        return (*self.scale.shape, self.inputs)

    def __getitem__(self, index: Any) -> QuantizedRows:
        """Return some of the rows; the index applies to all axes but the last."""
        return QuantizedRows(self.values[index], self.scale[index], self.zero[index], self.inputs)


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

    def __len__(self) -> int:
        return len(self.values)


def check_inputs(inputs: int) -> None:
    """Check that a layer has few enough inputs.

    Raises
    ------
    UsageError
        If a sum of its products might exceed 32 bits.
    """
    if inputs > MAX_INPUTS:
        raise UsageError(
            f"int8 is for linear layers of at most {MAX_INPUTS} inputs, and this network has one of {inputs}; use "
            "precision fp32"
        )


def quantize_weight(weight: np.ndarray) -> QuantizedWeight:
    """Round the weights of every output to multiples of 1/127 of the largest among them.

    Parameters
    ----------
    weight : (E, C) float

    Returns
    -------
    QuantizedWeight

    Examples
    --------
    >>> quantize_weight(np.array([[1.0, -2.0, 0.5]])).values
    array([[  64, -127,   32]], dtype=int8)
    """
    largest = np.abs(weight).max(axis=1, initial=0)
    scale = np.maximum(largest / weight.dtype.type(127), np.finfo(weight.dtype).tiny)
    return QuantizedWeight(np.rint(weight / scale[:, None]).astype(np.int8), scale)


def quantize_rows(x: np.ndarray) -> QuantizedRows:
    """Round rows to bytes. The range of a row includes zero, which is represented exactly.

    Parameters
    ----------
    x : (..., C) float

    Returns
    -------
    QuantizedRows
        In memory that the next call from the same thread may overwrite.

    Examples
    --------
    >>> quantize_rows(np.array([[0.0, 1.0, 2.0]])).values
    array([[  0, 127, 254]], dtype=uint8)
    """
    real: Any = x.dtype.type
    finite = np.isfinite(x).all(axis=-1)
    x = np.where(finite[..., None], x, real(0))
    low, high = x.min(axis=-1, initial=0), x.max(axis=-1, initial=0)
    scale = np.maximum(high / real(STEPS) - low / real(STEPS), np.finfo(x.dtype).tiny)
    inverse = real(1) / scale
    zero = np.rint(-low * inverse)
    # The product is rounded to the type of x, and the sum is exact.
    values = np.rint((x * inverse[..., None]).astype(np.float64) + zero[..., None])
    scale = np.where(finite, scale, real(np.nan))
    return QuantizedRows(values.astype(np.uint8), scale, zero.astype(np.int32), x.shape[-1])


def layernorm_int8(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> QuantizedRows:
    """Normalize rows as :func:`layernorm`, and round them to bytes for the linear layers that follow.

    Parameters
    ----------
    x : (..., D) float
    weight, bias : (D,) float
    eps : float

    Returns
    -------
    QuantizedRows
        In memory that the next call from the same thread may overwrite.

    Examples
    --------
    >>> layernorm_int8(np.array([[1.0, 3.0]]), np.ones(2), np.zeros(2), 0.0).values
    array([[  0, 254]], dtype=uint8)
    """
    from vitnp.kernels.reference.transformer import layernorm

    return quantize_rows(layernorm(x, weight, bias, eps))


def product_int8(rows: QuantizedRows, weight: QuantizedWeight) -> np.ndarray:
    """Multiply quantized rows with quantized weights.

    Parameters
    ----------
    rows : QuantizedRows
        Of shape (..., C).
    weight : QuantizedWeight

    Returns
    -------
    (..., E) float
        ``x W^T`` up to rounding to 8 bits; NaN for rows that contain NaN or infinity.

    Examples
    --------
    >>> product_int8(quantize_rows(np.array([[127.0, -127.0]])), quantize_weight(np.array([[1.0, 0.5]])))
    array([[63.]])
    """
    # float64 adds integers of this size exactly, and much faster than NumPy adds integers.
    centered = rows.values.astype(np.float64) - rows.zero[..., None]
    sums = centered @ weight.values.T.astype(np.float64)
    return sums.astype(rows.scale.dtype) * (rows.scale[..., None] * weight.scale)
