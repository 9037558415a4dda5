"""Six metrics of salient object detection, each for one image.

These are IoU, accuracy, maximal F-measure, MAE, S-measure and the F-measure of the boundary.

A data set is scored by the mean over its images. All functions take

- ``truth``: bool (H, W), True on the object,
- ``mask``: bool (H, W), the predicted object,
- ``soft``: floating (H, W) in 0..1, the predicted map before thresholding,

compute in float64, and raise ValueError for any other type, shape or range. Soft maps are scored as they are: some
toolboxes first stretch each map to the full range 0..1, which changes the scores of a map without confident pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# Added to the denominators of the S-measure, as in the authors' code.
EPS = float(np.finfo(np.float64).eps)


class SaliencyScores(NamedTuple):
    """Scores of one image, or their means over several."""

    iou: float
    accuracy: float
    max_f: float
    mae: float
    s_measure: float
    boundary_f: float


def saliency_scores(mask: np.ndarray, soft: np.ndarray, truth: np.ndarray) -> SaliencyScores:
    """Compute all six scores of one image.

    Parameters
    ----------
    mask : bool (H, W)
    soft : floating (H, W), 0..1
    truth : bool (H, W)

    Returns
    -------
    SaliencyScores
        ``iou``, ``accuracy`` and ``boundary_f`` of the mask; ``max_f``, ``mae`` and ``s_measure`` of the soft map.

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
        boundary_f=boundary_f(mask, truth),
    )


def iou(mask: np.ndarray, truth: np.ndarray) -> float:
    """Compute the foreground intersection over union (the Jaccard index): ``|mask & truth| / |mask | truth|``.

    The IoU of two empty masks is 1; if only one of them is empty it is 0.

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
    """Compute the share of pixels, foreground and background, on which mask and truth agree.

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


def boundary_f(mask: np.ndarray, truth: np.ndarray, tolerance: float = 3.0) -> float:
    """Compute the F-measure of the mask's boundary, whose pixels count as right near the true boundary.

    Boundary pixels belong to the object and have one of their four neighbors outside it; beyond the frame there are no
    neighbors, so an object that is cut by the frame has no boundary there. Precision is the share of the mask's
    boundary pixels that are at most `tolerance` away from a true one, recall the converse, and the score is
    ``2 precision recall / (precision + recall)``. It is 1 if there is neither boundary, and 0 if only one of them
    exists.

    Parameters
    ----------
    mask, truth : bool (H, W)
    tolerance : float
        Euclidean distance in pixels, at least 0.

    Raises
    ------
    ValueError
        When the shapes differ, an array is empty or not bool, or `tolerance` is negative.

    References
    ----------
    Martin et al., "Learning to detect natural image boundaries using local brightness, color, and texture cues", TPAMI
    2004; Perazzi et al., "A benchmark dataset and evaluation methodology for video object segmentation", CVPR 2016.

    Examples
    --------
    >>> left_half = np.arange(20) < np.full((20, 1), 10)
    >>> [boundary_f(np.arange(20) < np.full((20, 1), edge), left_half) for edge in (13, 14)]
    [1.0, 0.0]
    """
    _check_mask(mask, truth)
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be at least 0 pixels, got {tolerance!r}")
    found, true = _boundary(mask), _boundary(truth)
    if not found.any() or not true.any():
        return float(found.any() == true.any())
    precision = np.count_nonzero(found & _widen(true, tolerance)) / np.count_nonzero(found)
    recall = np.count_nonzero(true & _widen(found, tolerance)) / np.count_nonzero(true)
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def max_f_beta(soft: np.ndarray, truth: np.ndarray, beta2: float = 0.3) -> float:
    """Compute the largest F-measure that any single threshold reaches on this image.

    The 256 thresholds are k / 255, k = 0 ... 255. Predicted foreground is ``soft >= k / 255``, so for k = 0 every pixel
    is foreground. With TP true positives, P predicted and T true foreground pixels::

        precision = TP / P,  recall = TP / T
        F = (1 + beta2) precision recall / (beta2 precision + recall)
          = TP / (TP + (beta2 (T - TP) + (P - TP)) / (1 + beta2))

    so a threshold without true positives scores 0. The maximum is taken per image. Its mean over a data set is never
    below the maximum of the mean curve, which some papers report instead.

    Precision and recall are undefined for an empty truth: the score is then 1 if no pixel reaches 1 / 255, else 0.

    Parameters
    ----------
    soft : floating (H, W), 0..1
    truth : bool (H, W)
    beta2 : float, positive
        Weight of recall relative to precision, beta squared; 0.3 throughout the literature.

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
        raise ValueError(f"beta2 must be a positive number, got {beta2!r}")
    # Compare in the map's own type, in which j / 65535 and k / 255 round to the same number where they are equal: a map
    # of 16 bits meets its thresholds exactly.
    thresholds = np.arange(256, dtype=soft.dtype) / soft.dtype.type(255)
    if not truth.any():
        return 1.0 if soft.max() < thresholds[1] else 0.0
    reached = np.searchsorted(thresholds, soft.ravel(), side="right") - 1  # highest threshold that each pixel reaches
    positives = _reverse_cumsum(np.bincount(reached, minlength=256))
    true_positives = _reverse_cumsum(np.bincount(reached[truth.ravel()], minlength=256))
    false_negatives, false_positives = np.count_nonzero(truth) - true_positives, positives - true_positives
    errors = (beta2 * false_negatives + false_positives) / (1 + beta2)
    return float(np.max(true_positives / (true_positives + errors)))


def mae(soft: np.ndarray, truth: np.ndarray) -> float:
    """Compute the mean absolute error of the soft map, with the truth as 0 and 1; 0 is perfect.

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
    """Compute the structural similarity of map and truth: ``alpha S_object + (1 - alpha) S_region``, at least 0.

    S_object rewards a map that is uniformly bright on the object and uniformly dark elsewhere. S_region divides the
    image into four blocks at the centroid of the truth and averages their structural similarity, weighted by area. An
    empty truth scores ``1 - mean(soft)``, a truth that fills the image ``mean(soft)``.

    As in the authors' code, variances divide by n - 1 (the variance of a single pixel is 0). The coordinates of the
    centroid, counted from 1, are rounded to the nearest integer, halves up; its row and column belong to the upper and
    left blocks. Blocks without pixels, which exist if the centroid lies in the last row or column, have weight 0.

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
        raise ValueError(f"alpha must be between 0 and 1, got {alpha!r}")
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
    return share * _uniform_brightness(soft[truth]) + (1 - share) * _uniform_brightness(1 - soft[~truth])


def _uniform_brightness(values: np.ndarray) -> float:
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
    """Return the number of rows (axis 0) or columns (axis 1) before the cut at the centroid, its own included."""
    counts = np.count_nonzero(truth, axis=1 - axis)
    total = int(counts.sum())
    moment = int(np.dot(counts, np.arange(1, counts.size + 1)))
    # round(moment / total), halves up, in integers so that a tie stays a tie.
    return (2 * moment + total) // (2 * total)


def _block_similarity(soft: np.ndarray, truth: np.ndarray) -> float:
    x, y = soft.mean(), truth.mean()
    # A constant block must not get a variance from the rounding of its mean: the cases below test for exact zeros.
    dx = np.zeros_like(soft) if soft.min() == soft.max() else soft - x
    dy = truth - y
    freedom = max(truth.size - 1, 1)
    covariance = (dx * dy).sum() / freedom
    variances = ((dx * dx).sum() + (dy * dy).sum()) / freedom
    similarity = 4 * x * y * covariance
    scale = (x * x + y * y) * variances
    if similarity != 0:
        return float(similarity / (scale + EPS))
    return 1.0 if scale == 0 else 0.0


def _boundary(mask: np.ndarray) -> np.ndarray:
    """Return the pixels of the object that have a neighbor, of four, outside it."""
    from scipy.ndimage import binary_erosion

    return mask & ~binary_erosion(mask, border_value=1)


def _widen(mask: np.ndarray, radius: float) -> np.ndarray:
    """Return the pixels at most `radius` away from one of the mask."""
    from scipy.ndimage import binary_dilation

    reach = int(radius)
    y, x = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    return binary_dilation(mask, y * y + x * x <= radius * radius)


def _reverse_cumsum(histogram: np.ndarray) -> np.ndarray:
    """Sum a histogram from its end: counts of k become counts of at least k."""
    return np.cumsum(histogram[::-1])[::-1]


def _check_mask(mask: np.ndarray, truth: np.ndarray) -> None:
    _check_truth(truth)
    if not (isinstance(mask, np.ndarray) and mask.dtype == bool):
        raise ValueError(f"mask must be a bool array, got {_describe(mask)}")
    _check_shapes("mask", mask, truth)


def _check_soft(soft: np.ndarray, truth: np.ndarray) -> None:
    _check_truth(truth)
    if not (isinstance(soft, np.ndarray) and np.issubdtype(soft.dtype, np.floating)):
        raise ValueError(f"soft must be a floating array with values in 0..1, got {_describe(soft)}")
    _check_shapes("soft", soft, truth)
    low, high = soft.min(), soft.max()
    if not (low >= 0 and high <= 1):  # also true for NaN
        raise ValueError(f"soft must have values in 0..1, got {low:g}..{high:g}")


def _check_truth(truth: np.ndarray) -> None:
    if not (isinstance(truth, np.ndarray) and truth.dtype == bool):
        raise ValueError(f"truth must be a bool array, got {_describe(truth)}")
    if truth.ndim != 2 or truth.size == 0:
        raise ValueError(f"truth must have a shape (rows, columns) without zeros, got {truth.shape}")


def _check_shapes(name: str, array: np.ndarray, truth: np.ndarray) -> None:
    if array.shape != truth.shape:
        raise ValueError(f"{name} must have the shape of truth, {truth.shape}, got {array.shape}")


def _describe(value: object) -> str:
    return f"an array of {value.dtype}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
