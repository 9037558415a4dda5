"""What the files beside a checkpoint declare is honored or refused by name, and what nothing says is guessed aloud."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import random_vit
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from vitnp import ViTConfig
from vitnp.checkpoints import registry
from vitnp.checkpoints.dialects import HEADS
from vitnp.checkpoints.infer_config import infer_config
from vitnp.checkpoints.load import describe, load_vit
from vitnp.checkpoints.read import Checkpoint
from vitnp.checkpoints.registry import NORMALIZATIONS
from vitnp.checkpoints.state_dict_names import to_canonical
from vitnp.cli.main import main
from vitnp.errors import CheckpointError, UsageError
from vitnp.features.spec import FeatureSpec

TIMM = {"architecture": "vit_tiny_patch16_224"}
VIT = {"model_type": "vit", "hidden_size": 8, "num_hidden_layers": 1, "patch_size": 2, "image_size": 6}
HALF = ((0.5,) * 3, (0.5,) * 3)


def tensors(width=8, depth=1, grid=(3, 3), class_position=True, **options):
    """Weights of zeros under canonical names."""
    config = ViTConfig(width=width, depth=depth, heads=1, patch=2, grid=grid, **options)
    weights = random_vit.random_weights(config, seed=0, hidden=16, class_position=class_position, dtype=np.float32)
    return {name: np.ascontiguousarray(array) for name, array in weights.items()}


def folder(path, weights, config=None, preprocessor=None, metadata=None, name="model.safetensors"):
    path.mkdir(exist_ok=True)
    save_file(weights, path / name, metadata)
    for file, content in (("config.json", config), ("preprocessor_config.json", preprocessor)):
        (path / file).unlink(missing_ok=True)
        if content is not None:
            (path / file).write_text(json.dumps(content))
    return path / name


@pytest.fixture
def load(tmp_path):
    """Load weights with these files beside them, and return the configuration."""

    def load(weights=None, config=None, preprocessor=None, **options):
        path = folder(tmp_path / "model", tensors() if weights is None else weights, config, preprocessor)
        return load_vit(path, **{"heads": None if config else 2, **options}).config

    return load


# ---- timm ------------------------------------------------------------------------------------------------------------


def test_a_config_of_timm_is_honored(load):
    config = load(
        tensors(grid=(4, 5)),
        TIMM
        | {
            "num_features": 8,
            "model_args": {"img_size": [8, 10], "num_heads": 4, "patch_size": 2, "depth": 1, "global_pool": "avg"},
            "pretrained_cfg": {
                "mean": [0.5] * 3,
                "std": [0.25] * 3,
                "input_size": [3, 6, 6],
                "interpolation": "bicubic",
            },
        },
    )
    assert (config.grid, config.heads, config.mean, config.std) == ((4, 5), 4, (0.5,) * 3, (0.25,) * 3)
    assert (config.pos_embed, config.eps) == ("antialias", 1e-6)


def test_a_flat_config_of_timm_and_what_it_leaves_out(load):
    config = load(config=TIMM | {"input_size": [3, 6, 6], "std": [0.5] * 3}, heads=1)
    assert (config.mean, config.std) == (NORMALIZATIONS["imagenet"][0], (0.5,) * 3)  # timm's defaults are ImageNet's
    assert load(config={"model_type": "timm_wrapper", **TIMM, "model_args": {"num_heads": 8}}).heads == 8


def test_positions_of_timm_without_one_for_cls(load):
    weights = tensors(grid=(15, 15), class_position=False)
    assert load(weights, TIMM | {"pretrained_cfg": {"input_size": [3, 30, 30]}}, heads=1).grid == (15, 15)
    assert load(weights, TIMM | {"model_args": {"no_embed_class": True}}, heads=1).grid == (15, 15)
    assert load(weights, TIMM | {"model_args": {"img_size": [28, 32]}}, heads=1).grid == (14, 16)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architecture": "swin_tiny_patch4_window7_224"}, "Swin"),
        ({"architecture": "vit_base_patch16_rope_ape_224"}, "rotary"),
        ({"architecture": "vit_base_patch16_rpn_224"}, "norms after"),
        ({"architecture": "mixer_b16_224"}, "mixer_b16_224, which is no plain ViT"),
        (TIMM | {"model_args": {"act_layer": "gelu_tanh"}}, "model_args.act_layer: gelu_tanh"),
        (TIMM | {"model_args": {"act_layer": "quick_gelu"}}, "exact gelu"),
        (TIMM | {"model_args": {"qk_norm": True}}, "model_args.qk_norm: True"),
        (TIMM | {"model_args": {"pre_norm": True}}, "model_args.pre_norm"),
        (TIMM | {"model_args": {"class_token": False}}, "model_args.class_token"),
        (TIMM | {"model_args": {"norm_layer": "rmsnorm"}}, "model_args.norm_layer"),
        (TIMM | {"model_args": {"in_chans": 4}}, "model_args.in_chans"),
        (TIMM | {"model_args": {"something_new": 1}}, "model_args.something_new"),
        (TIMM | {"model_args": {"reg_tokens": 4}}, "number of registers is 4"),
        (TIMM | {"model_args": {"embed_dim": 16}}, "width is 16, but its weights have 8"),
        (TIMM | {"num_features": 16}, "move config.json away"),
        (TIMM | {"model_args": {"img_size": 64}}, "--grid"),
        (TIMM | {"model_args": {"img_size": [6]}}, "img_size should be 2 numbers"),
        (TIMM | {"model_args": [1]}, "model_args in config.json"),
        (TIMM | {"pretrained_cfg": {"std": [0.5, 0, 0.5]}}, "isn't positive"),
        (TIMM | {"pretrained_cfg": {"input_size": [1, 6, 6]}}, "3 channels"),
        (TIMM | {"model_args": {"num_heads": "many"}}, "num_heads"),
    ],
)
def test_what_timm_declares_and_vitnp_lacks_is_refused_by_name(load, config, message):
    with pytest.raises(CheckpointError, match=message):
        load(config=config, heads=2)


# ---- transformers ----------------------------------------------------------------------------------------------------


def test_a_config_of_transformers_is_honored(load):
    config = load(tensors(grid=(3, 4)), VIT | {"image_size": [6, 8], "num_attention_heads": 8, "layer_norm_eps": 1e-3})
    assert (config.grid, config.heads, config.eps, config.pos_embed) == ((3, 4), 8, 1e-3, "exact")
    # What a file leaves out has the default of its model_type.
    assert load(config=VIT, heads=2).eps == 1e-12
    with pytest.raises(CheckpointError, match="12 heads don't divide"):
        load(config=VIT)
    with pytest.raises(CheckpointError, match="112 x 112 patches"):
        load(config={key: value for key, value in VIT.items() if key != "image_size"}, heads=2)
    backbone = {"model_type": "depth_anything", "backbone_config": VIT | {"num_attention_heads": 4}}
    assert load(config=backbone).heads == 4
    assert load(config={"name": "not that of a model"}, heads=2).eps == 1e-6


def test_antialiasing_belongs_to_registers_or_is_declared(load):
    with_registers = VIT | {"model_type": "dinov2_with_registers", "num_register_tokens": 2, "num_attention_heads": 2}
    assert load(tensors(registers=2), with_registers).pos_embed == "antialias"
    assert load(config=VIT | {"interpolate_antialias": True}, heads=2).pos_embed == "antialias"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "siglip_vision_model"}, "SigLIP"),
        ({"model_type": "dinov3_vit"}, "use of rotary positions is True"),
        ({"model_type": "yolos"}, "model_type: yolos"),
        ({"hidden_act": "gelu_pytorch_tanh"}, "hidden_act: gelu_pytorch_tanh"),
        ({"hidden_act": "quick_gelu"}, "hidden_act"),
        ({"num_channels": 1}, "num_channels"),
        ({"patch_size": [2, 4]}, "square patches"),
        ({"patch_size": 4}, "patch size is 4"),
        ({"num_hidden_layers": 2}, "number of blocks is 2"),
        ({"intermediate_size": 32}, "width of the MLP is 32"),
        ({"use_swiglu_ffn": True}, "SwiGLU is True"),
        ({"num_register_tokens": 4}, "registers is 4"),
        ({"use_relative_position_bias": True}, "use_relative_position_bias"),
        ({"qkv_bias": False}, "qkv_bias is false"),
        ({"qkv_bias": "no"}, "true or false"),
        ({"image_size": [6, 8]}, "3 x 4 patches"),
        ({"layer_norm_eps": -1}, "epsilon"),
        ({"layer_norm_eps": True}, "layer_norm_eps"),
    ],
)
def test_what_transformers_declares_and_vitnp_lacks_is_refused_by_name(load, fields, message):
    with pytest.raises(CheckpointError, match=message):
        load(config=VIT | fields, heads=2)


@pytest.mark.parametrize(
    ("preprocessor", "mean", "std"),
    [
        ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 0.00392156862745098}, 0.5, 0.5),
        ({"image_mean": 0.5, "image_std": 0.25}, 0.5, 0.25),
        ({"do_normalize": False, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}, 0, 1),
        ({"do_rescale": False, "image_mean": [102] * 3, "image_std": [51] * 3}, 0.4, 0.2),
        ({"do_normalize": False, "do_rescale": False}, 0, 1 / 255),
        ({"rescale_factor": 1 / 127.5, "image_mean": [1] * 3, "image_std": [1] * 3}, 0.5, 0.5),
    ],
)
def test_a_preprocessor_becomes_one_normalization(load, preprocessor, mean, std):
    config = load(preprocessor=preprocessor)
    np.testing.assert_allclose(config.mean, [mean] * 3, rtol=1e-12)
    np.testing.assert_allclose(config.std, [std] * 3, rtol=1e-12)
    assert load(preprocessor=preprocessor, normalization="half").mean == HALF[0]


@pytest.mark.parametrize(
    ("preprocessor", "message"),
    [
        ({"rescale_offset": True}, "rescale_offset"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order"),
        ({"rescale_factor": 0}, "rescale_factor"),
        ({"rescale_factor": 1}, "image_mean"),
        ({"image_mean": [0.5] * 3}, "only one of"),
        ({"image_mean": [0.5] * 3, "image_std": [0, 1, 1]}, "isn't positive"),
        ({"do_normalize": "yes"}, "true or false"),
    ],
)
def test_what_a_preprocessor_does_and_vitnp_does_not_is_refused_by_name(load, preprocessor, message):
    with pytest.raises(CheckpointError, match=message):
        load(preprocessor=preprocessor)


def test_two_files_that_disagree_are_refused(load):
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    timm = TIMM | {"pretrained_cfg": {"mean": [0.4] * 3}}
    with pytest.raises(CheckpointError, match="different mean and std"):
        load(config=timm, preprocessor=half, heads=2)
    assert load(config=timm, preprocessor=half, heads=2, normalization="half").mean == HALF[0]


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 10**400)
    | st.floats()
    | st.sampled_from(["", "gelu", "vit", "224", "a,b"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["height", "mean", "x"]), inner, max_size=2)
    ),
    max_leaves=4,
)
TIMM_ARGUMENTS = ("img_size", "num_heads", "patch_size", "reg_tokens", "qkv_bias", "act_layer", "norm_layer", "depth")
FIELDS = (
    *("architecture", "pretrained_cfg", "model_args", "num_features", "mean", "std", "input_size", "interpolation"),
    *(
        "model_type",
        "hidden_size",
        "num_attention_heads",
        "num_hidden_layers",
        "image_size",
        "patch_size",
        "hidden_act",
    ),
    *("layer_norm_eps", "mlp_ratio", "intermediate_size", "num_register_tokens", "use_swiglu_ffn", "backbone_config"),
    *("do_normalize", "do_rescale", "rescale_factor", "image_mean", "image_std", "size", "resample", "do_resize"),
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_json_beside_a_checkpoint_gives_a_network_or_one_sentence(tmp_path_factory, data):

    table = st.dictionaries(st.sampled_from(FIELDS), JSON_VALUES, max_size=4)
    config = data.draw(table) | data.draw(st.sampled_from([{}, TIMM, VIT]))
    if data.draw(st.booleans()):
        config["model_args"] = data.draw(st.dictionaries(st.sampled_from(TIMM_ARGUMENTS), JSON_VALUES, max_size=3))
    path = folder(tmp_path_factory.getbasetemp() / "any_json", tensors(), config, data.draw(table))
    try:
        loaded = load_vit(path, heads=2).config
    except CheckpointError as error:
        assert "\n" not in str(error) and len(str(error)) < 700
    else:
        assert np.isfinite([*loaded.mean, *loaded.std, loaded.eps]).all() and min(loaded.std) > 0


def test_layerscale_that_is_declared_and_not_there_is_refused(load):
    with pytest.raises(CheckpointError, match="says that the use of LayerScale is True, but its weights have False"):
        load(config={**TIMM, "model_args": {"init_values": 1e-5}})


@pytest.mark.parametrize("name", ["config", "preprocessor"])
@pytest.mark.parametrize("content", [[], 7, "vit"])
def test_json_that_is_no_table_is_refused(load, name, content):
    with pytest.raises(CheckpointError, match="config.json beside it should be a table, not"):
        load(**{name: content})


# ---- heads, normalization and grids that nothing declares ------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefix", "width", "depth", "heads"),
    [
        ("", 384, 12, 6),
        ("module.base_encoder.", 384, 12, 12),
        ("state_dict.module.momentum_encoder.", 384, 12, 12),
        ("module.base_encoder.", 768, 12, 12),
        ("", 768, 8, 8),
    ],
)
def test_heads_of_published_networks(tmp_path, prefix, width, depth, heads):
    zero = np.zeros((), np.float32)  # shown as tensors of any shape, which would take a gigabyte
    config = ViTConfig(width=width, depth=1, heads=1, patch=2, grid=(3, 3))
    shapes = {n: a.shape for n, a in random_vit.random_weights(config, seed=0, hidden=8, class_position=True).items()}
    for index in range(1, depth):
        shapes |= {n.replace(".0.", f".{index}."): shape for n, shape in shapes.items() if n.startswith("blocks.0.")}
    weights, dialect = to_canonical({prefix + n: np.broadcast_to(zero, shape) for n, shape in shapes.items()})
    inferred = infer_config(Checkpoint(weights, dialect, {}), tmp_path / "a.pth")
    assert inferred.config.heads == heads and "guess" not in inferred.sources["heads"]


def test_heads_of_large_networks():
    assert [HEADS[size] for size in ((1024, 24), (1280, 32), (1408, 40), (1536, 40))] == [16, 16, 16, 24]
    webssl = ((2688, 24), (3072, 26), (3584, 32), (4096, 32))
    assert [HEADS[size] for size in webssl] == [21, 24, 28, 32]


def test_a_guess_is_logged_as_one(tmp_path, caplog):
    path = folder(tmp_path, tensors(width=64))
    with caplog.at_level(logging.WARNING, "vitnp"):
        assert load_vit(path).config.heads == 1
    assert "1 attention heads (--heads); ImageNet's mean" in caplog.text and "--pos-embed-interp" in caplog.text
    assert describe(path)["heads"] == "1 (a guess)" and describe(path)["positions"] == "offset (a guess)"
    caplog.clear()
    load_vit(path, heads=1, normalization="half", pos_embed="exact")
    load_vit(folder(tmp_path, {f"teacher.backbone.{name}": array for name, array in tensors().items()}), heads=1)
    assert not caplog.text


def test_info_says_where_each_value_comes_from(tmp_path, capsys):
    preprocessor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 6, "width": 8}, "resample": 3}
    path = folder(tmp_path, tensors(), VIT | {"num_attention_heads": 2}, preprocessor)
    assert main(["weights", "info", str(path)]) == 0
    shown = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert shown["heads"] == "2 (config.json)" and shown["positions"] == "exact (as in transformers)"
    assert shown["resizing"] == "by --short-side and bicubic, not as its config says (bicubic to 6 x 8)"
    assert "preprocessor_config.json" in shown["mean,"]


def test_lists_and_facts_as_json(tmp_path, capsys):
    path = folder(tmp_path, tensors(), VIT | {"num_attention_heads": 2})
    assert main(["weights", "info", str(path), "--json"]) == 0
    (shown,) = map(json.loads, capsys.readouterr().out.splitlines())
    facts = describe(path)
    assert shown["heads"] == facts["heads"] and shown["trained_grid"] == facts["trained grid"]
    assert shown["mean_std"] == facts["mean, std"] and isinstance(shown["metadata"], dict)
    assert main(["weights", "list", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["name"] for line in lines] == list(registry.entries())
    assert {line["status"] for line in lines} <= {"built in", "cached", "not cached"}
    assert all(line["megabytes"] > 0 and line["license"] and line["title"] for line in lines)


def test_a_grid_in_doubt_is_refused_and_the_option_decides(tmp_path, capsys):
    weights = tensors(grid=(14, 16))
    path = folder(tmp_path, weights)
    with pytest.raises(CheckpointError, match="15 x 15 patches, or CLS and 14 x 16 patches: give --grid"):
        load_vit(path, heads=2)
    vit = load_vit(path, heads=2, grid=(14, 16))
    assert vit.config.grid == load_vit(path, heads=2, grid="14X16").config.grid == (14, 16)
    square = load_vit(path, heads=2, grid="15x15")
    assert square.config.grid == (15, 15)
    # Features of one file on two grids are others, though everything else is equal.
    assert FeatureSpec.of(vit).name != FeatureSpec.of(square).name
    assert main(["weights", "info", str(path), "--heads", "2", "--grid", "14x16"]) == 0
    assert "14 x 16 patches (--grid)" in capsys.readouterr().out
    for grid in ("14", "0x16", "14x16x2", (14,), 14):
        with pytest.raises(UsageError, match="rows x columns"):
            load_vit(path, grid=grid)
    with pytest.raises(CheckpointError, match="--grid says a grid of 2 x 3"):
        load_vit(path, heads=2, grid=(2, 3))


def test_names_tell_whether_cls_has_a_position(tmp_path):
    def grid(weights, **options):
        return load_vit(folder(tmp_path, weights), heads=2, **options).config.grid

    # timm gives registers no position, and then CLS none either; all others give CLS one.
    registers = tensors(grid=(3, 3), registers=2, class_position=False)
    assert grid({name.replace("register_tokens", "reg_token"): array for name, array in registers.items()}) == (3, 3)
    with pytest.raises(CheckpointError, match="no square grid"):
        grid(registers)  # the name of DINOv2
    moco = {f"module.base_encoder.{name}": array for name, array in tensors(grid=(3, 5)).items()}
    with pytest.raises(CheckpointError, match="16 positions, which are no square grid"):
        grid(moco)
    assert grid(moco, grid=(3, 5)) == (3, 5)


def test_a_converted_file_keeps_its_grid(tmp_path):
    source = folder(tmp_path / "a", tensors(grid=(15, 15), class_position=False))
    target = tmp_path / "b.safetensors"
    assert main(["weights", "convert", str(source), str(target), "--heads", "2", "--grid", "15x15"]) == 0
    assert load_vit(target).config.grid == (15, 15)
