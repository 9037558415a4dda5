"""Pillow's antialiased bicubic resizing, and its weights."""

from __future__ import annotations

import math

import numpy as np

# Weights have 22 fractional bits, as in Pillow.
FIXED_POINT = 1 << 22

# Pillow stores RGB at four bytes per pixel; one band of this many pixels takes 64 MiB.
_BAND_PIXELS = 1 << 24


def resize(rgb: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a photograph with Pillow's antialiased bicubic filter.

    It is resampled along rows first and along columns second, and rounded to eight bits in between. The first pass can
    therefore be done in bands of rows, with identical pixels, without Pillow's copy of the whole photograph.

    Parameters
    ----------
    rgb : uint8 array, shape (H, W, 3)
    size : (int, int)
        Height and width ``(h, w)`` of the result.

    Returns
    -------
    uint8 array, shape (h, w, 3)

    Examples
    --------
    >>> resize(np.array([[[0, 0, 0], [90, 60, 30]]], np.uint8), (1, 1)).tolist()
    [[[45, 30, 15]]]
    """
    from PIL import Image

    height, width = rgb.shape[:2]
    narrow = np.empty((height, size[1], 3), np.uint8)
    step = max(1, _BAND_PIXELS // width)
    for top in range(0, height, step):
        band = Image.fromarray(np.ascontiguousarray(rgb[top : top + step]))
        narrow[top : top + step] = np.asarray(band.resize((size[1], band.height), Image.Resampling.BICUBIC))
    return np.asarray(Image.fromarray(narrow).resize((size[1], size[0]), Image.Resampling.BICUBIC))


def filter_weights(length: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return Pillow's bicubic filter from `length` pixels to `size`, in fixed point; it is stretched when downscaling.

    Parameters
    ----------
    length, size : int

    Returns
    -------
    first : (size,) int32
        First pixel that each output depends on.
    weights : (size, taps) int32
        Weights of the pixels from there on, with 22 fractional bits; padded with 0.

    References
    ----------
    R. Keys, "Cubic convolution interpolation for digital image processing", IEEE TASSP 29(6), 1981, equation 15.

    Examples
    --------
    >>> first, weights = filter_weights(2, 2)
    >>> (weights / 2**22).tolist()
    [[1.0, 0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0, 0.0]]
    """
    scale = length / size
    stretch = max(scale, 1.0)
    support = 2.0 * stretch
    taps = math.ceil(support) * 2 + 1
    center = (np.arange(size) + 0.5) * scale
    first = np.maximum(center - support + 0.5, 0).astype(np.int64)
    count = np.minimum(center + support + 0.5, length).astype(np.int64) - first
    tap = np.arange(taps)
    x = np.abs((tap + first[:, None] - center[:, None] + 0.5) * (1.0 / stretch))
    near = ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    weights[tap >= count[:, None]] = 0.0
    # Summed one after the other, as Pillow does, to get the same last bit.
    weights /= np.add.accumulate(weights, axis=1)[:, -1:]
    return first.astype(np.int32), np.trunc(weights * FIXED_POINT + np.copysign(0.5, weights)).astype(np.int32)
