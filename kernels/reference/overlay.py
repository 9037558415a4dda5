"""Colors of an overlay: a photograph whose object is tinted and outlined, and whose rest is dimmed."""

from __future__ import annotations

import numpy as np


def paint_overlay(
    rgb: np.ndarray, soft: np.ndarray, opacity: np.ndarray, outside: np.ndarray, tint: float, lines: np.ndarray
) -> np.ndarray:
    """Color each pixel by its place relative to the outline: layers over each other, in the arithmetic of Pillow.

    The lowest layer is the photograph with its colors multiplied by a matrix. The tinted photograph, the outer and the
    inner line are laid over it, with the opacities that belong to the pixel's value of `soft`.

    Parameters
    ----------
    rgb : (h, w, 3) uint8
    soft : (h, w) uint8
        Blurred mask.
    opacity : (3, 256) uint8
        For each value of `soft`, the opacities of the tinted photograph, the outer line and the inner line.
    outside : (3, 3) float32
        Colors of the rest as a matrix on red, green and blue.
    tint : float
        Share of the inner line's color in the tinted photograph.
    lines : (2, 3) uint8
        Colors of the outer and the inner line.

    Returns
    -------
    (h, w, 3) uint8

    Examples
    --------
    >>> identity, lines = np.eye(3, dtype=np.float32), np.array([[255, 255, 255], [0, 0, 255]], np.uint8)
    >>> opacity = np.zeros((3, 256), np.uint8)
    >>> opacity[1, 9] = 255
    >>> rgb = np.full((1, 2, 3), 7, np.uint8)
    >>> paint_overlay(rgb, np.array([[0, 9]], np.uint8), opacity, identity, 0.1, lines)[0, :, 0].tolist()
    [7, 255]
    """
    red, green, blue = (rgb[..., channel].astype(np.float32) for channel in range(3))
    tinted, outer, inner = (table[soft].astype(np.int32) for table in opacity)
    result = np.empty_like(rgb)
    for channel, row in enumerate(np.asarray(outside, np.float32)):
        dimmed = (row[0] * red + row[1] * green + row[2] * blue + np.float32(0.5)).clip(0, 255).astype(np.int32)
        color = (red, green, blue)[channel]
        layer = (color + np.float32(tint) * (np.float32(lines[1, channel]) - color)).astype(np.int32)
        dimmed = _over(dimmed, layer, tinted)
        dimmed = _over(dimmed, lines[0, channel].astype(np.int32), outer)
        result[..., channel] = _over(dimmed, lines[1, channel].astype(np.int32), inner)
    return result


def _over(below: np.ndarray, above: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """Mix 8-bit colors: the quotient by 255, rounded."""
    mixed = below * (255 - opacity) + above * opacity + 128
    return ((mixed >> 8) + mixed) >> 8
