"""DINOv3 and what lies beside its file, its names in the registry, and the commands about checkpoints."""

from __future__ import annotations

import functools
import logging

import numpy as np
import pytest
from dinov3_files import HF, TIMM, canonical, load_from, official, timm, transformers
from safetensors.numpy import load_file, save_file

from vitnp import load_vit
from vitnp.checkpoints import memory, registry
from vitnp.checkpoints.state_dict_names import to_canonical
from vitnp.cli.weights import main
from vitnp.errors import CheckpointError


@pytest.fixture
def load(tmp_path):
    """Load weights with these files beside them."""
    return functools.partial(load_from, tmp_path)


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
