"""What a file of DINOv3 says by its tensors: names, the mask of the bias, norms, periods, heads."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import random_vit
from dinov3_files import CONFIG, HF, PERIODS, TIMM, canonical, load_from, official, timm, transformers

from vitnp import ViTConfig
from vitnp.checkpoints.infer_config import infer_config
from vitnp.checkpoints.read import Checkpoint
from vitnp.checkpoints.state_dict_names import to_canonical
from vitnp.errors import CheckpointError


@pytest.fixture
def load(tmp_path):
    """Load weights with these files beside them."""
    return functools.partial(load_from, tmp_path)


# ---- tensors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("swiglu", [False, True])
@pytest.mark.parametrize(
    ("dialect", "write", "options"),
    [
        ("DINOv3", official, {}),
        ("transformers-dinov3", transformers, {"heads": 2}),
        ("timm-dinov3", timm, {"heads": 2}),
    ],
)
@pytest.mark.parametrize("prefix", ["", "module.backbone."])
def test_every_dialect_gives_the_same_weights(load, swiglu, dialect, write, options, prefix):
    expected = canonical(swiglu)
    vit = load({prefix + name: array for name, array in write(expected).items()}, **options)
    biases = {name for name in vit.weights if name.endswith("attn.qkv.bias")}
    assert set(vit.weights) == set(expected) | biases and len(biases) == 2
    for name, array in expected.items():
        np.testing.assert_allclose(vit.weights[name], array, rtol=1e-6, err_msg=name)
    assert not any(vit.weights[name].any() for name in biases)
    assert vit.config == ViTConfig(**{**vars(CONFIG), "swiglu": swiglu})
    assert to_canonical(write(expected))[1].name == dialect


def test_layers_of_transformers_have_two_names():
    weights = transformers(canonical())
    later = {("model." + name if name.startswith("layer.") else name): array for name, array in weights.items()}
    before, after = to_canonical(weights)[0], to_canonical(later)[0]
    assert set(before) == set(after) and all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("mask", ["of DINOv3", "never set", "zero"])
def test_the_mask_of_the_bias_is_applied(load, mask):
    weights = canonical(qkv_bias=True)
    kept = [1.0, 0.0, 1.0] if mask != "zero" else [0.0] * 3
    tensors = official(weights)
    for index in range(2):
        values = [math.nan] * 3 if mask == "never set" else kept
        tensors[f"blocks.{index}.attn.qkv.bias_mask"] = np.repeat(np.array(values, np.float32), 16)
    tensors["blocks.0.attn.qkv.bias"] = tensors["blocks.0.attn.qkv.bias"].copy()
    tensors["blocks.0.attn.qkv.bias"][16:32] = math.nan  # hidden by the mask
    vit = load(tensors)
    for index in range(2):
        expected = np.where(np.repeat(kept, 16), weights[f"blocks.{index}.attn.qkv.bias"], 0)
        np.testing.assert_array_equal(vit.weights[f"blocks.{index}.attn.qkv.bias"], expected)
        assert f"blocks.{index}.attn.qkv.bias_mask" not in vit.weights


def test_norms_of_cls(load):
    tensors = official(canonical(cls_norm=True))
    vit = load(tensors | {"local_cls_norm.weight": np.ones(16, np.float32), "local_cls_norm.bias": np.ones(16)})
    np.testing.assert_array_equal(vit.weights["cls_norm.weight"], tensors["cls_norm.weight"])
    assert not any("local" in name or "mask" in name for name in vit.weights)
    del tensors["cls_norm.bias"]
    with pytest.raises(CheckpointError, match="'cls_norm.bias' is missing"):
        load(tensors)


def test_the_network_that_was_trained_is_taken_and_not_its_teacher(load):
    teacher = {f"teacher.backbone.{name}": array for name, array in official(canonical()).items()}
    trained = {name.replace("teacher", "model_ema"): 2 * array for name, array in teacher.items()}
    vit = load(teacher | trained)
    np.testing.assert_array_equal(vit.weights["cls_token"], 2 * canonical()["cls_token"])


@pytest.mark.parametrize(
    ("write", "change", "message"),
    [
        (official, {"blocks.0.mlp.w2.weight": None}, "'blocks.0.mlp.up_proj.weight' is missing, though"),
        (official, {"pos_embed": np.ones((1, 5, 16))}, "'pos_embed' doesn't belong"),
        (official, {"blocks.0.attn.q_norm.weight": np.ones(8)}, "q_norm.*another architecture"),
        (official, {"blocks.1.attn.qkv.bias_mask": np.ones(3), "blocks.1.attn.qkv.bias": np.ones(48)}, "doesn't fit"),
        (official, {"blocks.0.norm1.bias": None}, "'blocks.0.norm1.bias' is missing"),  # as with RMSNorm
        (official, {"rope_embed.periods": np.array([1.0, -10.0])}, "positive"),
        (official, {"rope_embed.periods": np.array([1.0, math.inf])}, "NaN or infinity"),
        (official, {"rope_embed.periods": np.ones((2, 2))}, "2 x 2, but should have 1"),
        (official, {"rope_embed.periods": np.ones(0)}, "needs 1"),
        (official, {"rope_embed.periods": np.ones(3)}, "12 wide"),
        (transformers, {"layer.0.attention.q_proj.bias": np.ones(16)}, "'blocks.1.attn.q.bias'|differ|qkv.bias"),
        (transformers, {"layer.0.attention.k_proj.weight": None}, "k.weight' is missing"),
        (transformers, {"layer.0.attention.q_norm.weight": np.ones(8)}, "q_norm.*another architecture"),
        (transformers, {"model.layer.0.norm3.weight": np.ones(8)}, "norm3.*another architecture"),
        (transformers, {"embeddings.position_embeddings": np.ones((1, 5, 16))}, "'pos_embed' doesn't belong"),
        (timm, {"blocks.0.attn.q_norm.weight": np.ones(8)}, "q_norm.*another architecture"),
        (timm, {"rope.freqs": np.ones(8)}, "rope.freqs.*another architecture"),
        (timm, {"blocks.0.gamma_2": None}, "'blocks.0.ls2.gamma' is missing"),
        (timm, {"blocks.0.gamma_1": None, "blocks.1.gamma_1": None}, "'pos_embed' is missing"),
    ],
)
def test_what_does_not_belong_to_dinov3_is_refused(load, write, change, message):
    tensors = write(canonical(swiglu=True)) | {n: a for n, a in change.items() if a is not None}
    with pytest.raises(CheckpointError, match=message) as caught:
        load({name: np.float32(a) for name, a in tensors.items() if change.get(name, a) is not None}, heads=2)
    assert "\n" not in str(caught.value)


# ---- periods and heads -------------------------------------------------------------------------------------------


def test_periods_of_the_file_count_and_tell_the_heads(load, tmp_path):
    rounded = np.array([1.0, 3.15625], np.float32)  # other numbers than the file of base 100 has
    vit = load(official(canonical() | {"rope_embed.periods": rounded}))
    np.testing.assert_array_equal(vit.weights["rope_embed.periods"], rounded)
    assert vit.config.heads == 2
    with pytest.raises(CheckpointError, match="belongs to heads that are 8 wide, but 4 heads .--heads. are 4 wide"):
        load(official(canonical()), heads=4)


def test_periods_that_the_file_does_not_hold_are_computed(load):
    for weights, config in ((transformers(canonical()), HF), (timm(canonical()), TIMM)):
        np.testing.assert_allclose(load(weights, config).weights["rope_embed.periods"], PERIODS, rtol=1e-7)
    other = load(transformers(canonical()), HF | {"rope_theta": 30})
    np.testing.assert_allclose(other.weights["rope_embed.periods"], [1, math.sqrt(30)], rtol=1e-7)
    arguments = {"num_heads": 2, "rope_temperature": 50.0}
    other = load(timm(canonical()), TIMM | {"model_args": arguments})
    np.testing.assert_allclose(other.weights["rope_embed.periods"], [1, math.sqrt(50)], rtol=1e-7)
    inverse = transformers(canonical()) | {"rope_embeddings.inv_freq": np.array([1, 0.2], np.float32)}
    np.testing.assert_allclose(load(inverse, heads=2).weights["rope_embed.periods"], [1, 5], rtol=1e-6)


def test_a_registered_name_has_the_periods_of_the_official_file(load):
    # A head of 64 has periods that bfloat16 doesn't hold; the file of timm, which the name stands for, has none.
    config = ViTConfig(**{**vars(CONFIG), "width": 64, "heads": 1})
    weights = random_vit.random_weights(
        config, seed=1, hidden=8, class_position=False, dtype=np.float32, qkv_bias=False
    )
    exact = load(timm(weights), heads=1).weights["rope_embed.periods"]
    named = load(timm(weights), name="dinov3_vits16.safetensors", heads=1).weights["rope_embed.periods"]
    np.testing.assert_allclose(exact, 100 ** (np.arange(16) / 16), rtol=1e-7)
    assert not (named.view(np.uint32) & 0xFFFF).any()  # bfloat16
    assert 1e-4 < np.abs(named / exact - 1).max() < 2**-8


@pytest.mark.parametrize(
    ("width", "depth", "heads"),
    [(384, 12, 6), (768, 12, 12), (1024, 24, 16), (1280, 32, 20), (4096, 40, 32)],
)
@pytest.mark.parametrize("write", [transformers, timm])
def test_heads_of_the_published_networks(tmp_path, caplog, width, depth, heads, write):
    zero = np.zeros((), np.float32)  # shown as tensors of any shape, which would take gigabytes
    config = ViTConfig(width=16, depth=1, heads=2, patch=16, grid=(14, 14), registers=4, layerscale=True, rotary=True)
    weights = random_vit.random_weights(
        config, seed=0, hidden=8, class_position=False, dtype=np.float32, qkv_bias=False
    )
    shapes = {
        name: tuple(width * side // 16 if side in (16, 48) else side for side in a.shape) for name, a in weights.items()
    }
    shapes["patch_embed.proj.weight"] = (width, 3, 16, 16)
    tensors = {name: np.broadcast_to(zero, shape) for name, shape in shapes.items()}
    for index in range(1, depth):
        tensors |= {n.replace(".0.", f".{index}."): a for n, a in tensors.items() if n.startswith("blocks.0.")}
    canonical_weights = {name: a for name, a in tensors.items() if name != "rope_embed.periods"}
    dialect = to_canonical(write(canonical()))[1]
    for index in range(depth):
        canonical_weights[f"blocks.{index}.attn.qkv.bias"] = np.broadcast_to(zero, (3 * width,))
    inferred = infer_config(Checkpoint(canonical_weights, dialect, {}), tmp_path / "a.pth")
    assert inferred.config.heads == heads and "guess" not in inferred.sources["heads"]
    # The networks of these sizes that were trained on satellite photographs have the same tensors.
    assert (inferred.sources["normalization"] == "a guess") == (width in (1024, 4096))
    logged = (
        "ImageNet's mean and standard deviation (--normalization, sat493m for satellite photographs)" in caplog.text
    )
    assert logged == (width in (1024, 4096))
