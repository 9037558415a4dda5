"""Rasterize polygons."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def fill_polygon(outline: Sequence[float], shape: tuple[int, int]) -> np.ndarray:
    """Fill a polygon: return the mask of the pixels whose centers lie inside it.

    Coordinates are those of COCO: x to the right, y downwards, and (0, 0) the outer corner of the image, so the center
    of the first pixel is (0.5, 0.5). A pixel is inside if a ray to its left crosses the outline an odd number of times.
    A polygon along pixel edges gives exactly the enclosed pixels, and two polygons that share an edge share no pixel.

    Parameters
    ----------
    outline : sequence of float
        ``x0, y0, x1, y1, ...``: at least three corners; the last is connected to the first. They may lie outside the
        image.
    shape : (int, int)
        Height and width.

    Returns
    -------
    array, shape (height, width), bool

    Raises
    ------
    ValueError
        If the outline is not a flat list of at least three pairs of finite numbers.

    Examples
    --------
    >>> fill_polygon([1, 0, 3, 0, 3, 2, 1, 2], (3, 4)).astype(int)
    array([[0, 1, 1, 0],
           [0, 1, 1, 0],
           [0, 0, 0, 0]])
    """
    rows, columns = shape
    try:
        corners = np.asarray(outline, dtype=np.float64)
    except (TypeError, ValueError):
        corners = np.empty(0)
    # NaN compares as false and is refused too; larger coordinates could overflow below.
    if corners.ndim != 1 or corners.size < 6 or corners.size % 2 or not (np.abs(corners) < 1e9).all():
        raise ValueError("a polygon must be a list of at least three pairs of finite numbers")
    x0, y0 = corners.reshape(-1, 2).T
    x1, y1 = np.roll(x0, -1), np.roll(y0, -1)

    # An edge crosses the rows with centers y + 1/2 in [its top, its bottom), half-open so that a corner counts only
    # once.
    first, stop = (np.ceil(end - 0.5).clip(0, rows).astype(np.intp) for end in (np.minimum(y0, y1), np.maximum(y0, y1)))
    edge = np.repeat(np.arange(len(x0)), stop - first)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(stop - first) - stop, stop - first)
    x = x0[edge] + (row + 0.5 - y0[edge]) * ((x1[edge] - x0[edge]) / (y1[edge] - y0[edge]))

    # Inside and outside change at the first pixel center at or after a crossing.
    column = np.ceil(x - 0.5).clip(0, columns).astype(np.intp)
    crossings = np.zeros((rows, columns + 1), np.int32)
    np.add.at(crossings, (row, column), 1)
    return np.cumsum(crossings[:, :columns], axis=1) % 2 == 1
