"""find_duplicates: groups, the photograph to keep, bytes alone."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

import vitnp
from vitnp.retrieval.duplicates import THRESHOLD


def shape(found) -> list[list[str]]:
    """Return the names in each group, that of the photograph to keep first."""
    return [
        [group.representative.photograph.name, *(one.photograph.name for one in group.members)]
        for group in found.groups
    ]


@pytest.fixture
def folder(photographs, tmp_path):
    for seed in range(4):
        photographs(f"in/{seed}.png", seed)
    return tmp_path / "in"


def find(folder, vit, **options):
    return vitnp.find_duplicates(folder, vit, short_side=32, **options)


def test_copies_of_a_photograph_are_one_group(photograph, builtin, tmp_path):
    """The built-in network and the default threshold."""
    with Image.open(photograph) as image:
        image = image.convert("RGB")
    image.save(tmp_path / "coffee.png")
    image.resize((image.width * 3 // 4, image.height * 3 // 4)).save(tmp_path / "small.png")
    image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "mirrored.png")
    image.save(tmp_path / "again.jpg", quality=60)
    for name in ("chelsea", "rocket"):
        shutil.copy(photograph.parent / f"{name}.jpg", tmp_path)
    found = vitnp.find_duplicates(tmp_path, builtin)
    assert list(map(sorted, shape(found))) == [["again.jpg", "coffee.png", "mirrored.png", "small.png"]]
    assert shape(found)[0][0] != "small.png"
    assert found.threshold == THRESHOLD["layout"] and found.n_compared == 6
    assert all(found.threshold <= one.similarity <= 1 for one in found.groups[0].members)
    assert not any(one.identical for one in found.groups[0].members)


def test_the_one_to_keep_has_most_pixels_then_bytes_then_the_shortest_name(vit, folder, photographs):
    shutil.copy(folder / "0.png", folder / "0 (1).png")
    shutil.copy(folder / "0.png", folder / "00.png")
    assert shape(find(folder, vit, threshold=0.9999)) == [["0.png", "0 (1).png", "00.png"]]
    (folder / "a long name.png").write_bytes((folder / "0.png").read_bytes() + bytes(9))  # the same pixels
    assert shape(find(folder, vit, threshold=0.9999))[0][0] == "a long name.png"
    with Image.open(folder / "0.png") as image:
        image.resize((112, 80), Image.Resampling.NEAREST).save(folder / "larger.png")
    (group,) = [group for group in find(folder, vit, threshold=0.9).groups if len(group.members) >= 4]
    assert group.representative.photograph.name == "larger.png" and group.representative.size == (80, 112)
    assert not any(one.identical for one in group.members)


def test_identical_means_the_same_bytes_as_the_one_to_keep(vit, folder):
    shutil.copy(folder / "0.png", folder / "copy.png")
    assert [one.identical for one in find(folder, vit, threshold=0.9999).groups[0].members] == [True]
    (folder / "more.png").write_bytes((folder / "0.png").read_bytes() + bytes(9))  # the same pixels
    (group,) = find(folder, vit, threshold=0.9999).groups
    assert group.representative.photograph.name == "more.png"
    assert [one.identical for one in group.members] == [False, False]


def test_everything_is_one_group_at_the_lowest_threshold(vit, folder):
    assert [len(group) for group in shape(find(folder, vit, threshold=-1))] == [4]
    assert shape(find(folder, vit, threshold=1.0)) == []


def test_links_are_no_duplicates(vit, folder):
    (folder / "a.png").symlink_to(folder / "0.png")
    os.link(folder / "1.png", folder / "hard.png")
    for options in ({"threshold": 0.9999}, {"exact": True}):
        assert shape(vitnp.find_duplicates(folder, vit, **options)) == []
    shutil.copy(folder / "0.png", folder / "copy.png")
    for options in ({"threshold": 0.9999}, {"exact": True}):
        assert shape(vitnp.find_duplicates(folder, vit, **options)) == [["0.png", "copy.png"]]


def test_bytes_alone_need_no_network_and_read_only_files_of_one_size(folder, monkeypatch):
    from vitnp.retrieval import identical

    shutil.copy(folder / "2.png", folder / "copy.png")
    (folder / "broken.png").write_bytes(b"no picture, but a file")
    (folder / "empty.png").touch()
    read = []
    fingerprint = identical.fingerprint
    monkeypatch.setattr(identical, "fingerprint", lambda source: read.append(source.name) or fingerprint(source))
    monkeypatch.setattr(vitnp.ViT, "__call__", lambda *_, **__: pytest.fail("the network ran"))
    found = vitnp.find_duplicates(folder, exact=True, n_threads=1)
    assert shape(found) == [["2.png", "copy.png"]]
    sizes = [path.stat().st_size for path in folder.iterdir()]
    assert sorted(read) == sorted(
        path.name for path in folder.iterdir() if sizes.count(path.stat().st_size) > 1 or path.name == "empty.png"
    )
    assert [error.path for error in found.failures.values()] or "empty.png" in str(*found.failures.values())
    assert found.threshold is None and found.groups[0].members[0].size is None
    json.dumps(found.to_dict())


def test_photographs_in_memory(vit):
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (40, 56, 3), np.uint8) for _ in range(3)]
    found = find([*pixels, pixels[1].copy()], vit, threshold=0.9999)
    assert [(g.representative.index, [one.index for one in g.members]) for g in found.groups] == [(1, [3])]
    assert found.groups[0].members[0].identical
    found = vitnp.find_duplicates([*pixels, pixels[1].copy()], exact=True)
    assert [(g.representative.index, [one.index for one in g.members]) for g in found.groups] == [(1, [3])]


def test_broken_photographs_are_listed(vit, folder):
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:300])
    found = find(folder, vit, threshold=0.9999)
    assert [str(error).count("cut.png") for error in found.failures.values()] == [1] and found.n_compared == 4


@pytest.mark.parametrize("options", [{"threshold": 0.9}, {"index": "a.index"}, {"cache": "cache"}])
def test_bytes_alone_take_no_threshold_index_or_cache(folder, options):
    with pytest.raises(vitnp.UsageError, match="exact compares bytes"):
        vitnp.find_duplicates(folder, exact=True, **options)


def test_a_threshold_is_a_cosine(vit, folder):
    with pytest.raises(vitnp.UsageError, match="threshold must be a number from -1 to 1, got 95"):
        find(folder, vit, threshold=95)
