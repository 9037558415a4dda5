"""Estimate how certain it is that a mask shows the object of an image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from vitnp import kernels

# Nine in ten photographs with one object have a larger spread; photographs without an object have a far smaller one.
SPREAD_OF_AN_OBJECT = 0.25

# Logistic curve from clarity to the share of photographs whose mask has an IoU of at least 0.7 with the true one,
# fitted to photographs with known masks by ``python -m bench confidence``.
SLOPE, OFFSET = 10.96, -6.10


def image_confidence(soft: np.ndarray, keys: np.ndarray) -> float:
    """Return how certain it is that an image shows an object at all, 0 to 1, from the image level alone.

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
    >>> image_confidence(np.array([1.0, 0.0]), np.eye(2))
    1.0
    """
    spread = 1 - math.sqrt(float((keys.mean(axis=0, dtype=np.float64) ** 2).sum()))
    return confidence_of(_contrast(soft), spread)


def confidence_of(contrast: float, spread: float) -> float:
    """Return the confidence of an image from the contrast of its image level and the spread of its keys.

    Examples
    --------
    >>> confidence_of(0.8, 0.125)
    0.4
    """
    return float(contrast * min(1.0, max(0.0, spread) / SPREAD_OF_AN_OBJECT))


def collection_confidence(score: np.ndarray, levels: Sequence[np.ndarray]) -> float:
    """Return how certain it is that a mask made with a collection is good, 0 to 1.

    Calibrated: of photographs with a confidence of 0.5, half have masks with an IoU of at least 0.7.

    Parameters
    ----------
    score : (N,) float
        Mean of the levels, before cleaning.
    levels : sequence of (N,) float
        Answers of the levels.

    Returns
    -------
    float
        sigmoid(10.96 * clarity - 6.10), see :func:`clarity`.

    Examples
    --------
    >>> level = np.array([1.0, 1.0, 0.0])
    >>> round(collection_confidence(level, [level, level]), 3)
    0.992
    """
    return 1 / (1 + math.exp(-(SLOPE * clarity(score, levels) + OFFSET)))


def clarity(score: np.ndarray, levels: Sequence[np.ndarray]) -> float:
    """Return how clearly and how unanimously the levels decide, 0 to 1: contrast * agreement.

    The contrast is the mean of |2 * score - 1|; the agreement is the mean, over the levels, of the IoU of their patches
    above one half with those of the score. A level without such patches agrees with a score without them.

    Parameters
    ----------
    score, levels
        As for :func:`collection_confidence`.

    Examples
    --------
    >>> clarity(np.array([0.75, 0.75, 0.25]), [np.array([1.0, 1.0, 0.0]), np.array([0.5, 0.6, 0.4])])
    0.375
    """
    inside, found = score > 0.5, kernels.array_module(score).stack(list(levels)) > 0.5
    shared, union = (kernels.to_host(part.sum(axis=1)) for part in (found & inside, found | inside))
    agreement = np.where(union > 0, shared / np.maximum(union, 1), 1.0).mean()
    return float(_contrast(score) * agreement)


def _contrast(soft: np.ndarray) -> float:
    return float(abs(2 * soft.astype(np.float64) - 1).mean())
