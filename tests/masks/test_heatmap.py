"""Colors of heat maps: even steps of lightness, and values over a photograph in gray."""

from __future__ import annotations

import numpy as np

from vitnp.masks.heatmap import heat_colors, heatmap


def lightness(rgb: np.ndarray) -> np.ndarray:
    """Return CIE L* of sRGB colors, 0 to 100."""
    linear = np.where(rgb / 255 <= 0.04045, rgb / 255 / 12.92, ((rgb / 255 + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    return np.where(luminance > 216 / 24389, 116 * np.cbrt(luminance) - 16, luminance * 24389 / 27)


def test_lightness_rises_evenly():
    """Measured in another space (CIELAB) than the one the scale is made in, so only about evenly."""
    light = lightness(heat_colors(18).astype(float))
    assert light[0] < 3 and light[-1] > 94
    steps = np.diff(light)
    assert steps.min() > 1.5 and steps.max() < 7
    assert (np.diff(lightness(heat_colors(256).astype(float))) > -0.1).all()


def test_colors_are_all_different():
    assert len(np.unique(heat_colors(256), axis=0)) > 250


def test_the_photograph_shows_through_in_gray():
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    low, high = heatmap(rgb, np.full((5, 7), -1.0)), heatmap(rgb, np.full((5, 7), 2.0))
    assert low.dtype == np.uint8 and low.shape == rgb.shape
    gray = rgb @ [0.299, 0.587, 0.114]
    for picture, color in ((low, heat_colors()[0]), (high, heat_colors()[-1])):
        for channel in range(3):  # the same line for every pixel: colors of the photograph are gone
            slope, offset = np.polyfit(gray.ravel(), picture[..., channel].ravel(), 1)
            assert np.abs(slope * gray + offset - picture[..., channel]).max() < 1
            assert offset <= color[channel] + 1
    assert np.ptp(low.astype(int), axis=(0, 1)).min() > 2 * np.ptp(high.astype(int), axis=(0, 1)).max()
