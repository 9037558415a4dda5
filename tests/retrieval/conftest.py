"""A network so small that it takes no time, and photographs for it."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
import random_vit
from PIL import Image
from safetensors.numpy import save_file

from vitnp import ViT, ViTConfig, load_vit


@pytest.fixture(scope="package")
def model(tmp_path_factory) -> pathlib.Path:
    """Write a small checkpoint."""
    config = ViTConfig(width=64, depth=2, heads=1, patch=8, grid=(4, 4))
    weights = random_vit.random_weights(config, seed=3, hidden=128, class_position=True, dtype=np.float32)
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    save_file(weights, path)
    return path


@pytest.fixture(scope="package")
def vit(model) -> ViT:
    """Return the network of that checkpoint."""
    return load_vit(model)


@pytest.fixture
def photographs(tmp_path):
    """Return a function that writes a photograph of noise below tmp_path."""

    def write(name: str, seed: int = 0, size: tuple[int, int] = (56, 40)) -> pathlib.Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    return write


@pytest.fixture
def images_run(monkeypatch) -> list[int]:
    """Return the numbers of images of each forward pass."""
    counts: list[int] = []
    call = ViT.__call__

    def counted(self, images, *arguments, **options):
        counts.append(len(images))
        return call(self, images, *arguments, **options)

    monkeypatch.setattr(ViT, "__call__", counted)
    return counts
