"""The image level of a batch in CUDA against that of the CPU: emulated in check mode, and on a GPU under
``pytest -m gpu``."""

from __future__ import annotations

import dataclasses
import types

import numpy as np
import pytest
from vitnp.kernels import reference
from vitnp.kernels.reference import ImageLevelRule

from vitnp import kernels
from vitnp.features.record import FeatureRecord, unit_rows
from vitnp.method.image_batch import image_levels
from vitnp.method.image_level import ImageLevelConfig, image_level
from vitnp.method.patch_scores import judge_image, judge_images
from vitnp.method.texture import texture_image_level

CONFIG = ImageLevelConfig()


def photograph(seed: int, grid: tuple[int, int], width: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Keys and attention of a disk of two parts on two grounds."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: grid[0], : grid[1]]
    inside = (np.hypot((y + 0.5) / grid[0] - 0.5, (x + 0.5) / grid[1] - 0.45) < 0.3).ravel()
    n = inside.size
    part = np.where(inside, rng.integers(0, 2, n), rng.integers(2, 4, n))
    keys = rng.standard_normal((4, width))[part] + 0.5 * rng.standard_normal((n, width))
    attention = np.where(inside, 3.0, 0.5) * rng.uniform(0.5, 1.5, n)
    return (keys * rng.uniform(0.1, 30, (n, 1))).astype(np.float32), (attention / attention.sum()).astype(np.float32)


def record(cupy, seed: int, grid: tuple[int, int], device: str = "cuda", width: int = 16, **changed) -> FeatureRecord:
    keys, attention = photograph(seed, grid, width)
    arrays = {"keys": keys, "attention": attention, **changed}
    if device == "cuda":
        arrays = {name: cupy.asarray(array) for name, array in arrays.items()}
    return FeatureRecord("", grid, (0, 0), (0, 0), seed, False, lambda: arrays)


def directions(*turns: float) -> np.ndarray:
    """Rows of two numbers by their angles in degrees."""
    angle = np.radians(turns)
    return np.column_stack([np.cos(angle), np.sin(angle)]).astype(np.float32)


@pytest.fixture
def small_memory(cupy, monkeypatch):
    """A GPU whose shared memory holds no centroids."""
    from vitnp.kernels.cuda import loader

    device = types.SimpleNamespace(
        id=0, compute_capability="75", attributes={"MultiProcessorCount": 3, "MaxSharedMemoryPerBlockOptin": 16 * 1024}
    )
    loader.shared_memory.cache_clear()
    monkeypatch.setattr(cupy.cuda, "Device", lambda *_: device)
    yield
    loader.shared_memory.cache_clear()


BATCH = [(0, (7, 9)), (1, (1, 5)), (2, (6, 6)), (3, (2, 1))]  # seed, grid; the last has fewer patches than clusters


def same_as_on_cpu(cupy, batch, width: int) -> None:
    found = judge_images([record(cupy, *one, width=width) for one in batch], "cuda", 5)
    for one, answer in zip(batch, found):
        wanted = judge_image(record(cupy, *one, "cpu", width), "cpu", 5)
        np.testing.assert_array_equal(kernels.to_host(answer.hard), wanted.hard)
        np.testing.assert_allclose(kernels.to_host(answer.soft), wanted.soft, atol=2e-6)
        assert answer.confidence == pytest.approx(wanted.confidence, abs=1e-6)


def test_a_batch_of_different_grids_gets_the_answers_of_the_cpu(cupy):
    same_as_on_cpu(cupy, BATCH, 16)


def test_odd_widths_and_centroids_in_global_memory(cupy, small_memory):
    same_as_on_cpu(cupy, BATCH[:2], 13)


def test_rows_longer_than_a_block(cupy):
    """Each thread has several columns of a row to sum."""
    same_as_on_cpu(cupy, [(4, (4, 5))], 1028)


def test_more_rows_than_threads(cupy):
    """Each thread has several rows to draw from."""
    config = dataclasses.replace(CONFIG, clusters=(3,), starts=1)
    keys, attention = photograph(7, (14, 20), 8)
    answers = image_levels([cupy.asarray(keys)], [cupy.asarray(attention)], [(14, 20)], [(2,)], config)
    soft, hard = image_level(unit_rows(keys), attention, (14, 20), (2,), config)
    np.testing.assert_array_equal(kernels.to_host(answers.hard[0]), hard)
    np.testing.assert_allclose(kernels.to_host(answers.soft[0]), soft, atol=2e-6)


def test_attention_of_a_single_patch_counts_no_more_than_the_percentile(cupy):
    keys = np.repeat(directions(0, 90, 0), [7, 6, 7], axis=0)
    attention = np.repeat(np.array([1, 2, 1], np.float32), [7, 6, 7])
    attention[0] = 500
    config = dataclasses.replace(CONFIG, clusters=(2,))
    answers = image_levels([cupy.asarray(keys)], [cupy.asarray(attention)], [(4, 5)], [(0,)], config)
    assert kernels.to_host(answers.hard[0]).tolist() == [0] * 7 + [1] * 6 + [0] * 7


def test_a_photograph_gets_the_same_bits_alone_and_in_a_batch(cupy):
    records = [record(cupy, *one) for one in BATCH[:3]]
    together = judge_images(records, "cuda", 0)
    alone = judge_image(records[2], "cuda", 0)
    np.testing.assert_array_equal(kernels.to_host(together[2].soft), kernels.to_host(alone.soft))
    assert together[2].confidence == alone.confidence


# Keys of few directions: empty clusters, which take over the farthest rows, ties, and rows of zeros.
HARD = {
    "all equal": np.ones((12, 2), np.float32),
    "two directions": np.repeat(directions(0, 90), 6, axis=0),
    "three directions, unequal": np.repeat(directions(0, 60, 200), [9, 2, 1], axis=0),
    "rows of zeros": np.concatenate([np.repeat(directions(10, 100), 4, axis=0), np.zeros((4, 2), np.float32)]),
    "only zeros": np.zeros((12, 2), np.float32),
}


@pytest.mark.parametrize("case", list(HARD))
def test_clusters_that_stay_empty(cupy, case):
    keys, attention = HARD[case], np.linspace(1, 2, 12, dtype=np.float32)
    config = dataclasses.replace(CONFIG, clusters=(2, 4))
    answers = image_levels([cupy.asarray(keys)], [cupy.asarray(attention)], [(3, 4)], [(0,)], config)
    soft, hard = image_level(unit_rows(keys), attention, (3, 4), (0,), config)
    np.testing.assert_allclose(kernels.to_host(answers.hard[0]), hard, atol=1e-6)
    np.testing.assert_allclose(kernels.to_host(answers.soft[0]), soft, atol=2e-6)


# Rows by their angles in degrees, None for zeros; number of clusters; seed of the random numbers; threshold.
REACHED = {
    "a row of zeros is far": ([None, 0, None, None, 90, None, 0, 0, 315, 90, 315, 270], 4, 2, 0.4, False),
    "two empty clusters": ([None, 0, None, None, 90, None, 0, 0, 315, 90, 315, 270], 5, 2, 0.4, False),
    "a single row is far": ([315, 135, 225, 225, 135, None, 225, 225, 225, None, 225, 225], 5, 44, 0.4, False),
    "one empty cluster": ([240, 320, 150, None, 320, 240, 150, 330, None, None, None, None], 3, 101, 0.4, False),
    "an empty cluster has no score": ([0, 0, 0, 0, 0, 0, 90, 90, 90, 90, 90, 90], 3, 1, -5.0, False),
    "all clusters above the threshold": ([60, 60, 60, 60, 240, 60, 60, 60, 300, 300, 60, 60], 3, 1, -5.0, False),
    "one cluster above the threshold": ([225] * 6 + [None] + [225] * 4 + [None], 2, 8, -5.0, False),
    "texture of one cluster": ([225] * 6 + [None] + [225] * 4 + [None], 2, 8, 0.4, True),
}


def reached(cupy, rule: ImageLevelRule, angles: list[float | None], seed: int) -> None:
    """Compare soft and hard answers of a start of k-means with the definition's, from the same random numbers."""
    keys = np.concatenate([np.zeros((1, 2), np.float32) if angle is None else directions(angle) for angle in angles])
    rng = np.random.default_rng(seed)
    draws = np.concatenate([[rng.integers(12)], rng.random(reference.n_draws(rule.clusters[0]) - 1)])[None]
    attention, grids = np.linspace(1, 2, 12, dtype=np.float32), [(3, 4)]
    wanted = reference.image_levels(keys, attention, grids, draws, rule)
    found = kernels.for_device("cuda").image_levels(cupy.asarray(keys), cupy.asarray(attention), grids, draws, rule)
    for one, other in zip(found, wanted):
        np.testing.assert_allclose(kernels.to_host(one), other, atol=2e-6)


@pytest.mark.parametrize("case", list(REACHED))
def test_empty_clusters_that_matter(cupy, case):
    angles, clusters, seed, threshold, texture = REACHED[case]
    reached(cupy, ImageLevelRule((clusters,), 1, 15, 95.0, threshold, 0.05, texture), angles, seed)


@pytest.mark.parametrize("grid", [(5, 7), (2, 1), (1, 1)])
def test_textures(cupy, grid):
    keys, attention = photograph(6, grid)
    answers = image_levels([cupy.asarray(keys)], [cupy.asarray(attention)], [grid], [(3,)], CONFIG, texture=True)
    soft, hard = texture_image_level(unit_rows(keys), (3,))
    np.testing.assert_array_equal(kernels.to_host(answers.hard[0]), hard)
    np.testing.assert_allclose(kernels.to_host(answers.soft[0]), soft, atol=2e-6)


def test_textures_of_one_photograph(cupy):
    keys, _ = photograph(6, (5, 7))
    soft, _ = texture_image_level(cupy.asarray(keys), (3,))
    np.testing.assert_allclose(kernels.to_host(soft), texture_image_level(unit_rows(keys), (3,))[0], atol=2e-6)


def test_keys_that_are_not_finite_are_refused_and_the_others_go_on(cupy):
    keys, _ = photograph(0, (4, 5))
    keys[3, 2] = np.nan
    bad, good = judge_images([record(cupy, 0, (4, 5), keys=keys), record(cupy, 1, (4, 5))], "cuda", 0)
    with pytest.raises(ValueError, match="features must be finite"):
        bad.confidence  # noqa: B018
    assert good.confidence == judge_image(record(cupy, 1, (4, 5)), "cuda", 0).confidence
    with pytest.raises(ValueError, match="features must be finite"):
        image_level(cupy.asarray(keys), cupy.ones(20, np.float32), (4, 5), (0,))


def test_one_upload_two_launches_and_nothing_back(cupy):
    from bench.gpu import launches

    records = [record(cupy, *one) for one in BATCH]
    with launches.counted(cupy) as traffic:
        answers = judge_images(records, "cuda", 0)
        assert (traffic.launches, traffic.uploads, traffic.reads) == (2, 1, 0)
        assert len([answer.confidence for answer in answers]) == len(BATCH) and traffic.reads == 1


@pytest.mark.parametrize("clusters", [(), (0, 2), (2, 300)])
def test_numbers_of_clusters_that_there_is_no_kernel_for(cupy, clusters):
    keys, attention = photograph(0, (4, 5))
    with pytest.raises(ValueError, match="numbers of clusters must be between 1 and 256, got"):
        rule = ImageLevelRule(clusters, 1, 5, 95.0, 0.4, 0.05)
        kernels.for_device("cuda").image_levels(
            cupy.asarray(keys), cupy.asarray(attention), [(4, 5)], np.zeros((1, 1)), rule
        )


# --- The definition, which needs no GPU -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_the_definition_gives_the_answers_of_the_cpu(seed):
    grid = (9 + seed, 11)
    keys, attention = photograph(seed, grid, 24)
    found = image_levels([keys], [attention], [grid], [(seed, 7)], CONFIG, device="cpu")
    soft, hard = image_level(unit_rows(keys), attention, grid, (seed, 7))
    np.testing.assert_array_equal(found.hard[0], hard)
    np.testing.assert_allclose(found.soft[0], soft, atol=2e-6)


@pytest.mark.parametrize("case", list(HARD))
def test_the_definition_with_clusters_that_stay_empty(case):
    keys, attention = HARD[case], np.linspace(1, 2, 12, dtype=np.float32)
    config = dataclasses.replace(CONFIG, clusters=(2, 4))
    found = image_levels([keys], [attention], [(3, 4)], [(0,)], config, device="cpu")
    _, hard = image_level(unit_rows(keys), attention, (3, 4), (0,), config)
    np.testing.assert_array_equal(found.hard[0], hard)


def test_the_number_of_draws():
    for n_clusters in (1, 2, 3, 6, 8, 20):
        assert reference.n_draws(n_clusters) == 1 + (n_clusters - 1) * reference.n_candidates(n_clusters)
