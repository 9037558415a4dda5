"""Labeled crops: every patch gets the label of exactly the part of the photograph that it shows."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from PIL import Image
from toy import picture
from vitnp.weights.train.data.labeled import LabeledCropLoader, jitter_colors
from vitnp.weights.train.data.packs import list_pictures

from vitnp.errors import ImageError

PATCH = 16


@pytest.fixture
def gray(tmp_path):
    """Eight smooth gray photographs of several sizes."""
    for index in range(8):
        image = Image.fromarray(picture(index, 300 + 20 * index, 400 - 20 * index)).convert("L").convert("RGB")
        image.save(tmp_path / f"{index}.png")
    return list_pictures([tmp_path])


def loader(pictures, **options):
    images = [Image.fromarray(picture.read()[..., 0]) for picture in pictures]
    maps = [np.asarray(image.resize((image.width // 3, image.height // 3), Image.BOX)) for image in images]
    return LabeledCropLoader(pictures, maps, batch_size=4, patch=PATCH, seed=0, **options)


def test_targets_are_cut_like_the_crops(gray, monkeypatch):
    """If a photograph is its own map, the targets are the brightness of the patches."""
    monkeypatch.setattr("vitnp.weights.train.data.labeled.jitter_colors", lambda crops, rng: crops)
    shapes = set()
    for index in range(12):
        crops, targets = loader(gray).batch(index)
        shapes.add(crops.shape[2:])
        brightness = torch.nn.functional.avg_pool2d(crops[:, 0], PATCH).flatten(1) / 255
        assert targets.shape == brightness.shape
        assert (targets - brightness).abs().mean() < 0.01
    assert len(shapes) > 2


def test_batches_are_the_same_from_threads(gray):
    batches = loader(gray, n_threads=2).prefetch(3)
    for index in (3, 4, 5):
        expected, got = loader(gray).batch(index), next(batches)
        assert all(map(torch.equal, expected, got))
    batches.close()


def test_a_lost_photograph_is_an_error(gray):
    labeled = loader(gray)
    for photograph in gray:
        photograph.source.unlink()
    with pytest.raises(ImageError, match="no longer be read|none of the"):
        labeled.batch(0)


def test_jitter_changes_colors_and_nothing_else():
    crops = 255 * torch.rand((200, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    jittered = jitter_colors(crops, np.random.default_rng(0))
    assert jittered.min() >= 0 and jittered.max() <= 255
    unchanged = (jittered - crops).abs().amax((1, 2, 3)) < 1e-3
    gray = (jittered[:, 0] - jittered[:, 1]).abs().amax((1, 2)) < 1e-3
    assert 10 < unchanged.sum() < 70 and 10 < gray.sum() < 70
    # Where nothing is clipped, the color of a pixel is a linear function of what it was.
    dark = jitter_colors(crops / 2, np.random.default_rng(1))
    for before, after in zip(crops[:20] / 2, dark[:20], strict=True):
        source = before.mean(0, keepdim=True).expand(3, -1, -1) if torch.equal(after[0], after[1]) else before
        inside = (after > 0) & (after < 255)
        assert torch.corrcoef(torch.stack([source[inside], after[inside]]))[0, 1] > 0.999
