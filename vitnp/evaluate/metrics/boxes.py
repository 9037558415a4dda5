"""Metrics of object localization with boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

# Left, top, right and bottom edge in pixels, (4,); and several of them, (M, 4).
Box: TypeAlias = "Sequence[float] | np.ndarray"
Boxes: TypeAlias = "Sequence[Sequence[float]] | np.ndarray"


def box_iou(box: Box, others: Boxes) -> np.ndarray:
    """Compute the intersection over union of a box with others.

    Parameters
    ----------
    box : (4,) float
        Left, top, right and bottom edge in pixels, right and bottom exclusive: right - left is the width.
    others : (M, 4) float
        Boxes in the same format.

    Returns
    -------
    (M,) float64
        IoU per box of `others`; 0 where a box has no area.

    Raises
    ------
    ValueError
        When `box` doesn't have 4 numbers.

    Examples
    --------
    >>> box_iou([0, 0, 2, 2], [[0, 0, 2, 2], [1, 0, 3, 2], [5, 5, 6, 6]]).round(3)
    array([1.   , 0.333, 0.   ])
    """
    a = np.asarray(box, np.float64)
    b = np.asarray(others, np.float64).reshape(-1, 4)
    if a.shape != (4,):
        raise ValueError(f"box must have 4 numbers, got an array of shape {a.shape}")

    def area(low: np.ndarray, high: np.ndarray) -> np.ndarray:
        return np.prod(np.maximum(high - low, 0.0), axis=-1)

    intersection = area(np.maximum(a[:2], b[:, :2]), np.minimum(a[2:], b[:, 2:]))
    union = area(a[:2], a[2:]) + area(b[:, :2], b[:, 2:]) - intersection
    return np.divide(intersection, union, out=np.zeros(len(b)), where=union > 0)


def corloc(predicted: Sequence[Box | None], true: Sequence[Boxes], threshold: float = 0.5) -> float:
    """Compute correct localization: the share of images whose predicted box matches a true one.

    A box matches if its IoU with any true box of the image exceeds `threshold`.

    Parameters
    ----------
    predicted : sequence of (4,) float or None
        One box per image in the format of :func:`box_iou`; None, for an image without prediction, is a miss.
    true : sequence of (M, 4) float
        True boxes per image. Images without a true box are not counted.
    threshold : float
        0.5 in the literature. The IoU must exceed it, as in PASCAL VOC.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        When `predicted` and `true` have different lengths, or no image has a true box.

    References
    ----------
    Deselaers et al., "Localizing objects while learning their appearance", ECCV 2010; Siméoni et al. (LOST), 2021.

    Examples
    --------
    >>> corloc([[0, 0, 2, 2], None], [[[0, 0, 2, 3]], [[4, 4, 6, 6]]])
    0.5
    """
    if len(predicted) != len(true):
        raise ValueError(f"predicted and true must have the same length, got {len(predicted)} and {len(true)}")
    counted = [(box, boxes) for box, boxes in zip(predicted, true) if len(boxes)]
    if not counted:
        raise ValueError("true must hold at least one box, got none for any image")
    correct = sum(box is not None and bool((box_iou(box, boxes) > threshold).any()) for box, boxes in counted)
    return correct / len(counted)
