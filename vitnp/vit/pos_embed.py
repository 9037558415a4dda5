"""Resampling of position embeddings to another grid, in the three conventions that published ViT code has.

A ViT is trained on a grid of M x M' patches and has one position embedding per patch. For an image with m x m' patches
they are interpolated bicubically at the centers of the new grid. The conventions differ in the scale of the sampling
positions and in the cubic kernel:

- ``offset``: DINO, and DINOv2 without registers. The scale is M / (m + 0.1), a workaround for rounding errors that
  became part of how these weights are used; cubic kernel with a = -0.75.
- ``exact``: ViT and DINOv2 in transformers. The scale is M / m; a = -0.75.
- ``antialias``: DINOv2 with registers, and timm. The scale is M / m; a = -0.5, and the kernel widens where the grid
  shrinks.
"""

from __future__ import annotations

import functools

import numpy as np

from vitnp.options import POS_EMBED_INTERPS


def resample_abs_pos_embed(pos_embed: np.ndarray, grid: tuple[int, int], convention: str) -> np.ndarray:
    """Resample position embeddings to a grid of patches.

    Parameters
    ----------
    pos_embed : (M, M', D) float
        Position embeddings of the trained grid, without those of prefix tokens.
    grid : (int, int)
        Rows m and columns m' of the new grid.
    convention : {"offset", "exact", "antialias"}

    Returns
    -------
    (m * m', D) float
        Row by row. A view of `pos_embed` if the grid is the trained one, whatever the convention.

    Raises
    ------
    ValueError
        If there is no such convention.

    Examples
    --------
    >>> resample_abs_pos_embed(np.ones((2, 2, 3), np.float32), (3, 4), "exact").shape
    (12, 3)
    """
    rows, columns, width = pos_embed.shape
    if grid == (rows, columns):
        return pos_embed.reshape(-1, width)
    vertical = _interpolation_matrix(rows, grid[0], convention)  # (m, M)
    horizontal = _interpolation_matrix(columns, grid[1], convention)  # (m', M')
    resampled = np.einsum("aM,bN,MND->abD", vertical, horizontal, pos_embed.astype(np.float64), optimize=True)
    return resampled.reshape(-1, width).astype(pos_embed.dtype)


@functools.lru_cache(maxsize=64)
def _interpolation_matrix(old: int, new: int, convention: str) -> np.ndarray:
    """Return the weights (new, old) of interpolation along one axis; sample i lies at (i + 1/2) scale - 1/2."""
    if convention not in POS_EMBED_INTERPS:
        raise ValueError(f"convention must be one of {', '.join(POS_EMBED_INTERPS)}, got {convention!r}")
    if convention == "antialias":
        scale = old / new
        stretch = max(scale, 1.0)
        centers = (np.arange(new) + 0.5) * scale
        distance = (np.arange(old) + 0.5 - centers[:, None]) / stretch
        matrix = _cubic(distance, a=-0.5)
        return matrix / matrix.sum(axis=1, keepdims=True)
    matrix = np.zeros((new, old))
    scale = old / (new + 0.1) if convention == "offset" else old / new
    position = (np.arange(new) + 0.5) * scale - 0.5
    left = np.floor(position).astype(int)
    for tap in range(-1, 3):
        # Taps outside the grid read its nearest edge.
        source = np.clip(left + tap, 0, old - 1)
        np.add.at(matrix, (np.arange(new), source), _cubic(position - (left + tap), a=-0.75))
    return matrix


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Evaluate the cubic convolution kernel (Keys 1981), whose free parameter is a."""
    t = np.abs(distance)
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))
