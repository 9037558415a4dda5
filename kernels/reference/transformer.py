"""Layers of a vision transformer.

Letters in shapes: B images, N tokens, D width, C inputs and E outputs of a linear layer, P patch side.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike
from vitnp.kernels.reference.int8 import (
    QuantizedRows,
    QuantizedWeight,
    check_inputs,
    product_int8,
    quantize_rows,
    quantize_weight,
)

from vitnp.errors import UsageError

# Whether threads share the tokens of an image. BLAS may round differently when a product has another number of rows, so
# the reference never splits an image.
SHARES_TOKENS = False


def pack_linear(weight: np.ndarray, precision: str = "fp32") -> np.ndarray | QuantizedWeight:
    """Pack the weights of a linear layer into the layout that :func:`linear` reads fastest; call it once per layer.

    Parameters
    ----------
    weight : (E, C) float
        One row per output, as in checkpoints.
    precision : {"fp32", "bf16", "fp16", "tf32", "int8"}
        Type of the products' operands, one of :func:`precisions`. Sums are float32, and 32-bit integers with "int8".
        The reference supports "fp32", which means the type of the weights, and "int8".

    Returns
    -------
    object
        Packed weights for :func:`linear`; in the reference the weights themselves, or a :class:`QuantizedWeight`.

    Raises
    ------
    UsageError
        If the device does not support the precision, or the layer has too many inputs for "int8".

    Examples
    --------
    >>> linear(np.array([[1.0, 2.0]]), pack_linear(np.array([[3.0, 4.0]])))
    array([[11.]])
    """
    if precision == "int8":
        check_inputs(weight.shape[1])
        return quantize_weight(weight)
    if precision != "fp32":
        raise UsageError(f"precision must be fp32 or int8 without compiled kernels, got {precision}")
    return weight


def linear(
    x: np.ndarray | QuantizedRows,
    weight: np.ndarray | QuantizedWeight,
    bias: np.ndarray | None = None,
    *,
    activation: str | None = None,
    scale: np.ndarray | None = None,
    residual: np.ndarray | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Apply a linear layer, then optionally activation, LayerScale and residual: ``residual + scale f(x W^T + b)``.

    Parameters
    ----------
    x : (..., C) float or QuantizedRows
        Quantized rows need weights that were packed with precision "int8". Such weights quantize other rows.
    weight : (E, C) float
        One row per output, as in checkpoints; or the result of :func:`pack_linear`.
    bias : (E,) float, optional
    activation : {"gelu"}, optional
        The function f, see :func:`gelu`; the identity by default.
    scale : (E,) float, optional
        LayerScale (Touvron et al. 2021, arXiv 2103.17239).
    residual : (..., E) float, optional
        Added at the end; may be the same array as `out`.
    out : (..., E) float, optional
        Array for the result, with contiguous rows; a new one by default.

    Returns
    -------
    (..., E) float

    Examples
    --------
    >>> linear(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]]), np.array([5.0]))
    array([[16.]])
    """
    if isinstance(weight, QuantizedWeight):
        y = product_int8(x if isinstance(x, QuantizedRows) else quantize_rows(x), weight)
    elif isinstance(x, QuantizedRows):
        raise TypeError("quantized rows need weights packed with precision int8")
    else:
        y = x @ weight.T
    if bias is not None:
        y += bias
    if activation == "gelu":
        y = gelu(y)
    if scale is not None:
        y *= scale
    if residual is not None:
        y += residual
    if out is None:
        return y
    out[...] = y
    return out


def layernorm(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float, out: np.ndarray | None = None
) -> np.ndarray:
    """Normalize the last axis to mean 0 and variance 1, then scale and shift (Ba et al. 2016, equation 4).

    Parameters
    ----------
    x : (..., D) float
    weight, bias : (D,) float
    eps : float
        Added to the (biased) variance.
    out : (..., D) float, optional
        Array for the result, with contiguous rows; a new one by default.

    Returns
    -------
    (..., D) float

    Examples
    --------
    >>> layernorm(np.array([[1.0, 3.0]]), np.ones(2), np.zeros(2), 0.0)
    array([[-1.,  1.]])
    """
    centered = x - x.mean(axis=-1, keepdims=True)
    variance = np.square(centered).mean(axis=-1, keepdims=True)
    centered /= np.sqrt(variance + x.dtype.type(eps))
    centered *= weight
    centered += bias
    if out is None:
        return centered
    out[...] = centered
    return out


def gelu(x: np.ndarray) -> np.ndarray:
    """Compute the Gaussian error linear unit in its exact form, ``x Phi(x)`` (Hendrycks and Gimpel 2016).

    Parameters
    ----------
    x : (...) float

    Returns
    -------
    (...) float

    Examples
    --------
    >>> gelu(np.array([0.0, 1.0])).round(4)
    array([0.    , 0.8413])
    """
    from scipy.special import erf

    y = erf(x * x.dtype.type(0.5**0.5))
    y += 1
    y *= x
    y *= x.dtype.type(0.5)
    return y


def swiglu(x: np.ndarray) -> np.ndarray:
    """Compute the gated unit ``silu(a) b`` of the two halves of the last axis (Shazeer 2020, equation 6).

    Parameters
    ----------
    x : (..., 2E) float
        The gate ``a``, then ``b``.

    Returns
    -------
    (..., E) float

    Examples
    --------
    >>> swiglu(np.array([0.0, 3.0]))
    array([0.])
    """
    gate, value = np.split(x, 2, axis=-1)
    # The sigmoid in terms of tanh cannot overflow.
    half = x.dtype.type(0.5)
    return gate * (half + half * np.tanh(half * gate)) * value


def softmax(x: np.ndarray) -> np.ndarray:
    """Compute the softmax over the last axis, shifted by its maximum so that nothing overflows.

    Parameters
    ----------
    x : (..., N) float

    Returns
    -------
    (..., N) float

    Examples
    --------
    >>> softmax(np.array([1000.0, 1000.0]))
    array([0.5, 0.5])
    """
    y = x - x.max(axis=-1, keepdims=True)
    np.exp(y, out=y)
    y /= y.sum(axis=-1, keepdims=True)
    return y


def patch_embedding(
    images: np.ndarray,
    weight: np.ndarray | QuantizedWeight,
    bias: np.ndarray,
    stride: int,
    *,
    patch: int | None = None,
    start: int = 0,
    stop: int | None = None,
) -> np.ndarray:
    """Map every P x P patch linearly: a convolution with P x P kernels (Dosovitskiy et al. 2021, section 3.1).

    Parameters
    ----------
    images : (B, 3, height, width) float
    weight : (D, 3, P, P) float
        Or the result of :func:`pack_linear` for the weights reshaped to (D, 3 P P).
    bias : (D,) float
    stride : int
        Pixels from one patch to the next; smaller than P for overlapping patches.
    patch : int, optional
        P; required with packed weights.
    start, stop : int
        Range of patches in row-major order, where rows = (height - P) // stride + 1, and columns likewise. All by
        default.

    Returns
    -------
    (B, stop - start, D) float

    Examples
    --------
    >>> patch_embedding(np.ones((1, 3, 4, 2)), np.ones((1, 3, 2, 2)), np.zeros(1), stride=2)
    array([[[12.],
            [12.]]])
    """
    patch = patch or (weight.shape[-1] if isinstance(weight, np.ndarray) else None)
    if patch is None:
        raise UsageError("patch is required with packed weights; pass the side of a patch in pixels")
    windows = np.lib.stride_tricks.sliding_window_view(images, (patch, patch), axis=(2, 3))[:, :, ::stride, ::stride]
    batch, channels, rows, columns = windows.shape[:4]
    # (B, 3, rows, columns, P, P) -> (B, rows, columns, 3, P, P), to match the axes of the weights.
    flat = windows.transpose(0, 2, 3, 1, 4, 5).reshape(batch, rows * columns, channels * patch * patch)
    if isinstance(weight, np.ndarray):
        weight = weight.reshape(len(weight), -1)
    return linear(flat[:, start:stop], weight, bias)


def temporary(name: str, *shape: int, dtype: DTypeLike = np.float32) -> np.ndarray:
    """Return an uninitialized array for temporary use; a later call with the same name may reuse its memory.

    Examples
    --------
    >>> temporary("rows", 2, 3).shape
    (2, 3)
    """
    return np.empty(shape, dtype)


def precisions() -> tuple[str, ...]:
    """Return the precisions that this device supports in linear layers and attention.

    Examples
    --------
    >>> precisions()
    ('fp32', 'int8')
    """
    return "fp32", "int8"
