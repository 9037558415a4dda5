"""The index file: what is not read again, what is renewed, and files that are refused."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import vitnp
from vitnp.features import stream
from vitnp.retrieval import describe


@pytest.fixture
def folder(photographs, tmp_path):
    for seed in range(5):
        photographs(f"in/{seed}.png", seed)
    return tmp_path / "in"


@pytest.fixture
def search(vit, folder, tmp_path):
    """Return a function that searches with an index and returns the names that are found."""

    def run(*more, index=tmp_path / "photos.index", **options) -> list[str]:
        queries = [folder / "0.png"]
        found = vitnp.search_similar(
            folder if not more else list(more), queries, vit, k=99, short_side=32, index=index, **options
        )
        return [one.photograph.name for one in found.rankings[0].neighbors]

    return run


def known(path) -> list[str]:
    """Return the file names in an index, read without vitnp."""
    tensors = load_file(path)
    text, ends = tensors["paths"].tobytes(), tensors["path_ends"].tolist()
    return [os.path.basename(os.fsdecode(text[first:last])) for first, last in zip([0, *ends], ends)]


def test_a_second_search_reads_no_photograph_again(search, folder, tmp_path, images_run, monkeypatch):
    first = search()
    index = tmp_path / "photos.index"
    content, changed = index.read_bytes(), index.stat().st_mtime_ns
    images_run.clear()
    monkeypatch.setattr(stream, "fingerprint", lambda source, **_: pytest.fail(f"{source} was read"))
    assert search() == first
    assert images_run == [] and index.read_bytes() == content and index.stat().st_mtime_ns == changed
    assert known(index) == [f"{seed}.png" for seed in range(5)]
    vectors = load_file(index)["vectors"]
    assert vectors.shape == (5, 64) and np.allclose(np.linalg.norm(vectors, axis=1), 1)


def test_only_what_changed_goes_through_the_network(search, folder, photographs, tmp_path, images_run):
    search()
    index = tmp_path / "photos.index"
    photographs("in/1.png", seed=31)  # changed
    photographs("in/new.png", seed=32)
    (folder / "2.png").unlink()
    (folder / "3.png").rename(folder / "moved.png")
    os.utime(folder / "4.png", ns=(1, 1))  # touched
    images_run.clear()
    result = search()
    assert sum(images_run) == 2
    assert sorted(result) == ["1.png", "4.png", "moved.png", "new.png"]
    assert known(index) == ["0.png", "1.png", "4.png", "moved.png", "new.png"]
    assert result == search(index=None)
    index.unlink()
    search()
    assert known(index) == ["0.png", "1.png", "4.png", "moved.png", "new.png"]


def test_the_same_photographs_give_the_same_bytes(search, folder, tmp_path):
    search(n_threads=1)
    search(index=tmp_path / "other.index", n_threads=3, batch=1)
    assert (tmp_path / "photos.index").read_bytes() == (tmp_path / "other.index").read_bytes()


def test_a_vanished_photograph_leaves_the_index_without_any_new_one(search, folder, tmp_path):
    search()
    (folder / "2.png").unlink()
    assert sorted(search()) == ["1.png", "3.png", "4.png"]
    assert known(tmp_path / "photos.index") == ["0.png", "1.png", "3.png", "4.png"]


def test_a_photograph_that_is_named_but_gone_leaves_the_index(search, folder, tmp_path):
    search()
    paths = sorted(folder.iterdir())
    paths[3].unlink()
    assert sorted(search(*paths)) == ["1.png", "2.png", "4.png"]
    assert known(tmp_path / "photos.index") == ["0.png", "1.png", "2.png", "4.png"]


def test_photographs_of_other_folders_stay(search, folder, photographs, tmp_path, images_run):
    other = photographs("other/a.png", seed=77)
    search()
    assert search(other) == ["a.png"]
    assert known(tmp_path / "photos.index") == ["0.png", "1.png", "2.png", "3.png", "4.png", "a.png"]
    images_run.clear()
    assert "a.png" not in search() and images_run == []


def test_a_broken_photograph_is_not_in_the_index(search, folder, tmp_path):
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:300])
    search()
    (folder / "1.png").write_bytes((folder / "0.png").read_bytes()[:200])
    search()
    assert known(tmp_path / "photos.index") == ["0.png", "2.png", "3.png", "4.png"]


@pytest.mark.skipif(os.name == "nt", reason="names of bytes")
def test_names_that_are_not_unicode(search, folder, tmp_path):
    shutil.copy(folder / "0.png", os.fsencode(folder) + b"/caf\xe9.png")
    assert os.fsdecode(b"caf\xe9.png") in search()
    assert os.fsdecode(b"caf\xe9.png") in known(tmp_path / "photos.index")
    assert os.fsdecode(b"caf\xe9.png") in search()


def test_an_interruption_keeps_what_is_finished(search, tmp_path, images_run):
    def stop(steps):
        if steps and len(finished) == 2:
            raise KeyboardInterrupt
        finished.extend([0] * steps)

    finished: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        search(progress=stop, n_threads=1, batch=1)
    assert len(known(tmp_path / "photos.index")) == 3
    images_run.clear()
    search()
    assert sum(images_run) == 2


def test_the_index_is_written_now_and_then(search, tmp_path, monkeypatch):
    monkeypatch.setattr(describe, "SAVE_EVERY", 2)
    sizes = []

    def look(steps):
        if (tmp_path / "photos.index").exists():
            sizes.append(len(known(tmp_path / "photos.index")))

    search(progress=look, n_threads=1, batch=1)
    assert sizes == [2, 2, 4, 4]


def test_duplicates_share_the_index(search, vit, folder, tmp_path, images_run):
    search()
    images_run.clear()
    vitnp.find_duplicates(folder, vit, threshold=0.9, of="image", short_side=32, index=tmp_path / "photos.index")
    assert images_run == []


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"of": "object"}, "--of: image there, object here"),
        ({"of": "layout"}, "--of: image there, layout here"),
        ({"stride": 4}, "stride: 8 there, 4 here"),
    ],
)
def test_an_index_of_other_vectors_is_refused(search, tmp_path, options, named):
    search()
    content = (tmp_path / "photos.index").read_bytes()
    with pytest.raises(vitnp.UsageError, match=f"photos.index: this index was made with another value of {named}"):
        search(**options)
    assert (tmp_path / "photos.index").read_bytes() == content


def change(name, function):
    def changed(tensors, metadata):
        tensors[name] = function(tensors[name])

    return changed


@pytest.mark.parametrize(
    "damage",
    [
        change("vectors", lambda x: x[:, :5].copy()),
        change("vectors", lambda x: x.astype(np.float64)),
        change("vectors", lambda x: np.where(np.arange(5)[:, None] == 2, np.nan, x).astype(np.float32)),
        change("vectors", lambda x: 2 * x),
        change("stamps", lambda x: x[:3].copy()),
        change("fingerprints", lambda x: x[:, :3].copy()),
        change("path_ends", lambda x: x[::-1].copy()),
        change("path_ends", lambda x: x + 1),
        change("paths", lambda x: x[:9].copy()),
        lambda tensors, metadata: tensors.pop("sizes"),
        lambda tensors, metadata: metadata.update({"vitnp:parameters": "[1]"}),
        lambda tensors, metadata: metadata.update({"vitnp:parameters": "{"}),
    ],
)
def test_a_damaged_index_is_one_sentence(search, tmp_path, damage):
    from safetensors import safe_open

    search()
    path = tmp_path / "photos.index"
    tensors = load_file(path)
    with safe_open(path, framework="numpy") as file:
        metadata = dict(file.metadata())
    damage(tensors, metadata)
    save_file(tensors, path, metadata)
    content = path.read_bytes()
    with pytest.raises(vitnp.OutputError, match="photos.index: this index is damaged; remove it"):
        search()
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"mine", b"\0" * 100, json.dumps({"a": 1}).encode()])
def test_a_file_of_another_program_is_refused(search, tmp_path, content):
    (tmp_path / "photos.index").write_bytes(content)
    with pytest.raises(vitnp.OutputError, match="photos.index: this file exists and is not an index of vitnp"):
        search()
    assert (tmp_path / "photos.index").read_bytes() == content


def test_a_checkpoint_is_not_an_index(search, model):
    content = model.read_bytes()
    with pytest.raises(vitnp.OutputError, match="not an index"):
        search(index=model)
    assert model.read_bytes() == content
