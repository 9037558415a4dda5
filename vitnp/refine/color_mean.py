"""Give pixels of one color one score: the mean over the picture."""

from __future__ import annotations

import numpy as np

from vitnp.io.resample import check_map, check_photograph
from vitnp.kernels.constants import BLUE_DIFFERENCE, LUMA, RED_DIFFERENCE

# Side of a color bin, in 8-bit levels: coarse enough that noise does not part a leaf, fine enough to tell a dim nucleus
# from its ground.
BIN = 12.0


def color_mean(score: np.ndarray, rgb: np.ndarray, *, bin_size: float = BIN) -> np.ndarray:
    """Return for each pixel the mean score of all pixels of its color.

    A patch is larger than a thin leaf or a small nucleus, and so patches that show one show ground as well. But the
    color of the part is rare elsewhere, and that of the ground is common: their means over the whole picture differ,
    and the mask gets the resolution of pixels. The position of a pixel has no influence.

    Parameters
    ----------
    score : (height, width) float
        Foreground score, in host memory.
    rgb : (height, width, 3) uint8
    bin_size : float
        Side of the bins of luma and both chroma channels, in 8-bit levels.

    Returns
    -------
    (height, width) float64

    Raises
    ------
    ValueError
        If shapes or dtypes do not fit, the score is not finite, or the bin size is below 1.

    Examples
    --------
    >>> rgb = np.zeros((1, 4, 3), np.uint8); rgb[0, 1] = 255
    >>> color_mean(np.array([[0.3, 0.9, 0.6, 0.0]]), rgb).round(2)
    array([[0.3, 0.9, 0.3, 0.3]])
    """
    rgb = check_photograph(rgb)
    score = check_map(score, rgb.shape[:2])
    if not 1 <= bin_size < np.inf:
        raise ValueError(f"bin_size must be at least 1 and finite, got {bin_size}")
    axes = np.array((LUMA, BLUE_DIFFERENCE, RED_DIFFERENCE), np.float32)  # (3, 3)
    bins = np.rint(rgb @ axes.T / np.float32(bin_size)).astype(np.int64)
    bins -= bins.min(axis=(0, 1))
    color = np.ravel_multi_index(tuple(bins.reshape(-1, 3).T), tuple(bins.max(axis=(0, 1)) + 1))
    mean = np.bincount(color, weights=score.ravel()) / np.maximum(np.bincount(color), 1)
    return mean[color].reshape(score.shape)
