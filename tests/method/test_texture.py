"""Pictures of many small parts on an even ground: the domain "texture"."""

from __future__ import annotations

import numpy as np
import pytest

import vitnp
from vitnp.errors import UsageError
from vitnp.evaluate.metrics.saliency import iou
from vitnp.method.collection import Collection
from vitnp.method.collection_level import CollectionLevelConfig, fit_level
from vitnp.method.texture import smaller_cluster, smaller_side, texture_image_level


def picture(seed: int, n_parts: int = 14, size: int = 192) -> tuple[np.ndarray, np.ndarray]:
    """Draw dark disks, also on the border, on a bright noisy ground; return pixels and truth."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    truth = np.zeros((size, size), bool)
    for row, column in rng.integers(0, size, (n_parts, 2)):
        truth |= (y - row) ** 2 + (x - column) ** 2 < rng.integers(6, 12) ** 2
    color = np.where(truth[..., None], (70, 30, 110), (205, 190, 215)) + rng.normal(0, 6, (size, size, 3))
    return color.clip(0, 255).astype(np.uint8), truth


@pytest.fixture(scope="module")
def drawn() -> tuple[list[np.ndarray], list[np.ndarray]]:
    pictures, truths = zip(*(picture(seed) for seed in range(4)))
    return list(pictures), list(truths)


@pytest.fixture(scope="module")
def fitted(drawn):
    return vitnp.Segmenter(domain="texture", short_side=192, n_threads=1).fit(drawn[0])


def test_texture_finds_small_parts_that_touch_the_border(drawn, fitted):
    found = np.mean([iou(mask, truth) for mask, truth in zip(fitted.masks, drawn[1])])
    as_photographs = vitnp.Segmenter(short_side=192, n_threads=1).fit(drawn[0])
    before = np.mean([iou(mask, truth) for mask, truth in zip(as_photographs.masks, drawn[1])])
    assert found > 0.8
    assert found > before + 0.1


def test_a_single_picture_needs_no_collection(drawn):
    pixels, truth = drawn[0][0], drawn[1][0]
    result = vitnp.segment_image(pixels, short_side=192, domain="texture")
    assert iou(result.mask, truth) > 0.7
    assert result.parameters["domain"] == "texture" and result.parameters["refine"] == "color"


def test_saved_collection_keeps_its_domain(drawn, fitted, tmp_path):
    path = tmp_path / "cells.safetensors"
    fitted.save(path)
    new, truth = picture(99)
    loaded = vitnp.Segmenter.load(path)
    assert loaded.settings.domain == "texture"
    result = loaded.predict(new)
    assert iou(result.mask, truth) > 0.7
    with_image = vitnp.segment_image(new, short_side=192, domain="texture", collection=Collection.load(path))
    np.testing.assert_array_equal(with_image.mask, result.mask)
    with pytest.raises(UsageError, match="domain texture, not photo"):
        vitnp.segment_image(new, short_side=192, collection=path)


def test_same_masks_for_any_number_of_threads(drawn, fitted):
    again = vitnp.Segmenter(domain="texture", short_side=192, n_threads=2, batch=3).fit(drawn[0])
    for one, other in zip(fitted.masks, again.masks):
        np.testing.assert_array_equal(one, other)
    assert again.collection.digest == fitted.collection.digest


def test_layer_and_refinement_may_be_given(drawn, fitted):
    depth = fitted.vit.config.depth
    assert fitted.parameters["layer"] == depth // 2
    result = vitnp.segment_image(drawn[0][0], short_side=192, domain="texture", layer=-1, refine="solver")
    assert (result.parameters["layer"], result.parameters["refine"]) == (depth - 1, "solver")


def test_photographs_do_not_change():
    assert vitnp.options.Settings() == vitnp.options.Settings(layer=-1, refine="solver", domain="photo")
    with pytest.raises(UsageError, match="domain must be one of photo, texture or lines, got 'cells'"):
        vitnp.segment_image(np.zeros((32, 32, 3), np.uint8), domain="cells")


def test_smaller_cluster():
    np.testing.assert_array_equal(smaller_cluster(np.array([5, 0, 3])), [0, 0, 1])
    np.testing.assert_array_equal(smaller_cluster(np.array([4, 4])), [1, 0])
    np.testing.assert_array_equal(smaller_cluster(np.array([4])), [0])


def test_uniform_keys_have_no_foreground():
    for n in (1, 6):
        soft, hard = texture_image_level(np.tile([[1.0, 0.0]], (n, 1)), (0,))
        assert not hard.any() and not soft.any()


def test_level_of_many_textures_ignores_the_hard_answers():
    keys = np.array([[1.0, 0.0]] * 7 + [[0.0, 1.0]] * 3, np.float32)
    config = CollectionLevelConfig(clusters=(2,), starts=1, max_iterations=5)
    level = fit_level(keys, np.repeat([1.0, 0.0], [7, 3]), (0,), config, domain="texture")
    np.testing.assert_array_equal(level.hard_foreground(keys), np.repeat([0.0, 1.0], [7, 3]))


def test_mask_covers_the_smaller_side():
    soft = np.array([[0, 32767, 32768, 65535, 65535]], np.uint16)
    np.testing.assert_array_equal(smaller_side(soft), [[65535, 32768, 32767, 0, 0]])
    np.testing.assert_array_equal(smaller_side(soft[:, :4]), soft[:, :4])


def test_thin_leaves_of_another_color_are_found_in_pixels(drawn):
    """Stripes of 3 pixels, far thinner than a patch, beside a broad part of their color."""
    rng = np.random.default_rng(5)
    truth = np.zeros((192, 192), bool)
    truth[40:90, 30:80] = True
    truth[120:123, 10:180] = truth[20:180, 150:153] = True
    color = np.where(truth[..., None], (90, 140, 60), (140, 110, 90)) + rng.normal(0, 8, (192, 192, 3))
    result = vitnp.segment_image(color.clip(0, 255).astype(np.uint8), short_side=192, domain="texture")
    assert iou(result.mask, truth) > 0.8
