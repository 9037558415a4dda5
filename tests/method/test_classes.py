"""Regions of masks and their classes: cases worked out by hand, and slow, obvious versions of the same rules."""

from __future__ import annotations

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from vitnp.errors import UsageError
from vitnp.method.prototypes import TEMPERATURE, Prototypes, fit_prototypes, label_map, split_by_class, split_pixels
from vitnp.method.regions import RegionRule, Regions, bisect_region, label_regions, region_patches

COMPONENTS = RegionRule("components", smallest=0.0)
SPLIT = RegionRule("split")

masks = npst.arrays(bool, st.tuples(st.integers(1, 14), st.integers(1, 14)))


def flood(mask: np.ndarray) -> list[set[tuple[int, int]]]:
    """8-connected components, pixel by pixel."""
    left, found = set(zip(*np.nonzero(mask))), []
    while left:
        waiting, part = [left.pop()], set()
        while waiting:
            y, x = waiting.pop()
            part.add((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            waiting += near
        found.append(part)
    return found


def picture(text: str) -> np.ndarray:
    return np.array([[int(c) for c in line] for line in text.split()])


# --- Regions of a mask ------------------------------------------------------------------------------------------------


def test_unknown_rule():
    with pytest.raises(UsageError, match="magic"):
        RegionRule("magic")


@settings(derandomize=True, deadline=None, max_examples=60)
@given(masks)
def test_the_whole_mask_is_one_region(mask):
    found = label_regions(mask)
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, mask.astype(int))


@settings(derandomize=True, deadline=None, max_examples=120)
@given(masks)
def test_components_are_numbered_by_falling_size(mask):
    found = label_regions(mask, COMPONENTS)
    parts = flood(mask)
    assert found.max(initial=0) == len(parts)
    np.testing.assert_array_equal(found > 0, mask)
    for part in parts:
        assert len({int(found[pixel]) for pixel in part}) == 1
    sizes = np.bincount(found[mask], minlength=1)[1:]
    assert (np.diff(sizes) <= 0).all() and sorted(sizes) == sorted(map(len, parts))


@settings(derandomize=True, deadline=None, max_examples=120)
@given(masks, st.sampled_from([0.05, 0.2, 0.6]))
def test_specks_join_a_nearest_large_component_as_a_whole(mask, smallest):
    found = label_regions(mask, RegionRule("components", smallest=smallest))
    np.testing.assert_array_equal(found > 0, mask)
    parts = flood(mask)
    large = [part for part in parts if len(part) >= smallest * mask.sum()]
    if len(parts) < 2 or not large:
        return
    assert len(set(found[mask])) == len(large)
    for part in parts:
        (number,) = {int(found[pixel]) for pixel in part}
        if part in large:
            continue
        distance = {
            int(found[next(iter(other))]): min((y - v) ** 2 + (x - u) ** 2 for y, x in part for v, u in other)
            for other in large
        }
        assert distance[number] == min(distance.values())


def test_without_large_components_the_largest_counts():
    mask = np.zeros((5, 9), bool)
    mask[0, ::2] = True
    mask[2, 4] = mask[2, 5] = True
    found = label_regions(mask, RegionRule("components", smallest=0.9))
    assert set(found[mask]) == {1}


def test_large_masks_are_divided_at_a_fraction_of_their_size(monkeypatch):
    mask = np.zeros((41, 63), bool)
    mask[2:30, 3:20] = mask[5:40, 40:60] = mask[36:40, 4:8] = True
    whole = label_regions(mask, COMPONENTS)
    monkeypatch.setattr("vitnp.method.regions.PARTED_PIXELS", mask.size // 4 - 1)
    np.testing.assert_array_equal(label_regions(mask, COMPONENTS), whole)
    assert whole.max() == 3
    empty = label_regions(np.zeros_like(mask), COMPONENTS)
    assert empty.shape == mask.shape and empty.dtype == np.uint16 and not empty.any()


# --- Patches of a region ----------------------------------------------------------------------------------------------


def patches_oracle(regions: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """A pixel belongs to the patch that its center is in; counted one by one."""
    height, width = regions.shape
    count = int(regions.max(initial=0))
    inside, pixels = collections.Counter(), collections.Counter()
    for y in range(height):
        for x in range(width):
            patch = ((2 * y + 1) * grid[0] // (2 * height)) * grid[1] + (2 * x + 1) * grid[1] // (2 * width)
            pixels[patch] += 1
            inside[int(regions[y, x]), patch] += 1
    patches = grid[0] * grid[1]
    cover = np.array([[inside[g, n] / max(pixels[n], 1) for n in range(patches)] for g in range(1, count + 1)]).reshape(
        count, patches
    )
    found = cover >= 0.5
    for g in range(count):
        if not found[g].any():
            found[g, cover[g].argmax()] = True
    return found


@settings(derandomize=True, deadline=None, max_examples=120)
@given(
    npst.arrays(np.uint16, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 3)),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
)
def test_patches_are_covered_by_half_or_more(regions, grid):
    found = region_patches(regions, grid)
    np.testing.assert_array_equal(found, patches_oracle(regions, grid))
    assert found.shape == (int(regions.max()), grid[0] * grid[1])


def test_patches_by_hand():
    regions = picture("1120 1120 0000 0003").astype(np.uint16)
    # Patches of 2 x 2 pixels: region 1 fills the first, 2 half of the second, 3 a quarter of the last, its best one.
    assert region_patches(regions, (2, 2)).tolist() == [
        [True, False, False, False],
        [False, True, False, False],
        [False, False, False, True],
    ]


def test_an_empty_mask_has_no_regions():
    assert region_patches(np.zeros((6, 6), np.uint16), (2, 3)).shape == (0, 6)
    np.testing.assert_array_equal(label_map(np.zeros((2, 2), np.uint16), np.array([], np.int64)), np.zeros((2, 2)))


# --- Splits -----------------------------------------------------------------------------------------------------------


def two_things(rows: int = 4, columns: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Unit keys of two things side by side, and which patches are the right one."""
    right = np.zeros((rows, columns), bool)
    right[:, columns // 2 :] = True
    return np.where(right.reshape(-1, 1), [[0.0, 1.0, 0.0]], [[1.0, 0.0, 0.0]]).astype(np.float32), right.ravel()


def test_halves_are_the_two_things():
    keys, right = two_things()
    halves = bisect_region(keys, np.ones(32, bool), (4, 8), (0,), SPLIT)
    assert sorted(map(tuple, halves.tolist())) == sorted([tuple(right.tolist()), tuple((~right).tolist())])


def test_bisecting_leaves_patches_outside_the_region_alone():
    keys, right = two_things()
    region = np.zeros((4, 8), bool)
    region[1:3, 2:7] = True
    halves = bisect_region(keys, region.ravel(), (4, 8), (0,), SPLIT)
    np.testing.assert_array_equal(halves.sum(axis=0), region.ravel())
    assert {tuple(half) for half in halves} == {tuple(region.ravel() & right), tuple(region.ravel() & ~right)}


def test_no_halves_if_one_is_too_small_or_the_region_is_uniform():
    keys, _ = two_things()
    region = np.zeros((4, 8), bool)
    region[:, :4] = region[0, 4] = True  # 16 patches to 1
    assert bisect_region(keys, region.ravel(), (4, 8), (0,), RegionRule("split", position=0.0)) is None
    one = np.zeros(32, bool)
    one[5] = True
    assert bisect_region(keys, one, (4, 8), (0,), SPLIT) is None
    assert bisect_region(keys, one, (4, 8), (0,), RegionRule("split", half=1.0)) is None


def colors(patches: np.ndarray) -> np.ndarray:
    """CLS of regions in a world where it's the mean key."""
    keys, _ = two_things()
    return np.stack([keys[region].mean(axis=0) for region in patches]) if len(patches) else np.empty((0, 3), np.float32)


KNOWN = Prototypes(np.repeat(np.eye(3, dtype=np.float16), 12, axis=0), np.repeat([4, 7, 9], 12))


def found_regions(patches: np.ndarray) -> Regions:
    voted, certainty = KNOWN.classify(colors(patches))
    return Regions(voted, certainty.astype(np.float32), certainty.astype(np.float32) / 2, patches.sum(axis=1))


def test_a_region_of_two_classes_is_split_and_pixels_follow():
    keys, _ = two_things()
    patches = np.ones((1, 32), bool)
    split = split_by_class(found_regions(patches), patches, keys, (4, 8), colors, KNOWN, (0,), SPLIT)
    assert sorted(split.classes.tolist()) == [4, 7] and split.sizes.tolist() == [16, 16]
    assert len(split.scores) == len(split.typical) == 2
    regions = np.ones((8, 24), np.uint16)
    labels = label_map(split_pixels(regions, split, (4, 8)), split.classes)
    np.testing.assert_array_equal(labels, np.where(np.arange(24) < 12, 5, 8)[None].repeat(8, axis=0))
    assert regions.all() and regions.max() == 1  # the caller's own is as it was


def test_pixels_beyond_the_patches_go_with_the_nearest_half():
    keys, _ = two_things()
    region = np.zeros((4, 8), bool)
    region[1:3, 2:6] = True
    split = split_by_class(
        found_regions(region.reshape(1, -1)), region.reshape(1, -1), keys, (4, 8), colors, KNOWN, (0,), SPLIT
    )
    labels = label_map(split_pixels(np.ones((4, 8), np.uint16), split, (4, 8)), split.classes)
    np.testing.assert_array_equal(labels, np.where(np.arange(8) < 4, 5, 8)[None].repeat(4, axis=0))


def test_several_regions_of_which_some_are_split():
    keys, _ = two_things()
    grid = np.zeros((4, 8), int)
    grid[0], grid[1, :3], grid[2:] = 1, 2, 3
    patches = np.stack([grid.ravel() == number for number in (1, 2, 3)])
    split = split_by_class(found_regions(patches), patches, keys, (4, 8), colors, KNOWN, (0,), SPLIT)
    assert [region for region, _ in split.splits] == [1, 3]
    assert split.sizes.tolist()[1] == 3 and split.sizes.sum() == 27 and len(split.classes) == 5
    numbers = split_pixels(grid.astype(np.uint16), split, (4, 8))
    # Every region keeps to the side that its class is on, and the background to itself.
    for number, label in enumerate(split.classes, 1):
        columns = np.nonzero(numbers == number)[1]
        assert (columns < 4).all() if label == 4 else (columns >= 4).all()
    np.testing.assert_array_equal(numbers == 0, grid == 0)


def test_no_split_within_a_class_or_below_the_certainty():
    keys, _ = two_things()
    patches = np.ones((1, 32), bool)
    found = found_regions(patches)
    same = Prototypes(KNOWN.cls, np.repeat([4, 4, 9], 12))
    assert not split_by_class(found, patches, keys, (4, 8), colors, same, (0,), SPLIT).splits
    # Ten voters, four of them of another class: six tenths for the best.
    divided = Prototypes(KNOWN.cls, np.array(([4] * 6 + [9] * 6) + ([7] * 6 + [9] * 6) + [9] * 12))
    strict = RegionRule("split", certainty=0.7)
    assert not split_by_class(found, patches, keys, (4, 8), colors, divided, (0,), strict).splits
    kept = split_by_class(found, patches, keys, (4, 8), colors, divided, (0,), RegionRule("split", certainty=0.6))
    assert len(kept.splits) == 1


def test_splitting_nothing():
    keys, _ = two_things()
    none = Regions(np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.float32), np.empty(0, np.int64))
    patches = np.empty((0, 32), bool)
    assert split_by_class(none, patches, keys, (4, 8), colors, KNOWN, (0,), SPLIT) == none
    empty = np.zeros((8, 8), np.uint16)
    np.testing.assert_array_equal(split_pixels(empty, none, (4, 8)), empty)


# --- Classes ----------------------------------------------------------------------------------------------------------


def vote_oracle(known: Prototypes, cls: np.ndarray) -> tuple[list[int], list[float]]:
    """Neighbors, ballots and ties, one region at a time."""
    voters = min(10, len(known.classes), max(collections.Counter(known.classes.tolist()).values()))
    answers, shares = [], []
    for row in cls.astype(np.float64):
        cosine = known.cls.astype(np.float64) @ (row / np.linalg.norm(row))
        nearest = sorted(range(len(cosine)), key=lambda s: -cosine[s])[:voters]
        ballots = collections.Counter(int(known.classes[s]) for s in nearest)
        likeness = collections.defaultdict(float)
        for s in nearest:
            likeness[int(known.classes[s])] += cosine[s]
        best = max(ballots, key=lambda label: (ballots[label], likeness[label], -label))
        answers.append(best)
        shares.append(ballots[best] / voters)
    return answers, shares


@settings(derandomize=True, deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), members=st.integers(1, 40), labels=st.integers(1, 6))
def test_vote_of_the_nearest(seed, members, labels):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((members, 4))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    known = Prototypes(unit.astype(np.float16), rng.integers(0, labels, members))
    cls = rng.standard_normal((7, 4)) * 10
    found, certainty = known.classify(cls)
    expected, shares = vote_oracle(known, cls)
    assert found.tolist() == expected
    np.testing.assert_allclose(certainty, shares)


def test_ties_go_to_the_more_similar_then_to_the_lower_class():
    cls = np.array([[1, 0], [0.8, 0.6], [1, 0], [0, 1]], np.float16)
    assert Prototypes(cls[[1, 0]], np.array([2, 6])).classify(np.array([[1.0, 0.0]]))[0].tolist() == [6]
    assert Prototypes(cls[[0, 1, 2, 1]], np.array([5, 5, 3, 3])).classify(np.array([[1.0, 0.0]]))[0].tolist() == [3]


def test_nothing_to_vote_on():
    found, certainty = KNOWN.classify(np.empty((0, 3), np.float32))
    assert found.shape == certainty.shape == (0,)


def test_new_regions_get_the_class_of_the_nearest_mean():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 2, 7], [200, 20, 3])
    x = (rng.standard_normal((3, 6)) + 4)[np.searchsorted([0, 2, 7], labels)] + 0.3 * rng.standard_normal((223, 6))
    x *= rng.uniform(0.1, 9, (223, 1))  # only directions count
    known = fit_prototypes(x, labels)
    assert known.classes.tolist() == [0, 2, 7]
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    centered = unit - unit.mean(axis=0)
    centered /= np.linalg.norm(centered, axis=1, keepdims=True)
    means = np.stack([centered[labels == label].mean(axis=0) for label in (0, 2, 7)])
    cosine = centered @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T
    found, certainty = known.classify(x)
    np.testing.assert_array_equal(found, np.array([0, 2, 7])[cosine.argmax(axis=1)])
    share = np.exp(cosine / TEMPERATURE)
    np.testing.assert_allclose(certainty, (share / share.sum(axis=1, keepdims=True)).max(axis=1), rtol=1e-4)
    # A class of three regions keeps them; ten voters could never give it a majority.
    assert (found[labels == 7] == 7).all()


def test_one_class_takes_all():
    x = np.random.default_rng(0).standard_normal((5, 4))
    found, certainty = fit_prototypes(x, np.full(5, 3)).classify(x)
    assert found.tolist() == [3] * 5 and certainty.tolist() == [1.0] * 5


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    npst.arrays(np.uint16, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 4)),
    st.lists(st.integers(0, 254), min_size=4, max_size=4),
)
def test_label_map(regions, labels):
    found = label_map(regions, np.array(labels))
    assert found.dtype == np.uint8
    assert found.tolist() == [[0 if r == 0 else labels[r - 1] + 1 for r in row] for row in regions.tolist()]
