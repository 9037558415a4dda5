"""Outlines of masks: rings along pixel edges, polygons without holes, and smooth curves for drawing.

The pixel in row i and column j is the square from (j, i) to (j + 1, i + 1). A ring follows pixel edges with the mask on
its right, seen with y pointing down: clockwise around a component, counterclockwise around a hole. Components are
4-connected: pixels that touch only at a corner belong to different components, and holes are connected there.
"""

from __future__ import annotations

import numpy as np

from vitnp.masks.rle import extent


class _Corners:
    """Corners of the outlines of a mask, ordered by rows, and their order along the outlines.

    Attributes
    ----------
    x, y : array, shape (C,), int64
        Coordinates. Where pixels touch only at a corner, two corners have the same coordinates: first the right end of
        a horizontal side, then the left end of the next one. Corners 2k and 2k + 1 are thus always the ends of one
        horizontal side.
    rightwards : array, shape (C / 2,), bool
        Whether the outline follows horizontal side k from left to right, with the mask below it.
    following : array, shape (C,), int64
        Index of the next corner of the ring.
    """

    def __init__(self, mask: np.ndarray) -> None:
        top, bottom, left, right = extent(mask)
        grid = np.pad(mask[top:bottom, left:right], 1)
        north_west, north_east = grid[:-1, :-1], grid[:-1, 1:]
        south_west, south_east = grid[1:, :-1], grid[1:, 1:]
        # An outline turns once where one or three of the four pixels around a point are set, twice where two opposite
        # ones are.
        diagonal = north_west ^ south_east
        count = (diagonal ^ north_east ^ south_west).astype(np.uint8)
        count[(north_west ^ north_east) & ~diagonal & (south_west ^ south_east)] = 2
        y, x = np.nonzero(count)
        twice = count[y, x]
        x, y = np.repeat(x, twice), np.repeat(y, twice)
        self.x, self.y = left + x, top + y
        self.rightwards = south_east[y[::2], x[::2]]
        second = np.zeros(x.size, bool)
        second[1:] = (x[1:] == x[:-1]) & (y[1:] == y[:-1])
        # Of two corners at one point, that of the upper pixel gets the side above, whether the pixel is left or right.
        right_above = north_east[y, x] & ~north_west[y, x]
        columnwise = np.lexsort((second ^ right_above, y, x))
        partner = np.empty(x.size, np.int64)
        partner[columnwise[::2]], partner[columnwise[1::2]] = columnwise[1::2], columnwise[::2]
        corners = np.arange(x.size)
        leaves_horizontally = (corners % 2 == 0) == np.repeat(self.rightwards, 2)
        self.following = np.where(leaves_horizontally, corners ^ 1, partner)

    def cycles(self) -> list[list[int]]:
        """Return the corners of each ring from the left end of its uppermost side; rings are ordered by this corner."""
        following = self.following.tolist()
        seen = bytearray(len(following))
        cycles = []
        for start in range(0, len(following), 2):
            if not seen[start]:
                ring, corner = [], start
                while not seen[corner]:
                    seen[corner] = 1
                    ring.append(corner)
                    corner = following[corner]
                cycles.append(ring)
        return cycles


def rings(mask: np.ndarray) -> list[np.ndarray]:
    """Compute the outlines of a mask along pixel edges.

    Parameters
    ----------
    mask : array, shape (H, W), bool

    Returns
    -------
    list of array, shape (n, 2), int64
        Corners (x, y) of the ring of each component and hole; the last corner is connected to the first. Horizontal and
        vertical sides alternate.

    Examples
    --------
    >>> [ring.tolist() for ring in rings(np.array([[0, 1, 1]], bool))]
    [[[1, 0], [3, 0], [3, 1], [1, 1]]]
    """
    corners = _Corners(mask)
    points = np.stack([corners.x, corners.y], axis=1)
    return [points[ring] for ring in corners.cycles()]


def polygons(mask: np.ndarray) -> list[list[int]]:
    """Convert a mask to polygons without holes whose union is exactly the mask.

    If a component has a hole, its polygon goes from the upper side of the component straight down to the hole, around
    it, and back up the same way. This cut is vertical and has no width, so it does not change what rasterizers fill,
    whether they fill between left and right edges or count crossings per column as pycocotools does.

    Parameters
    ----------
    mask : array, shape (H, W), bool

    Returns
    -------
    list of list of int
        Coordinates ``[x1, y1, x2, y2, ...]`` of each polygon, in pixels from the upper left corner of the image.

    Examples
    --------
    >>> polygons(np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]], bool))
    [[0, 0, 1, 0, 1, 1, 1, 2, 2, 2, 2, 1, 1, 1, 1, 0, 3, 0, 3, 3, 0, 3]]
    """
    corners = _Corners(mask)
    points = np.stack([corners.x, corners.y], axis=1).tolist()
    pitch = mask.shape[1] + 1
    left_ends = corners.y[::2] * pitch + corners.x[::2]
    # Cuts that start at a horizontal side, by the corner at its left end: (x, points from the side to the hole and
    # back).
    cuts: dict[int, list[tuple[int, list[list[int]]]]] = {}
    components = []
    # From the bottom up: a cut leads to a ring that starts higher, so all cuts of a ring are known when it is
    # processed.
    for ring in reversed(corners.cycles()):
        path: list[list[int]] = []
        for corner in ring:
            path.append(points[corner])
            for _, detour in sorted(cuts.pop(corner, ())):
                path += detour[1:] if detour[0] == path[-1] else detour
        if corners.rightwards[ring[0] // 2]:
            components.append(path)
            continue
        x, y = path[0]
        outside = np.flatnonzero(~mask[:y, x])
        top = int(outside[-1]) + 1 if outside.size else 0
        side = int(np.searchsorted(left_ends, top * pitch + x, side="right")) - 1
        cuts.setdefault(2 * side, []).append((x, [[x, top], *path, path[0], [x, top]]))
    return [[coordinate for point in path for coordinate in point] for path in reversed(components)]


def smooth_rings(mask: np.ndarray, *, step: int = 3) -> list[np.ndarray]:
    """Compute smooth outlines of a mask, for drawing.

    Parameters
    ----------
    mask : array, shape (H, W), bool
    step : int
        Distance between two points along the outline, in pixels.

    Returns
    -------
    list of array, shape (n, 2), float64
        Points (x, y) of each ring; the last point is connected to the first. Rings shorter than three steps are
        omitted.
    """
    smooth = []
    for ring in rings(mask):
        sides = np.roll(ring, -1, axis=0) - ring
        lengths = np.abs(sides).sum(axis=1)
        total = int(lengths.sum())
        if total < 3 * step:
            continue
        # The centers of all pixel sides, then a weighted mean of neighbors along the ring.
        offsets = np.arange(total) - np.repeat(np.cumsum(lengths) - lengths, lengths) + 0.5
        centers = np.repeat(ring, lengths, axis=0) + offsets[:, None] * np.repeat(np.sign(sides), lengths, axis=0)
        positions = np.arange(0, total - step // 2, step)
        reach = np.arange(-step, step + 1)
        weights = step + 1.0 - np.abs(reach)
        around = centers[(positions[:, None] + reach) % total]
        smooth.append((around * weights[:, None]).sum(axis=1) / weights.sum())
    return smooth
