"""Rotary position embeddings against DINOv3 in transformers and timm, with the same random weights.

Run by ``pytest -m parity``, where these are installed. The weights are put into their modules here, so that nothing of
the reading of checkpoints takes part.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import random_vit

from vitnp import ViT, ViTConfig
from vitnp.vit import plain

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]  # of the libraries

TOLERANCE = 1e-5
SMALL = ViTConfig(width=48, depth=3, heads=3, patch=4, grid=(4, 4), registers=4, layerscale=True, eps=1e-5, rotary=True)
# The shapes of S, B and L; of S+ and H+ with its SwiGLU; of 7B with its heads of 128.
CONFIGS = {
    "GELU": SMALL,
    "SwiGLU": dataclasses.replace(SMALL, width=64, heads=4, swiglu=True),
    "heads of 128": dataclasses.replace(SMALL, width=256, heads=2, depth=2, swiglu=True),
}
HIDDEN = 96
SIZES = [(16, 16), (12, 28), (36, 8)]


@pytest.fixture(scope="module")
def torch():
    for library in ("torch", "timm", "transformers"):
        pytest.importorskip(library, reason=f"{library} is absent: pip install timm transformers")
    import torch

    return torch


def weights_of(config: ViTConfig, key_bias: bool) -> dict[str, np.ndarray]:
    weights = random_vit.random_weights(config, seed=7, hidden=HIDDEN, class_position=False, dtype=np.float32)
    if not key_bias:
        for index in range(config.depth):
            weights[f"blocks.{index}.attn.qkv.bias"][config.width : 2 * config.width] = 0
    return weights


def transformers_model(torch, config: ViTConfig, weights: dict[str, np.ndarray]):
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    model = DINOv3ViTModel(
        DINOv3ViTConfig(
            patch_size=config.patch,
            hidden_size=config.width,
            intermediate_size=HIDDEN,
            image_size=16,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            num_register_tokens=config.registers,
            use_gated_mlp=config.swiglu,
            hidden_act="silu" if config.swiglu else "gelu",
            key_bias=False,
            layer_norm_eps=config.eps,
            attn_implementation="eager",
        )
    ).eval()
    names = {"embeddings.mask_token": np.zeros((1, 1, config.width), np.float32)}
    names |= {f"embeddings.{name}": weights[name] for name in ("cls_token", "register_tokens")}
    for part in ("weight", "bias"):
        names[f"embeddings.patch_embeddings.{part}"] = weights[f"patch_embed.proj.{part}"]
        names[f"norm.{part}"] = weights[f"norm.{part}"]
    for index in range(config.depth):
        block, target = f"blocks.{index}", f"model.layer.{index}"
        for number in (1, 2):
            names[f"{target}.layer_scale{number}.lambda1"] = weights[f"{block}.ls{number}.gamma"]
        for part in ("weight", "bias"):
            for facet, tensor in zip("qkv", np.split(weights[f"{block}.attn.qkv.{part}"], 3)):
                names[f"{target}.attention.{facet}_proj.{part}"] = tensor
            names[f"{target}.attention.o_proj.{part}"] = weights[f"{block}.attn.proj.{part}"]
            for number in (1, 2):
                names[f"{target}.norm{number}.{part}"] = weights[f"{block}.norm{number}.{part}"]
            if config.swiglu:
                gate, up = np.split(weights[f"{block}.mlp.w12.{part}"], 2)
                down = weights[f"{block}.mlp.w3.{part}"]
                layers = {"gate_proj": gate, "up_proj": up, "down_proj": down}
            else:
                layers = {
                    "up_proj": weights[f"{block}.mlp.fc1.{part}"],
                    "down_proj": weights[f"{block}.mlp.fc2.{part}"],
                }
            names |= {f"{target}.mlp.{layer}.{part}": tensor for layer, tensor in layers.items()}
        del names[f"{target}.attention.k_proj.bias"]
    model.load_state_dict({name: torch.tensor(array) for name, array in names.items()}, strict=True)
    return model


def transformers_features(torch, monkeypatch, config: ViTConfig, weights, image: np.ndarray) -> dict[str, np.ndarray]:
    """Return the features of the last block, by the names of vitnp."""
    from transformers.models.dinov3_vit import modeling_dinov3_vit as module

    model, seen, rotate = transformers_model(torch, config, weights), {}, module.apply_rotary_pos_emb

    def recorded(query, key, *others, **options):
        seen["query"], seen["key"] = query, key
        seen["query_rotated"], seen["key_rotated"] = rotate(query, key, *others, **options)
        return seen["query_rotated"], seen["key_rotated"]

    monkeypatch.setattr(module, "apply_rotary_pos_emb", recorded)
    values = []
    model.model.layer[-1].attention.v_proj.register_forward_hook(lambda _, __, out: values.append(out[0]))
    with torch.no_grad():
        out = model(torch.tensor(image)[None], output_attentions=True)
    tokens, prefix = out.last_hidden_state[0], config.num_prefix_tokens
    found = {name: seen[name][0].transpose(0, 1).flatten(1) for name in ("query", "key", "key_rotated")}
    found |= {"value": values[-1], "token": tokens}
    found = {name: array[prefix:] for name, array in found.items()}
    found |= {"cls": tokens[0], "register": tokens[1:prefix], "attention": out.attentions[-1][0, :, 0, prefix:]}
    return {name: array.numpy() for name, array in found.items()}


def timm_tokens(torch, config: ViTConfig, weights, image: np.ndarray) -> np.ndarray:
    """Return all tokens after the final norm."""
    from functools import partial

    from timm.models.eva import Eva

    model = Eva(
        img_size=16, patch_size=config.patch, embed_dim=config.width, depth=config.depth, num_heads=config.heads,
        mlp_ratio=HIDDEN / config.width, qkv_bias=True, init_values=1.0, rope_type="dinov3", rope_temperature=100,
        rope_rotate_half=True, use_rot_pos_emb=True, use_abs_pos_emb=False, num_reg_tokens=config.registers,
        use_fc_norm=False, norm_layer=partial(torch.nn.LayerNorm, eps=config.eps), dynamic_img_size=True,
        swiglu_mlp=config.swiglu, swiglu_align_to=8, num_classes=0, global_pool="token",
    ).eval()  # fmt: skip
    names = {"cls_token": weights["cls_token"], "reg_token": weights["register_tokens"]}
    for name, array in weights.items():
        if name in ("cls_token", "register_tokens", "rope_embed.periods") or "attn.qkv.bias" in name:
            continue
        if ".mlp.w12." in name:
            gate, up = np.split(array, 2)
            names |= {name.replace("w12", "fc1_g"): gate, name.replace("w12", "fc1_x"): up}
            continue
        name = name.replace(".ls1.gamma", ".gamma_1").replace(".ls2.gamma", ".gamma_2").replace(".mlp.w3.", ".mlp.fc2.")
        names[name] = array
    for index in range(config.depth):
        query, _, value = np.split(weights[f"blocks.{index}.attn.qkv.bias"], 3)
        names |= {f"blocks.{index}.attn.q_bias": query, f"blocks.{index}.attn.v_bias": value}
    state = {name: torch.tensor(array) for name, array in names.items()}
    wrong = model.load_state_dict(state, strict=False)
    assert not wrong.unexpected_keys and all(name.startswith("head") for name in wrong.missing_keys), wrong
    with torch.no_grad():
        return model.forward_features(torch.tensor(image)[None])[0].numpy()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", list(CONFIGS))
def test_every_feature_agrees_with_transformers(torch, monkeypatch, name, size):
    config, image = CONFIGS[name], np.random.default_rng(8).standard_normal((3, *size)).astype(np.float32)
    weights = weights_of(config, key_bias=False)
    expected = transformers_features(torch, monkeypatch, config, weights, image)
    last = config.depth - 1
    found = ViT(config, weights)(image[None], list(expected), layer=last)
    plainly = plain.features(weights, config, image, last, config.patch)
    for feature, value in expected.items():
        np.testing.assert_allclose(found[feature][0], value, rtol=0, atol=TOLERANCE, err_msg=feature)
        np.testing.assert_allclose(plainly[feature], value, rtol=0, atol=TOLERANCE, err_msg=f"plain {feature}")
    largest = max(float(np.abs(found[feature][0] - value).max()) for feature, value in expected.items())
    print(f"{name} {size}: {largest:.1e}")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", list(CONFIGS))
def test_tokens_agree_with_timm(torch, name, size):
    config, image = CONFIGS[name], np.random.default_rng(9).standard_normal((3, *size)).astype(np.float32)
    weights = weights_of(config, key_bias=False)
    expected = timm_tokens(torch, config, weights, image)
    found = ViT(config, weights)(image[None], ("cls", "register", "token"))
    tokens = np.concatenate([found["cls"], found["register"][0], found["token"][0]])
    np.testing.assert_allclose(tokens, expected, rtol=0, atol=TOLERANCE)
    plainly = plain.features(weights, config, image, config.depth - 1, config.patch)
    np.testing.assert_allclose(plainly["token"], expected[config.num_prefix_tokens :], rtol=0, atol=TOLERANCE)
