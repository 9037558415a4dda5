"""A small DINOv3 under the tensor names of its own code, transformers and timm."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import random_vit
from safetensors.numpy import save_file

from vitnp import ViT, ViTConfig, load_vit

CONFIG = ViTConfig(
    width=16, depth=2, heads=2, patch=4, grid=(56, 56), registers=4, layerscale=True, rotary=True, eps=1e-5
)
PERIODS = np.array([1, 10], np.float32)  # 100 ** (k / 2)
HF = {"model_type": "dinov3_vit", "hidden_size": 16, "patch_size": 4, "num_attention_heads": 2}
HF |= {"num_hidden_layers": 2, "num_register_tokens": 4, "intermediate_size": 8}
TIMM = {"architecture": "vit_small_patch16_dinov3", "model_args": {"num_heads": 2}}


def canonical(swiglu=False, **options):
    config = ViTConfig(**{**vars(CONFIG), "swiglu": swiglu})
    return random_vit.random_weights(
        config, seed=1, hidden=8, class_position=False, dtype=np.float32, **{"qkv_bias": False, **options}
    )


def rename(weights, *rules):
    table = {}
    for name, array in weights.items():
        for ours, theirs in rules:
            name = name.replace(ours, theirs)
        table[name] = array
    return table


def split(weights, module, names, kinds=("weight", "bias")):
    """Split each tensor of a module into as many as there are names."""
    table = {}
    for name, array in weights.items():
        stem, _, kind = name.rpartition(".")
        if stem.endswith(module) and kind in kinds:
            for part, piece in zip(names, np.split(array, len(names)), strict=True):
                table[f"{stem.removesuffix(module)}{part}.{kind}"] = piece
        else:
            table[name] = array
    return table


def official(weights):
    weights = split(weights, "mlp.w12", ("mlp.w1", "mlp.w2"))
    return rename(weights, ("register_tokens", "storage_tokens")) | {"mask_token": np.zeros((1, 16), np.float32)}


def transformers(weights):
    weights = split(weights, "attn.qkv", ("attention.q_proj", "attention.k_proj", "attention.v_proj"))
    weights = split(weights, "mlp.w12", ("mlp.gate_proj", "mlp.up_proj"))
    rules = (("blocks.", "layer."), ("attn.proj", "attention.o_proj"), ("mlp.w3", "mlp.down_proj"))
    rules += (("mlp.fc1", "mlp.up_proj"), ("mlp.fc2", "mlp.down_proj"))
    rules += (("ls1.gamma", "layer_scale1.lambda1"), ("ls2.gamma", "layer_scale2.lambda1"))
    rules += (("cls_token", "embeddings.cls_token"), ("register_tokens", "embeddings.register_tokens"))
    weights = rename(weights, *rules, ("patch_embed.proj", "embeddings.patch_embeddings"))
    return {name: array for name, array in weights.items() if name != "rope_embed.periods"}


def timm(weights):
    weights = split(weights, "mlp.w12", ("mlp.fc1_g", "mlp.fc1_x"))
    weights = split(weights, "attn.qkv", ("attn.q_bias", "attn.k_bias", "attn.v_bias"), kinds=("bias",))
    rules = (("register_tokens", "reg_token"), ("ls1.gamma", "gamma_1"), ("ls2.gamma", "gamma_2"))
    weights = rename(weights, *rules, ("mlp.w3", "mlp.fc2"), ("_bias.bias", "_bias"))
    return {name: a for name, a in weights.items() if name != "rope_embed.periods" and not name.endswith("k_bias")}


def load_from(
    folder: pathlib.Path, weights, config=None, preprocessor=None, name="model.safetensors", **options
) -> ViT:
    """Write weights with these JSON files beside them to a folder, and load them."""
    save_file(weights, folder / name)
    for file, content in (("config.json", config), ("preprocessor_config.json", preprocessor)):
        (folder / file).unlink(missing_ok=True)
        if content is not None:
            (folder / file).write_text(json.dumps(content))
    return load_vit(folder / name, **options)
