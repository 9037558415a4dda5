"""Position embeddings at another size: three conventions, because the world's ViT code has three.

Each is bicubic interpolation of the trained grid (M x M') at the centers of a new grid (m x m'), and they differ in the scale of
the sampling and in the kernel:

- ``offset``: DINO, and DINOv2 without registers. Sampled at the scale M / (m + 0.1), a workaround for rounding that the
  weights have been used with ever since; cubic kernel with a = -0.75.
- ``exact``: transformers' ViT and DINOv2. Scale M / m, a = -0.75.
- ``antialias``: DINOv2 with registers, and timm. Scale M / m; the kernel widens when shrinking, and has a = -0.5.
"""

from __future__ import annotations

import functools

import numpy as np

CONVENTIONS = ("offset", "exact", "antialias")


def resample_positions(table: np.ndarray, grid: tuple[int, int], convention: str) -> np.ndarray:
    """Position embeddings for a grid of patches.

    Parameters
    ----------
    table : (M, M', D) float
        Trained embeddings.
    grid : (int, int)
        Rows m and columns m' wanted.
    convention : {"offset", "exact", "antialias"}

    Returns
    -------
    (m * m', D) float
        Row by row. The table itself when the grid is the trained one.

    Examples
    --------
    >>> resample_positions(np.ones((2, 2, 3), np.float32), (3, 4), "exact").shape
    (12, 3)
    """
    rows, columns, width = table.shape
    if grid == (rows, columns):
        return table.reshape(-1, width)
    vertical = _weights(rows, grid[0], convention)  # (m, M)
    horizontal = _weights(columns, grid[1], convention)  # (m', M')
    resampled = np.einsum("aM,bN,MND->abD", vertical, horizontal, table.astype(np.float64), optimize=True)
    return resampled.reshape(-1, width).astype(table.dtype)


@functools.lru_cache(maxsize=64)
def _weights(old: int, new: int, convention: str) -> np.ndarray:
    """Interpolation matrix (new, old) in float64 along one axis; the output's centers at (i + 1/2) scale - 1/2."""
    if convention not in CONVENTIONS:
        raise ValueError(f"unknown position convention {convention!r}; choose among {', '.join(CONVENTIONS)}")
    matrix = np.zeros((new, old))
    if convention == "antialias":
        scale = old / new
        stretch = max(scale, 1.0)
        centers = (np.arange(new) + 0.5) * scale
        distance = (np.arange(old) + 0.5 - centers[:, None]) / stretch
        matrix = _cubic(distance, a=-0.5)
        return matrix / matrix.sum(axis=1, keepdims=True)
    scale = old / (new + 0.1) if convention == "offset" else old / new
    position = (np.arange(new) + 0.5) * scale - 0.5
    left = np.floor(position).astype(int)
    for tap in range(-1, 3):
        # Taps outside the grid read its nearest edge.
        source = np.clip(left + tap, 0, old - 1)
        np.add.at(matrix, (np.arange(new), source), _cubic(position - (left + tap), a=-0.75))
    return matrix


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel (Keys 1981, equation 15, with its free parameter a)."""
    t = np.abs(distance)
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))
