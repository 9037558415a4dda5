"""Checkpoints as the libraries of their families save them, from the raw picture to the features.

The golden files are those of golden/make_families.py. `pytest -m parity`, with torch, timm and transformers installed,
makes the same families anew with other numbers, and checkpoints of DeiT, Franca, MAE, MoCo v3 and Web-SSL besides.
"""

from __future__ import annotations

import importlib.util
import json
import pathlib

import numpy as np
import pytest
from safetensors.numpy import save_file

from vitnp import load_vit
from vitnp.io.preprocess import normalize

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
NAMES = sorted(file.stem for file in (GOLDEN / "families").glob("*.npz"))
ALL_NAMES = sorted([*NAMES, "deit", "franca", "mae", "moco_v3", "webssl"])
# Features are of the order of 1. float32 in another order of operations differs by some 1e-6.
TOLERANCE = 1e-5


def largest_difference(vit, picture, expected):
    image = normalize(picture, vit.config.mean, vit.config.std)
    found = vit(image[None], tuple(expected))
    return max(float(np.abs(found[name][0] - value).max()) for name, value in expected.items())


def test_golden_files_are_complete_and_small():
    assert len(NAMES) == 12
    assert sum(file.stat().st_size for file in (GOLDEN / "families").iterdir()) < 500_000


@pytest.mark.parametrize("name", NAMES)
def test_features_of_a_raw_picture_agree_with_the_library(tmp_path, name):
    with np.load(GOLDEN / "families" / f"{name}.npz") as content:
        arrays = dict(content)
    for file, table in json.loads(str(arrays["files"])).items():
        (tmp_path / file).write_text(json.dumps(table))
    weights = {key[8:]: value for key, value in arrays.items() if key.startswith("weights/")}
    save_file(weights, tmp_path / "model.safetensors")
    vit = load_vit(tmp_path)
    for index in range(sum(key.startswith("picture") for key in arrays)):
        expected = {key: arrays[f"{key}{index}"] for key in ("key", "cls")}
        assert largest_difference(vit, arrays[f"picture{index}"], expected) < TOLERANCE


@pytest.fixture(scope="module")
def families():
    """The module that makes the families."""
    for library in ("torch", "timm", "transformers"):
        pytest.importorskip(library, reason=f"{library} is absent: pip install timm transformers")
    spec = importlib.util.spec_from_file_location("make_families", GOLDEN / "make_families.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")  # of the libraries
@pytest.mark.parametrize("name", ALL_NAMES)
def test_files_that_the_library_saves_now(families, tmp_path, name, record_property):
    peer = families.FAMILIES[name](tmp_path, seed=100)
    vit = load_vit(tmp_path / peer.file)
    differences = [
        largest_difference(vit, picture, families.features(peer, picture)) for picture in families.pictures(peer, 100)
    ]
    record_property("largest_difference", max(differences))
    print(f"{name}: {max(differences):.1e}")
    assert max(differences) < TOLERANCE
