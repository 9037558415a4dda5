"""Rotary position embeddings of a grid of patches, as in DINOv3.

Instead of adding a table of position embeddings to the patches, queries and keys are rotated before their product (Su
et al. 2021, arXiv 2104.09864), so that a score depends on how far apart two patches are. A head of d numbers is d / 2
points in the plane: numbers i and i + d / 2 are the coordinates of point i. The first d / 4 points are rotated by the
row of the patch, the others by its column, each with a period of its own (Simeoni et al. 2025, arXiv 2508.10104). CLS
and registers have no position, which is a rotation by zero.

The coordinates of a patch are those of its center in the image, from -1 at one edge to 1 at the opposite one, along
each side for itself. They fit any grid, square or not, and patches that overlap.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from vitnp.errors import UsageError
from vitnp.vit.config import ViTConfig


def rotation_table(
    periods: np.ndarray, config: ViTConfig, grid: tuple[int, int], stride: int, dtype: DTypeLike = np.float32
) -> np.ndarray:
    """Return the rotation of each token, as :func:`vitnp.kernels.reference.rotate` takes it.

    Parameters
    ----------
    periods : (d / 4,) float
        Length of a full turn for each point, in coordinates: sides of the image are 2 long.
    config : ViTConfig
    grid : (int, int)
        Rows and columns of patches; N is their product.
    stride : int
        Pixels between patches; ``config.patch``, or less for overlapping patches.
    dtype : NumPy dtype
        Type of the result, which is computed in float64 and rounded once.

    Returns
    -------
    (1 + R + N, d) float
        Cosines of the d / 2 angles, then their sines; those of zero for CLS and registers.

    Raises
    ------
    UsageError
        If the number of periods isn't a quarter of a head's width.

    Examples
    --------
    >>> config = ViTConfig(width=4, depth=1, heads=1, patch=8, grid=(2, 2), rotary=True)
    >>> rotation_table(np.array([4.0]), config, grid=(2, 1), stride=8).round(2)
    array([[ 1.  ,  1.  ,  0.  ,  0.  ],
           [ 0.71,  1.  , -0.71,  0.  ],
           [ 0.71,  1.  ,  0.71,  0.  ]], dtype=float32)
    """
    size = config.width // config.heads
    if 4 * len(periods) != size:
        raise UsageError(
            f"rotary position embeddings of heads of {size} numbers need {size / 4:g} periods, got {len(periods)}"
        )
    rows, columns = (patch_centers(count, config.patch, stride) for count in grid)
    turns = np.empty((*grid, 2, len(periods)))
    turns[:, :, 0] = rows[:, None, None] / periods.astype(np.float64)
    turns[:, :, 1] = columns[None, :, None] / periods.astype(np.float64)
    angles = np.zeros((config.num_prefix_tokens + grid[0] * grid[1], size // 2))
    angles[config.num_prefix_tokens :] = 2 * np.pi * turns.reshape(-1, size // 2)
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(dtype)


def patch_centers(count: int, patch: int, stride: int) -> np.ndarray:
    """Return the coordinates (count,) of patches along a side of an image: of their centers, from -1 to 1.

    Examples
    --------
    >>> patch_centers(4, patch=16, stride=16)
    array([-0.75, -0.25,  0.25,  0.75])
    >>> patch_centers(3, patch=16, stride=8)
    array([-0.5,  0. ,  0.5])
    """
    side = (count - 1) * stride + patch
    return 2 * (np.arange(count) * stride + patch / 2) / side - 1
