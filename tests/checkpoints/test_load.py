"""Checkpoints in every dialect give the same weights; broken ones are refused."""

from __future__ import annotations

import hashlib
import json
import pathlib
import re
import runpy
import struct
import zipfile

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from vitnp.checkpoints.load import describe, load_vit
from vitnp.checkpoints.read import read_checkpoint
from vitnp.checkpoints.safetensors_io import read_safetensors, write_safetensors
from vitnp.checkpoints.state_dict_names import to_canonical
from vitnp.errors import CheckpointError, OutputError, UsageError

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
TORCH = runpy.run_path(str(GOLDEN / "make_torch_files.py"))
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def make(width=64, depth=2, patch=2, grid=(3, 3), registers=0, swiglu=False, layerscale=False, class_position=True):
    """Random weights of a ViT under canonical names."""
    rng = np.random.default_rng(5)
    weights = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, grid[0] * grid[1] + class_position, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    if registers:
        weights["register_tokens"] = (1, registers, width)
    for i in range(depth):
        b = f"blocks.{i}."
        for norm in ("norm1", "norm2"):
            weights |= {f"{b}{norm}.weight": (width,), f"{b}{norm}.bias": (width,)}
        if layerscale:
            weights |= {f"{b}ls1.gamma": (width,), f"{b}ls2.gamma": (width,)}
        linear = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
        if swiglu:
            linear |= {"mlp.w12": (96, width), "mlp.w3": (width, 48)}
        else:
            linear |= {"mlp.fc1": (96, width), "mlp.fc2": (width, 96)}
        for name, shape in linear.items():
            weights |= {f"{b}{name}.weight": shape, f"{b}{name}.bias": shape[:1]}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in weights.items()}


def rename(weights, *rules):
    table = {}
    for name, array in weights.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        table[name] = array
    return table


def split_qkv(weights):
    """Separate query, key and value, as transformers does."""
    table = {}
    for name, array in weights.items():
        if ".attn.qkv." in name:
            for part, third in zip(("query", "key", "value"), np.split(array, 3)):
                table[name.replace("attn.qkv", f"attention.attention.{part}")] = third
        else:
            table[name] = array
    return table


TRANSFORMERS_TOP = (
    (r"^cls_token$", "embeddings.cls_token"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^register_tokens$", "embeddings.register_tokens"),
    (r"^patch_embed\.proj", "embeddings.patch_embeddings.projection"),
    (r"^norm\.", "layernorm."),
    (r"^blocks\.", "encoder.layer."),
    (r"attn\.proj", "attention.output.dense"),
)


def transformers_vit(weights):
    rules = (r"norm1", "layernorm_before"), (r"norm2", "layernorm_after"), (r"mlp\.fc1", "intermediate.dense")
    return rename(split_qkv(weights), *TRANSFORMERS_TOP, *rules, (r"mlp\.fc2", "output.dense"))


def transformers_dinov2(weights):
    rules = (
        (r"ls([12])\.gamma", r"layer_scale\1.lambda1"),
        (r"mlp\.w12", "mlp.weights_in"),
        (r"mlp\.w3", "mlp.weights_out"),
    )
    return rename(split_qkv(weights), *TRANSFORMERS_TOP, *rules) | {
        "embeddings.mask_token": np.zeros((1, 64), np.float32)
    }


def chunked(weights):
    """Put the blocks into two chunks, as the training code of DINOv2 saves them."""
    return rename(weights, (r"^blocks\.([01])\.", r"blocks.0.\1."), (r"^blocks\.([23])\.", r"blocks.1.\1."))


def timm_dinov2(weights):
    rules = (r"mlp\.w12", "mlp.fc1"), (r"mlp\.w3", "mlp.fc2"), (r"register_tokens", "reg_token")
    return rename(weights, *rules)


def franca(weights):
    """Write DINOv2's weights as Franca's code does, beside its head that takes positions out of tokens."""
    names = rename(weights, (r"^blocks\.([01])\.", r"blocks.\1.\1."), (r"^", "teacher.module.backbone."))
    rasa = {"teacher.module.rasa_head.pre_pos_layers.0.weight": np.ones((2, 64), np.float32)}
    return names | rasa | {"teacher.module.backbone.mask_token": np.zeros((1, 64), np.float32)}


HEADS = {
    "head.weight": np.zeros((5, 64), np.float32),
    "head.bias": np.zeros(5, np.float32),
    "fc_norm.weight": np.zeros(64),
}
DINO = {}
DINOV2 = {"depth": 4, "layerscale": True}
GIANT = {"layerscale": True, "swiglu": True, "registers": 4}
CASES = {
    # name: (arguments of make(), function from canonical weights to the tensors of the file, dialect)
    "DINO": (DINO, lambda w: w, "DINO"),
    "timm with a classifier": (DINO, lambda w: w | HEADS, "timm"),
    "DINOv2": (DINOV2, lambda w: w | {"mask_token": np.zeros((1, 64), np.float32)}, "DINOv2"),
    "DINOv2 with chunked blocks": (DINOV2, chunked, "DINO"),
    "DINOv2 giant": (GIANT, lambda w: w, "DINOv2"),
    "timm DINOv2 giant": (GIANT | {"class_position": False}, timm_dinov2, "timm with registers"),
    "iBOT's layer scale": (DINOV2, lambda w: rename(w, (r"ls([12])\.gamma", r"gamma_\1")), "DINO"),
    "one patch": ({"grid": (1, 1)}, lambda w: w, "DINO"),
    "transformers ViT": (DINO, transformers_vit, "transformers-vit"),
    "transformers ViT with a head": (
        DINO,
        lambda w: (
            rename(transformers_vit(w), ("^", "vit."))
            | {"classifier.weight": np.zeros((2, 64)), "vit.pooler.dense.bias": np.zeros(64)}
        ),
        "transformers-vit",
    ),
    "transformers Dinov2": (DINOV2, transformers_dinov2, "transformers-dinov2"),
    "transformers Dinov2 giant with registers": (GIANT, transformers_dinov2, "transformers-dinov2"),
    "Franca": (GIANT | {"registers": 0}, franca, "DINOv2"),
    "DataParallel": (DINO, lambda w: rename(w | HEADS, ("^", "module.")), "timm"),
    "transformers around timm": (DINO, lambda w: rename(w, ("^", "timm_model.")), "timm"),
    "MSN": (DINO, lambda w: rename(w, ("^", "target_encoder.module.")), "MSN"),
    "DINO training, teacher first": (
        DINO,
        lambda w: (
            rename({n: a + 1 for n, a in w.items()}, ("^", "student.module.backbone."))
            | rename(w, ("^", "teacher.backbone."))
            | {"teacher.head.last_layer.weight_g": np.ones((3, 1), np.float32)}
        ),
        "DINO",
    ),
    "MoCo v3": (
        DINO,
        lambda w: (
            rename({n: a + 1 for n, a in w.items()}, ("^", "state_dict.module.momentum_encoder."))
            | rename(w, ("^", "state_dict.module.base_encoder."))
        ),
        "MoCo v3",
    ),
    "MAE with its decoder": (
        DINO,
        lambda w: (
            rename(w, ("^", "model."))
            | {
                "model.decoder_blocks.0.norm1.weight": np.zeros(8),
                "model.decoder_pos_embed": np.zeros((1, 10, 8)),
                "model.mask_token": np.zeros((1, 1, 8)),
            }
        ),
        "MAE",
    ),
}


def save(path, tensors, metadata=None):
    safetensors.numpy.save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, path, metadata)
    return path


def assert_weights(vit, weights):
    assert set(vit.weights) == set(weights)
    for name, array in weights.items():
        assert vit.weights[name].dtype == np.float32
        np.testing.assert_array_equal(vit.weights[name], array, err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_every_dialect_gives_the_same_weights(tmp_path, case):
    options, disguise, dialect = CASES[case]
    weights = make(**options)
    path = save(tmp_path / "some.safetensors", disguise(weights))
    vit = load_vit(path)
    assert_weights(vit, weights)
    assert read_checkpoint(path).dialect.name == dialect
    assert to_canonical(disguise(weights))[1].name == dialect
    c = vit.config
    assert (c.width, c.heads, c.patch, c.eps, (c.mean, c.std)) == (64, 1, 2, 1e-6, IMAGENET)
    assert c.depth == options.get("depth", 2) and c.grid == options.get("grid", (3, 3))
    assert (c.registers, c.swiglu, c.layerscale) == tuple(
        options.get(k, 0) for k in ("registers", "swiglu", "layerscale")
    )
    expected = {"DINO": "offset", "DINOv2": "offset", "timm": "antialias", "MoCo v3": "antialias"}
    assert c.pos_embed == ("antialias" if c.registers else expected.get(dialect, "exact"))
    assert vit.sha256 == hashlib.sha256(path.read_bytes()).hexdigest() and vit.name == "some"


@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_torch_files_in_both_containers(container):
    plain = load_vit(GOLDEN / "torch_files" / f"plain_{container}.pth", heads=2)
    assert_weights(plain, TORCH["vit_arrays"](0))
    assert (plain.config.width, plain.config.heads, plain.config.grid) == (8, 2, (3, 3))
    training = load_vit(GOLDEN / "torch_files" / f"training_{container}.pth", heads=2)
    assert_weights(training, TORCH["vit_arrays"](2))  # the teacher's


def test_half_precision_and_bfloat16(tmp_path):
    weights = make()
    half = load_vit(save(tmp_path / "half.safetensors", {n: a.astype(np.float16) for n, a in weights.items()}))
    assert_weights(half, {n: a.astype(np.float16).astype(np.float32) for n, a in weights.items()})
    double = load_vit(save(tmp_path / "double.safetensors", {n: a.astype(np.float64) for n, a in weights.items()}))
    assert_weights(double, weights)
    # bfloat16 is the upper half of a float32; written by hand since NumPy has no such type.
    header, data = {}, b""
    for name, array in weights.items():
        bits = (array.view(np.uint32) >> 16).astype("<u2").tobytes()
        header[name] = entry("BF16", array.shape, (len(data), len(data) + len(bits)))
        data += bits
    path = header_file(tmp_path / "brain.safetensors", header, data)
    assert_weights(load_vit(path), {n: (a.view(np.uint32) & 0xFFFF0000).view(np.float32) for n, a in weights.items()})


def test_a_qkv_without_bias_has_a_bias_of_zero(tmp_path):
    weights = make()
    del weights["blocks.1.attn.qkv.bias"]
    with pytest.raises(CheckpointError, match=r"'blocks.1.attn.qkv.bias' is missing"):
        load_vit(save(tmp_path / "a.safetensors", weights))
    del weights["blocks.0.attn.qkv.bias"]
    vit = load_vit(save(tmp_path / "a.safetensors", weights))
    np.testing.assert_array_equal(vit.weights["blocks.1.attn.qkv.bias"], np.zeros(192, np.float32))


# ---- configuration -----------------------------------------------------------------------------------------------


def test_heads(tmp_path):
    path = save(tmp_path / "a.safetensors", make(width=128))
    assert load_vit(path).config.heads == 2
    assert load_vit(path, heads=4).config.heads == 4
    with pytest.raises(CheckpointError, match="3 heads don't divide"):
        load_vit(path, heads=3)
    with pytest.raises(UsageError):
        load_vit(path, heads=0)
    with_metadata = save(tmp_path / "b.safetensors", make(width=128), {"heads": "8"})
    assert load_vit(with_metadata).config.heads == 8
    assert load_vit(with_metadata, heads=1).config.heads == 1
    with pytest.raises(CheckpointError, match="give --heads"):
        load_vit(save(tmp_path / "c.safetensors", make(width=48)))
    registered = save(tmp_path / "vit_tiny_patch16_224_augreg.safetensors", make(width=192))
    assert load_vit(registered).config.heads == 3


def test_json_files_beside_a_transformers_checkpoint(tmp_path):
    path = save(tmp_path / "model.safetensors", transformers_vit(make(width=48)))
    (tmp_path / "config.json").write_text(json.dumps({"layer_norm_eps": 1e-12, "num_attention_heads": 6}))
    half = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.25]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(half))
    config = load_vit(path).config
    assert (config.eps, config.heads, config.mean, config.std) == (1e-12, 6, (0.5,) * 3, (0.5, 0.5, 0.25))
    assert load_vit(tmp_path).config == config  # given by its folder
    assert load_vit(path, normalization="imagenet").config.mean == IMAGENET[0]
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="config.json"):
        load_vit(path)


def test_metadata_and_arguments(tmp_path):
    metadata = {"norm_eps": "1e-5", "pos_embed": "exact", "mean": "0.1,0.2,0.3", "std": "1,2,3", "grid": "2,6"}
    path = save(tmp_path / "a.safetensors", make(grid=(2, 6)), metadata)
    config = load_vit(path).config
    assert (config.eps, config.pos_embed, config.grid) == (1e-5, "exact", (2, 6))
    assert (config.mean, config.std) == ((0.1, 0.2, 0.3), (1, 2, 3))
    config = load_vit(path, pos_embed="antialias", normalization="half").config
    assert (config.pos_embed, config.mean, config.std) == ("antialias", (0.5,) * 3, (0.5,) * 3)
    for option in ({"pos_embed": "bicubic"}, {"normalization": "none"}):
        with pytest.raises(UsageError):
            load_vit(path, **option)
    for key, value in (("norm_eps", "small"), ("pos_embed", "x"), ("mean", "1,2"), ("std", "0,1,1"), ("grid", "5,5")):
        with pytest.raises(CheckpointError, match="can't be used"):
            load_vit(save(tmp_path / "b.safetensors", make(), {**metadata, "grid": "3,3", key: value}))


def test_a_known_file_name_determines_the_normalization(tmp_path):
    for name, mean in (("vit_tiny_patch16_224_augreg", 0.5), ("dinov2_vits14_pretrain", 0.485), ("else", 0.485)):
        config = load_vit(save(tmp_path / f"{name}.safetensors", make()), heads=1).config
        assert config.mean[0] == mean


def test_the_builtin(builtin):
    config = builtin.config
    assert (config.width, config.depth, config.heads, config.patch, config.grid) == (192, 12, 3, 16, (14, 14))
    assert (config.eps, config.pos_embed, config.mean, config.std) == (1e-6, "offset", (0.5,) * 3, (0.5,) * 3)
    assert builtin.sha256 == "8870f9006309ffd57c22f568d012dec4aaa120f567926c1cdc8ac3c331b48570"
    assert load_vit("vitnp_tiny").config == config
    assert "5.52 million" in describe("auto")["parameters"]


def test_the_shared_vit(vit_tiny):
    config = vit_tiny.config
    assert (config.width, config.depth, config.heads, config.patch, config.grid) == (192, 12, 3, 16, (14, 14))
    assert (config.pos_embed, config.mean, config.std) == ("antialias", (0.5,) * 3, (0.5,) * 3)


# ---- broken checkpoints -------------------------------------------------------------------------------------------


def without(name):
    return lambda w: {n: a for n, a in w.items() if n != name}


def reshaped(name, shape):
    return lambda w: w | {name: np.zeros(shape, np.float32)}


BROKEN = {
    "missing norm": (without("norm.weight"), "'norm.weight' is missing"),
    "missing block tensor": (without("blocks.1.norm2.bias"), "'blocks.1.norm2.bias' is missing"),
    "missing class token": (without("cls_token"), "without a class token"),
    "missing patches": (without("patch_embed.proj.weight"), "'patch_embed.proj.weight' is missing"),
    "no blocks": (lambda w: {n: a for n, a in w.items() if "blocks" not in n}, "no transformer blocks"),
    "hole in the depth": (lambda w: rename(w, (r"blocks\.1", "blocks.2")), "'blocks.1.norm1.weight' is missing"),
    "wrong width": (reshaped("blocks.0.norm1.bias", 63), "'blocks.0.norm1.bias' is 63"),
    "wrong qkv": (reshaped("blocks.1.attn.qkv.weight", (191, 64)), "'blocks.1.attn.qkv.weight' is 191 x 64"),
    "wrong MLP": (reshaped("blocks.1.mlp.fc2.weight", (64, 95)), "'blocks.1.mlp.fc2.weight' is 64 x 95"),
    "wrong class token": (reshaped("cls_token", (64,)), "'cls_token' is 64"),
    "grid": (reshaped("pos_embed", (1, 12, 64)), "no square grid"),
    "flat positions": (reshaped("pos_embed", (10, 64)), "should have 3 dimensions"),
    "four channels": (reshaped("patch_embed.proj.weight", (64, 4, 2, 2)), "64 x 4 x 2 x 2"),
    "oblong patches": (reshaped("patch_embed.proj.weight", (64, 3, 2, 4)), "64 x 3 x 2 x 4"),
    "linear patches": (reshaped("patch_embed.proj.weight", (64, 12)), "should have 4 dimensions"),
    "integers": (lambda w: w | {"norm.bias": np.zeros(64, np.int8)}, "'norm.bias' holds int8"),
    "not a number": (lambda w: w | {"norm.bias": np.full(64, np.nan, np.float32)}, "contains NaN or infinity"),
    "infinite": (
        lambda w: w | {"blocks.1.attn.proj.bias": np.full(64, np.inf, np.float32)},
        "contains NaN or infinity",
    ),
    "one LayerScale": (
        lambda w: w | {"blocks.1.ls1.gamma": np.ones(64, np.float32)},
        "'blocks.1.ls1.gamma' doesn't belong",
    ),
    "query normalization": (
        lambda w: w | {"blocks.0.attn.q_norm.weight": np.ones(64, np.float32)},
        "q_norm.*another architecture",
    ),
    "distillation token": (lambda w: w | {"dist_token": np.ones((1, 1, 64), np.float32)}, "dist_token"),
    "a norm before": (lambda w: w | {"norm_pre.weight": np.ones(64, np.float32)}, "norm_pre"),
    "half a split": (
        lambda w: without("encoder.layer.0.attention.attention.key.bias")(transformers_vit(w)),
        "attn.k.bias",
    ),
    "both names": (lambda w: w | {"embeddings.cls_token": np.zeros((1, 1, 64), np.float32)}, "twice"),
    "something else": (lambda w: {"conv1.weight": np.zeros((3, 3), np.float32)}, "no ViT"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_checkpoints_are_refused_naming_the_tensor(tmp_path, name):
    breaking, message = BROKEN[name]
    path = save(tmp_path / "broken.safetensors", breaking(make()))
    with pytest.raises(CheckpointError, match=message) as caught:
        load_vit(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_other_files_are_refused_with_what_they_are(tmp_path):
    cases = {
        "page.pth": (b"<!DOCTYPE html><html>not found</html>", "web page"),
        "lfs.safetensors": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        "config.json": (b'{"hidden_size": 384, "more": 1}', "JSON"),
        "empty.pth": (b"", "is empty"),
        "picture.pth": (b"\xff\xd8\xff\xe0" * 20, "neither a safetensors nor a torch file"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            load_vit(tmp_path / name)
    (tmp_path / "folder").mkdir()
    for path, message in (
        (tmp_path / "none.pth", "doesn't exist"),
        (tmp_path / "folder", "folder"),
        ("dino_vits18", "did you mean dino_vits"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_vit(path)


def test_flattening_ends_when_a_dict_contains_itself(tmp_path):
    path = tmp_path / "loop.pth"
    begin = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}."
    path.write_bytes(begin + b"\x80\x02}q\x00(X\x01\x00\x00\x00ah\x00X\x01\x00\x00\x00bh\x00u.\x80\x02].")
    with pytest.raises(CheckpointError, match="no ViT"):
        load_vit(path)


def test_tensors_that_expand_beyond_the_file_are_refused(tmp_path):
    number = b"(S'storage'\nctorch\nHalfStorage\nS'0'\nS'cpu'\nI1\ntQ"
    tensor = b"ctorch._utils\n_rebuild_tensor\n(" + number + b"I0\n(L1L\nL1000000L\nL100000L\nt(I0\nI0\nI0\nttR"
    path = tmp_path / "broad.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", b"\x80\x02}S'cls_token'\n" + tensor + b"s.")
        file.writestr("a/data/0", b"\0\0")
    with pytest.raises(CheckpointError, match="overlap"):
        load_vit(path)


# ---- safetensors --------------------------------------------------------------------------------------------------


def header_file(path, header, data=b"\0" * 16):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(dtype="F32", shape=(2, 2), offsets=(0, 16)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


BAD_HEADERS = {
    "beyond the end": {"a": entry(shape=(5,), offsets=(0, 20))},
    "backwards": {"a": entry(offsets=(16, 0))},
    "negative": {"a": entry(offsets=(-16, 0))},
    "another size": {"a": entry(shape=(3,))},
    "negative shape": {"a": entry(shape=(-2, -2))},
    "huge": {"a": entry(shape=(2**40, 2**40))},
    "overlap": {"a": entry(), "b": entry(shape=(2,), offsets=(8, 16))},
    "hole": {"a": entry(shape=(1,), offsets=(0, 4)), "b": entry(shape=(2,), offsets=(8, 16))},
    "rest": {"a": entry(shape=(1,), offsets=(0, 4))},
    "unknown type": {"a": entry(dtype="F4")},
    "boolean size": {"a": entry(shape=(True, 4))},
    "fraction": {"a": entry(shape=(2.0, 2))},
    "no shape": {"a": {"dtype": "F32", "data_offsets": [0, 16]}},
    "number": {"a": 3},
    "list": [],
    "metadata of numbers": {"__metadata__": {"heads": 3}, "a": entry()},
    "deep": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "long number": b'{"a":' + b"9" * 5000 + b"}",
    "no text": b'{"\xff":1}',
    "cut off": b'{"a":',
}


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_bad_headers_are_refused(tmp_path, name):
    path = header_file(tmp_path / "bad.safetensors", BAD_HEADERS[name])
    with pytest.raises(CheckpointError, match="not a complete safetensors file") as caught:
        read_safetensors(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_header_longer_than_the_file(tmp_path):
    for length in (9, 2**31, 2**64 - 1):
        (tmp_path / "a").write_bytes(struct.pack("<Q", length) + b"{}      ")
        with pytest.raises(CheckpointError, match="longer"):
            read_safetensors(tmp_path / "a")


IMPOSSIBLE_SHAPES = {  # those that the Rust reader lets pass, and more
    "65 dimensions": {"a": entry(shape=(1,) * 62 + (2, 2))},
    "33 dimensions": {"a": entry(shape=(1,) * 31 + (2, 2))},
    "2^62 times nothing": {"a": entry(), "b": entry(shape=(0, 2**62, 2**62), offsets=(16, 16))},
    "2^63": {"a": entry(), "b": entry(shape=(2**63, 0), offsets=(16, 16))},
    "2^64 - 1": {"a": entry(), "b": entry(shape=(0, 2**64 - 1), offsets=(16, 16))},
}


@pytest.mark.parametrize("name", IMPOSSIBLE_SHAPES)
def test_shapes_that_numpy_cannot_have_are_refused(tmp_path, name):
    path = header_file(tmp_path / "bad.safetensors", IMPOSSIBLE_SHAPES[name])
    with pytest.raises(CheckpointError, match="impossible shape|complete safetensors") as caught:
        read_safetensors(path)
    assert "\n" not in str(caught.value)


def test_a_name_twice_in_a_header_is_refused(tmp_path):
    text = json.dumps({"a": entry()})
    path = header_file(tmp_path / "twice.safetensors", (text[:-1] + ", " + text[1:]).encode())
    with pytest.raises(CheckpointError, match="complete safetensors"):
        read_safetensors(path)


def test_headers_of_too_much_are_refused(tmp_path, monkeypatch):
    path = save(tmp_path / "a.safetensors", make())
    monkeypatch.setattr("vitnp.checkpoints.safetensors_io.MAX_TENSORS", 10)
    with pytest.raises(CheckpointError, match="more than 10 tensors"):
        read_safetensors(path)
    monkeypatch.setattr("vitnp.checkpoints.safetensors_io._MAX_HEADER_BYTES", 100)
    with pytest.raises(CheckpointError, match="too long for a checkpoint"):
        read_safetensors(path)


def test_written_files_are_read_back_by_vitnp_and_by_the_package(tmp_path):
    tensors = {
        "b": np.arange(6, dtype=np.float16).reshape(2, 3),
        "a": np.arange(3.0),
        "c": np.zeros((0, 2), np.float32),
    }
    tensors |= {"t": np.arange(6, dtype=np.float32).reshape(2, 3).T, "n": np.array(7, np.int64), "z": np.array([True])}
    first, second = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    write_safetensors(first, tensors, {"x": "1", "é": "ü"})
    write_safetensors(second, dict(reversed(tensors.items())), {"é": "ü", "x": "1"})
    assert first.read_bytes() == second.read_bytes()
    ours, metadata = read_safetensors(first)
    theirs = safetensors.numpy.load_file(first)
    assert metadata == {"x": "1", "é": "ü"}
    for name, array in tensors.items():
        for read in (ours[name], theirs[name]):
            assert read.dtype == array.dtype and read.shape == array.shape
            np.testing.assert_array_equal(read, array)
    assert not ours["b"].flags.writeable and all(array.flags.aligned for array in ours.values())


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(OutputError, match="can't write"):
        write_safetensors(tmp_path / "no" / "a.safetensors", {"a": np.zeros(2)}, {})
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(OutputError, match="can't write"):
        write_safetensors(tmp_path / "folder.safetensors", {"a": np.zeros(2)}, {})
    assert [p.name for p in tmp_path.iterdir()] == ["folder.safetensors"]


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    (tmp_path / "a.safetensors").write_bytes(b"as it was")
    monkeypatch.setattr("os.replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_safetensors(tmp_path / "a.safetensors", {"a": np.zeros(2)}, {})
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"as it was"]


@pytest.mark.slow(reason="many inputs")
@settings(derandomize=True, deadline=None, max_examples=400)
@given(data=st.data())
def test_fuzzed_files_give_a_clean_error_or_a_complete_vit(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    path = folder / "fuzz.safetensors"
    if not (folder / "intact.safetensors").exists():
        save(folder / "intact.safetensors", make(width=4, depth=1), {"heads": "2", "grid": "3,3"})
    content = bytearray((folder / "intact.safetensors").read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, length + 40))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.sampled_from([len(content)] * 9 + [len(content) // 2]))])
    try:
        vit = load_vit(path)
    except CheckpointError as error:
        assert "\n" not in str(error)
    else:
        assert vit.weights["blocks.0.attn.qkv.weight"].shape == (12, 4)
        assert all(np.isfinite(array).all() for array in vit.weights.values())


def test_an_average_is_preferred_only_beside_a_teacher(tmp_path):
    # DeiT evaluates "model" and not its average; of DINOv3 "teacher" may be another network.
    weights = make()
    path = tmp_path / "a.safetensors"
    for other, preferred in (("model", "model"), ("teacher.backbone", "model_ema")):
        tables = {other: 1.0, "model_ema": 2.0}
        tensors = {
            f"{table}.{name}": scale * array for table, scale in tables.items() for name, array in weights.items()
        }
        safetensors.numpy.save_file(tensors, path)
        found = read_checkpoint(path).weights["cls_token"]
        np.testing.assert_array_equal(found, tables[preferred] * weights["cls_token"])
