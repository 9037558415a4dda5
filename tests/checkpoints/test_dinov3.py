"""DINOv3 in the dialects of its own code, timm and transformers: every feature agrees with their own code.

The golden files are those of golden/make_dinov3.py. `pytest -m parity`, with torch, timm and transformers installed,
makes the same networks anew with other numbers.
"""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
from safetensors.numpy import save_file

from vitnp import load_vit

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
NAMES = sorted(file.stem for file in (GOLDEN / "dinov3").glob("*.npz"))
FEATURES = {"query", "key", "value", "key_rotated", "token", "cls", "register", "attention"}
TOLERANCE = 1e-5  # features are of the order of 1


def write_checkpoint(arrays, folder):
    """Write the checkpoint of a golden file, and the files beside it, to a folder; return its path."""
    facts = json.loads(str(arrays["facts"]))
    for name, table in facts["files"].items():
        (folder / name).write_text(json.dumps(table))
    if "checkpoint.pth" in arrays:
        path = folder / "checkpoint.pth"
        path.write_bytes(arrays["checkpoint.pth"].tobytes())
        return path
    path = folder / "model.safetensors"
    save_file({name[8:]: a.astype(np.float32) for name, a in arrays.items() if name.startswith("weights/")}, path)
    return path


@pytest.fixture(params=NAMES)
def golden(request, tmp_path):
    """The arrays of a golden file, and its network."""
    with np.load(GOLDEN / "dinov3" / f"{request.param}.npz") as content:
        arrays = dict(content)
    return arrays, load_vit(write_checkpoint(arrays, tmp_path))


def test_every_feature_agrees_with_the_library(golden):
    arrays, vit = golden
    facts = json.loads(str(arrays["facts"]))
    assert vit.config.rotary and vit.config.registers == 4
    assert (vit.config.heads, vit.config.depth) == (facts["heads"], facts["depth"])
    for index, layers in enumerate(facts["layers"]):
        images = arrays[f"run{index}/images"].astype(np.float32)
        for layer in layers:
            start = f"run{index}/{layer}/"
            expected = {name[len(start) :]: array for name, array in arrays.items() if name.startswith(start)}
            assert set(expected) == FEATURES
            found = vit(images, expected, layer=layer)
            for name, array in expected.items():
                label = f"{name} of block {layer} at {images.shape}"
                np.testing.assert_allclose(found[name], array, rtol=0, atol=TOLERANCE, err_msg=label)
