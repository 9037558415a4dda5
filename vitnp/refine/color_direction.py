"""Divide a picture by color, along the direction of color space that patch scores vary along."""

from __future__ import annotations

import numpy as np

from vitnp.io.resample import check_map, check_photograph

# Pixels: less than the width of a thin leaf, enough to calm the noise of a dim microscope.
SIGMA = 1.0

# Fits of the direction: one to the scores, then each to the mask that the fit before it made.
FITS = 4

# In squared 8-bit levels: a difference between channels below a tenth of a level says nothing.
RIDGE = 0.01

# Smallest range of the scores, and of the part of them that color explains: less is rounding.
EXPLAINED = 1e-6

_BINS = 256


def color_direction(score: np.ndarray, rgb: np.ndarray) -> np.ndarray:
    """Return a soft map that depends on nothing but the color of each pixel.

    Patches are larger than a thin leaf or a small nucleus, but its color differs from that of the ground. A linear
    regression of the scores on color finds the direction in which it does (Fisher's discriminant), and Otsu's
    threshold divides the pixels along it. The direction is then fitted again to the mask found so far, which knows
    thin parts better than the scores do. Color is the square root of the three channels, because the noise of light
    grows with the root of its intensity.

    Parameters
    ----------
    score : (height, width) float
        Foreground score, in host memory.
    rgb : (height, width, 3) uint8

    Returns
    -------
    (height, width) float64
        0 to 1, 1/2 at the threshold; the mean score everywhere if color has nothing to do with it.

    Raises
    ------
    ValueError
        If shapes or dtypes do not fit, or the score is not finite.

    References
    ----------
    N. Otsu, "A Threshold Selection Method from Gray-Level Histograms", IEEE Transactions on Systems, Man, and
    Cybernetics 9, 1979.

    Examples
    --------
    >>> rgb = np.zeros((8, 16, 3), np.uint8); rgb[:, 8:] = 200; rgb[4, 2] = 200
    >>> score = np.zeros((8, 16)); score[:, 9:] = 1
    >>> (color_direction(score, rgb) >= 0.5)[4].astype(int).tolist()
    [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1]
    """
    from scipy import ndimage

    rgb = check_photograph(rgb)
    target = check_map(score, rgb.shape[:2]).astype(np.float64)
    channels = [
        16 * np.sqrt(ndimage.gaussian_filter(rgb[..., channel].astype(np.float64), SIGMA)) for channel in range(3)
    ]
    channels = [channel - channel.mean() for channel in channels]
    # Means of products, not a matrix product: the same bits for any number of threads.
    covariance = np.array([[(one * other).mean() for other in channels] for one in channels])
    soft = np.full(rgb.shape[:2], target.mean())
    if np.ptp(target) < EXPLAINED:
        return soft
    for _ in range(FITS):
        target = target - target.mean()
        slope = np.array([(channel * target).mean() for channel in channels])
        weights = np.linalg.solve(covariance + RIDGE * np.eye(3), slope)
        along = sum(weight * channel for weight, channel in zip(weights, channels))
        if np.ptp(along) < EXPLAINED:
            return soft
        threshold = otsu_threshold(along)
        above = along >= threshold
        soft = np.clip(0.5 + (along - threshold) / (along[above].mean() - along[~above].mean()), 0, 1)
        target = above.astype(np.float64)
    return soft


def otsu_threshold(values: np.ndarray) -> float:
    """Return the threshold that maximizes the variance between the values below it and the others.

    Parameters
    ----------
    values : array of float
        Finite, of any shape; counted in 256 bins.

    Returns
    -------
    float
        The lower end of a bin: values that equal it are above. Equal values have themselves as threshold.

    Examples
    --------
    >>> 1 < otsu_threshold(np.array([0.0, 1.0, 9.0, 10.0])) <= 9
    True
    """
    low, high = float(values.min()), float(values.max())
    if low == high:
        return low
    counts, edges = np.histogram(values, _BINS, (low, high))
    below = np.cumsum(counts) / counts.sum()
    mass = np.cumsum(counts * (edges[:-1] + edges[1:]) / 2) / counts.sum()
    between = (mass[-1] * below - mass) ** 2 / np.maximum(below * (1 - below), 1e-12)
    return float(edges[between[:-1].argmax() + 1])
