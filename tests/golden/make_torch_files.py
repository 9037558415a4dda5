"""Make tests/golden/torch_files with torch, in both of its containers.

    python tests/golden/make_torch_files.py          # needs torch and numpy; torch 2.13.0 made the stored files

The contents come from :func:`vit_arrays` and :func:`odd_arrays`, which need NumPy only: the tests compare what they
read with the results of the same functions.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import pathlib
import types

import numpy as np

FOLDER = pathlib.Path(__file__).parent / "torch_files"


def vit_arrays(seed: int) -> dict[str, np.ndarray]:
    """Return a ViT of width 8 with one block, patch size 2 and grid 3 x 3, under canonical names."""
    rng = np.random.default_rng(seed)
    shapes = {
        "cls_token": (1, 1, 8),
        "pos_embed": (1, 10, 8),
        "patch_embed.proj.weight": (8, 3, 2, 2),
        "patch_embed.proj.bias": (8,),
        "blocks.0.norm1.weight": (8,),
        "blocks.0.norm1.bias": (8,),
        "blocks.0.attn.qkv.weight": (24, 8),
        "blocks.0.attn.qkv.bias": (24,),
        "blocks.0.attn.proj.weight": (8, 8),
        "blocks.0.attn.proj.bias": (8,),
        "blocks.0.norm2.weight": (8,),
        "blocks.0.norm2.bias": (8,),
        "blocks.0.mlp.fc1.weight": (16, 8),
        "blocks.0.mlp.fc1.bias": (16,),
        "blocks.0.mlp.fc2.weight": (8, 16),
        "blocks.0.mlp.fc2.bias": (8,),
        "norm.weight": (8,),
        "norm.bias": (8,),
    }
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def odd_arrays() -> dict[str, np.ndarray]:
    """Return tensors of every storage type and with every kind of stride and offset."""
    base = np.arange(60, dtype=np.float32)
    table = {
        "transposed": base[:12].reshape(3, 4).T,
        "offset": base[20:32].reshape(2, 6)[:, 1:5:2],
        "other_view_of_it": base[25:30],
        "expanded": np.broadcast_to(base[50:51], (3, 2)),
        "channels_last": base.reshape(1, 3, 4, 5).transpose(0, 3, 1, 2),
        "scalar": base[7].reshape(()),
        "empty": np.empty((0, 4), np.float32),
    }
    for code in ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "c8", "c16"):
        table[f"type_{code}"] = np.array([0, 1, 2, 100]).astype(code)
    table["type_bool"] = np.array([True, False, True])
    table["type_bfloat16"] = np.array([1.0, -2.5, 3e38, 1e-30], np.float32)
    return table


def _odd(torch):
    base = torch.arange(60, dtype=torch.float32)
    table = {
        "transposed": base[:12].reshape(3, 4).T,
        "offset": base[20:32].reshape(2, 6)[:, 1:5:2],
        "other_view_of_it": base[25:30],
        "expanded": base[50:51].expand(3, 2),
        "channels_last": base.reshape(1, 3, 4, 5).permute(0, 3, 1, 2),
        "scalar": base[7],
        "empty": torch.empty(0, 4),
    }
    types = {
        "f8": "float64",
        "f4": "float32",
        "f2": "float16",
        "i8": "int64",
        "i4": "int32",
        "i2": "int16",
        "i1": "int8",
    }
    types |= {"u1": "uint8", "c8": "complex64", "c16": "complex128"}
    for code, name in types.items():
        table[f"type_{code}"] = torch.tensor([0, 1, 2, 100], dtype=getattr(torch, name))
    table["type_bool"] = torch.tensor([True, False, True])
    table["type_bfloat16"] = torch.tensor([1.0, -2.5, 3e38, 1e-30]).to(torch.bfloat16)
    return {"tensors": table, "shape": base.reshape(3, 20).shape, "parameter": torch.nn.Parameter(base[:3])}


def _training_checkpoint(torch):
    def network(seed, prefix):
        return collections.OrderedDict((prefix + k, torch.from_numpy(v)) for k, v in vit_arrays(seed).items())

    student = network(1, "module.backbone.")
    student["module.head.last_layer.weight_g"] = torch.ones(3, 1)
    teacher = network(2, "backbone.")
    teacher["head.mlp.1.num_batches_tracked"] = torch.tensor(7)
    teacher._metadata = {"": {"version": 1}}
    options = argparse.Namespace(arch="vit_nano", patch_size=2, lr=np.float64(0.0005))
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    return {
        "student": student,
        "teacher": teacher,
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "args": options,
        "best": np.float64(0.25),
    }


def _surrounded(torch):
    """Return a state dict with the names that wrappers give, amid what training code puts beside it."""
    wrapped = {}
    for name, array in vit_arrays(3).items():
        name = name.replace("blocks.0.", "blocks.0._checkpoint_wrapped_module.").replace("mlp.", "mlp._orig_mod.")
        wrapped[f"module._orig_mod.{name}"] = torch.from_numpy(array)
    wrapped["module._orig_mod.norm.weight"] = torch.nn.Parameter(wrapped["module._orig_mod.norm.weight"])
    wrapped["module._orig_mod.norm.weight"].tag = "a parameter with an attribute"
    wrapped["module._orig_mod.norm.bias"].tag = "a tensor with an attribute"
    beside = {
        "paths": [pathlib.PosixPath("/data/run"), pathlib.PurePosixPath(*"abcdefghijklmnopqrstuvwxyz")],
        "devices": {"cuda:0": torch.device("cuda:0"), torch.device("cpu"): "a device as a key"},
        "torch": [torch.float16, torch.strided, torch.Size([2, 3])],
        "namespaces": [argparse.Namespace(out=pathlib.PosixPath("out")), types.SimpleNamespace(lr=0.1)],
        "defaultdicts": [collections.defaultdict(list, loss=[np.float64(0.5)]), collections.defaultdict(int)],
        "nested": collections.defaultdict(collections.OrderedDict, a=collections.OrderedDict(b=1)),
        "counts": [collections.Counter("aab"), collections.deque([1, 2], 5), {1, 2}, frozenset({"x"})],
        "scalars": [np.float64(1.5), np.int64(3), np.bool_(True), np.str_("name"), 2j],
        "arrays": [np.arange(3.0), np.array(["a", None], object), np.asfortranarray(np.ones((2, 3))), np.dtype("f4")],
        "generators": [np.random.RandomState(0), np.random.default_rng(0)],
        "times": [datetime.datetime(2024, 1, 2), datetime.timedelta(3)],
        "builtins": [dict, slice(1, 2), range(3), bytearray(b"x"), ...],
        "tuples as keys": {(0, 1): "block", None: 1, 2.5: 2, True: 3},
        "other tensors": [
            torch.ones(2).to(torch.float8_e4m3fn),
            torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
            torch.eye(2).to_sparse(),
            torch.ones(2).untyped_storage(),
        ],
    }
    return {"model": wrapped, **beside}


def main() -> None:
    import torch

    FOLDER.mkdir(exist_ok=True)
    plain = collections.OrderedDict((k, torch.from_numpy(v)) for k, v in vit_arrays(0).items())
    for container, is_zip in (("zip", True), ("legacy", False)):
        for name, value in (("plain", plain), ("training", _training_checkpoint(torch)), ("odd", _odd(torch))):
            torch.save(value, FOLDER / f"{name}_{container}.pth", _use_new_zipfile_serialization=is_zip)
    for container, protocol in (("legacy", 2), ("zip", 2), ("zip", 5)):
        path, is_zip = FOLDER / f"surrounded_{container}_{protocol}.pth", container == "zip"
        torch.save(_surrounded(torch), path, pickle_protocol=protocol, _use_new_zipfile_serialization=is_zip)


if __name__ == "__main__":
    main()
