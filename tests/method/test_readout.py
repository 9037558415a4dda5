"""The readout level: its targets by hand, its minimum by calculus, and its place in a collection."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image
from scipy.optimize import check_grad

from vitnp.method.agreement import combine_levels, level_weights, overlap
from vitnp.method.cleaning import clean
from vitnp.method.collection import Collection
from vitnp.method.defaults import default_collection
from vitnp.method.readout import Readout, ReadoutConfig, fit_readout, readout_targets
from vitnp.segmenter import Segmenter


def scene(seed: int) -> np.ndarray:
    """A warm blob on a cool background, 96 x 72."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:72, :96]
    blob = ((y - 36 - 8 * rng.uniform(-1, 1)) / 20) ** 2 + ((x - 48 - 12 * rng.uniform(-1, 1)) / 24) ** 2 < 1
    rgb = np.where(blob[..., None], (200, 90, 40), (40, 80, 120)) + rng.normal(0, 12, (72, 96, 3))
    return rgb.clip(0, 255).astype(np.uint8)


def problem(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    keys = rng.standard_normal((60, 5)) + 2
    keys = (keys / np.linalg.norm(keys, axis=1, keepdims=True)).astype(np.float32)
    return keys, rng.uniform(size=60), rng.uniform(0.5, 2, 60)


def loss(parameters: np.ndarray, keys, targets, weights, ridge: float) -> float:
    """Weighted mean cross-entropy and ridge, in float64 and as the textbook has it."""
    p = 1 / (1 + np.exp(-(keys.astype(np.float64) @ parameters[:-1] + parameters[-1])))
    entropy = -(targets * np.log(p) + (1 - targets) * np.log(1 - p))
    return float((weights * entropy).sum() / weights.sum() + ridge * (parameters[:-1] ** 2).sum())


@pytest.mark.parametrize("ridge", [1e-3, 1e-1])
def test_no_step_improves_the_fit(ridge):
    keys, targets, weights = problem()
    found = fit_readout(keys, targets, weights, ridge)
    best = np.append(found.weights.astype(np.float64), found.bias)
    slope = check_grad(loss, lambda *_: np.zeros(6), best, keys, targets, weights, ridge)  # norm of the gradient
    assert slope < 1e-4
    assert check_grad(loss, lambda *_: np.zeros(6), best + 0.1, keys, targets, weights, ridge) > 10 * slope


def test_a_weight_counts_as_repetition():
    keys, targets, _ = problem()
    weights = np.where(np.arange(60) < 20, 3.0, 1.0)
    once = fit_readout(keys, targets, weights, 1e-2)
    repeated = fit_readout(*(np.concatenate([a, a[:20], a[:20]]) for a in (keys, targets, np.ones(60))), 1e-2)
    np.testing.assert_allclose(once.weights, repeated.weights, atol=1e-3)
    assert once.bias == pytest.approx(repeated.bias, abs=1e-3)


def test_answers_are_the_logistic_function():
    found = Readout(np.float32([2, -1]), 0.5).soft_foreground(np.float32([[1, 0], [0, 1], [0.6, 0.8]]))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-np.array([2.5, -0.5, 0.9]))), atol=1e-6)


def test_one_answer_for_all_patches_can_be_learned():
    keys, _, weights = problem()
    found = fit_readout(keys, np.zeros(60), weights, 1e-4)
    assert np.isfinite(found.weights).all() and found.soft_foreground(keys).max() < 0.01


def test_targets_average_the_pixels_of_a_patch_and_are_sharpened():
    soft = np.zeros((4, 6), np.uint16)
    soft[:2, :5] = 65535  # all of the first patch and two thirds of the second
    soft[2:, :3] = [65535, 0, 0]  # a third of the third
    found = readout_targets(soft, (2, 2), 1.0)
    np.testing.assert_allclose(found, [1, 2 / 3, 1 / 3, 0], atol=1e-6)
    np.testing.assert_allclose(readout_targets(soft, (2, 2), 2.0), [1, 5 / 6, 1 / 6, 0], atol=1e-6)


@pytest.fixture(scope="module")
def fitted(builtin) -> Segmenter:
    return Segmenter(builtin, short_side=96, n_categories=2).fit([scene(seed) for seed in range(8)])


def test_it_is_part_of_the_score(fitted):
    result = fitted.predict(scene(20))
    image, dataset, category, readout = result.levels
    keys = result.keys.reshape(-1, result.keys.shape[2])
    unit = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    np.testing.assert_allclose(readout, fitted.collection.readout.soft_foreground(unit), atol=1e-5)
    assert overlap(dataset, readout) > 0.5
    score = clean(((image + dataset + 2 * category + 3 * readout) / 7).reshape(result.score.shape))
    np.testing.assert_allclose(result.score, score, atol=1e-6)


def test_it_is_saved_and_read(fitted, tmp_path):
    fitted.save(tmp_path / "c.safetensors")
    read = Collection.load(tmp_path / "c.safetensors")
    np.testing.assert_array_equal(read.readout.weights, fitted.collection.readout.weights)
    assert read.readout.bias == fitted.collection.readout.bias
    assert read.digest == fitted.collection.digest
    levels = list(np.random.default_rng(0).random((4, 9)))
    np.testing.assert_array_equal(read.combine(levels), fitted.collection.combine(levels))
    without = dataclasses.replace(read, readout=None)
    assert without.digest != read.digest


def test_a_collection_without_it_has_three_equal_levels(builtin):
    photographs = [scene(seed) for seed in range(4)]
    collection = Segmenter(builtin, short_side=96, readout=None).fit(photographs).collection
    assert collection.readout is None
    levels = list(np.random.default_rng(0).uniform(size=(3, 7)).astype(np.float32))
    np.testing.assert_allclose(combine_levels(levels), np.mean(levels, axis=0), atol=1e-6)


@pytest.mark.parametrize("consistency", ["majority", "intersection"])
def test_votes_are_of_the_three_levels_of_the_paper(builtin, consistency):
    segmenter = Segmenter(builtin, short_side=96, consistency=consistency).fit([scene(seed) for seed in range(4)])
    assert segmenter.collection.readout is None and len(segmenter.predict(scene(9)).levels) == 3


def test_the_sample_is_bounded_and_seeded(builtin, monkeypatch):
    from vitnp import fit

    drawn = []
    monkeypatch.setattr(fit, "fit_readout", lambda *args: drawn.append(args) or fit_readout(*args))
    photographs = [scene(seed) for seed in range(6)]
    for seed in (0, 0, 1):
        config = ReadoutConfig(photographs=4, patches=5)
        Segmenter(builtin, short_side=96, readout=config, seed=seed, n_threads=3 if drawn else 1).fit(photographs)
    first, again, other = (keys for keys, *_ in drawn)
    assert first.shape == (20, 192)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_each_photograph_weighs_the_same(builtin, monkeypatch):
    from vitnp import fit

    weights = []
    monkeypatch.setattr(fit, "fit_readout", lambda *args: weights.append(args[2]) or fit_readout(*args))
    small = np.asarray(Image.fromarray(scene(0)).resize((300, 60)))  # more patches than the others
    Segmenter(builtin, short_side=64, readout=ReadoutConfig(min_confidence=0)).fit([scene(1), small, scene(2)])
    sums = [weights[0][weights[0] == weight].sum() for weight in np.unique(weights[0])]
    assert sums == pytest.approx([1, 2])


def test_weights_of_the_mean():
    levels = [np.float32([1, 0]), np.float32([0, 1]), np.float32([1, 1]), np.float32([0, 0.5])]
    np.testing.assert_allclose(combine_levels(levels, weights=(0, 3, 0, 1)), [0, 0.875])
    assert combine_levels(levels[:3], "majority", weights=(9, 0, 0)).tolist() == [1, 1]  # votes count the same


def test_the_built_in_file_reads():
    collection = default_collection()
    levels = (3,) if collection.readout is None else (4,)
    assert len(collection.levels(np.eye(192, dtype=np.float32)[:5], (np.zeros(5, np.float32),) * 2, 0)) in levels
    one, two = np.float32([1, 0]), np.float32([0.8, 0.2])
    np.testing.assert_allclose(collection.combine([one, two, one, two]), np.float32([4.4, 0.6]) / 5)  # of any kind


def test_the_readout_counts_where_it_agrees_with_the_data_set_level():
    image, category = np.float32([1, 0, 0, 1]), np.float32([0, 0, 1, 1])
    dataset = np.float32([0.9, 0.8, 0.2, 0.5])  # 0.5 is not foreground
    half = np.float32([0.6, 0.1, 0.2, 0.3])  # one patch of two
    third = np.float32([0.6, 0.1, 0.7, 0.3])  # one patch of three
    assert overlap(dataset, half) == 1 / 2 and overlap(dataset, third) == 1 / 3
    found = combine_levels([image, dataset, category, half])
    np.testing.assert_allclose(found, (image + dataset + category + 2 * half) / 5, atol=1e-6)
    found = combine_levels([image, dataset, category, third])
    np.testing.assert_allclose(found, (image + dataset + category) / 3, atol=1e-6)
    nothing = np.zeros(4, np.float32)
    assert overlap(nothing, nothing) == 1 and level_weights([image, nothing, category, nothing])[3] > 0
