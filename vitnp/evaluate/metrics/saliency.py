"""How good a mask is: the five numbers of salient object detection, each for one image.

A set of images is scored by the mean of its images' numbers. All functions take

- ``truth``: bool (H, W), True on the object,
- ``mask``: bool (H, W), the predicted object,
- ``soft``: floating (H, W) in 0..1, the predicted map before it is cut into a mask,

compute in float64 and raise ValueError when an argument is something else. Soft maps are scored as they stand: some
toolboxes first stretch each map to the whole of 0..1, which changes the numbers of a map that is unsure everywhere.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# The authors' code of the S-measure adds this to its denominators.
EPS = float(np.finfo(np.float64).eps)


class SaliencyScores(NamedTuple):
    """The scores of one image, or the means of many."""

    iou: float
    accuracy: float
    max_f: float
    mae: float
    s_measure: float


def saliency_scores(mask: np.ndarray, soft: np.ndarray, truth: np.ndarray) -> SaliencyScores:
    """All five scores of one image.

    Parameters
    ----------
    mask : bool (H, W)
    soft : floating (H, W), 0..1
    truth : bool (H, W)

    Returns
    -------
    SaliencyScores
        ``iou`` and ``accuracy`` of the mask; ``max_f``, ``mae`` and ``s_measure`` of the soft map.

    Raises
    ------
    ValueError
        When shapes differ, or an array is empty, of the wrong type or out of range.

    Examples
    --------
    >>> truth = np.array([[True, False], [True, False]])
    >>> saliency_scores(truth, truth.astype(float), truth).iou
    1.0
    """
    return SaliencyScores(
        iou=iou(mask, truth),
        accuracy=accuracy(mask, truth),
        max_f=max_f_beta(soft, truth),
        mae=mae(soft, truth),
        s_measure=s_measure(soft, truth),
    )


def iou(mask: np.ndarray, truth: np.ndarray) -> float:
    """Foreground intersection over union (the Jaccard index): ``|mask & truth| / |mask | truth|``.

    Two empty masks agree entirely: their IoU is 1. An empty mask against a truth that holds something, or the other
    way round, is 0.

    Parameters
    ----------
    mask, truth : bool (H, W)

    Raises
    ------
    ValueError
        When the shapes differ, or an array is empty or not bool.

    Examples
    --------
    >>> iou(np.array([[True, True, False]]), np.array([[False, True, True]]))
    0.3333333333333333
    """
    _check_mask(mask, truth)
    union = np.count_nonzero(mask | truth)
    return float(np.count_nonzero(mask & truth) / union) if union else 1.0


def accuracy(mask: np.ndarray, truth: np.ndarray) -> float:
    """Share of the pixels, foreground and background alike, on which mask and truth agree.

    Parameters
    ----------
    mask, truth : bool (H, W)

    Raises
    ------
    ValueError
        When the shapes differ, or an array is empty or not bool.

    Examples
    --------
    >>> accuracy(np.array([[True, True, False, False]]), np.array([[False, True, False, False]]))
    0.75
    """
    _check_mask(mask, truth)
    return float(np.count_nonzero(mask == truth) / truth.size)


def max_f_beta(soft: np.ndarray, truth: np.ndarray, beta2: float = 0.3) -> float:
    """The best F-measure that a single threshold makes of this image's map.

    The map is cut at the 256 thresholds k / 255, k = 0 ... 255: foreground is ``soft >= k / 255``, so k = 0 calls
    everything foreground. With TP the true positives, P the pixels called foreground and T the truth's::

        precision = TP / P,  recall = TP / T
        F = (1 + beta2) precision recall / (beta2 precision + recall)
          = TP / (TP + (beta2 (T - TP) + (P - TP)) / (1 + beta2))

    so a threshold that finds no true positive scores 0. The result is the image's own maximum; over a set the mean of
    these is never below the maximum of the mean curve, which some papers report.

    An empty truth has no precision and no recall: the score is 1 when the map finds nothing at any threshold from
    1 / 255 up, else 0.

    Parameters
    ----------
    soft : floating (H, W), 0..1
    truth : bool (H, W)
    beta2 : float, positive
        Weight of recall against precision; 0.3 throughout the literature.

    Raises
    ------
    ValueError
        When the shapes differ, an array is empty, of the wrong type or out of range, or `beta2` is not positive.

    References
    ----------
    Achanta et al., "Frequency-tuned salient region detection", CVPR 2009 (its beta squared is 0.3).

    Examples
    --------
    >>> max_f_beta(np.array([[0.9, 0.6, 0.2]]), np.array([[True, True, False]]))
    1.0
    """
    _check_soft(soft, truth)
    if not (np.isfinite(beta2) and beta2 > 0):
        raise ValueError(f"beta2 must be a positive number, but is {beta2!r}")
    # Compared in the map's own type, where j / 65535 and k / 255 round alike: a 16-bit map meets its thresholds exactly.
    thresholds = np.arange(256, dtype=soft.dtype) / soft.dtype.type(255)
    if not truth.any():
        return 1.0 if soft.max() < thresholds[1] else 0.0
    reached = np.searchsorted(thresholds, soft.ravel(), side="right") - 1
    called = _at_least(np.bincount(reached, minlength=256))
    hits = _at_least(np.bincount(reached[truth.ravel()], minlength=256))
    missed, wrong = np.count_nonzero(truth) - hits, called - hits
    return float(np.max(hits / (hits + (beta2 * missed + wrong) / (1 + beta2))))


def mae(soft: np.ndarray, truth: np.ndarray) -> float:
    """Mean absolute difference of the soft map and the truth as 0 and 1; 0 is perfect.

    Parameters
    ----------
    soft : floating (H, W), 0..1
    truth : bool (H, W)

    Raises
    ------
    ValueError
        When the shapes differ, or an array is empty, of the wrong type or out of range.

    References
    ----------
    Perazzi et al., "Saliency filters", CVPR 2012.

    Examples
    --------
    >>> mae(np.array([[1.0, 0.25]]), np.array([[True, False]]))
    0.125
    """
    _check_soft(soft, truth)
    return float(np.mean(np.abs(np.subtract(soft, truth, dtype=np.float64))))


def s_measure(soft: np.ndarray, truth: np.ndarray, alpha: float = 0.5) -> float:
    """Structural similarity of the soft map and the truth: ``alpha S_object + (1 - alpha) S_region``, at least 0.

    S_object asks whether the map is bright and even on the object and dark and even off it; S_region cuts the image
    into four blocks at the centroid of the truth and weighs each block's structural similarity by its area. An empty
    truth scores ``1 - mean(soft)``, a truth that fills the image ``mean(soft)``.

    As in the authors' code: variances divide by n - 1 (a single pixel has none); the centroid's coordinates, counted
    from 1, are rounded to integers with halves upwards, and its row and column belong to the upper and the left
    blocks. A block without pixels, when the centroid lies in the last row or column, counts nothing.

    Parameters
    ----------
    soft : floating (H, W), 0..1
    truth : bool (H, W)
    alpha : float, 0..1
        Weight of the object-aware part.

    Raises
    ------
    ValueError
        When the shapes differ, an array is empty, of the wrong type or out of range, or `alpha` is not in 0..1.

    References
    ----------
    Fan et al., "Structure-measure: a new way to evaluate foreground maps", ICCV 2017 (S_object with lambda = 0.5).

    Examples
    --------
    >>> truth = np.array([[True, False], [True, False]])
    >>> round(s_measure(truth.astype(float), truth), 6)
    1.0
    """
    _check_soft(soft, truth)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in 0..1, but is {alpha!r}")
    soft = soft.astype(np.float64)
    foreground = np.count_nonzero(truth)
    if foreground == 0:
        return 1.0 - float(soft.mean())
    if foreground == truth.size:
        return float(soft.mean())
    score = alpha * _object_score(soft, truth) + (1 - alpha) * _region_score(soft, truth)
    return max(0.0, float(score))


def _object_score(soft: np.ndarray, truth: np.ndarray) -> float:
    share = np.count_nonzero(truth) / truth.size
    return share * _evenly_bright(soft[truth]) + (1 - share) * _evenly_bright(1 - soft[~truth])


def _evenly_bright(values: np.ndarray) -> float:
    mean = values.mean()
    spread = values.std(ddof=1) if values.size > 1 else 0.0
    return float(2 * mean / (mean * mean + 1 + spread + EPS))


def _region_score(soft: np.ndarray, truth: np.ndarray) -> float:
    top, left = (_centroid_cut(truth, axis) for axis in (0, 1))
    score = 0.0
    for rows in (slice(None, top), slice(top, None)):
        for columns in (slice(None, left), slice(left, None)):
            block = truth[rows, columns]
            if block.size:
                score += block.size / truth.size * _block_similarity(soft[rows, columns], block)
    return score


def _centroid_cut(truth: np.ndarray, axis: int) -> int:
    """Number of rows (axis 0) or columns (axis 1) that lie on the first side of the centroid, its own included."""
    counts = np.count_nonzero(truth, axis=1 - axis)
    total = int(counts.sum())
    moment = int(np.dot(counts, np.arange(1, counts.size + 1)))
    # Whole numbers keep a tie a tie: round(moment / total), halves upwards.
    return (2 * moment + total) // (2 * total)


def _block_similarity(soft: np.ndarray, truth: np.ndarray) -> float:
    x, y = soft.mean(), truth.mean()
    # Rounding of the mean must not give a constant block a variance: the cases below ask for exact zeros.
    dx = np.zeros_like(soft) if soft.min() == soft.max() else soft - x
    dy = truth - y
    freedom = max(truth.size - 1, 1)
    covariance = (dx * dy).sum() / freedom
    variances = ((dx * dx).sum() + (dy * dy).sum()) / freedom
    alike = 4 * x * y * covariance
    scale = (x * x + y * y) * variances
    if alike != 0:
        return float(alike / (scale + EPS))
    return 1.0 if scale == 0 else 0.0


def _at_least(histogram: np.ndarray) -> np.ndarray:
    """Turn counts of values that reach just threshold k into counts of values that reach at least threshold k."""
    return np.cumsum(histogram[::-1])[::-1]


def _check_mask(mask: np.ndarray, truth: np.ndarray) -> None:
    _check_truth(truth)
    if not (isinstance(mask, np.ndarray) and mask.dtype == bool):
        raise ValueError(f"the mask must be a bool array, but is {_kind(mask)}")
    _check_shapes("mask", mask, truth)


def _check_soft(soft: np.ndarray, truth: np.ndarray) -> None:
    _check_truth(truth)
    if not (isinstance(soft, np.ndarray) and np.issubdtype(soft.dtype, np.floating)):
        raise ValueError(f"the soft map must be a floating array with values in 0..1, but is {_kind(soft)}")
    _check_shapes("soft map", soft, truth)
    low, high = soft.min(), soft.max()
    if not (low >= 0 and high <= 1):  # Written so that NaN fails too.
        raise ValueError(f"the soft map must hold values in 0..1, but holds {low:g}..{high:g}")


def _check_truth(truth: np.ndarray) -> None:
    if not (isinstance(truth, np.ndarray) and truth.dtype == bool):
        raise ValueError(f"the truth must be a bool array, but is {_kind(truth)}")
    if truth.ndim != 2 or truth.size == 0:
        raise ValueError(f"the truth must have the shape (rows, columns), neither 0, but has {truth.shape}")


def _check_shapes(name: str, array: np.ndarray, truth: np.ndarray) -> None:
    if array.shape != truth.shape:
        raise ValueError(f"the {name} must have the truth's shape {truth.shape}, but has {array.shape}")


def _kind(value: object) -> str:
    return f"an array of {value.dtype}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
