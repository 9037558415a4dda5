"""Tests of training: run by `pytest -m train`, with torch installed; those of parts without torch always."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from PIL import Image
from toy import network, picture

HERE = Path(__file__).parent
WITHOUT_TORCH = {"test_pseudo_labels.py"}


def pytest_ignore_collect(collection_path, config):
    """Skip even the import of tests with torch in other runs: importing it takes seconds."""
    if collection_path.name in WITHOUT_TORCH:
        return None
    expression = config.option.markexpr
    return True if expression and "train" not in expression.replace("not train", "") else None


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents and item.path.name not in WITHOUT_TORCH:
            item.add_marker("train")


@pytest.fixture(scope="session")
def photographs(tmp_path_factory) -> Path:
    """A folder of twenty photographs, five of them in portrait format."""
    folder = tmp_path_factory.mktemp("photographs")
    for index in range(20):
        size = (340, 260) if index % 4 == 0 else (260, 340)
        Image.fromarray(picture(index, *size)).save(folder / f"{index:02}.jpg", quality=90)
    return folder


@pytest.fixture(scope="session")
def teacher_file(tmp_path_factory) -> Path:
    """A checkpoint file of four blocks."""
    from vitnp.checkpoints.safetensors_io import write_safetensors

    vit = network()
    path = tmp_path_factory.mktemp("teacher") / "toy_teacher.safetensors"
    config = dataclasses.asdict(vit.config)
    metadata = {name: str(config[name]) for name in ("heads", "pos_embed")}
    write_safetensors(
        path, vit.weights, {**metadata, "norm_eps": "1e-6", "mean": "0.5,0.5,0.5", "std": "0.25,0.25,0.25"}
    )
    return path


@pytest.fixture(scope="session")
def teacher(teacher_file):
    from vitnp.checkpoints.load import load_vit

    return load_vit(teacher_file)
