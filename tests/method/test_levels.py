"""The data set's and the categories' levels, and how levels agree: hand-computed cases, and a float64 oracle."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from vitnp.errors import UsageError
from vitnp.method.agreement import combine_levels, two_cluster_variant
from vitnp.method.collection_level import (
    CATEGORY,
    DATASET,
    CollectionLevelConfig,
    FittedLevel,
    default_categories,
    fit_level,
)
from vitnp.method.image_level import ImageLevelConfig

QUICK = CollectionLevelConfig(clusters=(2,), starts=2, max_iterations=20)


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def bundles(seed: int = 0, size: int = 40, groups: int = 3, width: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Rows close to one of some orthogonal directions, of any length, and the direction of each."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, groups, size)
    rows = np.eye(width)[group] + 0.05 * rng.standard_normal((size, width))
    return (rows * rng.uniform(0.5, 4, (size, 1))).astype(np.float32), group


def soft_oracle(keys, centroids, shares, temperature):
    """mean over K of sum_j softmax(cosine / temperature)_j r_j, in float64, a patch at a time."""
    found = np.zeros(len(keys))
    for c, r in zip(centroids, shares):
        for n, key in enumerate(np.asarray(keys, np.float64)):
            weights = np.array([np.exp(float(key @ row.astype(np.float64)) / temperature) for row in c])
            found[n] += float(weights / weights.sum() @ r.astype(np.float64))
    return found / len(centroids)


def test_shares_are_the_mean_hard_answer_of_each_cluster():
    keys, group = bundles()
    hard = np.random.default_rng(1).uniform(size=len(keys))
    level = fit_level(keys, hard, (0,), CollectionLevelConfig(clusters=(3,), starts=3, max_iterations=20))
    # Three bundles this tight are the clusters, in some order; a centroid points along the one axis that is its own.
    for axis in range(3):
        j = int(level.centroids[0][:, axis].argmax())
        assert level.shares[0][j] == pytest.approx(hard[group == axis].mean(), abs=1e-6)
        mean = unit(keys)[group == axis].astype(np.float64).mean(axis=0)
        np.testing.assert_allclose(level.centroids[0][j], mean / np.linalg.norm(mean), atol=1e-5)


def test_one_array_for_each_number_of_clusters():
    keys, _ = bundles(size=50)
    level = fit_level(keys, np.ones(50), (0,), dataclasses.replace(QUICK, clusters=(2, 3, 7)))
    assert [c.shape for c in level.centroids] == [(2, 8), (3, 8), (7, 8)]
    assert [s.shape for s in level.shares] == [(2,), (3,), (7,)]
    for centroids in level.centroids:
        np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-5)
    assert all(array.dtype == np.float32 for array in (*level.centroids, *level.shares))


@settings(derandomize=True, deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), temperature=st.sampled_from([0.01, 0.05, 0.5]))
def test_score_is_the_formula(seed, temperature):
    rng = np.random.default_rng(seed)
    keys = unit(rng.standard_normal((9, 5)))
    centroids = tuple(unit(rng.standard_normal((k, 5))) for k in (2, 5))
    shares = tuple(rng.uniform(size=k).astype(np.float32) for k in (2, 5))
    found = FittedLevel(centroids, shares, temperature).soft_foreground(keys)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, soft_oracle(keys, centroids, shares, temperature), atol=2e-5)
    # A mean of shares lies among them.
    assert min(s.min() for s in shares) - 1e-6 <= found.min() and found.max() <= max(s.max() for s in shares) + 1e-6


def test_score_by_hand():
    level = FittedLevel((np.eye(2, dtype=np.float32),), (np.array([1.0, 0.0], np.float32),), 0.5)
    # Cosines 1 and 0: 1 / (1 + exp(-2)); equal cosines: a half.
    found = level.soft_foreground(np.array([[1, 0], [0, 1], [0.70710678, 0.70710678]], np.float32))
    np.testing.assert_allclose(found, [1 / (1 + np.exp(-2)), 1 / (1 + np.exp(2)), 0.5], atol=1e-6)


def test_hard_is_the_cluster_with_most_foreground_at_the_first_k():
    centroids = (np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32)[:2])
    level = FittedLevel(centroids, (np.array([0.2, 0.9, 0.1], np.float32), np.array([1.0, 0.0], np.float32)), 0.05)
    assert level.hard_foreground(np.eye(3, dtype=np.float32)).tolist() == [0, 1, 0]


def test_fewer_patches_than_clusters():
    keys = np.eye(3, dtype=np.float32)
    level = fit_level(keys, np.array([1.0, 0.0, 0.5]), (0,), DATASET)
    assert [len(s) for s in level.shares] == [2, 3]
    one = fit_level(keys[:1], np.array([0.25]), (0,), DATASET)
    assert [s.tolist() for s in one.shares] == [[0.25], [0.25]]
    np.testing.assert_allclose(one.soft_foreground(keys), 0.25)


def test_identical_patches():
    keys = np.tile(np.float32([[3.0, 4.0]]), (12, 1))
    level = fit_level(keys, np.linspace(0, 1, 12), (0,), CATEGORY)
    assert all(np.isfinite(array).all() for array in (*level.centroids, *level.shares))
    # All of them are in one cluster of each K; whatever stands in the others, the score is a number from 0 to 1.
    score = level.soft_foreground(unit(keys))
    assert np.ptp(score) == 0 and 0 <= score[0] <= 0.5 + 1e-6


def test_blocks_give_what_the_array_gives_and_the_seed_decides():
    keys, _ = bundles(size=90, groups=5)
    keys = keys.astype(np.float16)
    hard = np.random.default_rng(2).uniform(size=90)
    whole = fit_level(keys, hard, (4,), DATASET)
    blocks = fit_level([keys[:20], keys[20:21], keys[21:]], hard, (4,), DATASET)
    again = fit_level(keys, hard, (4,), DATASET)
    for one, other, third in zip(
        (*whole.centroids, *whole.shares), (*blocks.centroids, *blocks.shares), (*again.centroids, *again.shares)
    ):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(one, third)
    noise = np.random.default_rng(3).standard_normal((200, 6)).astype(np.float32)
    first, second = (fit_level(noise, np.ones(200), (s,), dataclasses.replace(QUICK, clusters=(6,))) for s in (0, 1))
    assert not np.array_equal(first.centroids[0], second.centroids[0])


@pytest.mark.parametrize(
    ("images", "categories"),
    [(1, 1), (5, 1), (29, 1), (31, 2), (160, 8), (240, 12), (399, 20), (400, 20), (100_000, 20)],
)
def test_default_categories(images, categories):
    assert default_categories(images) == categories


@settings(derandomize=True, deadline=None, max_examples=50)
@given(npst.arrays(np.float32, (3, 7), elements=st.floats(0, 1, width=32)))
def test_mean_of_levels(levels):
    found = combine_levels(list(levels))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, levels.astype(np.float64).sum(axis=0) / 3, atol=1e-7)


@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.integers(1, 6).flatmap(lambda n: npst.arrays(np.int8, (n, 5), elements=st.integers(0, 1))))
def test_majority_and_intersection_count_votes(votes):
    levels = list(votes.astype(np.float32))
    count = votes.sum(axis=0)
    assert combine_levels(levels, "majority").tolist() == [float(2 * c > len(votes)) for c in count]
    assert combine_levels(levels, "intersection").tolist() == [float(c == len(votes)) for c in count]


def test_unknown_consistency():
    with pytest.raises(UsageError, match="magic"):
        combine_levels([np.zeros(2)], "magic")


def test_two_cluster_variant_changes_only_the_clusters():
    for config in (ImageLevelConfig(threshold=0.7), DATASET, dataclasses.replace(CATEGORY, temperature=0.3)):
        found = two_cluster_variant(config)
        assert found.clusters == (2,)
        assert dataclasses.replace(found, clusters=config.clusters) == config
