"""Names of training checkpoints: nested, wrapped, without a final norm, or made to fill the memory."""

from __future__ import annotations

import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
import safetensors.numpy
from random_vit import random_weights

from vitnp.checkpoints import nested
from vitnp.checkpoints.load import describe, load_vit
from vitnp.cli.segment import main as segment
from vitnp.errors import CheckpointError, UsageError
from vitnp.features.spec import FeatureSpec
from vitnp.segmenter import Segmenter
from vitnp.vit import plain
from vitnp.vit.config import ViTConfig

CONFIG = ViTConfig(width=64, depth=2, heads=1, patch=2, grid=(3, 3))
WEIGHTS = random_weights(CONFIG, seed=0, hidden=96, class_position=True, dtype=np.float32)
IMAGES = np.random.default_rng(1).standard_normal((1, 3, 6, 8)).astype(np.float32)


def save(path, tensors):
    safetensors.numpy.save_file(tensors, path)
    return path


def wrapped(*inserted):
    """Return WEIGHTS with something before "norm1", "attn.proj" and so on in every block."""
    dotted = "".join(f"{word}." for word in inserted)
    return {name.replace("blocks.0.", f"blocks.0.{dotted}").replace("blocks.1.", f"blocks.1.{dotted}"): array
            for name, array in WEIGHTS.items()}  # fmt: skip


def prefixed(prefix, weights=WEIGHTS):
    return {prefix + name: array for name, array in weights.items()}


WRAPPED = {
    "torch.compile": prefixed("_orig_mod."),
    "torch.compile of DDP": prefixed("_orig_mod.module."),
    "DDP of torch.compile": prefixed("module._orig_mod."),
    "torch.compile of each block": wrapped("_orig_mod"),
    "activation checkpointing": wrapped("_checkpoint_wrapped_module"),
    "FSDP": prefixed("_fsdp_wrapped_module.", wrapped("_fsdp_wrapped_module", "_checkpoint_wrapped_module")),
    "FSDP of fairscale": prefixed("_fsdp_wrapped_module._fpw_module.", wrapped("_fsdp_wrapped_module", "_fpw_module")),
    "DDP of each block": wrapped("module"),
    "compiled DDP of each block": wrapped("_orig_mod", "module"),
    "a teacher": prefixed("teacher._orig_mod.backbone.", wrapped("_orig_mod")),
    "a module of attention": {name.replace("attn.", "attn._orig_mod."): array for name, array in WEIGHTS.items()},
}


@pytest.mark.parametrize("case", WRAPPED)
def test_wrappers_of_torch_are_taken_out_of_the_names(tmp_path, case):
    vit = load_vit(save(tmp_path / "a.safetensors", WRAPPED[case]))
    assert vit.weights.keys() == WEIGHTS.keys()
    for name, array in WEIGHTS.items():
        np.testing.assert_array_equal(vit.weights[name], array)


def test_a_tensor_with_and_without_a_wrapper_is_refused(tmp_path):
    path = save(tmp_path / "a.safetensors", prefixed("_orig_mod.") | {"norm.bias": np.zeros(64, np.float32)})
    with pytest.raises(CheckpointError, match=r"'norm.bias' is present twice, with and without a wrapper"):
        load_vit(path)


# ---- the final norm --------------------------------------------------------------------------------------------------


def without_norm(**added):
    return {name: array for name, array in WEIGHTS.items() if not name.startswith("norm.")} | added


def fine_tuned_mae():
    """Return the names that MAE's fine-tuning code saves with global_pool."""
    return without_norm(**{f"fc_norm.{kind}": WEIGHTS[f"norm.{kind}"] for kind in ("weight", "bias")})


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_fc_norm_stands_in_for_a_norm_that_is_not_there(tmp_path, prefix):
    vit = load_vit(save(tmp_path / "mae.safetensors", prefixed(prefix, fine_tuned_mae())))
    assert describe(tmp_path)["final norm"].startswith("fc_norm")
    features = vit(IMAGES, features=("key", "cls", "token"))
    expected = plain.features(WEIGHTS, vit.config, IMAGES[0], layer=1, stride=2)
    for name, array in features.items():
        np.testing.assert_allclose(array[0], expected[name], atol=2e-5)


def test_fc_norm_beside_a_norm_belongs_to_the_head(tmp_path):
    both = WEIGHTS | {"fc_norm.weight": np.zeros(64, np.float32), "fc_norm.bias": np.zeros(64, np.float32)}
    vit = load_vit(save(tmp_path / "a.safetensors", both))
    np.testing.assert_array_equal(vit.weights["norm.weight"], WEIGHTS["norm.weight"])
    assert describe(tmp_path)["final norm"] == "yes"


def test_without_any_norm_keys_are_right_and_what_is_normed_is_refused(tmp_path, photograph):
    path = save(tmp_path / "a.safetensors", without_norm())
    vit = load_vit(path)
    features = vit(IMAGES, features=("query", "key", "value", "attention"))
    expected = plain.features(WEIGHTS, vit.config, IMAGES[0], layer=1, stride=2)
    for name, array in features.items():
        np.testing.assert_allclose(array[0], expected[name], atol=2e-5)
    for name in ("token", "cls", "register"):
        with pytest.raises(UsageError, match=f"'{name}' is taken after the final norm, which this checkpoint lacks"):
            vit(IMAGES, features=name)
    with pytest.raises(UsageError, match="lacks"):
        vit.region_cls(np.zeros((4, 64)), features["key"][0], features["value"][0], np.ones((1, 12), bool))
    assert describe(path)["final norm"].startswith("none")
    options = ["--model", str(path), "--short-side", "32", "--quiet", "--refine", "none", "--collection", "none"]
    assert segment([str(photograph), *options, "--out", str(tmp_path / "keys")]) == 0
    with pytest.raises(UsageError, match="final norm"):
        segment([str(photograph), *options, "--facet", "token", "--out", str(tmp_path / "tokens")])
    assert not (tmp_path / "tokens").exists()


def test_what_is_taken_after_a_missing_norm_is_refused_before_any_photograph(tmp_path, monkeypatch):
    vit = load_vit(save(tmp_path / "a.safetensors", without_norm()))
    monkeypatch.setattr("vitnp.features.stream.opened", lambda *arguments: pytest.fail("a photograph was opened"))
    with pytest.raises(UsageError, match="'token' is taken after the final norm"):
        FeatureSpec.of(vit, facet="token", stored=False)
    with pytest.raises(UsageError, match="'cls' is taken after the final norm"):
        Segmenter(vit).fit([np.zeros((32, 32, 3), np.uint8)] * 3)
    assert FeatureSpec.of(vit, stored=False).facet == "key"


def test_half_a_norm_is_refused(tmp_path):
    path = save(tmp_path / "a.safetensors", without_norm(**{"norm.weight": WEIGHTS["norm.weight"]}))
    with pytest.raises(CheckpointError, match=r"'norm.bias' is missing"):
        load_vit(path)


# ---- hostile names ---------------------------------------------------------------------------------------------------


def nested_pickle(outer, n_tensors):
    """Write a .pth in which a dict under the name `outer` holds one tensor under many names."""

    def text(word):
        return b"X" + struct.pack("<I", len(word)) + word.encode()

    identity = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x01tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + identity + b"K\0(K\x01t(K\x01t\x89}tRq\x010"
    names = b"".join(text(f"{index:x}") + b"h\x01" for index in range(n_tensors))
    return b"\x80\x02" + tensor + b"}" + text(outer) + b"}(" + names + b"us."


def pth(path, pickled):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", pickled)
        file.writestr("a/data/0", bytes(4))
    return path


def test_long_prefixes_of_many_names_are_not_multiplied(tmp_path):
    """The names of a file of 400 KB would take 2 GB."""
    path = pth(tmp_path / "a.pth", nested_pickle("A" * 200_000, 10_000))
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="longer than 1,000 characters"):
            load_vit(path)
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


def test_deep_and_wide_trees_are_bounded(monkeypatch):
    one = np.zeros(1, np.float32)
    deep: dict = {"x": one}
    for _ in range(5000):
        deep = {"a": deep}
    with pytest.raises(CheckpointError, match="longer than"):
        nested.flatten(deep)
    monkeypatch.setattr(nested, "MAX_TENSORS", 10)
    with pytest.raises(CheckpointError, match="more than 10 tensors"):
        nested.flatten({str(i): one for i in range(11)})
    monkeypatch.setattr(nested, "_MAX_DICTS", 10)
    with pytest.raises(CheckpointError, match="too many"):
        nested.flatten({str(i): {} for i in range(11)})


def test_two_ways_to_one_name_are_refused():
    one = np.zeros(1, np.float32)
    with pytest.raises(CheckpointError, match=r"'a.b' is present twice"):
        nested.flatten({"a": {"b": one}, "a.b": one})
