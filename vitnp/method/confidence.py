"""Estimate how certain it is that an image shows an object."""

from __future__ import annotations

import math

import numpy as np

# On photographs with one object nine in ten have a spread above this; without any object it is far smaller.
SPREAD_OF_AN_OBJECT = 0.25


def confidence(soft: np.ndarray, keys: np.ndarray) -> float:
    """How sure one may be that the image holds an object at all, 0..1.

    The contrast of the image level, mean of |2 I - 1|, times min(1, spread / 0.25), the spread being 1 - |mean unit key|:
    pictures of nothing have patches that are all alike, or clusters that blend into each other.

    Parameters
    ----------
    soft : (N,) float
        Soft answer of :func:`image_level`.
    keys : (N, D) float
        Unit rows.

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
