"""Separated objects: components, touching objects, ranking, and what is kept of a mask."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy import ndimage

from vitnp.method.instances import InstanceConfig, Instances, find_instances, keep_objects

GRID = (20, 30)
SIDE = 16  # pixels of a patch


def soft_map(mask: np.ndarray) -> np.ndarray:
    return mask * np.uint16(65535)


def find(soft: np.ndarray, keys: np.ndarray, confidence: float, **options: object) -> Instances:
    """Separate objects in a photograph of one color."""
    return find_instances(soft, keys, np.full((*soft.shape, 3), 90, np.uint8), confidence, **options)


def keys_of(kinds: np.ndarray, seed: int = 0) -> np.ndarray:
    """Keys of patches of several kinds, (rows, columns) int: a direction each, and noise."""
    rng = np.random.default_rng(seed)
    directions = np.eye(8) + 0.1
    return (directions[kinds] + 0.05 * rng.standard_normal((*kinds.shape, 8))).astype(np.float32)


def enlarged(patches: np.ndarray) -> np.ndarray:
    return patches.repeat(SIDE, axis=0).repeat(SIDE, axis=1)


def boxes_side_by_side(kind_of_second: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two boxes that touch, in the middle of the grid: their patches, and keys by which they differ or not."""
    patches, kinds = np.zeros(GRID, int), np.zeros(GRID, int)
    patches[5:15, 5:16], patches[5:15, 16:24] = 1, 2
    kinds[5:15, 5:16], kinds[5:15, 16:24] = 1, kind_of_second
    return patches, keys_of(kinds), enlarged(patches)


def test_touching_objects_of_different_keys_are_parted_at_their_border():
    _, keys, truth = boxes_side_by_side(kind_of_second=2)
    found = find(soft_map(truth > 0), keys, 0.8)
    np.testing.assert_array_equal(found.labels, truth)
    assert found.labels.dtype == np.uint8


def test_touching_objects_of_different_colors_are_parted():
    """Keys that differ too little are helped by colors."""
    _, keys, truth = boxes_side_by_side(kind_of_second=1)
    rgb = np.array([(0, 90, 0), (250, 20, 20), (20, 20, 250)], np.uint8)[truth]
    np.testing.assert_array_equal(find_instances(soft_map(truth > 0), keys, rgb, 0.8).labels, truth)


def test_one_object_of_equal_keys_stays_whole():
    _, keys, truth = boxes_side_by_side(kind_of_second=1)
    np.testing.assert_array_equal(find(soft_map(truth > 0), keys, 0.8).labels, truth > 0)


def test_equal_keys_are_parted_at_a_narrow_neck():
    patches = np.zeros(GRID, int)
    patches[4:14, 2:13] = patches[4:14, 16:28] = patches[8, 13:16] = 1
    found = find(soft_map(enlarged(patches) > 0), keys_of(patches), 0.8)
    left, right = found.labels[9 * SIDE, 3 * SIDE], found.labels[9 * SIDE, 26 * SIDE]
    assert len(found.confidences) == 2 and {left, right} == {1, 2}
    assert (found.labels[:, : 13 * SIDE][enlarged(patches)[:, : 13 * SIDE] > 0] == left).all()


def test_components_are_objects_without_specks():
    """Blobs far apart are those that scipy labels, except of those under a thousandth of the photograph."""
    mask = np.zeros((200, 300), bool)
    mask[20:60, 30:80] = mask[100:180, 150:260] = mask[120:150, 20:60] = True
    mask[5:8, 280:285] = True  # 15 pixels of 60,000
    found = find(soft_map(mask), np.ones((*GRID, 4)), 0.5)
    components, count = ndimage.label(mask, np.ones((3, 3)))
    large = [components == n for n in range(1, count + 1) if (components == n).sum() >= 60]
    assert len(found.confidences) == len(large) == 3
    for each in large:
        (number,) = np.unique(found.labels[each])
        np.testing.assert_array_equal(found.labels == number, each)
    assert not found.labels[6, 282]


def test_a_speck_that_is_alone_is_an_object():
    mask = np.zeros((200, 300), bool)
    mask[5:8, 280:285] = True
    np.testing.assert_array_equal(find(soft_map(mask), np.ones((*GRID, 4)), 0.5).labels, mask)


def test_ranking_by_certainty_size_and_centrality():
    def first(*blobs: tuple[slice, slice, int]) -> int:
        """Return which blob ranks first."""
        soft = np.zeros((200, 300), np.uint16)
        for rows, columns, value in blobs:
            soft[rows, columns] = value
        labels = find(soft, np.ones((*GRID, 4)), 1.0).labels
        return [labels[rows.start, columns.start] for rows, columns, _ in blobs].index(1)

    left, right = (slice(80, 120), slice(60, 100), 60000), (slice(80, 120), slice(200, 240), 60000)
    assert first(left, (*right[:2], 40000)) == 0 and first((*left[:2], 40000), right) == 1
    assert first(left, (slice(90, 110), slice(200, 240), 60000)) == 0
    assert first((slice(80, 120), slice(0, 40), 60000), right) == 1


def test_confidences_fall_and_stay_below_that_of_the_photograph():
    rng = np.random.default_rng(3)
    soft = (ndimage.gaussian_filter(rng.standard_normal((200, 300)), 8) * 1.2e6 + 30000).clip(0, 65535)
    found = find(soft.astype(np.uint16), np.ones((*GRID, 4)), 0.6)
    assert len(found.confidences) > 4
    assert (np.diff(found.confidences) <= 0).all() and 0 < found.confidences.min() <= found.confidences.max() <= 0.6
    np.testing.assert_array_equal(np.unique(found.labels), np.arange(len(found.confidences) + 1))


@pytest.mark.parametrize("n_objects", [1, 2])
def test_the_first_objects_are_kept(n_objects):
    _, keys, truth = boxes_side_by_side(kind_of_second=2)
    found = find(soft_map(truth > 0), keys, 0.8, n_objects=n_objects)
    np.testing.assert_array_equal(found.labels, truth * (truth <= n_objects))
    assert len(found.confidences) == n_objects


def test_at_most_a_hundred_objects():
    soft = np.zeros((400, 600), np.uint16)
    soft[5::20, 5::20] = 65535
    found = find(ndimage.maximum_filter(soft, 8), np.ones((*GRID, 4)), 0.5, config=InstanceConfig(1e-5))
    assert len(found.confidences) == 100 == found.labels.max()


def test_an_empty_mask_has_no_objects():
    found = find(np.full((20, 30), 32767, np.uint16), np.ones((2, 3, 4)), 0.5)
    assert not found.labels.any() and found.confidences.shape == (0,)


def test_one_pixel():
    found = find(np.full((1, 1), 65535, np.uint16), np.ones((1, 1, 4)), 0.5)
    assert found.labels.tolist() == [[1]] and found.confidences == pytest.approx([0.5])


def test_large_photographs_are_divided_the_same_way():
    """Above four megapixels components are found at a fraction of the size, and the mask keeps its pixels."""
    _, keys, truth = boxes_side_by_side(kind_of_second=2)
    large = truth.repeat(6, axis=0).repeat(6, axis=1)
    found = find(soft_map(large > 0), keys, 0.8)
    np.testing.assert_array_equal(found.labels, large)


def test_threads_do_not_change_the_answer():
    rng = np.random.default_rng(1)
    soft = (ndimage.gaussian_filter(rng.standard_normal((320, 480)), 30) * 2e6 + 34000).clip(0, 65535)
    soft, keys = soft.astype(np.uint16), keys_of(rng.integers(0, 4, GRID))
    alone = find(soft, keys, 0.7)
    assert len(alone.confidences) > 1
    with ThreadPoolExecutor(4) as pool:
        for other in pool.map(lambda _: find(soft, keys, 0.7), range(8)):
            np.testing.assert_array_equal(other.labels, alone.labels)
            np.testing.assert_array_equal(other.confidences, alone.confidences)


def test_soft_edges_go_with_their_objects():
    soft = np.zeros((40, 60), np.uint16)
    soft[8:32, 4:26], soft[8:32, 34:56] = 20000, 10000
    soft[10:30, 6:24], soft[10:30, 36:54] = 60000, 60000
    labels = np.zeros(soft.shape, np.uint8)
    labels[10:30, 6:24] = 1
    kept = keep_objects(soft, labels)
    np.testing.assert_array_equal(kept[:, :30], soft[:, :30])
    assert not kept[:, 30:].any()


def test_nothing_is_removed_where_all_are_kept():
    soft = np.random.default_rng(0).integers(0, 65536, (40, 60)).astype(np.uint16)
    labels = (soft >= 32768).astype(np.uint8)
    np.testing.assert_array_equal(keep_objects(soft, labels), soft)
