"""Kernels for pictures: the compiled ones have the bits of the reference, which agrees with Pillow and with sums."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from vitnp.kernels import reference

from vitnp import kernels
from vitnp.io.resample import bilinear, taps

property_test = settings(derandomize=True, deadline=None, max_examples=30)
sides, seeds = st.integers(1, 30), st.integers(0, 99)

MATRIX = np.array([[0.4, 0.2, 0.1], [0.1, 0.5, 0.1], [0.1, 0.2, 0.3]], np.float32)
LINES = np.array([[255, 250, 240], [0, 190, 255]], np.uint8)


def painting(height: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A photograph, a blurred mask with many values of 0 and 255, and opacities."""
    rng = np.random.default_rng(seed)
    soft = rng.integers(-200, 456, (height, width)).clip(0, 255).astype(np.uint8)
    opacity = rng.integers(0, 256, (3, 256)).astype(np.uint8) * (rng.random((3, 256)) < 0.5).astype(np.uint8)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8), soft, opacity


@property_test
@given(sides, sides, seeds)
def test_overlay_is_painted_with_the_bits_of_the_reference(height, width, seed):
    arguments = (*painting(height, width, seed), MATRIX, 0.1, LINES)
    found = kernels.for_device("cpu").paint_overlay(*arguments)
    np.testing.assert_array_equal(found, reference.paint_overlay(*arguments))


@property_test
@given(st.integers(1, 9), st.integers(1, 90), seeds, st.sampled_from([0, 255]))
def test_overlay_far_from_the_outline(height, width, seed, most):
    """Where a mask is 0 or 255 all around, with tables that paint such pixels plainly, and with others."""
    rgb, soft, opacity = painting(height, width, seed)
    soft[:, : width * 3 // 4] = most
    if seed % 4:
        opacity[:, 0], opacity[:, 255] = 0, (255, 0, 0)
    arguments = (rgb, soft, opacity, MATRIX * np.float32(1.5), 0.1, LINES)
    found = kernels.for_device("cpu").paint_overlay(*arguments)
    np.testing.assert_array_equal(found, reference.paint_overlay(*arguments))


def test_overlay_is_what_pillow_composes():
    rgb, soft, opacity = painting(40, 50, seed=1)
    picture, mask = Image.fromarray(rgb), Image.fromarray(soft)
    tinted = Image.blend(picture, Image.new("RGB", picture.size, tuple(LINES[1].tolist())), 0.1)
    dimmed = picture.convert("RGB", tuple(np.hstack([MATRIX, np.zeros((3, 1))]).ravel().tolist()))
    expected = Image.composite(tinted, dimmed, mask.point(opacity[0].tolist()))
    for color, table in zip(LINES.tolist(), opacity[1:]):
        expected.paste(tuple(color), mask=mask.point(table.tolist()))
    np.testing.assert_array_equal(reference.paint_overlay(rgb, soft, opacity, MATRIX, 0.1, LINES), np.asarray(expected))


@property_test
@given(sides, sides, st.integers(0, 12), seeds)
def test_box_mean(height, width, radius, seed):
    values = np.random.default_rng(seed).normal(size=(height, width))
    found, wanted = (kernels.for_device(device).box_mean(values, radius) for device in ("cpu", "reference"))
    np.testing.assert_array_equal(found, wanted)
    windows = [
        [values[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1].mean() for x in range(width)]
        for y in range(height)
    ]
    np.testing.assert_allclose(wanted, windows, atol=1e-12)


@property_test
@given(sides, sides, sides, sides, seeds)
def test_linear_in_color(height, width, tall, wide, seed):
    rng = np.random.default_rng(seed)
    planes = rng.normal(size=(4, height, width)).astype(np.float32) / np.float32([300, 300, 300, 1]).reshape(4, 1, 1)
    rgb = rng.integers(0, 256, (tall, wide, 3), dtype=np.uint8)
    arguments = (planes, rgb, taps(height, tall, slice(None)), taps(width, wide, slice(None)))
    found = kernels.for_device("cpu").linear_in_color(*arguments)
    np.testing.assert_array_equal(found, reference.linear_in_color(*arguments))
    *slopes, offset = (bilinear(plane, (tall, wide)).astype(float) for plane in planes)
    exact = sum(slope * rgb[..., channel] for channel, slope in enumerate(slopes)) + offset
    assert found == pytest.approx(exact.clip(0, 1) * 65535, abs=1)
