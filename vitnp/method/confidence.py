"""Estimate how certain it is that an image shows an object."""

from __future__ import annotations

import math

import numpy as np

# Nine in ten photographs with one object have a larger spread; photographs without an object have a far smaller one.
SPREAD_OF_AN_OBJECT = 0.25


def confidence(soft: np.ndarray, keys: np.ndarray) -> float:
    """Return how certain it is that an image shows an object at all, 0 to 1.

    This is contrast * min(1, spread / 0.25). The contrast of the image level is the mean of |2 * soft - 1|; the spread
    of the keys is 1 minus the length of their mean. In images without an object all patches are similar, or the
    clusters overlap.

    Parameters
    ----------
    soft : (N,) float
        Soft answer of :func:`vitnp.method.image_level.image_level`.
    keys : (N, D) float
        Keys normalized to unit length.

    Returns
    -------
    float

    Examples
    --------
    >>> confidence(np.array([1.0, 0.0]), np.eye(2))
    1.0
    """
    contrast = float(abs(2 * soft.astype(np.float64) - 1).mean())
    spread = 1 - math.sqrt(float((keys.mean(axis=0, dtype=np.float64) ** 2).sum()))
    return float(contrast * min(1.0, max(0.0, spread) / SPREAD_OF_AN_OBJECT))
