"""Pictures of features: where patches lie, what is drawn between them, and which basis fits."""

from __future__ import annotations

import numpy as np
import pytest

from vitnp import PatchPCA, UsageError
from vitnp.features import pictures
from vitnp.features.enlarge import PatchPlaces
from vitnp.features.pictures import PictureMaker, basis_mismatch, comparable
from vitnp.features.record import FeatureRecord
from vitnp.features.spec import FeatureSpec
from vitnp.io.resample import bilinear


def record(grid: tuple[int, int], pixels: tuple[int, int], size: tuple[int, int], **arrays) -> FeatureRecord:
    return FeatureRecord("", grid, pixels, size, 0, False, lambda: arrays)


def test_patches_side_by_side_are_interpolated_as_by_resample():
    values = np.random.default_rng(0).random((4, 6)).astype(np.float32)
    features = record((4, 6), (32, 48), (75, 101))
    expected = bilinear(values, (75, 101))
    np.testing.assert_allclose(PatchPlaces(8, 8).enlarge(values, features), expected, atol=1e-6)
    band = PatchPlaces(8, 8).enlarge(values, features, slice(10, 30))
    assert np.array_equal(band, PatchPlaces(8, 8).enlarge(values, features)[10:30])


@pytest.mark.parametrize(("patch", "stride"), [(8, 8), (8, 4), (8, 2), (16, 8), (14, 7)])
def test_each_patch_is_drawn_where_it_was_cut_from(patch, stride):
    """The values are the places of the patches' centers, so what is drawn is the place of each pixel."""
    height, width = 5 * patch, 7 * patch
    rows, columns = (height - patch) // stride + 1, (width - patch) // stride + 1
    centers = np.stack(
        np.meshgrid(np.arange(rows) * stride + patch / 2, np.arange(columns) * stride + patch / 2, indexing="ij"), -1
    )
    features = record((rows, columns), (height, width), (3 * height, 2 * width))
    places = np.stack(
        np.meshgrid((np.arange(3 * height) + 0.5) / 3, (np.arange(2 * width) + 0.5) / 2, indexing="ij"), -1
    )
    inside = places.clip(patch / 2, np.array([height, width]) - patch / 2)
    np.testing.assert_allclose(PatchPlaces(patch, stride).enlarge(centers, features), inside, atol=1e-3)
    nearest = PatchPlaces(patch, stride, nearest=True).enlarge(centers, features)
    assert np.abs(nearest - inside).max() <= stride / 2 + 1e-3


def test_one_patch_covers_everything():
    features = record((1, 1), (8, 8), (5, 9))
    for nearest in (False, True):
        assert (PatchPlaces(8, 8, nearest).enlarge(np.array([[7.0]]), features) == 7).all()


def maker(keys: np.ndarray, **options) -> PictureMaker:
    return PictureMaker(PatchPlaces(8, 8), PatchPCA(**options).fit(keys, attention=np.arange(len(keys)) >= 30))


def halves() -> tuple[np.ndarray, FeatureRecord]:
    """Return keys of a background above a foreground of two parts, each of nearly one color."""
    rng = np.random.default_rng(0)
    keys = 0.001 * rng.normal(size=(60, 8))
    keys[30:, 0] += 10
    keys.reshape(6, 10, 8)[3:, :5, 1] += 1  # left and right part
    return keys, record((6, 10), (48, 80), (96, 160), keys=keys, attention=np.ones(60, np.float32))


def test_no_color_of_the_background_shines_through_at_the_edge():
    keys, features = halves()
    picture = maker(keys, foreground="auto").pca(features)
    assert picture.shape == (96, 160, 3) and picture.dtype == np.uint8
    drawn = picture.any(axis=2)
    assert not drawn[:47].any() and drawn[49:].all()
    edge, below = picture[49, :, 0].astype(int), picture[56, :, 0].astype(int)  # red; the other two are noise
    assert np.abs(edge - below).max() <= 1


def test_bands_leave_no_seams(monkeypatch):
    keys, features = halves()
    rgb = np.random.default_rng(1).integers(0, 256, (96, 160, 3), np.uint8)
    whole = [maker(keys, foreground="auto").pca(features), maker(keys).heat(keys[:, 1].reshape(6, 10), features, rgb)]
    monkeypatch.setattr(pictures, "_BAND_PIXELS", 1000)
    bands = [maker(keys, foreground="auto").pca(features), maker(keys).heat(keys[:, 1].reshape(6, 10), features, rgb)]
    assert all(np.array_equal(one, other) for one, other in zip(whole, bands))


def test_components_are_unknown_on_the_background():
    keys, features = halves()
    components = maker(keys, foreground="auto").components(features)
    assert np.isnan(components[:3]).all() and ((components[3:] >= 0) & (components[3:] <= 1)).all()


def test_a_basis_fits_other_sizes_and_strides_but_no_other_features(builtin):
    spec = FeatureSpec.of(builtin)
    basis = PatchPCA().fit(np.random.default_rng(0).normal(size=(50, builtin.config.width)))
    assert basis_mismatch(basis, spec, builtin.config.width) is None  # of arrays, only the width is known
    basis.features_ = comparable(spec)
    for same in (spec, FeatureSpec.of(builtin, short_side=160, stride=8, precision="float32", regions=False)):
        assert basis_mismatch(basis, same, builtin.config.width) is None
    for options, word in (({"facet": "token"}, "facet token"), ({"layer": 3}, "layer")):
        other = FeatureSpec.of(builtin, **options)
        with pytest.raises(UsageError, match="does not fit these features"):
            PictureMaker.of(builtin, other, basis)
        assert word.split()[0] in basis_mismatch(basis, other, builtin.config.width)
    assert "rows of" in basis_mismatch(basis, spec, 64)
