"""Bounding boxes of the connected components of a mask."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vitnp.masks.components import find_runs


class Box(NamedTuple):
    """Bounding box and area of a component of a mask, in pixels."""

    x: int
    y: int
    width: int
    height: int
    area: int


def bounding_boxes(mask: np.ndarray, *, min_area_share: float = 1e-3) -> list[Box]:
    """Compute the bounding boxes of the 8-connected components of a mask, the largest component first.

    Parameters
    ----------
    mask : array, shape (H, W), bool
    min_area_share : float
        Components smaller than this fraction of the image are omitted, except the largest one.

    Returns
    -------
    list of Box
        By falling area; if equal, from top to bottom, then from left to right.

    Examples
    --------
    >>> mask = np.array([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]], bool)
    >>> bounding_boxes(mask)
    [Box(x=0, y=0, width=3, height=2, area=3), Box(x=0, y=3, width=1, height=1, area=1)]
    """
    starts, ends, components, pitch = find_runs(mask)
    if starts.size == 0:
        return []
    order = np.argsort(components, kind="stable")
    first = np.flatnonzero(np.diff(components[order], prepend=-1))
    starts, ends = starts[order], ends[order]
    rows = starts // pitch
    left = np.minimum.reduceat(starts - rows * pitch, first)
    right = np.maximum.reduceat(ends - rows * pitch, first)
    top = np.minimum.reduceat(rows, first)
    bottom = np.maximum.reduceat(rows, first) + 1
    area = np.add.reduceat(ends - starts, first)
    ranking = np.lexsort((left, top, -area))
    keep = ranking[area[ranking] >= min(min_area_share * mask.size, area.max())]
    return [
        Box(*map(int, box))
        for box in zip(left[keep], top[keep], (right - left)[keep], (bottom - top)[keep], area[keep])
    ]
