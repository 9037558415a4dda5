"""Metrics for boxes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def box_iou(box: Sequence[float] | np.ndarray, others: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
    """Intersection over union of a box with others.

    Parameters
    ----------
    box : (4,) float
        Left, top, right, bottom in pixels. Left and top are the coordinates of the first pixel's outer corner, right
        and bottom those of the last one's, so that right - left is the width.
    others : (M, 4) float

    Returns
    -------
    (M,) float64
        0 where a box has no area.

    Examples
    --------
    >>> box_iou([0, 0, 2, 2], [[0, 0, 2, 2], [1, 0, 3, 2], [5, 5, 6, 6]]).round(3)
    array([1.   , 0.333, 0.   ])
    """
    a = np.asarray(box, np.float64)
    b = np.asarray(others, np.float64).reshape(-1, 4)
    if a.shape != (4,):
        raise ValueError(f"a box has 4 numbers, but this one has the shape {a.shape}")

    def area(low: np.ndarray, high: np.ndarray) -> np.ndarray:
        return np.prod(np.maximum(high - low, 0.0), axis=-1)

    common = area(np.maximum(a[:2], b[:, :2]), np.minimum(a[2:], b[:, 2:]))
    union = area(a[:2], a[2:]) + area(b[:, :2], b[:, 2:]) - common
    return np.divide(common, union, out=np.zeros(len(b)), where=union > 0)


def corloc(
    predicted: Sequence[Sequence[float] | None], true: Sequence[Sequence[Sequence[float]]], threshold: float = 0.5
) -> float:
    """Correct localization: the share of images whose predicted box has an IoU above `threshold` with any true box.

    Parameters
    ----------
    predicted : one (4,) box an image, or None where nothing was found
        As for :func:`box_iou`. Nothing found is a miss.
    true : one (M, 4) array of boxes an image
        Images without a true box don't count.
    threshold : float
        0.5 in the literature. Above it, not at it, as in PASCAL VOC's criterion.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        When the numbers of images differ, or no image has a true box.

    References
    ----------
    Deselaers et al., "Localizing objects while learning their appearance", ECCV 2010; Siméoni et al. (LOST), 2021.

    Examples
    --------
    >>> corloc([[0, 0, 2, 2], None], [[[0, 0, 2, 3]], [[4, 4, 6, 6]]])
    0.5
    """
    if len(predicted) != len(true):
        raise ValueError(f"there are predictions for {len(predicted)} images, but truth for {len(true)}")
    counted = [(box, boxes) for box, boxes in zip(predicted, true) if len(boxes)]
    if not counted:
        raise ValueError("no image has a true box, so there is nothing to localize")
    found = sum(box is not None and bool((box_iou(box, boxes) > threshold).any()) for box, boxes in counted)
    return found / len(counted)
