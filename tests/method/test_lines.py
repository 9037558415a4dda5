"""Pictures of lines thinner than a patch: the domain "lines"."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

import vitnp
from vitnp.errors import CheckpointError, UsageError
from vitnp.evaluate.metrics.saliency import iou
from vitnp.method.collection import Collection
from vitnp.method.lines import COUNTS, NO_LINES, LineRule, count_responses, find_lines, fit_line_rule
from vitnp.refine.line_filter import line_responses


def road(seed: int, *, depth: float = -60, n_cracks: int = 2, size: int = 192) -> tuple[np.ndarray, np.ndarray]:
    """Draw winding lines, 3 pixels wide, on rough ground with round stains; return pixels and truth."""
    rng = np.random.default_rng(seed)
    truth = np.zeros((size, size), bool)
    columns = np.arange(size)
    for _ in range(n_cracks):
        walk = ndimage.gaussian_filter1d(rng.normal(0, 1, size).cumsum(), 5) + rng.integers(40, size - 40)
        for row in range(-1, 2):
            truth[np.clip(np.rint(walk) + row, 0, size - 1).astype(int), columns] = True
    ground = 140 + ndimage.gaussian_filter(rng.normal(0, 30, (size, size)), 0.7)
    y, x = np.mgrid[:size, :size]
    for row, column in rng.integers(0, size, (4, 2)):
        ground[(y - row) ** 2 + (x - column) ** 2 < 36] -= 25
    luma = ground + depth * ndimage.gaussian_filter(truth.astype(float), 0.7)
    return np.repeat(luma.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2), truth


@pytest.fixture(scope="module")
def drawn() -> tuple[list[np.ndarray], list[np.ndarray]]:
    pictures, truths = zip(*(road(seed) for seed in range(4)))
    return list(pictures), list(truths)


@pytest.fixture(scope="module")
def fitted(drawn):
    return vitnp.Segmenter(domain="lines", short_side=64, n_threads=1).fit(drawn[0])


def test_cracks_are_found_and_stains_are_not(drawn, fitted):
    assert np.mean([iou(mask, truth) for mask, truth in zip(fitted.masks, drawn[1])]) > 0.6
    for seed in range(20, 23):
        assert not fitted.predict(road(seed, n_cracks=0)[0]).mask.any()


def test_sign_is_that_of_the_pictures():
    dark, truth = road(7)
    for pixels, bright in ((dark, False), (255 - dark, True)):
        assert fit_line_rule(count_responses(pixels)).bright is bright
        assert iou(find_lines(pixels)[0] >= 32768, truth) > 0.6


def test_ground_without_lines_has_an_empty_mask(drawn):
    for seed in range(3):
        result = vitnp.segment_image(road(seed, n_cracks=0)[0], short_side=64, domain="lines")
        assert not result.mask.any() and not result.soft.any()


def test_collection_knows_the_sign_of_its_lines(fitted):
    """Bright lines, such as paint, are none in a collection of dark ones, and neither are their dark flanks."""
    paint, truth = road(11, depth=+60)
    assert iou(vitnp.segment_image(paint, short_side=64, domain="lines").mask, truth) > 0.6
    result = fitted.predict(paint)
    assert iou(result.mask, truth) < 0.1 and result.confidence < 0.1


def test_saved_collection_keeps_its_rule(drawn, fitted, tmp_path):
    path = tmp_path / "roads.safetensors"
    fitted.save(path)
    loaded = Collection.load(path)
    assert loaded.lines == fitted.collection.lines and not loaded.lines.bright
    np.testing.assert_array_equal(vitnp.Segmenter.load(path).predict(drawn[0][1]).mask, fitted.masks[1])
    by_image = vitnp.segment_image(drawn[0][1], short_side=64, domain="lines", collection=path)
    np.testing.assert_array_equal(by_image.mask, fitted.masks[1])
    with pytest.raises(UsageError, match="domain lines, not photo"):
        vitnp.segment_image(drawn[0][1], short_side=64, collection=path)


@pytest.mark.parametrize("rule", [LineRule(False, 2.0, 1.0), LineRule(True, 0.0, 1.0), LineRule(False, np.nan, 1.0)])
def test_damaged_rule_is_refused(fitted, tmp_path, rule):
    path = tmp_path / "damaged.safetensors"
    dataclasses.replace(fitted.collection, lines=rule).save(path)
    with pytest.raises(CheckpointError, match="is damaged"):
        Collection.load(path)


def test_collection_of_lines_without_its_rule_is_refused(fitted, tmp_path):
    path = tmp_path / "damaged.safetensors"
    dataclasses.replace(fitted.collection, lines=None).save(path)
    with pytest.raises(CheckpointError, match="is damaged"):
        Collection.load(path)


def test_score_and_confidence_are_those_of_the_lines(drawn):
    result = vitnp.segment_image(drawn[0][0], short_side=64, domain="lines")
    rows, columns = result.score.shape
    means = result.soft.reshape(rows, 192 // rows, columns, 192 // columns).mean(axis=(1, 3)) / 65535
    np.testing.assert_allclose(result.score, means, atol=1e-4)
    assert result.confidence > 0.8
    assert result.parameters["domain"] == "lines" and result.parameters["refine"] == "none"


def test_same_masks_for_any_number_of_threads(drawn, fitted):
    again = vitnp.Segmenter(domain="lines", short_side=64, n_threads=2, batch=3).fit(drawn[0])
    for one, other in zip(fitted.masks, again.masks):
        np.testing.assert_array_equal(one, other)
    assert again.collection.digest == fitted.collection.digest


def test_a_refinement_is_refused():
    with pytest.raises(UsageError, match="domain lines finds pixels without a refinement, got refine 'solver'"):
        vitnp.segment_image(np.zeros((32, 32, 3), np.uint8), domain="lines", refine="solver")
    assert vitnp.options.Settings(domain="lines") == vitnp.options.Settings(domain="lines", refine="none")


def test_responses_of_a_line_are_its_contrast():
    """A Gaussian line of a filter's width, on ground whose deviation is known, answers with its contrast."""
    rng = np.random.default_rng(2)
    y = np.arange(256)[:, None]
    luma = 128 + rng.normal(0, 20, (256, 256)) - 100 * np.exp(-0.5 * ((y - 128) / 2.0) ** 2)
    dark, _ = line_responses(np.repeat(luma.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2))
    assert dark[128].mean() == pytest.approx(100 / luma[80:177].std(), rel=0.15)
    assert dark[128].min() > dark[:100].max()


def test_dark_and_bright_are_mirror_images():
    pixels, _ = road(5)
    dark, bright = line_responses(pixels)
    swapped = line_responses(255 - pixels)
    np.testing.assert_allclose(dark, swapped[1], atol=1e-3)
    np.testing.assert_allclose(bright, swapped[0], atol=1e-3)


def test_rule_needs_reliable_responses():
    assert fit_line_rule(np.zeros(COUNTS, np.int64)) == NO_LINES
    alike = np.tile(np.arange(COUNTS[1], 0, -1), (2, 1))
    assert fit_line_rule(alike) == NO_LINES
    counts = np.zeros(COUNTS, np.int64)
    counts[:, 10] = 1000
    counts[0, 100], counts[1, 100], counts[1, 200] = 30, 3, 400  # the bright tail is longer
    assert fit_line_rule(counts).bright


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (3, 500), (70, 70)])
def test_small_and_even_pictures_have_no_lines(shape):
    soft, confidence = find_lines(np.full((*shape, 3), 90, np.uint8))
    assert soft.shape == shape and not (soft >= 32768).any() and confidence == 0


def test_large_pictures_are_reduced(monkeypatch):
    pixels, truth = road(3)
    monkeypatch.setattr("vitnp.method.lines.WORKING_SIDE", 192)
    large = np.kron(pixels, np.ones((2, 2, 1), np.uint8))
    soft, _ = find_lines(large)
    assert soft.shape == (384, 384)
    assert iou(soft >= 32768, np.kron(truth, np.ones((2, 2), bool))) > 0.6
