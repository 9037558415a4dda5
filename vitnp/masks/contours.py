"""Outlines of masks: rings along the edges of pixels, polygons without holes, and smooth curves to draw.

A pixel (row i, column j) is the square from (j, i) to (j + 1, i + 1). A ring runs along the sides of pixels with the
mask to its right, as seen with y pointing down: around a part clockwise, around a hole anticlockwise. Pixels that touch
only at a corner belong to different parts, and holes are joined there.
"""

from __future__ import annotations

import numpy as np

from vitnp.masks.rle import extent


class _Corners:
    """The points where a mask's outlines turn, ordered by rows, and which one follows which.

    Attributes
    ----------
    x, y : array, shape (C,), int64
        Where pixels touch only at a corner, two corners share a place: first the one at the right end of a horizontal
        side, then the one at the left end of the next. So corners 2k and 2k + 1 are always the ends of one such side.
    rightwards : array, shape (C / 2,), bool
        Whether the outline runs along horizontal side k from left to right: the mask is below.
    following : array, shape (C,), int64
        Next corner of the ring.
    """

    def __init__(self, mask: np.ndarray) -> None:
        top, bottom, left, right = extent(mask)
        grid = np.pad(mask[top:bottom, left:right], 1)
        north_west, north_east = grid[:-1, :-1], grid[:-1, 1:]
        south_west, south_east = grid[1:, :-1], grid[1:, 1:]
        # An outline turns where one or three of the four pixels around a point are set, twice where two opposite ones.
        across = north_west ^ south_east
        count = (across ^ north_east ^ south_west).astype(np.uint8)
        count[(north_west ^ north_east) & ~across & (south_west ^ south_east)] = 2
        y, x = np.nonzero(count)
        twice = count[y, x]
        x, y = np.repeat(x, twice), np.repeat(y, twice)
        self.x, self.y = left + x, top + y
        self.rightwards = south_east[y[::2], x[::2]]
        second = np.zeros(x.size, bool)
        second[1:] = (x[1:] == x[:-1]) & (y[1:] == y[:-1])
        # Of two corners in one place, the upper pixel's gets the side above it, whether that pixel is left or right.
        right_above = north_east[y, x] & ~north_west[y, x]
        columnwise = np.lexsort((second ^ right_above, y, x))
        partner = np.empty(x.size, np.int64)
        partner[columnwise[::2]], partner[columnwise[1::2]] = columnwise[1::2], columnwise[::2]
        corners = np.arange(x.size)
        leaves_sideways = (corners % 2 == 0) == np.repeat(self.rightwards, 2)
        self.following = np.where(leaves_sideways, corners ^ 1, partner)

    def cycles(self) -> list[list[int]]:
        """Corners of each ring, from the left end of its uppermost side on; rings ordered by that corner."""
        following = self.following.tolist()
        seen = bytearray(len(following))
        found = []
        for start in range(0, len(following), 2):
            if not seen[start]:
                ring, corner = [], start
                while not seen[corner]:
                    seen[corner] = 1
                    ring.append(corner)
                    corner = following[corner]
                found.append(ring)
        return found


def rings(mask: np.ndarray) -> list[np.ndarray]:
    """Outlines of a mask, exactly along its pixels.

    Parameters
    ----------
    mask : array, shape (H, W), bool

    Returns
    -------
    list of array, shape (n, 2), int64
        Corners (x, y) of each ring, parts and holes; the last one is joined to the first. Horizontal and vertical sides
        alternate.

    Examples
    --------
    >>> [ring.tolist() for ring in rings(np.array([[0, 1, 1]], bool))]
    [[[1, 0], [3, 0], [3, 1], [1, 1]]]
    """
    corners = _Corners(mask)
    points = np.stack([corners.x, corners.y], axis=1)
    return [points[ring] for ring in corners.cycles()]


def polygons(mask: np.ndarray) -> list[list[int]]:
    """A mask as polygons without holes, exact: their union is the mask.

    Where a part has a hole, the polygon goes from the upper side of the part straight down to the hole, around it, and
    back up the same way. That cut is vertical and has no width: rasterizers that fill between the left and the right
    of crossing lines, or those that count crossings column by column as pycocotools does, see nothing of it.

    Parameters
    ----------
    mask : array, shape (H, W), bool

    Returns
    -------
    list of list of int
        ``[x1, y1, x2, y2, ...]`` of each polygon, in pixels from the upper left corner of the image.

    Examples
    --------
    >>> polygons(np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]], bool))
    [[0, 0, 1, 0, 1, 1, 1, 2, 2, 2, 2, 1, 1, 1, 1, 0, 3, 0, 3, 3, 0, 3]]
    """
    corners = _Corners(mask)
    points = np.stack([corners.x, corners.y], axis=1).tolist()
    pitch = mask.shape[1] + 1
    left_ends = corners.y[::2] * pitch + corners.x[::2]
    # Cuts that leave a horizontal side, by the corner at its left end: (x, points from the side to the hole and back).
    cuts: dict[int, list[tuple[int, list[list[int]]]]] = {}
    parts = []
    # From the bottom up: a cut ends at a ring that begins higher, so what hangs on a ring is known when its turn comes.
    for ring in reversed(corners.cycles()):
        path: list[list[int]] = []
        for corner in ring:
            path.append(points[corner])
            for _, detour in sorted(cuts.pop(corner, ())):
                path += detour[1:] if detour[0] == path[-1] else detour
        if corners.rightwards[ring[0] // 2]:
            parts.append(path)
            continue
        x, y = path[0]
        outside = np.flatnonzero(~mask[:y, x])
        top = int(outside[-1]) + 1 if outside.size else 0
        side = int(np.searchsorted(left_ends, top * pitch + x, side="right")) - 1
        cuts.setdefault(2 * side, []).append((x, [[x, top], *path, path[0], [x, top]]))
    return [[coordinate for point in path for coordinate in point] for path in reversed(parts)]


def smooth_rings(mask: np.ndarray, *, step: int = 3) -> list[np.ndarray]:
    """Outlines of a mask without the steps of its pixels, to be drawn.

    Parameters
    ----------
    mask : array, shape (H, W), bool
    step : int
        Pixels of outline between two points.

    Returns
    -------
    list of array, shape (n, 2), float64
        Points (x, y) of each ring; the last one is joined to the first. Specks whose outline is shorter than
        three steps are left out.
    """
    smooth = []
    for ring in rings(mask):
        along = np.roll(ring, -1, axis=0) - ring
        lengths = np.abs(along).sum(axis=1)
        total = int(lengths.sum())
        if total < 3 * step:
            continue
        # The middle of every pixel's side, then a mean over neighbors along the ring.
        offsets = np.arange(total) - np.repeat(np.cumsum(lengths) - lengths, lengths) + 0.5
        middles = np.repeat(ring, lengths, axis=0) + offsets[:, None] * np.repeat(np.sign(along), lengths, axis=0)
        places = np.arange(0, total - step // 2, step)
        reach = np.arange(-step, step + 1)
        weights = step + 1.0 - np.abs(reach)
        around = middles[(places[:, None] + reach) % total]
        smooth.append((around * weights[:, None]).sum(axis=1) / weights.sum())
    return smooth
