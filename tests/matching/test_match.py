"""match_patches: mutual neighbors, their spread, pixel coordinates, masks."""

from __future__ import annotations

import json

import numpy as np
import pytest
import random_vit
from PIL import Image, ImageOps

import vitnp
from vitnp import ViT, ViTConfig
from vitnp.features.extract import extract
from vitnp.matching import match
from vitnp.matching.mutual import mutual_neighbors, spread_out
from vitnp.matching.picture import line_colors


@pytest.fixture(scope="module")
def vit() -> ViT:
    """A network so small that it takes no time."""
    config = ViTConfig(width=64, depth=2, heads=1, patch=8, grid=(4, 4))
    return ViT(config, random_vit.random_weights(config, seed=3, hidden=128, class_position=True, dtype=np.float32))


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)


def cosines(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = x.astype(np.float64), y.astype(np.float64)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)) @ (y / np.linalg.norm(y, axis=1, keepdims=True)).T


@pytest.mark.parametrize(("n", "k"), [(40, 30), (1, 9), (9, 1), (700, 300)])
def test_mutual_neighbors_are_those_of_brute_force(n, k):
    rng = np.random.default_rng(n)
    x, y = rng.standard_normal((n, 16)).astype(np.float32), rng.standard_normal((k, 16)).astype(np.float32)
    exact = cosines(x, y)
    expected = [(i, j) for i, j in enumerate(exact.argmax(axis=1)) if exact[:, j].argmax() == i]
    first, second, found = mutual_neighbors(x, y)
    assert list(zip(first, second)) == expected
    assert np.allclose(found, exact[first, second], atol=1e-6)


def test_no_rows_have_no_neighbors():
    assert [len(part) for part in mutual_neighbors(np.ones((0, 3)), np.ones((4, 3)))] == [0, 0, 0]


@pytest.mark.parametrize("count", [1, 5, 30, 99])
def test_the_spread_is_that_of_its_definition(count):
    rng = np.random.default_rng(1)
    points, scores = rng.integers(0, 20, (30, 2)).astype(float), rng.integers(0, 9, 30) / 9
    better = [[j for j in range(30) if (scores[j], -j) > (scores[i], -i)] for i in range(30)]
    radii = [min([np.hypot(*(points[j] - points[i])) for j in better[i]], default=np.inf) for i in range(30)]
    ranked = sorted(range(30), key=lambda i: (-scores[i], i))
    chosen = sorted(ranked, key=lambda i: (-radii[i], ranked.index(i)))[:count]
    assert spread_out(points, scores, count).tolist() == sorted(chosen, key=ranked.index)


def test_a_mirrored_photograph_is_matched_to_its_mirror_image(photograph, builtin, tmp_path):
    with Image.open(photograph) as image:
        ImageOps.mirror(image).save(tmp_path / "mirrored.png")
        width = image.width
    for options in ({}, {"whole": True}, {"facet": "token", "n_matches": "all"}):
        found = vitnp.match_patches(photograph, tmp_path / "mirrored.png", builtin, short_side=192, **options)
        error = np.abs(found.first_points + found.second_points * (1, -1) - (width, 0))
        # The patches are 25 pixels wide, and those of the mirror image need not be at the same places.
        assert (error.max(axis=1) <= 26).mean() > 0.9
        assert (np.diff(found.similarities) <= 0).all()
        assert len(found) == found.n_mutual if options.get("n_matches") == "all" else len(found) == 20


def test_a_photograph_is_matched_to_itself(vit, pixels):
    found = vitnp.match_patches(pixels, pixels, vit, whole=True, short_side=32, n_matches="all")
    assert len(found) == found.n_mutual == 4 * 6 and np.array_equal(found.first_points, found.second_points)
    assert np.allclose(found.similarities, 1)
    # 40 x 56 pixels enter the network as 32 x 48: a patch is 10 pixels high and 28 / 3 wide.
    by_patch = found.first_points[np.argsort(found.first_patches)].reshape(4, 6, 2)
    assert np.allclose(by_patch[:, 0, 1], [5, 15, 25, 35])
    assert np.allclose(by_patch[0, :, 0], (np.arange(6) + 0.5) * 56 / 6)


def test_centers_of_overlapping_patches(vit, pixels):
    found = vitnp.match_patches(pixels, pixels, vit, whole=True, short_side=32, stride=4, n_matches="all")
    assert found.grids == ((7, 11), (7, 11))
    by_patch = found.first_points[np.argsort(found.first_patches)]
    assert np.allclose(by_patch[0], (4 * 56 / 48, 4 * 40 / 32))  # half a patch, not half a stride, from the edges
    assert np.allclose(by_patch[-1], (56 - 4 * 56 / 48, 40 - 4 * 40 / 32))


def test_coordinates_are_those_of_the_upright_photograph(vit, pixels, tmp_path):
    upright = Image.fromarray(pixels)
    upright.save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    upright.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    options = {"whole": True, "short_side": 32, "n_matches": "all"}
    plain = vitnp.match_patches(tmp_path / "upright.png", pixels, vit, **options).to_dict()
    turned = vitnp.match_patches(tmp_path / "turned.png", pixels, vit, **options).to_dict()
    assert turned["matches"] == plain["matches"] and len(plain["matches"]) == 24
    assert (turned["first"]["width"], turned["first"]["height"]) == (56, 40)


def test_only_patches_of_the_masks_are_matched(vit, pixels, monkeypatch):
    """The left half of one photograph and the top half of the other one."""
    masks = {0: np.zeros((40, 56), bool), 1: np.zeros((40, 56), bool)}
    masks[0][:, :28], masks[1][:20] = True, True
    other = pixels[::-1].copy()

    class Segmented:
        def __init__(self, image):
            self.mask = masks[int(not np.array_equal(image.rgb, pixels))]

    monkeypatch.setattr(match.ImagePipeline, "segment", lambda self, image, *_: Segmented(image))
    found = vitnp.match_patches(pixels, other, vit, short_side=32, n_matches="all")
    assert (found.first_patches % 6 < 3).all() and (found.second_patches < 12).all()
    first, second = (extract(rgb, vit, short_side=32).keys for rgb in (pixels, other))
    left, top = np.flatnonzero(np.arange(24) % 6 < 3), np.arange(12)
    exact = cosines(first[left], second[top])
    expected = {(left[i], j) for i, j in enumerate(exact.argmax(axis=1)) if exact[:, j].argmax() == i}
    assert set(zip(found.first_patches, found.second_patches)) == expected


def test_without_an_object_there_is_one_sentence(vit, pixels, monkeypatch, tmp_path):
    class Empty:
        mask = np.zeros((40, 56), bool)

    monkeypatch.setattr(match.ImagePipeline, "segment", lambda *_: Empty())
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with pytest.raises(vitnp.ImageError, match=r"a.png: no object was found in it; match all patches \(--whole"):
        vitnp.match_patches(tmp_path / "a.png", pixels, vit, short_side=32)
    assert len(vitnp.match_patches(tmp_path / "a.png", pixels, vit, short_side=32, whole=True))


def test_runs_are_the_same(builtin, photograph):
    first, second = (
        vitnp.match_patches(photograph, photograph.parent / "chelsea.jpg", builtin, short_side=160) for _ in range(2)
    )
    assert json.dumps(first.to_dict()) == json.dumps(second.to_dict())
    assert first.picture().tobytes() == second.picture().tobytes()


def test_the_picture_has_a_line_in_its_own_color_for_each_match(vit, pixels):
    gray = np.full((40, 56, 3), 128, np.uint8)
    found = vitnp.match_patches(pixels, gray, vit, whole=True, short_side=32, n_matches=3)
    picture = np.asarray(found.picture())
    assert picture.shape == (40, 56 + 12 + 56, 3)
    for color, end in zip(line_colors(len(found)), found.second_points):
        x, y = int(end[0]) + 56 + 12, int(end[1])
        near = picture[max(0, y - 3) : y + 4, max(0, x - 3) : x + 4].reshape(-1, 3).astype(int)
        assert (np.abs(near - color).max(axis=1) < 9).any()
    assert len(set(line_colors(100))) == 100


@pytest.mark.parametrize("sizes", [((3000, 20), (20, 3000)), ((1, 1), (900, 1200)), ((30, 40), (600, 300))])
def test_pictures_of_unequal_sizes(vit, sizes):
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes)
    found = vitnp.match_patches(first, second, vit, whole=True, short_side=16, max_tokens=100)
    assert found.picture().width <= 1612 and found.picture().height <= 480


@pytest.mark.parametrize("options", [{"n_matches": 0}, {"n_matches": "most"}, {"facet": "keys"}, {"layer": 9}])
def test_values_that_are_not_allowed(vit, pixels, options):
    with pytest.raises(vitnp.UsageError, match=next(iter(options))):
        vitnp.match_patches(pixels, pixels, vit, **options)
