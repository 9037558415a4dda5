"""Cutouts: colors at the edge, fringes, specks, backgrounds and crops, on pictures whose answer is known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from vitnp.kernels.threads import pool

from vitnp.errors import UsageError
from vitnp.io import color
from vitnp.io.icc import adobe_rgb
from vitnp.masks import backdrop
from vitnp.masks.cutout import box_with_margin, cutout, remove_specks, steep_alpha
from vitnp.masks.cutout_options import CutoutOptions
from vitnp.masks.foreground_colors import estimate_foreground
from vitnp.masks.fringe import dilate, without_fringe
from vitnp.result import Segmentation

ORANGE, SKY = (230, 120, 30), (60, 120, 220)


def composite(height: int = 120, width: int = 161, edge: float = 4.0):
    """A disc with a soft edge, of smooth colors over others: photograph, alpha, true colors of disc and background."""
    y, x = np.mgrid[:height, :width]
    alpha = np.clip(0.5 + (0.35 * height - np.hypot(y - height / 2, x - width / 2)) / edge, 0, 1)
    alpha = np.round(alpha * 255).astype(np.uint8)
    front = np.stack([200 + 40 * np.sin(x / 50), 90 + 30 * np.cos(y / 40), 40 + 0 * x], axis=-1)
    back = np.stack([50 + 0 * x, 120 + 20 * np.sin(y / 40), 210 + 30 * np.cos(x / 60)], axis=-1)
    share = alpha[..., None] / 255
    return np.round(share * front + (1 - share) * back).astype(np.uint8), alpha, front, back


# --- Colors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("edge", "tolerance"), [(1.5, 0.5), (4, 0.5), (40, 2)])
def test_colors_of_a_composite_are_recovered(edge, tolerance):
    rgb, alpha, front, _ = composite(edge=edge)
    positions, colors = estimate_foreground(rgb, alpha)
    assert sorted(positions) == np.flatnonzero((alpha > 0) & (alpha < 255)).tolist()
    true, share = front.reshape(-1, 3)[positions], alpha.reshape(-1)[positions, None] / 255
    visible = share * np.abs(colors - true)  # an error weighs as much as it shows
    assert visible.mean() < tolerance
    assert (share * np.abs(rgb.reshape(-1, 3)[positions] - true)).mean() > 20  # what it was before


def test_colors_depend_on_neither_threads_nor_memory_layout():
    rgb, alpha, *_ = composite(900, 1000, edge=30)
    first = estimate_foreground(rgb, alpha)
    with pool.thread_limit(3):
        second = estimate_foreground(np.asfortranarray(rgb), np.asfortranarray(alpha))
    for one, other in zip(first, second):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 3)])
def test_small_pictures_of_nothing_but_edge(shape):
    positions, colors = estimate_foreground(np.full((*shape, 3), 100, np.uint8), np.full(shape, 128, np.uint8))
    assert len(positions) == np.prod(shape)
    assert (abs(colors.astype(int) - 100) <= 1).all()


def test_without_an_edge_there_is_nothing_to_estimate():
    for value in (0, 255):
        positions, colors = estimate_foreground(np.zeros((8, 9, 3), np.uint8), np.full((8, 9), value, np.uint8))
        assert positions.shape == (0,) and colors.shape == (0, 3)


# --- Fringe, specks, slope --------------------------------------------------------------------------------------------


def test_blue_sky_along_a_wing_disappears():
    """A mask that is two pixels too wide, of a wing whose own edge is blurred as a lens does it."""
    wing = np.zeros((200, 300))
    wing[80:120, 40:260] = 1
    share = ndimage.gaussian_filter(wing, 0.8)[..., None]
    rgb = np.round(share * ORANGE + (1 - share) * SKY).astype(np.uint8)
    mask = dilate(wing > 0.5, 2)
    found = cutout(rgb, mask * np.uint16(65535))
    shown = found[..., 3:] / 255
    blue = (shown[..., 0] > 0) & (found[..., 2] > 125)  # more of the sky's blue than of the wing's
    assert (shown[..., 0] * blue).sum() < 0.02 * (mask & ~(wing > 0.5)).sum()
    np.testing.assert_allclose(found[84:116, 44:256], np.broadcast_to((*ORANGE, 255), (32, 212, 4)), atol=1)
    assert shown[wing > 0.5].mean() > 0.97


def test_alpha_is_only_lowered_and_only_at_the_edge():
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (150, 160, 3), dtype=np.uint8)
    alpha = (ndimage.gaussian_filter(rng.standard_normal((150, 160)), 8) > 0).astype(np.uint8) * np.uint8(255)
    found = without_fringe(rgb, alpha)
    assert (found <= alpha).all()
    inside = ndimage.binary_erosion(alpha > 0, np.ones((3, 3)), iterations=3, border_value=1)
    assert (found[inside] == 255).all()


def test_colors_that_are_alike_leave_the_mask_as_it_is():
    alpha = np.zeros((40, 50), np.uint8)
    alpha[10:30, 10:40] = 255
    np.testing.assert_array_equal(without_fringe(np.full((40, 50, 3), 77, np.uint8), alpha), alpha)


@pytest.mark.parametrize("reach", [1, 2, 3, 5, 8])
def test_dilate(reach):
    mask = np.random.default_rng(reach).random((40, 31)) < 0.01
    np.testing.assert_array_equal(dilate(mask, reach), ndimage.maximum_filter(mask, 2 * reach + 1))


def test_specks_are_removed_and_small_parts_stay():
    alpha = np.zeros((200, 200), np.uint8)
    alpha[20:120, 20:120] = 255  # the object
    alpha[150:156, 150:156] = 200  # 36 pixels: less than 0.1 % and than a hundredth of the object
    alpha[121, 121] = 90  # it touches nothing but ...
    alpha[120, 120] = 90  # ... this corner of the object
    alpha[180:187, 20:40] = 255  # 140 pixels: more than both
    found = remove_specks(alpha)
    assert not found[150:156, 150:156].any()
    assert found[121, 121] == 90 and (found[180:187, 20:40] == 255).all() and found[119, 119] == 255
    assert alpha[150, 150] == 200  # the argument is unchanged
    birds = np.zeros((500, 500), np.uint8)
    birds[10:14, 10:14] = birds[400:403, 400:403] = 255  # small ones only: none is a speck
    assert remove_specks(birds) is birds


def test_the_slope_of_alpha():
    soft = np.arange(65536, dtype=np.uint16)[None]
    expected = ((soft.astype(int) - 32768) // 16 + 128).clip(0, 255)
    np.testing.assert_array_equal(steep_alpha(soft), expected)


# --- Crop and background ----------------------------------------------------------------------------------------------


def test_the_box_with_its_margin():
    alpha = np.zeros((100, 200), np.uint8)
    assert box_with_margin(alpha, 3) == (0, 0, 200, 100)
    alpha[10:21, 30:71] = 1
    assert box_with_margin(alpha, 0) == (30, 10, 71, 21)
    assert box_with_margin(alpha, 12) == (18, 0, 83, 33)
    assert box_with_margin(alpha, 50, percent=True) == (10, 0, 91, 41)  # half of 41 is 20 (to even)


def test_compositing():
    rgba = np.random.default_rng(0).integers(0, 256, (30, 40, 4), dtype=np.uint8)
    share = rgba[..., 3:] / 255
    expected = np.round(share * rgba[..., :3] + (1 - share) * np.array(SKY))
    np.testing.assert_allclose(backdrop.over_color(rgba, SKY), expected, atol=0.5)


def test_the_blurred_background_has_nothing_of_the_object():
    alpha = np.zeros((300, 400), np.uint8)
    alpha[100:200, 100:300] = 255
    rgb = np.where(alpha[..., None] > 0, np.uint8(ORANGE), np.uint8(SKY))
    np.testing.assert_allclose(backdrop.blurred_background(rgb, alpha), np.broadcast_to(SKY, rgb.shape), atol=2)
    stripes = np.zeros((300, 400, 3), np.uint8)
    stripes[:, ::2] = 200
    blurred = backdrop.blurred_background(stripes, np.zeros((300, 400), np.uint8))
    np.testing.assert_allclose(blurred[:, 30:-30], 100, atol=2)
    assert blurred.shape == stripes.shape


@pytest.mark.parametrize("shape", [(1, 1), (3, 500), (37, 1)])
def test_blurred_backgrounds_of_any_size(shape):
    for value in (0, 255):
        blurred = backdrop.blurred_background(np.full((*shape, 3), 90, np.uint8), np.full(shape, value, np.uint8))
        assert blurred.shape == (*shape, 3)


def result(**changes) -> Segmentation:
    rgb, alpha, *_ = composite()
    return Segmentation(
        image=rgb,
        soft=alpha.astype(np.uint16) * 257,
        score=np.zeros((2, 2), np.float32),
        keys=np.zeros((2, 2, 1), np.float32),
        confidence=1.0,
        parameters={},
        photograph="0",
        seconds={},
        capped=False,
        **changes,
    )


def test_cutouts_of_a_result():
    whole = result().cutout()
    alpha = np.asarray(whole)[..., 3]
    assert (whole.mode, whole.size) == ("RGBA", (161, 120))
    cropped = result().cutout(crop=3)
    left, top, right, bottom = box_with_margin(alpha, 3)
    np.testing.assert_array_equal(np.asarray(cropped), np.asarray(whole)[top:bottom, left:right])
    on_red = result().cutout(background="#f00", crop="0")
    assert on_red.mode == "RGB" and on_red.getpixel((0, 0)) == (255, 0, 0)
    blurred = result().cutout(background="blur")
    assert (blurred.mode, blurred.size) == ("RGB", (161, 120))
    opaque = alpha == 255
    np.testing.assert_array_equal(np.asarray(blurred)[opaque], np.asarray(whole)[opaque, :3])


def test_a_background_color_is_converted_to_the_profile_of_the_photograph():
    """Pure green of sRGB is (144, 255, 60) in Adobe RGB (1998), by its matrix and gamma 2.19921875."""
    profile = adobe_rgb()
    assert color.from_srgb((0, 255, 0), None) == (0, 255, 0)
    np.testing.assert_allclose(color.from_srgb((0, 255, 0), profile), (144, 255, 60), atol=2)
    pixel = dataclasses.replace(result(), profile=profile).cutout(background="lime").getpixel((0, 0))
    np.testing.assert_allclose(pixel, (144, 255, 60), atol=2)


@pytest.mark.parametrize("background", ["bluu", "#12", "#ff880080", "", 7, None])
def test_backgrounds_that_are_not_allowed(background):
    with pytest.raises(UsageError, match="background must be .*, got "):
        CutoutOptions(background)


@pytest.mark.parametrize("crop", ["wide", "-3", -3, "5 px", "%", True, float("nan"), [1]])
def test_crops_that_are_not_allowed(crop):
    with pytest.raises(UsageError, match="crop must be a margin in pixels or percent, such as 20 or 5%, got "):
        CutoutOptions(crop=crop)


def test_options_of_cutouts():
    assert CutoutOptions("White").color == (255, 255, 255)
    assert CutoutOptions("hsl(30, 100%, 50%)").color == (255, 128, 0)
    assert CutoutOptions("blur", 2.5).margin == (2.5, False)
    assert CutoutOptions().stamp == {} and CutoutOptions().margin is None
    stamps = {str(CutoutOptions(*options).stamp) for options in (("blur",), ("red",), ("red", 0), ("red", "0%"))}
    assert len(stamps) == 4


def test_cutouts_carry_the_resolution(tmp_path):
    from vitnp.io.metadata import Metadata

    found = result(metadata=Metadata((300.0, 150.0)))
    for kind, path in found.save(tmp_path / "a", ["mask", "overlay", "cutout", "soft"], crop=2).items():
        with Image.open(path) as picture:
            np.testing.assert_allclose(picture.info["dpi"], (300, 150), atol=0.02, err_msg=kind)
