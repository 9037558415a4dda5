"""Bounding boxes of the connected parts of a mask."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vitnp.masks.components import runs_of


class Box(NamedTuple):
    """Bounding box of one part of a mask, and the part's area, all in pixels."""

    x: int
    y: int
    width: int
    height: int
    area: int


def bounding_boxes(mask: np.ndarray, *, min_area_share: float = 1e-3) -> list[Box]:
    """Boxes around a mask's 8-connected parts, the largest part first.

    Parameters
    ----------
    mask : array, shape (H, W), bool
    min_area_share : float
        Parts of less than this share of the picture's area are left out, but never the largest one.

    Returns
    -------
    list of Box
        Parts of one size from top to bottom, then from left to right.

    Examples
    --------
    >>> mask = np.array([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]], bool)
    >>> bounding_boxes(mask)
    [Box(x=0, y=0, width=3, height=2, area=3), Box(x=0, y=3, width=1, height=1, area=1)]
    """
    starts, ends, labels, pitch = runs_of(mask)
    if starts.size == 0:
        return []
    order = np.argsort(labels, kind="stable")
    heads = np.flatnonzero(np.diff(labels[order], prepend=-1))
    starts, ends = starts[order], ends[order]
    rows = starts // pitch
    left = np.minimum.reduceat(starts - rows * pitch, heads)
    right = np.maximum.reduceat(ends - rows * pitch, heads)
    top = np.minimum.reduceat(rows, heads)
    bottom = np.maximum.reduceat(rows, heads) + 1
    area = np.add.reduceat(ends - starts, heads)
    ranking = np.lexsort((left, top, -area))
    keep = ranking[area[ranking] >= min(min_area_share * mask.size, area.max())]
    return [
        Box(*map(int, box))
        for box in zip(left[keep], top[keep], (right - left)[keep], (bottom - top)[keep], area[keep])
    ]
