"""The image level, its foreground rule, the cleaning and the confidence, on cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from vitnp.clustering.spherical import Clustering
from vitnp.method.cleaning import CleaningConfig, clean
from vitnp.method.confidence import OFFSET, SLOPE, clarity, collection_confidence, image_confidence
from vitnp.method.foreground import border_patches, foreground_clusters
from vitnp.method.image_level import ImageLevelConfig, image_level


def scene(rows: int = 9, columns: int = 11, noise: float = 0.05, seed: int = 0):
    """A block of 'object' keys in the middle of 'background' keys, and attention that favors the object threefold."""
    rng = np.random.default_rng(seed)
    truth = np.zeros((rows, columns), bool)
    truth[3:7, 3:8] = True
    keys = np.where(truth.ravel()[:, None], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]) + noise * rng.standard_normal(
        (truth.size, 3)
    )
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    return keys.astype(np.float32), np.where(truth.ravel(), 3.0, 1.0), truth


def clustering(labels, clusters: int) -> Clustering:
    labels = np.asarray(labels)
    return Clustering(np.eye(clusters), labels, np.bincount(labels, minlength=clusters), 0.0)


def test_object_is_found_by_every_number_of_clusters():
    keys, attention, truth = scene()
    soft, hard = image_level(keys, attention, truth.shape, (0,))
    np.testing.assert_array_equal(hard.reshape(truth.shape) > 0.5, truth)
    np.testing.assert_array_equal(soft.reshape(truth.shape) > 0.5, truth)
    assert soft.dtype == hard.dtype == np.float32
    assert soft.min() >= 0 and soft.max() <= 1


def test_two_clusters_by_formula():
    keys, attention, truth = scene(noise=0.0)
    soft, _ = image_level(keys, attention, truth.shape, (0,), ImageLevelConfig(clusters=(2,), temperature=0.5))
    # Centroids are the two directions: margins are +1 and -1.
    expected = np.where(truth.ravel(), 1 / (1 + np.exp(-2)), 1 / (1 + np.exp(2)))
    np.testing.assert_allclose(soft, expected, rtol=1e-6)


def test_seed_decides_and_repeats():
    keys, attention, truth = scene(noise=0.6)
    first, again, other = (image_level(keys, attention, truth.shape, (s, 7))[0] for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("grid", [(1, 1), (1, 2), (2, 2), (1, 7)])
def test_tiny_grids(grid):
    keys = np.tile(np.eye(2, dtype=np.float32), (4, 1))[: grid[0] * grid[1]]
    soft, hard = image_level(keys, np.ones(len(keys)), grid, (0,))
    assert soft.shape == hard.shape == (grid[0] * grid[1],)
    assert np.isfinite(soft).all() and np.isfinite(hard).all()


def test_a_single_patch_is_background():
    soft, _ = image_level(np.ones((1, 1), np.float32), np.ones(1), (1, 1), (0,))
    assert soft.tolist() == [0.0]


# 5 x 5 patches, 16 of them on the border: the image's border share is 16 / 25.
BORDER = border_patches((5, 5))


def scores(labels: np.ndarray, attention: np.ndarray, clusters: int) -> list[float]:
    """The rule's score of each cluster, spelled out."""
    found = []
    for j in range(clusters):
        members = labels == j
        a = attention[members].mean() / attention.mean()
        b = BORDER[members].mean() / BORDER.mean()
        found.append(float(np.log(a + 1e-3) - np.log(b + 0.1)))
    return found


def test_rule_takes_what_is_above_the_threshold():
    labels = np.where(BORDER, 0, 1)
    labels[12] = 2  # the center
    attention = np.ones(25)
    attention[12] = 4.0
    found = scores(labels, attention, 3)
    # Border share 0 gives about log(10) = 2.3 to the inner clusters, and the border cluster is far below.
    assert found[0] < 0.4 < found[1] < found[2]
    np.testing.assert_array_equal(
        foreground_clusters(clustering(labels, 3), attention, BORDER, 0.4), [False, True, True]
    )
    between = (found[1] + found[2]) / 2
    np.testing.assert_array_equal(
        foreground_clusters(clustering(labels, 3), attention, BORDER, between), [False, False, True]
    )


def test_rule_keeps_one_foreground_and_one_background_cluster():
    labels = np.arange(25) % 3
    attention = np.linspace(1, 2, 25)
    found = scores(labels, attention, 3)
    none = foreground_clusters(clustering(labels, 3), attention, BORDER, max(found) + 1)
    every = foreground_clusters(clustering(labels, 3), attention, BORDER, min(found) - 1)
    np.testing.assert_array_equal(none, np.arange(3) == np.argmax(found))
    np.testing.assert_array_equal(every, np.arange(3) != np.argmin(found))


def test_rule_never_takes_an_empty_cluster():
    labels = np.where(BORDER, 0, 2)
    np.testing.assert_array_equal(
        foreground_clusters(clustering(labels, 4), np.ones(25), BORDER, 0.4), [False, False, True, False]
    )


def test_flat_zero_attention_leaves_the_border_to_decide():
    labels = np.where(BORDER, 0, 1)
    np.testing.assert_array_equal(foreground_clusters(clustering(labels, 2), np.zeros(25), BORDER, 0.4), [False, True])


def test_attention_is_clipped_at_its_percentile():
    keys, attention, truth = scene()
    spike = attention.copy()
    spike[0] = 1e6  # a corner patch that draws everything
    np.testing.assert_array_equal(
        image_level(keys, spike, truth.shape, (0,))[1], image_level(keys, attention, truth.shape, (0,))[1]
    )


def test_border():
    np.testing.assert_array_equal(border_patches((3, 4)).reshape(3, 4), [[1, 1, 1, 1], [1, 0, 0, 1], [1, 1, 1, 1]])
    assert border_patches((1, 5)).all() and border_patches((2, 2)).all()


def islands() -> np.ndarray:
    score = np.full((20, 20), 0.1)
    score[2:12, 2:12] = 0.9  # 100 patches
    score[14:18, 14:19] = 0.8  # 20 patches, a fifth of the largest
    score[19, 0:3] = 0.7  # 3 patches
    return score


def test_clean_caps_small_islands():
    cleaned = clean(islands())
    np.testing.assert_array_equal(cleaned[14:18, 14:19], 0.8)  # a fifth is not smaller than a fifth
    np.testing.assert_array_equal(cleaned[19, 0:3], 0.25)
    np.testing.assert_array_equal(cleaned[2:12, 2:12], 0.9)
    np.testing.assert_array_equal(clean(islands(), CleaningConfig(relative=0.21))[14:18, 14:19], 0.25)
    np.testing.assert_array_equal(clean(islands(), CleaningConfig(relative=0.0, absolute=0.006))[19, 0:3], 0.7)
    np.testing.assert_array_equal(clean(islands(), CleaningConfig(relative=0.0, absolute=0.0076))[19, 0:3], 0.25)


def test_clean_leaves_low_scores_and_the_input_alone():
    score = islands()
    score[0, 0] = 0.2  # below the threshold: belongs to no island
    before = score.copy()
    assert clean(score)[0, 0] == 0.2
    np.testing.assert_array_equal(score, before)


def test_clean_spares_the_only_island_however_small():
    score = np.zeros((20, 20))
    score[3, 3] = 1.0
    np.testing.assert_array_equal(clean(score), score)


def test_diagonal_neighbors_are_one_island():
    score = np.zeros((10, 10))
    score[np.arange(6), np.arange(6)] = 1.0
    score[9, 0] = 0.6
    cleaned = clean(score)
    assert (np.diag(cleaned)[:6] == 1).all() and cleaned[9, 0] == 0.25


def test_confidence_of_the_image_level_by_hand():
    keys = np.repeat(np.eye(2), 2, axis=0)
    # Mean key (1/2, 1/2): the spread 1 - 0.7071 = 0.2929 exceeds 0.25, so the contrast decides,
    # the mean of |2 I - 1|: (1 + 0.5 + 0 + 1) / 4.
    assert image_confidence(np.array([1.0, 0.75, 0.5, 0.0]), keys) == pytest.approx(0.625)
    # 60 degrees apart in two: |mean| = cos 30 = 0.8660, spread 0.1340, over 0.25 = 0.5359
    keys = np.array([[1, 0], [0.5, np.sqrt(0.75)]])
    assert image_confidence(np.array([1.0, 0.0]), keys) == pytest.approx((1 - np.sqrt(0.75)) / 0.25)
    assert image_confidence(np.array([1.0, 0.0]), np.ones((2, 1))) == 0.0


def test_clarity_by_hand():
    score = np.float32([0.9, 0.8, 0.4, 0.1])  # contrast: the mean of 0.8, 0.6, 0.2, 0.8
    same, more, other = np.float32([1, 1, 0, 0]), np.float32([0.6, 0.6, 0.6, 0]), np.float32([0, 0, 0.5, 1])
    # IoU with the score's two patches: 1, 2 of 3, none of 3 (one half is not foreground).
    assert clarity(score, [same]) == pytest.approx(0.6)
    assert clarity(score, [same, more, other]) == pytest.approx(0.6 * (1 + 2 / 3 + 0) / 3)
    # Levels and score that find nothing agree.
    assert clarity(np.zeros(4, np.float32), [np.zeros(4, np.float32)] * 2) == 1


def test_confidence_with_a_collection_is_a_logistic_curve_of_clarity():
    score, levels = np.float32([0.9, 0.8, 0.4, 0.1]), [np.float32([1, 1, 0, 0])]
    odds = np.exp(SLOPE * 0.6 + OFFSET)
    assert collection_confidence(score, levels) == pytest.approx(odds / (1 + odds), abs=1e-6)
    assert SLOPE > 0
