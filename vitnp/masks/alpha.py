"""Alpha channels of photographs that were composited over white."""

from __future__ import annotations

import numpy as np

# Pixels per band: the temporary arrays of a band take some megabytes.
_BAND_PIXELS = 1 << 20


def opaque_part(soft: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """Multiply a soft map by the opacity of its photograph, so that what is transparent is no foreground.

    Parameters
    ----------
    soft : (height, width) uint16
    opacity : (height, width) uint8

    Returns
    -------
    (height, width) uint16
        Less than half of the scale where the opacity is less than a half; unchanged where it is 255.

    Examples
    --------
    >>> opaque_part(np.full((1, 3), 60000, np.uint16), np.array([[0, 51, 255]], np.uint8)).tolist()
    [[0, 12000, 60000]]
    """
    result = np.empty(soft.shape, np.uint16)
    rows = max(1, _BAND_PIXELS // soft.shape[1])
    for top in range(0, len(soft), rows):
        band = slice(top, top + rows)
        result[band] = (soft[band].astype(np.uint32) * opacity[band] + 127) // 255
    return result


def without_white(rgb: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """Return the colors that give `rgb` when composited over white; black where nothing is left of them.

    Parameters
    ----------
    rgb : (height, width, 3) uint8
    opacity : (height, width) uint8

    Returns
    -------
    (height, width, 3) uint8

    Examples
    --------
    >>> without_white(np.array([[[244, 224, 204]]], np.uint8), np.array([[51]], np.uint8)).tolist()
    [[[200, 100, 0]]]
    """
    alpha = opacity[..., None].astype(np.int32)
    colors = ((rgb.astype(np.int32) + alpha - 255) * 255 + alpha // 2) // np.maximum(alpha, 1)
    return (colors.clip(0, 255) * (alpha > 0)).astype(np.uint8)
