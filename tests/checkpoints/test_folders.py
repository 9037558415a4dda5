"""Checkpoints in several files, in folders and in the cache of the Hugging Face Hub."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib

import numpy as np
import pytest
import safetensors.numpy
from random_vit import random_weights

from vitnp.checkpoints import hub_cache
from vitnp.checkpoints.load import describe, load_vit
from vitnp.cli.segment import main as segment
from vitnp.cli.weights import main
from vitnp.errors import CheckpointError
from vitnp.vit.config import ViTConfig

CONFIG = ViTConfig(width=64, depth=2, heads=1, patch=2, grid=(3, 3))
WEIGHTS = random_weights(CONFIG, seed=0, hidden=96, class_position=True, dtype=np.float32)
TORCH_FILES = pathlib.Path(__file__).parent.parent / "golden" / "torch_files"
INDEX = "model.safetensors.index.json"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    """An empty cache of the Hub."""
    for name in ("HF_HOME", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def shards(folder, n_shards=3):
    """Write WEIGHTS in shards as huggingface_hub does; return the path of the index."""
    folder.mkdir(exist_ok=True, parents=True)
    weight_map = {}
    for index in range(n_shards):
        file = f"model-{index + 1:05}-of-{n_shards:05}.safetensors"
        part = {name: WEIGHTS[name] for name in list(WEIGHTS)[index::n_shards]}
        safetensors.numpy.save_file(part, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    write_index(folder, weight_map)
    return folder / INDEX


def write_index(folder, weight_map, **others):
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map, **others}))


def assert_loaded(vit, weights=WEIGHTS):
    assert vit.weights.keys() == weights.keys()
    for name, array in weights.items():
        np.testing.assert_array_equal(vit.weights[name], array, err_msg=name)


def assert_refused(path, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        load_vit(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


# ---- shards ----------------------------------------------------------------------------------------------------------


def test_shards_load_by_their_index_and_by_their_folder(tmp_path):
    index = shards(tmp_path / "vit-sharded")
    for source in (index, index.parent):
        vit = load_vit(source)
        assert_loaded(vit)
        assert vit.source == str(index)
    assert load_vit(index.parent).name == "vit-sharded"
    assert load_vit(vit.source).sha256 == vit.sha256  # as a worker of a cluster loads it
    facts = describe(index)
    assert facts["container"] == "safetensors in 3 files with an index" and facts["sha256"] == vit.sha256


def test_the_sha256_of_shards_is_that_of_their_checksums(tmp_path):
    index = shards(tmp_path)
    lines = [
        f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.name}\n" for f in sorted(tmp_path.glob("*.safetensors"))
    ]
    assert load_vit(index).sha256 == hashlib.sha256("".join(lines).encode()).hexdigest()
    before = load_vit(index).sha256
    changed = safetensors.numpy.load_file(tmp_path / "model-00002-of-00003.safetensors")
    changed[next(iter(changed))] += 1
    safetensors.numpy.save_file(changed, tmp_path / "model-00002-of-00003.safetensors", {"format": "pt"})
    assert load_vit(index).sha256 != before


def test_shards_that_torch_wrote(tmp_path):
    content = (TORCH_FILES / "plain_zip.pth").read_bytes()
    (tmp_path / "pytorch_model-00001-of-00001.bin").write_bytes(content)
    whole = load_vit(TORCH_FILES / "plain_zip.pth", heads=2)
    weight_map = dict.fromkeys(whole.weights, "pytorch_model-00001-of-00001.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert_loaded(load_vit(tmp_path, heads=2), whole.weights)
    assert describe(tmp_path, heads=2)["container"] == "torch in 1 file with an index"


def test_a_missing_shard_is_named(tmp_path):
    index = shards(tmp_path)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    assert_refused(index, "model-00002-of-00003.safetensors is missing.*download it too")
    assert_refused(tmp_path, "model-00002-of-00003.safetensors is missing")


@pytest.mark.parametrize(
    "name",
    [
        *("../outside.safetensors", "/etc/passwd", "sub/a.safetensors", "sub\\a.safetensors", "C:a.safetensors", ".."),
        *("", ".", "a\n.safetensors", "a\0b", "x" * 300),
    ],
)
def test_a_shard_outside_the_folder_is_refused(tmp_path, name):
    index = shards(tmp_path / "in")
    safetensors.numpy.save_file({"norm.bias": WEIGHTS["norm.bias"]}, tmp_path / "outside.safetensors")
    write_index(index.parent, {"norm.bias": name})
    assert_refused(index, "isn't a file beside it")


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    index = shards(tmp_path, 2)
    first, second = sorted(tmp_path.glob("*.safetensors"))
    again = safetensors.numpy.load_file(second) | {"norm.bias": WEIGHTS["norm.bias"], "cls_token": WEIGHTS["cls_token"]}
    safetensors.numpy.save_file(again, second, {"format": "pt"})
    assert_refused(index, "has the tensor '(norm.bias|cls_token)', but model.safetensors.index.json says otherwise")
    text = json.dumps({"weight_map": {"cls_token": first.name}})
    index.write_text(text.replace("}}", f', "cls_token": "{second.name}"}}}}'))
    assert_refused(index, "names 'cls_token' twice")


def test_an_index_that_disagrees_with_its_shards_is_refused(tmp_path):
    index = shards(tmp_path, 2)
    weight_map = json.loads(index.read_text())["weight_map"]
    first, second = sorted(set(weight_map.values()))
    write_index(tmp_path, {**weight_map, "head.weight": second})
    assert_refused(index, f"{second} lacks the tensor 'head.weight'")
    left_out = dict(list(weight_map.items())[:-1])
    write_index(tmp_path, left_out)
    assert_refused(index, "has the tensor 'norm.bias'")
    write_index(tmp_path, weight_map)
    part = safetensors.numpy.load_file(tmp_path / second)
    safetensors.numpy.save_file(part, tmp_path / second, {"format": "pt", "heads": "1"})
    safetensors.numpy.save_file(safetensors.numpy.load_file(tmp_path / first), tmp_path / first, {"heads": "2"})
    assert_refused(index, "other metadata.*'heads'")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"{", "isn't JSON"),
        (b"{}", "no weight_map"),
        (b'{"weight_map": {}}', "no weight_map"),
        (b'{"weight_map": []}', "no weight_map"),
        (b'{"weight_map": {"a": 1}}', "no weight_map"),
        (b'{"weight_map": {"a": null}}', "no weight_map"),
        (b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "isn't JSON"),
        (b'{"\xff": 1}', "isn't JSON"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "isn't JSON"),
        (b"[]", "neither"),
        (b"<html>", "web page"),
    ],
)
def test_a_damaged_index_is_refused(tmp_path, content, message):
    (tmp_path / INDEX).write_bytes(content)
    assert_refused(tmp_path / INDEX, message)


def test_an_index_that_names_itself_is_refused(tmp_path):
    write_index(tmp_path, {"a": INDEX})
    assert_refused(tmp_path, "is an index")


def test_an_index_of_too_many_tensors_is_refused(tmp_path, monkeypatch):
    index = shards(tmp_path)
    monkeypatch.setattr("vitnp.checkpoints.sharded.MAX_TENSORS", 5)
    assert_refused(index, "more tensors or shards")
    monkeypatch.setattr("vitnp.checkpoints.sharded._MAX_INDEX_BYTES", 10)
    assert_refused(index, "too long")


# ---- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_with_one_checkpoint_of_any_name(tmp_path):
    folder = tmp_path / "my-vit"
    folder.mkdir()
    (folder / "README.md").write_text("a model")
    (folder / "config.json").write_text("{}")
    safetensors.numpy.save_file(WEIGHTS, folder / "step-1000.safetensors")
    vit = load_vit(folder)
    assert_loaded(vit)
    assert vit.name == "my-vit" and vit.source == str(folder / "step-1000.safetensors")
    safetensors.numpy.save_file(WEIGHTS, folder / "step-2000.safetensors")
    assert_refused(folder, "several checkpoints.*step-1000.safetensors, step-2000.safetensors")
    (folder / "model.safetensors").write_bytes((folder / "step-2000.safetensors").read_bytes())
    assert load_vit(folder).source == str(folder / "model.safetensors")  # before all others


def test_a_folder_without_a_checkpoint(tmp_path):
    assert_refused(tmp_path, "folder without model.safetensors or pytorch_model.bin: give the file")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_pipes_and_devices_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    assert_refused(tmp_path / "pipe.pth", "pipe or device")
    assert_refused("/dev/zero", "pipe or device")
    os.mkfifo(tmp_path / "a.safetensors")
    write_index(tmp_path, {"x": "a.safetensors"})
    assert_refused(tmp_path / INDEX, "pipe or device")
    (tmp_path / INDEX).unlink()
    os.mkfifo(tmp_path / INDEX)
    assert_refused(tmp_path / INDEX, "pipe or device")


# ---- the cache of the Hugging Face Hub -------------------------------------------------------------------------------


def cached(hub, repo_id="some-org/vit.small", commit=COMMIT, ref="main"):
    """Write WEIGHTS into the cache as huggingface_hub does, with links; return the folder of the snapshot."""
    repo = hub / f"models--{repo_id.replace('/', '--')}"
    snapshot = repo / "snapshots" / commit
    for folder in (repo / "blobs", repo / "refs", snapshot):
        folder.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(WEIGHTS, repo / "blobs" / "abc")
    (snapshot / "model.safetensors").symlink_to(pathlib.Path("../../blobs/abc"))
    if ref:
        (repo / "refs" / ref).write_text(commit)
    return snapshot


@pytest.mark.parametrize("name", ["some-org/vit.small", "hf-hub:some-org/vit.small", f"some-org/vit.small@{COMMIT}"])
def test_a_model_in_the_cache_of_the_hub(hub, name):
    snapshot = cached(hub)
    vit = load_vit(name)
    assert_loaded(vit)
    assert vit.name == "some-org/vit.small" and vit.source == str(snapshot / "model.safetensors")
    # The files that describe a model are looked for beside the link, not beside the blob.
    (snapshot / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}')
    assert load_vit(name).config.mean == (0.5, 0.5, 0.5)
    for folder in (snapshot, snapshot.parent.parent):
        assert load_vit(folder).name == "some-org/vit.small"


def test_shards_in_the_cache_of_the_hub(hub):
    snapshot = cached(hub)
    (snapshot / "model.safetensors").unlink()
    shards(snapshot)
    assert_loaded(load_vit("some-org/vit.small"))


def test_the_cache_is_where_huggingface_hub_looks(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub_cache.cache_folder() == tmp_path / "hub"
    monkeypatch.delenv("HF_HUB_CACHE")
    assert hub_cache.cache_folder() == tmp_path / ".cache" / "huggingface" / "hub"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert hub_cache.cache_folder() == pathlib.Path("/xdg/huggingface/hub")
    monkeypatch.setenv("HF_HOME", "~/hf")
    assert hub_cache.cache_folder() == tmp_path / "hf" / "hub"
    monkeypatch.setenv("HUGGINGFACE_HUB_CACHE", "$HOME/older")
    assert hub_cache.cache_folder() == tmp_path / "older"


def test_other_revisions(hub):
    old = "f" * 40
    cached(hub, ref=None)
    assert_loaded(load_vit("some-org/vit.small"))  # the only snapshot
    cached(hub, commit=old, ref="v1.0")
    assert load_vit("some-org/vit.small@v1.0").source.split("/")[-2] == old
    assert_refused("some-org/vit.small", "no snapshot of the revision main: .*`hf download some-org/vit.small`")
    assert_refused("some-org/vit.small@v2", "revision v2: .*`hf download some-org/vit.small --revision v2`")


def test_a_model_that_is_not_in_the_cache(hub):
    assert_refused(
        "some-org/vit.small", f"neither a file nor in the cache .*{hub}: bring it with `hf download some-org"
    )
    assert_refused(
        "facebook/dino-vits8", "`hf download facebook/dino-vits8`, or use its name in the registry, dino_vits8"
    )
    assert_refused("folder/model.pth", "doesn't exist")
    assert_refused("../model", "doesn't exist")
    cached(hub)
    (hub / "models--some-org--vit.small" / "blobs" / "abc").unlink()
    assert_refused("some-org/vit.small", "link to a file that is gone")
    (hub / "models--some-org--vit.small" / "refs" / "main").write_text("../../../elsewhere")
    (hub / "models--some-org--vit.small" / "snapshots" / ("e" * 40)).mkdir()
    assert_refused("some-org/vit.small", "no snapshot")


@pytest.mark.parametrize(
    "name", ["x" * 5000, "a/" * 3000, "~nobody-of-this-name/vit.pth", "a\0b", "", ".", "org/" + "x" * 500]
)
def test_names_that_no_file_can_have(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError):
        load_vit(name)


def test_a_folder_of_the_same_name_takes_precedence(hub, tmp_path, monkeypatch):
    cached(hub)
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "some-org" / "vit.small"
    other.mkdir(parents=True)
    safetensors.numpy.save_file(WEIGHTS | {"norm.bias": np.zeros(64, np.float32)}, other / "model.safetensors")
    assert not load_vit("some-org/vit.small").weights["norm.bias"].any()


# ---- command line ----------------------------------------------------------------------------------------------------


def test_info_and_convert_take_folders_and_names_of_the_hub(hub, tmp_path, capsys):
    snapshot = cached(hub)
    index = shards(tmp_path / "sharded")
    for source in ("some-org/vit.small", str(snapshot), str(index), str(index.parent)):
        assert main(["info", source]) == 0
        assert "3 x 3 patches" in capsys.readouterr().out
        out = tmp_path / "out.safetensors"
        assert main(["convert", source, str(out), "--overwrite"]) == 0
        assert_loaded(load_vit(out))
    capsys.readouterr()


def test_segment_takes_a_name_of_the_hub(hub, photograph, tmp_path):
    cached(hub)
    arguments = [str(photograph), "--model", "some-org/vit.small", "--short-side", "32", "--quiet"]
    assert segment([*arguments, "--refine", "none", "--collection", "none", "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "coffee_mask.png").is_file()
