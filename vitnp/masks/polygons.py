"""Polygons filled into masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def fill_polygon(outline: Sequence[float], shape: tuple[int, int]) -> np.ndarray:
    """Fill a polygon: the mask of the pixels whose centers lie inside it.

    Coordinates are COCO's: x to the right, y downwards, (0, 0) the image's outer corner, so that the first pixel's
    center is (0.5, 0.5). A pixel belongs to the inside when a ray to its left crosses the outline an odd number of
    times. A polygon along the edges of pixels gives exactly these pixels; two that share an edge share no pixel.

    Parameters
    ----------
    outline : sequence of float
        ``x0, y0, x1, y1, ...``: at least three corners; the last one is joined to the first. It may leave the image.
    shape : (int, int)
        Rows and columns.

    Returns
    -------
    bool (rows, columns)

    Raises
    ------
    ValueError
        When the outline isn't a flat list of at least three pairs of finite numbers.

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
    # Written so that NaN fails too; farther corners could overflow below.
    if corners.ndim != 1 or corners.size < 6 or corners.size % 2 or not (np.abs(corners) < 1e9).all():
        raise ValueError("a polygon must be a list of at least three pairs of finite numbers")
    x0, y0 = corners.reshape(-1, 2).T
    x1, y1 = np.roll(x0, -1), np.roll(y0, -1)

    # An edge crosses the rows whose centers y + 1/2 lie in [its top, its bottom): a corner then counts once, not twice.
    first, stop = (np.ceil(end - 0.5).clip(0, rows).astype(np.intp) for end in (np.minimum(y0, y1), np.maximum(y0, y1)))
    edge = np.repeat(np.arange(len(x0)), stop - first)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(stop - first) - stop, stop - first)
    x = x0[edge] + (row + 0.5 - y0[edge]) * ((x1[edge] - x0[edge]) / (y1[edge] - y0[edge]))

    # From the first center at or beyond a crossing on, inside and outside change places.
    column = np.ceil(x - 0.5).clip(0, columns).astype(np.intp)
    crossings = np.zeros((rows, columns + 1), np.int32)
    np.add.at(crossings, (row, column), 1)
    return np.cumsum(crossings[:, :columns], axis=1) % 2 == 1
