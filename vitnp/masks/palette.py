"""Label images: a class number at each pixel, in a PNG whose palette is that of PASCAL VOC."""

from __future__ import annotations

import numpy as np


def voc_colors(n: int = 256) -> np.ndarray:
    """Colors of the first `n` classes as PASCAL VOC and its many descendants paint them; 0, the background, is black.

    A class number's bits go round among red, green and blue, the lowest three into the channels' highest bits (VOC
    development kit, ``VOClabelcolormap``).

    Parameters
    ----------
    n : int
        At most 256.

    Returns
    -------
    array, shape (n, 3), uint8

    Examples
    --------
    >>> voc_colors(4).tolist()
    [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    """
    if not 0 <= n <= 256:
        raise ValueError(f"the color map has 256 entries, not {n}")
    rest = np.arange(n)[:, None] >> np.arange(3)
    colors = np.zeros((n, 3), np.uint8)
    for bit in range(7, 4, -1):
        colors |= ((rest & 1) << bit).astype(np.uint8)
        rest >>= 3
    return colors


def bright_colors(n: int = 256) -> np.ndarray:
    """The colors of :func:`voc_colors`, lighter, to draw on photographs, where half-bright lines hardly show.

    A square root lifts each channel: the hues stay recognizable, and colors that differ still do.

    Returns
    -------
    array, shape (n, 3), uint8

    Examples
    --------
    >>> bright_colors(3).tolist()
    [[0, 0, 0], [181, 0, 0], [0, 181, 0]]
    """
    return np.round(255 * np.sqrt(voc_colors(n) / 255)).astype(np.uint8)
