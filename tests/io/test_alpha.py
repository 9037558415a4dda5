"""Transparent pictures: what --alpha background, mask and ignore do."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vitnp import Segmenter, UsageError, segment_image
from vitnp.features.extract import prepare
from vitnp.features.spec import FeatureSpec
from vitnp.features.store import FeatureStore
from vitnp.features.stream import extract_to_store
from vitnp.io import decode
from vitnp.masks.alpha import opaque_part, without_white
from vitnp.masks.cutout import cutout

RGBA = np.array([[[200, 100, 0, 255], [200, 100, 0, 0], [200, 100, 0, 51]]], np.uint8)
OVER_WHITE = [[200, 100, 0], [255, 255, 255], [244, 224, 204]]


def sources(tmp_path):
    """The same picture as files, PIL images and an array."""
    for name in ("a.png", "a.tif", "a.webp"):
        Image.fromarray(RGBA).save(tmp_path / name, lossless=True, exact=True)
        yield tmp_path / name
    yield Image.fromarray(RGBA)
    yield RGBA


def test_what_is_decoded(tmp_path):
    for source in sources(tmp_path):
        for alpha, rgb in (("background", OVER_WHITE), ("mask", OVER_WHITE), ("ignore", [[200, 100, 0]] * 3)):
            image = decode.decode_image(source, alpha=alpha)
            assert image.rgb[0].tolist() == rgb
            assert (decode.read_image(source, alpha=alpha) == image.rgb).all()
            if alpha == "mask":
                assert image.opacity is not None
                assert image.opacity.tolist() == [[255, 0, 51]]
            else:
                assert image.opacity is None


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "I;16"])
def test_transparent_colors(tmp_path, mode):
    """Black is transparent, but has a color nevertheless."""
    levels = np.array([[0, 255]], np.uint8)
    picture = Image.fromarray(levels * np.uint16(257)) if mode == "I;16" else Image.fromarray(levels).convert(mode)
    try:
        picture.save(tmp_path / "a.png", transparency={"P": b"\0", "RGB": (0, 0, 0)}.get(mode, 0))
    except OSError:
        pytest.skip("this Pillow cannot write it")
    assert decode.read_image(tmp_path / "a.png")[0, :, 0].tolist() == [255, 255]
    assert decode.read_image(tmp_path / "a.png", alpha="ignore")[0, :, 0].tolist() == [0, 255]
    opacity = decode.decode_image(tmp_path / "a.png", alpha="mask").opacity
    assert opacity is not None
    assert opacity.tolist() == [[0, 255]]


@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "LA", "La", "PA"])
def test_ignoring_the_alpha_channel_of_any_mode(mode):
    """Premultiplied modes keep no color where nothing is opaque; here a fifth is."""
    rgba = Image.new("RGBA", (2, 1), (120, 120, 120, 51))
    modes = {
        "RGBA": rgba,
        "RGBa": rgba.convert("RGBa"),
        "LA": rgba.convert("LA"),
        "La": rgba.convert("LA").convert("La"),
    }
    picture = modes.get(mode) or Image.new("P", (2, 1)).convert("PA")
    expected = 0 if mode == "PA" else 120
    assert (decode.read_image(picture, alpha="ignore") == expected).all()


@pytest.mark.parametrize(("orientation", "expected"), [(1, [[1, 2, 3], [4, 5, 6]]), (6, [[4, 1], [5, 2], [6, 3]])])
def test_opacity_is_turned_like_the_pixels(tmp_path, orientation, expected):
    """Orientation 6: to be turned clockwise by 90 degrees."""
    rgba = np.zeros((2, 3, 4), np.uint8)
    rgba[..., 3] = [[1, 2, 3], [4, 5, 6]]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(rgba).save(tmp_path / "a.png", exif=exif)
    image = decode.decode_image(tmp_path / "a.png", alpha="mask")
    assert image.opacity is not None
    assert image.opacity.tolist() == expected
    assert (255 - image.rgb[..., 0] == image.opacity).all()


def test_transparent_parts_are_said_if_nobody_decided(tmp_path, caplog):
    Image.fromarray(RGBA).save(tmp_path / "a.png")
    for alpha in ("mask", "ignore"):
        decode.read_image(tmp_path / "a.png", alpha=alpha)
    assert not caplog.messages
    decode.read_image(tmp_path / "a.png")
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path / 'a.png'}: 67% of it is transparent and taken as white; --alpha mask")
    caplog.clear()
    Image.fromarray(RGBA[:, :1]).save(tmp_path / "b.png")  # opaque
    decode.read_image(tmp_path / "b.png")
    assert decode.decode_image(tmp_path / "b.png", alpha="mask").opacity is None
    assert not caplog.messages


def test_words_that_are_not_allowed():
    with pytest.raises(UsageError, match="alpha must be one of background, mask or ignore, got 'white'"):
        decode.read_image(RGBA, alpha="white")


# --- Masks ----------------------------------------------------------------------------------------------------------


def test_without_white_is_the_inverse_of_compositing():
    random = np.random.default_rng(0)
    colors = random.integers(0, 256, (50, 60, 3), dtype=np.uint8)
    opacity = random.integers(0, 256, (50, 60), dtype=np.uint8)
    restored = without_white(decode.read_image(np.dstack([colors, opacity])), opacity).astype(float)
    # Rounding to one of 255 levels weighs more the less is left of a color.
    error = np.abs(restored - colors).max(axis=-1)
    assert (error <= np.where(opacity > 0, 127.5 / np.maximum(opacity, 1) + 1, 255)).all()
    assert (restored[opacity == 0] == 0).all()


def test_opaque_part():
    soft = np.array([[0, 65535, 65535, 40000]], np.uint16)
    assert opaque_part(soft, np.array([[255, 127, 128, 255]], np.uint8)).tolist() == [[0, 32639, 32896, 40000]]


def test_a_cutout_has_neither_white_fringes_nor_more_opacity():
    rgb = decode.read_image(np.array([[[200, 100, 0, 204], [200, 100, 0, 255]]], np.uint8))
    found = cutout(rgb, np.full((1, 2), 65535, np.uint16), np.array([[204, 255]], np.uint8))
    assert found[0, 1].tolist() == [200, 100, 0, 255]
    assert found[0, 0, 3] == 204
    np.testing.assert_allclose(found[0, 0, :3], [200, 100, 0], atol=1)


def disc() -> np.ndarray:
    """An orange disc on green, of which the left half is transparent."""
    rgba = np.full((96, 128, 4), (40, 160, 60, 255), np.uint8)
    y, x = np.mgrid[:96, :128]
    rgba[np.hypot(y - 48, x - 64) < 30, :3] = 250, 80, 30
    rgba[:, :64, 3] = 0
    return rgba


@pytest.fixture(scope="module")
def results(builtin):
    return {
        alpha: segment_image(disc(), builtin, short_side=96, alpha=alpha) for alpha in ("background", "mask", "ignore")
    }


def test_mask_keeps_transparent_parts_out(results, builtin):
    hole = disc()
    hole[..., 3] = np.where(hole[..., 0] == 250, 0, 255)  # a white disc on green, if it is composited
    found = {alpha: segment_image(hole, builtin, short_side=96, alpha=alpha).mask for alpha in ("background", "mask")}
    assert found["background"][48, 64]
    assert not found["mask"][hole[..., 3] == 0].any()
    assert not results["mask"].mask[:, :64].any()
    np.testing.assert_array_equal(results["mask"].mask[:, 64:], results["background"].mask[:, 64:])
    assert (np.asarray(results["mask"].cutout())[:, :64] == 0).all()


def test_ignore_is_the_picture_without_its_alpha_channel(results, builtin):
    plain = segment_image(disc()[..., :3], builtin, short_side=96)
    np.testing.assert_array_equal(results["ignore"].soft, plain.soft)
    assert results["ignore"].mask[48, 45]


def test_parameters_tell_results_apart(results):
    assert len({result.stamp["vitnp:parameters"] for result in results.values()}) == 3
    assert {result.parameters["alpha"] for result in results.values()} == {"background", "mask", "ignore"}


def test_features_of_another_alpha_are_not_reused(tmp_path, builtin):
    Image.fromarray(disc()).save(tmp_path / "a.png")
    pixels = {}
    for alpha in ("background", "ignore"):
        spec = FeatureSpec.of(builtin, short_side=96, regions=False, alpha=alpha)
        store = FeatureStore(tmp_path / "cache", spec)
        (name,) = extract_to_store([tmp_path / "a.png"], builtin, store).hashes
        assert name is not None
        rgb = decode.read_image(tmp_path / "a.png", alpha=alpha)
        assert store.entry(name).digest == prepare(rgb, builtin, spec).digest
        pixels[alpha] = np.array(store.entry(name).keys)
    assert not np.array_equal(pixels["background"], pixels["ignore"])


def test_a_collection_uses_it_too(tmp_path, builtin):
    for index in range(2):
        Image.fromarray(np.roll(disc(), 3 * index, axis=0)).save(tmp_path / f"{index}.png")
    paths = [tmp_path / f"{index}.png" for index in range(2)]
    masks = {
        alpha: Segmenter(builtin, short_side=96, alpha=alpha, cache=tmp_path / "cache").fit(paths).masks[0]
        for alpha in ("mask", "ignore")
    }
    assert not masks["mask"][:, :64].any()
    assert masks["ignore"][48, 45]
