"""Parts of the guided filter: means over windows, and maps that are linear in color."""

from __future__ import annotations

import numpy as np

# Indices of the two nearest rows or columns of a smaller map, (n,) intp, and the weight of the second, (n,) float32.
Taps = tuple[np.ndarray, np.ndarray, np.ndarray]


def box_mean(values: np.ndarray, radius: int) -> np.ndarray:
    """Average over the window of side 2 `radius` + 1 around each pixel, clipped to the image.

    Parameters
    ----------
    values : (h, w) float64
    radius : int

    Returns
    -------
    (h, w) float64

    Examples
    --------
    >>> box_mean(np.array([[1.0, 2.0, 6.0]]), 1).tolist()
    [[1.5, 3.0, 4.0]]
    """
    height, width = values.shape
    (top, bottom), (left, right) = (window_edges(length, radius) for length in values.shape)
    # Differences of cumulative sums, vertically and then horizontally: the cost does not depend on the radius.
    sums = np.zeros((height + 1, width))
    values.cumsum(axis=0, out=sums[1:])
    strips = sums[bottom] - sums[top]
    sums = np.zeros((height, width + 1))
    strips.cumsum(axis=1, out=sums[:, 1:])
    return (sums[:, right] - sums[:, left]) / ((bottom - top)[:, None] * (right - left))


def window_edges(length: int, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """Return where the window of each row or column begins, and where it ends."""
    center = np.arange(length)
    return np.maximum(center - radius, 0), np.minimum(center + radius + 1, length)


def linear_in_color(planes: np.ndarray, rgb: np.ndarray, vertical: Taps, horizontal: Taps) -> np.ndarray:
    """Enlarge four coefficients a, b, c, d bilinearly, and compute a R + b G + c B + d in 16-bit fixed point.

    Parameters
    ----------
    planes : (4, h, w) float32
    rgb : (H, W, 3) uint8
    vertical, horizontal : Taps
        For each row and each column of `rgb`.

    Returns
    -------
    (H, W) uint16
        65535 represents 1; values are clipped.

    Examples
    --------
    >>> planes = np.array([0.0, 0.0, 0.0, 0.5], np.float32).reshape(4, 1, 1)
    >>> taps = np.zeros(1, int), np.zeros(1, int), np.zeros(1, np.float32)
    >>> linear_in_color(planes, np.zeros((1, 1, 3), np.uint8), taps, taps).tolist()
    [[32768]]
    """
    (top, bottom, down), (left, right, across) = vertical, horizontal
    result = np.zeros(rgb.shape[:2], np.float32)
    for channel in (3, 0, 1, 2):
        # Rows first, while they are as short as those of the planes.
        plane = planes[channel]
        rows = _lerp(plane.take(top, axis=0), plane.take(bottom, axis=0), down[:, None])
        plane = _lerp(rows.take(left, axis=1), rows.take(right, axis=1), across)
        result += plane if channel == 3 else plane * rgb[..., channel]
    return np.rint(result.clip(0, 1) * np.float32(65535)).astype(np.uint16)


def _lerp(start: np.ndarray, stop: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Compute start + weight (stop - start) in the memory of `stop`."""
    stop -= start
    stop *= weight
    stop += start
    return stop
