"""Polygons with few vertices for masks: outlines simplified within a tolerance, without specks.

A mask's exact outline has a vertex at every step of every slanted edge, thousands for one object. A line through the
middles of the steps is closer to the true edge than their corners, and Douglas-Peucker simplification of this line
keeps the vertices that a person would set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vitnp.masks.contours import rings
from vitnp.masks.polygons import fill_polygon

# Distance in pixels by which an outline may move, unless another one is asked for.
DEFAULT_TOLERANCE = 1.0
# Components and holes that cover a smaller share of the image, and of the mask, are left out.
MIN_AREA_SHARE, _MIN_MASK_SHARE = 1e-3, 1e-2
# Polygons that overlap the mask less than this are made anew with a smaller tolerance, down to the smallest.
MIN_IOU, _TIGHTER, _SMALLEST_TOLERANCE = 0.975, 0.8, 0.5
# Sides of an outline that are shorter, in pixels, are steps of a slanted edge.
_STEP = 3


class Polygon(NamedTuple):
    """A component of a mask: its outline, and those of its holes.

    Attributes
    ----------
    outline : array, shape (n, 2)
        Corners (x, y) in pixels from the upper left corner of the image; the last is connected to the first. Clockwise
        with y pointing down.
    holes : tuple of array, shape (m, 2)
        Likewise, counterclockwise.
    """

    outline: np.ndarray
    holes: tuple[np.ndarray, ...] = ()

    @property
    def area(self) -> float:
        """Area in square pixels, without the holes."""
        return signed_area(self.outline) + sum(signed_area(hole) for hole in self.holes)


def simplified_polygons(
    mask: np.ndarray, tolerance: float = DEFAULT_TOLERANCE, *, min_area_share: float = MIN_AREA_SHARE
) -> list[Polygon]:
    """Convert a mask to polygons with few vertices, one per 4-connected component.

    Specks apart, polygons and mask have an intersection over union of at least 0.975: where a mask is so small or thin
    that they would not, the tolerance is reduced until they do, down to half a pixel.

    Parameters
    ----------
    mask : array, shape (H, W), bool
    tolerance : float
        Distance in pixels by which the outline may move; 0 gives all corners of the exact outline.
    min_area_share : float
        Components and holes that cover a smaller share of the image are left out, unless they are more than a hundredth
        of the mask. The largest component stays in any case.

    Returns
    -------
    list of Polygon
        The largest first. An empty mask has none.

    References
    ----------
    Douglas and Peucker, "Algorithms for the reduction of the number of points required to represent a digitized line or
    its caricature", Cartographica 10(2), 1973.

    Examples
    --------
    >>> mask = np.zeros((40, 40), bool)
    >>> mask[10:30, 5:25] = True
    >>> mask[0, 0] = True                                       # a speck
    >>> [polygon.outline.tolist() for polygon in simplified_polygons(mask)]
    [[[5.0, 10.0], [25.0, 10.0], [25.0, 30.0], [5.0, 30.0]]]
    """
    components = _components(mask)
    if not components:
        return []
    area = int(np.count_nonzero(mask))
    smallest = min(min_area_share * mask.size, _MIN_MASK_SHARE * area, signed_area(components[0].outline))
    components = [
        Polygon(outline, tuple(hole for hole in holes if -signed_area(hole) >= smallest))
        for outline, holes in components
        if signed_area(outline) >= smallest
    ]
    while True:
        polygons = [_simplify(component, tolerance) for component in components]
        if tolerance <= _SMALLEST_TOLERANCE or _iou(polygons, mask) >= MIN_IOU:
            return polygons
        tolerance *= _TIGHTER


def _simplify(polygon: Polygon, tolerance: float) -> Polygon:
    """Simplify the outline of a component and of its holes; what is thinner than the tolerance stays or goes."""
    outline = simplify_ring(polygon.outline, tolerance)
    holes = (simplify_ring(hole, tolerance) for hole in polygon.holes)
    return Polygon(polygon.outline if outline is None else outline, tuple(hole for hole in holes if hole is not None))


def _iou(polygons: Sequence[Polygon], mask: np.ndarray) -> float:
    """Return the intersection over union of polygons and a mask that is not empty."""
    filled = fill_polygon(joined(polygons).ravel().tolist(), (mask.shape[0], mask.shape[1]))
    return float(np.count_nonzero(filled & mask) / np.count_nonzero(filled | mask))


def simplify_ring(ring: np.ndarray, tolerance: float) -> np.ndarray | None:
    """Simplify a ring along pixel edges: the middles of its steps, thinned out by the method of Douglas and Peucker.

    Parameters
    ----------
    ring : array, shape (n, 2)
        Corners; the last is connected to the first, see :func:`vitnp.masks.contours.rings`.
    tolerance : float
        In pixels.

    Returns
    -------
    array, shape (m, 2), float64, or None
        Corners in multiples of half a pixel; None if fewer than three are left, or no area.

    Examples
    --------
    >>> stairs = np.array([[0, 0], [1, 0], [1, 1], [2, 1], [2, 2], [3, 2], [3, 3], [0, 3]])
    >>> simplify_ring(stairs, 1.0).tolist()
    [[0.5, 0.0], [2.5, 3.0], [0.0, 3.0]]
    """
    if tolerance <= 0:
        return ring.astype(np.float64)
    ring = _middle_line(ring)
    # A ring has no ends. The corner farthest from the first, and the one farthest from that, are extreme points of the
    # shape, which belong to any simplification.
    start = int(np.argmax(((ring - ring[0]) ** 2).sum(axis=1)))
    ring = np.roll(ring, -start, axis=0)
    middle = int(np.argmax(((ring - ring[0]) ** 2).sum(axis=1)))
    closed = np.concatenate([ring, ring[:1]])
    keep = np.zeros(len(closed), bool)
    keep[[0, middle, -1]] = True
    pending = [(0, middle), (middle, len(closed) - 1)]
    while pending:
        first, last = pending.pop()
        if last - first < 2:
            continue
        distance = _distance_to_segment(closed[first + 1 : last], closed[first], closed[last])
        farthest = int(np.argmax(distance))
        if distance[farthest] > tolerance:
            split = first + 1 + farthest
            keep[split] = True
            pending += [(first, split), (split, last)]
    simple = ring[keep[:-1]]
    # Begin with the upper left corner, so that the result does not depend on which corner came first.
    simple = np.roll(simple, -int(np.lexsort((simple[:, 0], simple[:, 1]))[0]), axis=0)
    return simple if len(simple) >= 3 and signed_area(simple) * signed_area(ring) > 0 else None


def joined(polygons: Sequence[Polygon]) -> np.ndarray:
    """Join polygons and their holes to a single ring, for formats that have one ring per object.

    Rings are connected by cuts between close corners. A cut is passed twice, there and back, so it has no width and
    does not change what rasterizers fill.

    Parameters
    ----------
    polygons : sequence of Polygon
        At least one.

    Returns
    -------
    array, shape (n, 2)

    Examples
    --------
    >>> left, right = np.array([[0, 0], [2, 0], [2, 2], [0, 2]]), np.array([[4, 0], [6, 0], [6, 2], [4, 2]])
    >>> joined([Polygon(left), Polygon(right)]).tolist()
    [[0, 0], [2, 0], [4, 0], [6, 0], [6, 2], [4, 2], [4, 0], [2, 0], [2, 2], [0, 2]]
    """
    path, *others = (ring for polygon in polygons for ring in (polygon.outline, *polygon.holes))
    for ring in others:
        path = _connect(path, ring)
    return path


def _connect(path: np.ndarray, ring: np.ndarray) -> np.ndarray:
    """Insert a ring into a path, by a cut between their closest corners."""
    distance = ((path[:, None] - ring) ** 2).sum(axis=2)
    leave, enter = np.unravel_index(int(np.argmin(distance)), distance.shape)
    around = np.roll(ring, -int(enter), axis=0)
    return np.concatenate([path[: leave + 1], around, around[:1], path[leave:]])


def signed_area(ring: np.ndarray) -> float:
    """Return the area inside a ring, positive if it runs clockwise with y pointing down.

    Examples
    --------
    >>> signed_area(np.array([[0, 0], [2, 0], [2, 1], [0, 1]]))
    2.0
    """
    x, y = ring.T.astype(np.float64)
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def _distance_to_segment(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Return the distance of each point (n, 2) to a segment."""
    direction = end - start
    squared_length = float(direction @ direction)
    offset = points - start
    if squared_length == 0:
        return np.hypot(*offset.T)
    along = (offset @ direction / squared_length).clip(0, 1)
    return np.hypot(*(offset - along[:, None] * direction).T)


def _middle_line(ring: np.ndarray) -> np.ndarray:
    """Return the line through the middles of a ring's short sides, and along its long sides.

    A long side ends at a corner where it meets another long side, and half a pixel before it where a step begins.
    """
    sides = np.roll(ring, -1, axis=0) - ring
    length = np.abs(sides).sum(axis=1)
    direction = sides / length[:, None]
    short = length < _STEP
    start = np.where(short, length / 2, np.where(np.roll(short, 1), 0.5, 0))
    end = np.where(short, length / 2, length - np.where(np.roll(short, -1), 0.5, 0))
    points = np.stack([ring + start[:, None] * direction, ring + end[:, None] * direction], axis=1).reshape(-1, 2)
    return points[(points != np.roll(points, 1, axis=0)).any(axis=1)]


def _components(mask: np.ndarray) -> list[Polygon]:
    """Return the exact outlines of the 4-connected components of a mask and of their holes, the largest first."""
    from scipy import ndimage

    components, _ = ndimage.label(mask)
    outlines: dict[int, np.ndarray] = {}
    holes: dict[int, list[np.ndarray]] = {}
    for ring in rings(mask):
        # A ring starts at the left end of its uppermost side, with the component below it, or above it for a hole.
        x, y = ring[0]
        if signed_area(ring) > 0:
            outlines[int(components[y, x])] = ring
        else:
            holes.setdefault(int(components[y - 1, x]), []).append(ring)
    polygons = [Polygon(ring, tuple(holes.get(number, ()))) for number, ring in outlines.items()]
    return sorted(polygons, key=lambda polygon: -signed_area(polygon.outline))
