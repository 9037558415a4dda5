"""The checks of a download without a SHA-256, on files of the names and shapes that the publishers' servers hold."""

from __future__ import annotations

import json
import math
import struct

import pytest

from vitnp.checkpoints import registry
from vitnp.checkpoints.download import _SIZE_TOLERANCE, _check_unrecorded

UNRECORDED = [entry for entry in registry.entries().values() if entry.url and not entry.sha256]


def shapes_of_timm(entry: registry.Entry) -> dict[str, tuple[int, ...]]:
    """Return the tensors of an entry's file, which timm has published."""
    width, dinov2, dinov3 = entry.width, entry.name.startswith("dinov2"), entry.name.startswith("dinov3")
    n_patches = ((518 if dinov2 else 224) // entry.patch) ** 2
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, n_patches + (not dinov2), width),
        "patch_embed.proj.weight": (width, 3, entry.patch, entry.patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    if dinov3:
        del shapes["pos_embed"]
    if entry.registers:
        shapes["reg_token"] = (1, entry.registers, width)
    if "augreg" in entry.name:
        shapes |= {"head.weight": (1000, width), "head.bias": (1000,)}
    linear = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    hidden = 4 * width
    if "plus" in entry.name or "7b" in entry.name:
        hidden = 2 * width if "7b" in entry.name else hidden
        linear |= {"mlp.fc1_g": (hidden, width), "mlp.fc1_x": (hidden, width)}
    else:
        linear |= {"mlp.fc1": (hidden, width)}
    linear |= {"mlp.fc2": (width, hidden)}
    layer_scale = ("gamma_1", "gamma_2") if dinov3 else ("ls1.gamma", "ls2.gamma") if dinov2 else ()
    for index in range(entry.depth):
        for name, shape in linear.items():
            shapes |= {f"blocks.{index}.{name}.weight": shape, f"blocks.{index}.{name}.bias": shape[:1]}
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", *layer_scale):
            shapes[f"blocks.{index}.{name}"] = (width,)
        if dinov3:
            del shapes[f"blocks.{index}.attn.qkv.bias"]
    return shapes


@pytest.mark.parametrize("entry", UNRECORDED, ids=lambda entry: entry.name)
def test_the_published_file_passes_the_checks_of_its_entry(tmp_path, entry):
    header, start = {}, 0
    for name, shape in shapes_of_timm(entry).items():
        end = start + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + start)  # zeros that take no space on the disk
    assert path.stat().st_size / 1e6 == pytest.approx(entry.megabytes, rel=_SIZE_TOLERANCE / 2)
    if entry.megabytes < 300:
        _check_unrecorded(entry, path)
