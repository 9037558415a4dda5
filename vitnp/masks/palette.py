"""Colors of classes: the palette of PASCAL VOC, and a brighter one for drawing."""

from __future__ import annotations

import numpy as np


def voc_colors(n: int = 256) -> np.ndarray:
    """Return the colors of the first `n` classes in PASCAL VOC and similar data sets; 0, the background, is black.

    The bits of the class number are distributed to red, green and blue in turn, the lowest three to the highest bits of
    the channels (``VOClabelcolormap`` of the VOC development kit).

    Parameters
    ----------
    n : int
        Number of colors, at most 256.

    Returns
    -------
    array, shape (n, 3), uint8

    Examples
    --------
    >>> voc_colors(4).tolist()
    [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    """
    if not 0 <= n <= 256:
        raise ValueError(f"n must be between 0 and 256, the number of colors, got {n}")
    bits = np.arange(n)[:, None] >> np.arange(3)
    colors = np.zeros((n, 3), np.uint8)
    for bit in range(7, 4, -1):
        colors |= ((bits & 1) << bit).astype(np.uint8)
        bits >>= 3
    return colors


def bright_colors(n: int = 256) -> np.ndarray:
    """Return brighter versions of :func:`voc_colors`, for lines on photographs, where dark colors are hard to see.

    Each channel is replaced by its square root, which keeps hues recognizable and different colors different.

    Returns
    -------
    array, shape (n, 3), uint8

    Examples
    --------
    >>> bright_colors(3).tolist()
    [[0, 0, 0], [181, 0, 0], [0, 181, 0]]
    """
    return np.round(255 * np.sqrt(voc_colors(n) / 255)).astype(np.uint8)
