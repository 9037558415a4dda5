"""DINOv3 in the dialects of its own code, timm and transformers: every feature agrees with their own code.

The golden files are those of golden/make_dinov3.py. `pytest -m parity`, with torch, timm and transformers installed,
makes the same networks anew with other numbers.
"""

from __future__ import annotations

import importlib
import json
import pathlib
import re
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from vitnp import load_vit

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
NAMES = sorted(file.stem for file in (GOLDEN / "dinov3").glob("*.npz"))
FEATURES = {"query", "key", "value", "key_rotated", "token", "cls", "register", "attention"}
DOCS = GOLDEN.parent.parent / "docs" / "checkpoints.md"
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


def assert_every_feature_agrees(arrays, folder):
    """Compare the features of a golden file's checkpoint with those that its library computed."""
    vit = load_vit(write_checkpoint(arrays, folder))
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


def test_golden_files_are_complete_and_small():
    assert len(NAMES) == 11
    assert sum(file.stat().st_size for file in (GOLDEN / "dinov3").iterdir()) <= 500_000


@pytest.mark.parametrize("name", NAMES)
def test_every_feature_agrees_with_the_library(name, tmp_path):
    with np.load(GOLDEN / "dinov3" / f"{name}.npz") as content:
        assert_every_feature_agrees(dict(content), tmp_path)


def test_the_table_in_the_docs_has_every_network_and_no_large_difference():
    rows = [line.split("|")[1:-1] for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    header = next(index for index, row in enumerate(rows) if "`key_rotated`" in " ".join(row))
    table = [[cell.strip() for cell in row] for row in rows[header + 1 :] if len(row) == len(rows[header])]
    assert sum(row[2].endswith(("DINOv3", "dinov3")) for row in table) == len(NAMES)
    for row in table:
        differences = [float(cell) for cell in row[3:] if cell]
        assert (
            len(differences) >= (8 if "v3" in row[2] and "MoCo" not in row[2] else 5) and max(differences) < TOLERANCE
        )


@pytest.fixture(scope="module")
def peers():
    """The module that makes the golden files."""
    for library in ("torch", "timm", "transformers"):
        pytest.importorskip(library, reason=f"{library} is absent: pip install timm transformers")
    sys.path.insert(0, str(GOLDEN))  # it imports its neighbor make_vit.py
    try:
        return importlib.import_module("make_dinov3")
    finally:
        sys.path.remove(str(GOLDEN))


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")  # of the libraries
@pytest.mark.parametrize("name", NAMES)
def test_files_that_the_library_saves_now(peers, tmp_path, name):
    assert_every_feature_agrees(peers.golden(peers.PEERS[name](100), 100), tmp_path)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("align_to", [None, 8])
def test_what_stands_for_the_official_code_agrees_with_timm_and_transformers(peers, align_to):
    """Load the weights of the network that was written anew into the libraries' own, by the names of the official code.

    timm renames them itself. transformers' conversion is not part of its package; its names are those of its script.
    """
    import timm
    import torch
    from timm.models.eva import checkpoint_filter_fn
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    own = peers.Official(align_to=align_to, rounded=False)  # timm and transformers compute periods in float32
    peers.randomize(own, 7)
    images = torch.randn(2, 3, 12, 20, generator=torch.Generator().manual_seed(7))
    expected, state = own(images), own.state_dict()

    architecture = "vit_small_plus_patch16_dinov3_qkvb" if align_to else "vit_small_patch16_dinov3_qkvb"
    sizes = {"patch_size": peers.PATCH, "embed_dim": peers.WIDTH, "depth": peers.DEPTH, "num_heads": peers.HEADS}
    of_timm = timm.create_model(architecture, img_size=24, mlp_ratio=2, num_classes=0, **sizes).eval()
    of_timm.load_state_dict(checkpoint_filter_fn(state, of_timm), strict=True)
    torch.testing.assert_close(of_timm.forward_features(images), expected, rtol=0, atol=1e-5)

    activation = {"use_gated_mlp": True, "hidden_act": "silu"} if align_to else {}
    of_transformers = DINOv3ViTModel(
        DINOv3ViTConfig(
            hidden_size=peers.WIDTH,
            intermediate_size=peers.HIDDEN,
            num_hidden_layers=peers.DEPTH,
            num_attention_heads=peers.HEADS,
            num_register_tokens=peers.REGISTERS,
            patch_size=peers.PATCH,
            **activation,
        )
    ).eval()
    of_transformers.load_state_dict(transformers_names(state), strict=True)
    torch.testing.assert_close(of_transformers(images).last_hidden_state, expected, rtol=0, atol=1e-5)


def transformers_names(state):
    """Rename the tensors of DINOv3's own code to those of transformers."""
    rules = (
        *((r"^(cls_token|mask_token)$", r"embeddings.\1"), (r"^storage_tokens$", "embeddings.register_tokens")),
        *((r"^patch_embed\.proj", "embeddings.patch_embeddings"), (r"^blocks\.", "model.layer.")),
        *((r"attn\.proj", "attention.o_proj"), (r"ls(\d)\.gamma", r"layer_scale\1.lambda1")),
        *((r"mlp\.w1", "mlp.gate_proj"), (r"mlp\.(w2|fc1)", "mlp.up_proj"), (r"mlp\.(w3|fc2)", "mlp.down_proj")),
    )
    renamed = {}
    for name, tensor in state.items():
        if "bias_mask" in name or "periods" in name:
            continue
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        if "attn.qkv" in name:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                renamed[name.replace("attn.qkv", f"attention.{letter}_proj")] = part
        else:
            renamed[name] = tensor[None] if name.endswith("mask_token") else tensor
    return {name: tensor for name, tensor in renamed.items() if not name.endswith("k_proj.bias")}
