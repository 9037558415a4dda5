"""Simplified polygons: against shapes drawn by hand, naive rasterization, and the pixels of the mask."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vitnp.masks.polygons import fill_polygon
from vitnp.masks.simplify import joined, signed_area, simplified_polygons, simplify_ring

quick = settings(derandomize=True, deadline=None, max_examples=60)


def disc(size: int, radius: float, center: tuple[float, float] | None = None) -> np.ndarray:
    y, x = np.mgrid[:size, :size] + 0.5
    cy, cx = center or (size / 2, size / 2)
    return np.hypot(y - cy, x - cx) < radius


def filled(mask: np.ndarray, polygons) -> np.ndarray:
    """Paint each polygon without its holes."""
    painted = np.zeros(mask.shape, bool)
    for polygon in polygons:
        part = fill_polygon(polygon.outline.ravel().tolist(), mask.shape)
        for hole in polygon.holes:
            part &= ~fill_polygon(hole.ravel().tolist(), mask.shape)
        painted |= part
    return painted


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


def test_rectangle_keeps_its_four_corners():
    mask = np.zeros((50, 60), bool)
    mask[10:40, 20:45] = True
    (polygon,) = simplified_polygons(mask)
    assert polygon.outline.tolist() == [[20, 10], [45, 10], [45, 40], [20, 40]] and polygon.holes == ()
    assert polygon.area == mask.sum()


@pytest.mark.parametrize("slope", [1, 2, 5, 17])
def test_slanted_edge_is_one_line(slope):
    y, x = np.mgrid[:200, :200]
    mask = (slope * x >= y) & (x < 150) & (y < 180)
    (polygon,) = simplified_polygons(mask)
    assert len(polygon.outline) <= 6
    assert iou(filled(mask, [polygon]), mask) > 0.99


def test_disc_has_few_corners_close_to_its_circle():
    mask = disc(400, 150)
    (polygon,) = simplified_polygons(mask)
    assert 12 <= len(polygon.outline) <= 60
    assert np.abs(np.hypot(*(polygon.outline - 200).T) - 150).max() <= 1.5
    exact = simplified_polygons(mask, 0)[0]
    assert len(exact.outline) > 500 and np.array_equal(filled(mask, [exact]), mask)
    assert len(simplified_polygons(mask, 4)[0].outline) < len(polygon.outline)


def test_holes_stay_and_specks_go():
    mask = disc(300, 120)
    mask[disc(300, 40)] = False
    mask[150, 150] = True  # a speck in the hole
    mask[5:7, 5:7] = True  # a speck outside
    mask[150, 60] = False  # a pinhole
    (polygon,) = simplified_polygons(mask)
    assert len(polygon.holes) == 1 and signed_area(polygon.outline) > 0 > signed_area(polygon.holes[0])
    assert polygon.area == pytest.approx(np.pi * (120**2 - 40**2), rel=0.01)
    assert iou(filled(mask, [polygon]), mask) > 0.98


def test_a_speck_alone_is_the_object():
    mask = np.zeros((500, 500), bool)
    mask[100, 100:103] = True
    (polygon,) = simplified_polygons(mask)
    assert np.array_equal(filled(mask, [polygon]), mask)
    assert simplified_polygons(mask & False) == []


def test_small_masks_overlap_their_polygons_too():
    for radius in (4, 6, 9, 15):
        mask = disc(64, radius)
        assert iou(filled(mask, simplified_polygons(mask)), mask) >= 0.95


masks = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=14))


@quick
@given(masks)
def test_without_tolerance_polygons_are_the_mask(mask):
    polygons = simplified_polygons(mask, 0, min_area_share=0)
    assert np.array_equal(filled(mask, polygons), mask)
    if polygons:
        assert np.array_equal(fill_polygon(joined(polygons).ravel().tolist(), mask.shape), mask)
        assert sum(polygon.area for polygon in polygons) == mask.sum() == signed_area(joined(polygons))


@quick
@given(masks, st.sampled_from([2, 3, 5]), st.floats(0.5, 3))
def test_joining_does_not_change_what_is_filled(mask, scale, tolerance):
    mask = np.kron(mask, np.ones((scale, scale), bool))
    polygons = simplified_polygons(mask, tolerance)
    if len(polygons) == 1:
        one = fill_polygon(joined(polygons).ravel().tolist(), mask.shape)
        assert np.array_equal(one, filled(mask, polygons))
    if polygons:
        assert signed_area(joined(polygons)) == pytest.approx(sum(polygon.area for polygon in polygons))


@quick
@given(masks)
def test_a_ring_thinner_than_the_tolerance_is_none_or_a_polygon(mask):
    for polygon in simplified_polygons(mask, 0, min_area_share=0):
        ring = simplify_ring(polygon.outline, 3)
        assert ring is None or (len(ring) >= 3 and signed_area(ring) > 0)
