"""Files of a feature store that are sound by their checksum and wrong, and other things under their names."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import sys
import tempfile

import numpy as np
import pytest
import random_vit
from PIL import Image

from vitnp import ViT, ViTConfig
from vitnp.checkpoints.safetensors_io import read_safetensors, serialized
from vitnp.evaluate.protocol import shared_cache
from vitnp.features import shards
from vitnp.features.maintenance import prune
from vitnp.features.spec import FeatureSpec
from vitnp.features.store import FeatureStore
from vitnp.features.stream import extract_to_store
from vitnp.features.temporary import temporary_store
from vitnp.io.decode import file_hash

on_posix = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")


@pytest.fixture(scope="module")
def vit() -> ViT:
    config = ViTConfig(width=24, depth=2, heads=3, patch=8, grid=(4, 5))
    return ViT(config, random_vit.random_weights(config, seed=1, hidden=32, class_position=True, dtype=np.float32))


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> list[pathlib.Path]:
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for index, shape in enumerate([(40, 56, 3), (33, 33, 3), (90, 31, 3)]):
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(folder / f"{index}.png")
    return sorted(folder.iterdir())


@pytest.fixture
def store(vit, paths, tmp_path) -> FeatureStore:
    store = FeatureStore(tmp_path / "cache", FeatureSpec.of(vit, short_side=32))
    extract_to_store(paths, vit, store)
    return store


def only_shard(store: FeatureStore) -> pathlib.Path:
    (path,) = store.folder.glob("*.safetensors")
    return path


def keys_of(store: FeatureStore) -> dict[str, bytes]:
    return {name: store.entry(name).keys.tobytes() for name in store}


def rewrite(path: pathlib.Path, change) -> pathlib.Path:
    """Replace a shard by a changed one whose name is its checksum: `change(tensors, rows)` changes them in place."""
    mapped, metadata = read_safetensors(path)
    tensors = {name: np.array(array) for name, array in mapped.items()}
    rows = json.loads(metadata["photographs"])
    text = change(tensors, rows)
    content = b"".join(serialized(tensors, {"photographs": json.dumps(rows) if text is None else text}))
    path.unlink()
    changed = path.with_name(hashlib.blake2b(content, digest_size=16).hexdigest() + shards.SUFFIX)
    changed.write_bytes(content)
    return changed


def set_field(index: int, value: object):
    def change(tensors, rows):
        rows[0][index] = value

    return change


def set_tensor(name: str, function):
    def change(tensors, rows):
        tensors[name] = function(tensors[name])

    return change


def remove_tensor(tensors, rows):
    del tensors["value"]


def add_tensor(tensors, rows):
    tensors["more"] = np.zeros(3, np.float32)


def list_twice(tensors, rows):
    rows[1][0] = rows[0][0]


def list_fewer(tensors, rows):
    del rows[0]


def widen(tensors, rows):
    for name in ("keys", "value", "last_key", "cls", "cls_state"):
        if name in tensors:
            tensors[name] = np.concatenate([tensors[name]] * 2, axis=-1)


def transpose_grids(tensors, rows):
    for row in rows:
        row[1] = row[1][::-1]


def no_photographs(tensors, rows):
    rows.clear()
    for name in tensors:
        tensors[name] = tensors[name][:0]


HEADERS = {
    "grid too large": set_field(1, [10**9, 10**9]),
    "grid huge": set_field(1, [10**400, 1]),
    "grid negative": set_field(1, [-4, -5]),
    "grid of floats": set_field(1, [4.0, 5.0]),
    "grid of text": set_field(1, ["4", "5"]),
    "grid infinite": set_field(1, [float("inf"), 1]),
    "grid of three": set_field(1, [4, 5, 1]),
    "grids transposed": transpose_grids,
    "pixels of another size": set_field(2, [64, 64]),
    "size of another photograph": set_field(3, [10, 1000]),
    "size huge": set_field(3, [2**31, 2**31]),
    "size none": set_field(3, None),
    "digest negative": set_field(4, "-1"),
    "digest too long": set_field(4, "f" * 40),
    "digest a number": set_field(4, 7),
    "capped": set_field(5, True),
    "capped a number": set_field(5, 1),
    "name a list": set_field(0, ["a"]),
    "name a number": set_field(0, 3),
    "a photograph twice": list_twice,
    "a photograph too few": list_fewer,
    "no photographs": no_photographs,
    "rows an object": lambda tensors, rows: "{}",
    "rows a number": lambda tensors, rows: "7",
    "rows nested": lambda tensors, rows: "[" * 100_000,
    "keys too short": set_tensor("keys", lambda keys: keys[1:]),
    "keys of one axis": set_tensor("keys", lambda keys: keys.reshape(-1)),
    "keys of another dtype": set_tensor("keys", lambda keys: keys.astype(np.float32)),
    "keys of integers": set_tensor("keys", lambda keys: keys.view(np.int16)),
    "attention of two axes": set_tensor("attention", lambda attention: attention[:, None]),
    "cls a scalar": set_tensor("cls", lambda cls: cls[0, 0]),
    "cls_state of three": set_tensor("cls_state", lambda state: state[:, :3]),
    "wider": widen,
    "an array too few": remove_tensor,
    "an array too many": add_tensor,
}


@pytest.mark.parametrize("change", HEADERS.values(), ids=list(HEADERS))
def test_a_wrong_header_is_thrown_away_and_made_anew(vit, paths, store, change):
    expected = keys_of(store)
    wrong = rewrite(only_shard(store), change)
    told: list[str] = []
    again = FeatureStore(store.folder.parent, store.spec, notice=told.append)
    assert extract_to_store(paths, vit, again).failures == {}
    assert keys_of(again) == expected
    assert [str(wrong) in line and "damaged" in line for line in told] == [True]
    assert not wrong.exists()


def test_a_rewritten_sound_shard_is_kept(vit, paths, store):
    kept = rewrite(only_shard(store), lambda tensors, rows: None)
    again = FeatureStore(store.folder.parent, store.spec, notice=pytest.fail)
    extract_to_store(paths, vit, again)
    assert only_shard(again) == kept and len(again) == 3


@on_posix
def test_a_pipe_named_like_a_shard_is_not_waited_for(vit, paths, store):
    name = store.folder / f"{'0' * 32}.safetensors"
    os.mkfifo(name)
    told: list[str] = []
    assert len(FeatureStore(store.folder.parent, store.spec, notice=told.append)) == 3
    assert len(told) == 1 and not name.exists()


def test_a_folder_named_like_a_shard_is_ignored(vit, paths, store):
    (store.folder / f"{'0' * 32}.safetensors").mkdir()
    assert len(FeatureStore(store.folder.parent, store.spec, notice=lambda line: None)) == 3


@on_posix
def test_a_pipe_named_like_a_spec_is_not_waited_for(store):
    folder = store.folder.parent / ("1" * 32)
    folder.mkdir()
    os.mkfifo(folder / "identity.json")
    assert prune(store.folder.parent, set(store)) == 0


# --- what others may plant in TMPDIR ----------------------------------------------------------------------------------


@on_posix
def test_a_planted_pipe_is_not_waited_for(vit, store, tmp_path):
    planted = tmp_path / "vitnp-features-planted"
    planted.mkdir()
    os.mkfifo(planted / "in-use")
    with temporary_store(store.spec, folder=tmp_path):
        pass
    assert (planted / "in-use").exists()


@on_posix
@pytest.mark.parametrize("link", ["folder", "lock file"])
def test_planted_links_are_not_followed(store, tmp_path, link):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "in-use").write_bytes(b"")
    tmp = tmp_path / "tmp"
    tmp.mkdir()
    planted = tmp / "vitnp-features-planted"
    if link == "folder":
        planted.symlink_to(mine)
    else:
        planted.mkdir()
        (planted / "in-use").symlink_to(mine / "in-use")
    with temporary_store(store.spec, folder=tmp):
        pass
    assert (mine / "in-use").exists() and os.path.lexists(planted)


@pytest.mark.skipif(getattr(os, "geteuid", lambda: -1)() != 0, reason="only root can give files away")
def test_folders_of_other_users_stay(store, tmp_path):
    planted = tmp_path / "vitnp-features-theirs"
    planted.mkdir()
    (planted / "in-use").write_bytes(b"")
    os.chown(planted, 65534, 65534)
    with temporary_store(store.spec, folder=tmp_path):
        pass
    assert (planted / "in-use").exists()


# --- maps are closed before files are removed, as Windows demands -----------------------------------------------------


@contextlib.contextmanager
def no_map_at_removal(monkeypatch):
    """Fail if a file is removed or replaced while it is mapped; yield the names of the files that were."""
    seen: list[str] = []
    unlink, replace = os.unlink, os.replace

    def check(path: object) -> None:
        if (name := pathlib.Path(os.fspath(path)).name).endswith(shards.SUFFIX):
            assert name not in pathlib.Path("/proc/self/maps").read_text()
            seen.append(name)

    def checked_unlink(path, **options):
        check(path)
        return unlink(path, **options)

    def checked_replace(source, target, **options):
        check(target)
        return replace(source, target, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", checked_unlink)
        patch.setattr(pathlib.Path, "unlink", lambda self, missing_ok=False: checked_unlink(self))
        patch.setattr(os, "replace", checked_replace)
        yield seen


maps_are_listed = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc lists the maps")


@maps_are_listed
def test_no_map_is_open_when_shards_are_pruned(paths, store, monkeypatch):
    keys_of(store)
    old = only_shard(store).name
    assert old in pathlib.Path("/proc/self/maps").read_text()
    with no_map_at_removal(monkeypatch) as seen:
        assert store.prune({file_hash(paths[0])}) > 0
    assert old in seen and only_shard(store).name in seen


@maps_are_listed
def test_no_map_is_open_when_a_shard_is_written_again(store, monkeypatch):
    with no_map_at_removal(monkeypatch) as seen:
        entries = [store.entry(name) for name in store]
        keys_of(store)
        store.add(entries)
    assert seen == [only_shard(store).name]


@maps_are_listed
def test_no_map_is_open_when_a_damaged_shard_is_removed(vit, paths, store, monkeypatch):
    widened = rewrite(only_shard(store), widen)
    again = FeatureStore(store.folder.parent, store.spec, notice=lambda line: None)
    keys_of(again)  # mapped before the network is known
    with no_map_at_removal(monkeypatch) as seen:
        extract_to_store(paths, vit, again)
    assert seen[0] == widened.name


@maps_are_listed
def test_no_map_is_open_when_a_temporary_store_is_removed(vit, paths, store, tmp_path, monkeypatch):
    with no_map_at_removal(monkeypatch) as seen:
        with temporary_store(store.spec, folder=tmp_path) as temporary:
            extract_to_store(paths, vit, temporary)
            keys_of(temporary)
            seen.clear()
            name = only_shard(temporary).name
            assert name in pathlib.Path("/proc/self/maps").read_text()
        assert name not in pathlib.Path("/proc/self/maps").read_text()
    assert not temporary.folder.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="locks of POSIX")
def test_features_of_an_evaluation_that_was_killed_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "vitnp-features-killed").mkdir()
    (tmp_path / "vitnp-features-killed" / "in-use").write_bytes(b"")
    with shared_cache(None, runs=2) as folder:
        assert os.listdir(tmp_path) == [os.path.basename(folder)]
        with shared_cache(None, runs=2):
            assert os.path.isdir(folder), "it is in use"
    assert not os.listdir(tmp_path)
