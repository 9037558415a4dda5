"""The refinement "color": a division of the pixels along one direction of color."""

from __future__ import annotations

import numpy as np
import pytest

from vitnp.evaluate.metrics.saliency import iou
from vitnp.refine.color_direction import color_direction, otsu_threshold
from vitnp.refine.refine import refine


def leaves(seed: int, size: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """Draw green stripes on brown ground whose brightness drifts across the picture, stronger than stripes differ."""
    rng = np.random.default_rng(seed)
    truth = np.zeros((size, size), bool)
    truth[:, 40:44] = truth[:, 60:70] = truth[20:23] = True
    color = np.where(truth[..., None], (80, 130, 60), (130, 100, 80)) * np.linspace(0.6, 1.6, size)[:, None, None]
    return (color + rng.normal(0, 5, (size, size, 3))).clip(0, 255).astype(np.uint8), truth


def blurred(truth: np.ndarray, patch: int = 16) -> np.ndarray:
    """Return the share of foreground of each patch."""
    rows, columns = (side // patch for side in truth.shape)
    return truth.reshape(rows, patch, columns, patch).mean(axis=(1, 3))


def test_color_decides_between_pixels_of_one_patch():
    rgb, truth = leaves(0)
    score = np.kron(blurred(truth), np.ones((16, 16)))
    assert iou(score >= 0.5, truth) < 0.5
    assert iou(color_direction(score, rgb) >= 0.5, truth) > 0.85


def test_refinement_color_enlarges_patch_scores():
    rgb, truth = leaves(1)
    soft = refine(blurred(truth), rgb, method="color")
    assert soft.dtype == np.uint16
    assert iou(soft >= 32768, truth) > 0.85


def test_sides_are_swapped_with_the_scores():
    rgb, truth = leaves(2)
    score = np.kron(blurred(truth), np.ones((16, 16)))
    one, other = color_direction(score, rgb), color_direction(1 - score, rgb)
    assert np.mean((one >= 0.5) == (other < 0.5)) > 0.99


@pytest.mark.parametrize(
    ("score", "rgb"),
    [
        (np.arange(12.0).reshape(3, 4), np.full((3, 4, 3), 77, np.uint8)),
        (np.full((3, 4), 0.7), np.arange(36, dtype=np.uint8).reshape(3, 4, 3)),
        (np.ones((1, 1)), np.zeros((1, 1, 3), np.uint8)),
    ],
)
def test_one_color_or_one_score_gives_the_mean_score(score, rgb):
    np.testing.assert_allclose(color_direction(score, rgb), score.mean())


def test_wrong_shapes_and_values_are_refused():
    rgb = np.zeros((2, 2, 3), np.uint8)
    with pytest.raises(ValueError, match="height and width"):
        color_direction(np.zeros((2, 3)), rgb)
    with pytest.raises(ValueError, match="finite"):
        color_direction(np.full((2, 2), np.nan), rgb)
    with pytest.raises(ValueError, match="uint8"):
        color_direction(np.zeros((2, 2)), rgb.astype(float))


def test_otsu_threshold_is_the_best_of_all():
    """Against the definition: the largest variance between the two sides, over every value as threshold."""
    rng = np.random.default_rng(4)
    values = np.round(np.concatenate([rng.normal(20, 4, 300), rng.normal(60, 9, 150)]))

    def between(threshold):
        below, above = values[values < threshold], values[values >= threshold]
        return len(below) * len(above) * (below.mean() - above.mean()) ** 2

    best = max(between(threshold) for threshold in np.unique(values)[1:])
    assert between(otsu_threshold(values)) == pytest.approx(best, rel=0.01)
