"""Tests of training: `pytest -m train`, with torch installed. They are no part of the ordinary run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from PIL import Image
from toy import network, picture

HERE = Path(__file__).parent


def pytest_ignore_collect(collection_path, config):
    """Not even imported unless asked for: importing torch takes seconds."""
    return None if "train" in config.option.markexpr.replace("not train", "") else True


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("train")


@pytest.fixture(scope="session")
def photographs(tmp_path_factory) -> Path:
    """A folder of twenty photographs, a few of them upright."""
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
