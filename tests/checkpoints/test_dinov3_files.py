"""What a file of DINOv3 says and doesn't say: names, periods, bias mask, heads, normalization, JSON beside it."""

from __future__ import annotations

import json
import logging
import math

import numpy as np
import pytest
import random_vit
from safetensors.numpy import load_file, save_file

from vitnp import ViTConfig, load_vit
from vitnp.checkpoints import memory, registry
from vitnp.checkpoints.infer_config import infer_config
from vitnp.checkpoints.read import Checkpoint
from vitnp.checkpoints.state_dict_names import to_canonical
from vitnp.cli.weights import main
from vitnp.errors import CheckpointError

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


@pytest.fixture
def load(tmp_path):
    """Load weights with these files beside them."""

    def load(weights, config=None, preprocessor=None, name="model.safetensors", **options):
        save_file(weights, tmp_path / name)
        for file, content in (("config.json", config), ("preprocessor_config.json", preprocessor)):
            (tmp_path / file).unlink(missing_ok=True)
            if content is not None:
                (tmp_path / file).write_text(json.dumps(content))
        return load_vit(tmp_path / name, **options)

    return load


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


# ---- what lies beside the file -----------------------------------------------------------------------------------


def test_files_beside_are_honored(load):
    sat = registry.NORMALIZATIONS["sat493m"]
    preprocessor = {"image_mean": list(sat[0]), "image_std": list(sat[1]), "do_rescale": True, "do_normalize": True}
    config = load(transformers(canonical()), HF | {"layer_norm_eps": 1e-4, "image_size": 40}, preprocessor).config
    assert (config.eps, config.grid, config.heads, (config.mean, config.std)) == (1e-4, (10, 10), 2, sat)
    of_timm = TIMM | {"pretrained_cfg": {"mean": list(sat[0]), "std": list(sat[1]), "input_size": [3, 32, 48]}}
    config = load(timm(canonical()), of_timm).config
    assert (config.eps, config.grid, config.heads, (config.mean, config.std)) == (1e-5, (8, 12), 2, sat)


def test_fields_of_training_and_of_other_names_have_no_effect(load):
    fields = {"pos_embed_shift": 0.1, "pos_embed_jitter": 1.1, "pos_embed_rescale": 2.0, "layerscale_value": 1.0}
    fields |= {"pos_embed_rope_rescale_coords": 2, "pos_embed_rope_normalize_coords": "separate", "query_bias": True}
    arguments = {"rope_rescale_coords": 2.0, "rope_type": "dinov3", "num_reg_tokens": 4, "qkv_bias": True}
    assert load(transformers(canonical()), HF | fields).config == load(transformers(canonical()), HF).config
    with_arguments = TIMM | {"model_args": TIMM["model_args"] | arguments}
    assert load(timm(canonical()), with_arguments).config == load(timm(canonical()), TIMM).config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pos_embed_rope_normalize_coords": "max"}, "pos_embed_rope_normalize_coords: max"),
        ({"pos_embed_rope_min_period": 0.1}, "pos_embed_rope_min_period"),
        ({"pos_embed_rope_dtype": "bf16"}, "pos_embed_rope_dtype: bf16"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling"),
        ({"rope_theta": -1}, "base of its rotary positions"),
        ({"rope_theta": "x"}, "rope_theta"),
        ({"use_gated_mlp": True, "hidden_act": "silu"}, "SwiGLU is True"),
        ({"hidden_act": "silu"}, "hidden_act: silu"),
        ({"hidden_act": "gelu_new"}, "hidden_act: gelu_new"),
        ({"key_bias": "no"}, "key_bias"),
        ({"num_register_tokens": 5}, "registers is 5"),
        ({"intermediate_size": 9}, "width of the MLP is 9"),
        ({"num_attention_heads": 3}, "3 heads don't divide"),
        ({"num_attention_heads": 8}, "2 wide, but rotary positions need a multiple of 4"),
        ({"model_type": "dinov2_with_registers"}, "rotary positions is False"),
        ({"model_type": "dinov3_convnext"}, "ConvNeXt"),
    ],
)
def test_what_transformers_declares_and_vitnp_lacks_is_refused_by_name(load, fields, message):
    with pytest.raises(CheckpointError, match=message):
        load(transformers(canonical()), HF | fields)


def test_a_gated_mlp_takes_silu_only(load):
    weights = transformers(canonical(swiglu=True))
    assert load(weights, HF | {"use_gated_mlp": True, "hidden_act": "silu"}).config.swiglu
    with pytest.raises(CheckpointError, match="hidden_act: gelu, but vitnp computes gated MLPs with silu only"):
        load(weights, HF | {"use_gated_mlp": True, "hidden_act": "gelu"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rope_type": "cat"}, "rope_type: cat"),
        ({"rope_rotate_half": False}, "rope_rotate_half"),
        ({"rope_grid_offset": 0.5}, "rope_grid_offset"),
        ({"use_abs_pos_emb": True}, "use_abs_pos_emb"),
        ({"norm_layer": "layernorm"}, "norm_layer"),
        ({"qk_norm": True}, "qk_norm"),
        ({"swiglu_mlp": True}, "SwiGLU is True"),
        ({"scale_mlp": True}, "scale_mlp"),
        ({"something_new": 1}, "something_new"),
    ],
)
def test_what_timm_declares_and_vitnp_lacks_is_refused_by_name(load, arguments, message):
    with pytest.raises(CheckpointError, match=message):
        load(timm(canonical()), TIMM | {"model_args": {"num_heads": 2} | arguments})


def test_a_config_of_another_network_is_refused(load):
    # Its names are those of DINOv3 in timm, but its rotation is another one.
    with pytest.raises(CheckpointError, match="rotary positions is False"):
        load(timm(canonical()), {"architecture": "vit_small_patch16_224"})
    with pytest.raises(CheckpointError, match="base of its rotary positions is 50, but its tensor"):
        load(official(canonical()), HF | {"rope_theta": 50})
    with_key_bias = transformers(canonical(qkv_bias=True))
    assert load(with_key_bias, HF | {"key_bias": True})
    with pytest.raises(CheckpointError, match="key_bias is false, but its weights have one"):
        load(with_key_bias, HF | {"key_bias": False})


def test_the_normalization_of_satellite_photographs(load, caplog):
    sat = registry.NORMALIZATIONS["sat493m"]
    name = "dinov3_vitl16_pretrain_sat493m-eadcf0ff.safetensors"  # DINOv3's own file name, here of another size
    config = load(official(canonical()), name=name, heads=2).config
    assert (config.mean, config.std) == sat
    config = load(official(canonical()), normalization="sat493m").config
    assert (config.mean, config.std) == sat
    with caplog.at_level(logging.WARNING):
        assert load(official(canonical())).config.mean == registry.NORMALIZATIONS["imagenet"][0]
    assert "guess" not in caplog.text


def test_a_grid_that_can_not_be_is_refused(tmp_path):
    for grid in ("0,0", "1e9,1"):
        save_file(official(canonical()), tmp_path / "a.safetensors", {"grid": grid})
        with pytest.raises(CheckpointError, match="can't be that of its training"):
            load_vit(tmp_path / "a.safetensors")


def test_the_original_files_are_known_by_the_first_digits_of_their_sha256():
    assert registry.identify("renamed", "eadcf0ff" + "0" * 56).name == "dinov3_vitl16_sat"
    assert registry.identify("renamed", "0" * 64) is None
    assert registry.identify("dinov3_vits16_pretrain_lvd1689m-08c60483", "").name == "dinov3_vits16"


# ---- commands ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_convert_keeps_weights_and_configuration(load, tmp_path, dtype):
    vit = load(
        transformers(canonical(cls_norm=False, qkv_bias=True)), HF | {"rope_theta": 30.0, "layer_norm_eps": 1e-4}
    )
    out = tmp_path / "out.safetensors"
    assert main(["convert", str(tmp_path), str(out), "--dtype", dtype]) == 0
    (tmp_path / "config.json").unlink()
    after = load_vit(out)
    assert after.config == vit.config and set(after.weights) == set(vit.weights)
    for name, array in vit.weights.items():
        kept = array if name == "rope_embed.periods" else array.astype(dtype).astype(np.float32)
        np.testing.assert_array_equal(after.weights[name], kept)
    assert load_file(out)["rope_embed.periods"].dtype == np.float32


def test_info_says_what_rotates(load, tmp_path, capsys):
    def lines(*options):
        assert main(["info", str(tmp_path / "model.safetensors"), *options]) == 0
        return dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())

    load(official(canonical(cls_norm=True)))
    facts = {key: value.strip() for key, value in lines().items()}
    assert facts["positions"] == "rotary (its periods)" and facts["names"] == "DINOv3"
    assert facts["heads"] == "2 (rope_embed.periods)" and facts["LayerNorm eps"] == "1e-05 (DINOv3)"
    assert facts["final norm"] == "yes, another one for CLS and registers"
    load(transformers(canonical()), HF | {"rope_theta": 30})
    assert lines()["positions"].strip() == "rotary (base 30, config.json)"
    load(timm(canonical()), heads=2)
    assert lines("--heads", "2")["positions"].strip() == "rotary (base 100, as in timm-dinov3)"


def test_a_network_larger_than_memory_is_refused_with_the_number(load, monkeypatch):
    monkeypatch.setattr(memory, "machine_memory", lambda: 10_000)
    with pytest.raises(CheckpointError, match=r"billion parameters take 0.0 GB of memory .* this machine has 0.0 GB"):
        load(official(canonical()))
    zero = np.zeros((), np.float32)
    monkeypatch.setattr(memory, "machine_memory", lambda: 16 * 10**9)
    with pytest.raises(CheckpointError, match=r"6.7 billion parameters take 26.8 GB of memory as float32, .* 16.0 GB"):
        to_canonical(
            {"cls_token": zero.reshape(1, 1, 1), "blocks.0.attn.qkv.weight": np.broadcast_to(zero, (6_700, 10**6))}
        )
