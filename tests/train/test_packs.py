"""Packs: round trip, and errors for files that are no packs."""

from __future__ import annotations

import doctest
import importlib

import numpy as np
import pytest
from PIL import Image
from toy import picture
from vitnp.weights.train.cli import main
from vitnp.weights.train.data.packs import list_pictures, read_pack, read_pictures, write_pack

from vitnp.errors import ImageError, OutputError, UsageError


@pytest.mark.parametrize("name", ["data.packs", "data.dedup", "data.sampler", "schedule", "log"])
def test_examples_in_docstrings(name):
    module = importlib.import_module(f"vitnp.weights.train.{name}")
    failed, tried = doctest.testmod(module, extraglobs={"np": np})
    assert tried and not failed


def test_round_trip(tmp_path):
    pictures = [("a/übung.jpg", picture(0)), ("b.png", picture(1, 400, 300)), ("c.png", picture(2, 90, 120))]
    assert write_pack(tmp_path / "p.npz", pictures) == 3
    back = list(read_pack(tmp_path / "p.npz"))
    assert [name for name, _ in back] == ["a/übung.jpg", "b.png", "c.png"]
    assert [rgb.shape for _, rgb in back] == [(176, 230, 3), (235, 176, 3), (90, 120, 3)]
    for (_, before), (_, after) in zip(pictures, back):
        small = Image.fromarray(before).resize(after.shape[1::-1], Image.Resampling.LANCZOS)
        assert np.abs(np.asarray(small, float) - after).mean() < 3


def test_long_pictures_are_cropped_around_their_center(tmp_path):
    rgb = np.zeros((100, 400, 3), np.uint8)
    rgb[:, 120:280] = 200
    write_pack(tmp_path / "p.npz", [("long", rgb)])
    ((_, back),) = read_pack(tmp_path / "p.npz")
    assert back.shape == (100, 160, 3) and back.min() > 190


def test_folders_files_and_packs_together(tmp_path):
    (tmp_path / "folder" / "below").mkdir(parents=True)
    Image.fromarray(picture(0)).save(tmp_path / "folder" / "below" / "a.png")
    write_pack(tmp_path / "folder" / "z.npz", [("packed", picture(1))])
    Image.fromarray(picture(2)).save(tmp_path / "alone.png")
    found = list(read_pictures([tmp_path / "folder", tmp_path / "alone.png", tmp_path / "folder" / "z.npz"]))
    assert [name for name, _ in found] == ["packed", "below/a.png", "alone.png", "packed"]
    assert np.array_equal(found[1][1], picture(0))


def test_large_jpegs_are_decoded_at_a_fraction_of_their_size(tmp_path):
    Image.fromarray(picture(3, 800, 1200)).save(tmp_path / "a.jpg")
    (found,) = list_pictures([tmp_path])
    assert found.read(360).shape == (400, 600, 3)
    assert found.read().shape == (800, 1200, 3)
    Image.fromarray(picture(3, 80, 120)).save(tmp_path / "a.jpg", "PNG")
    assert np.array_equal(found.read(36), picture(3, 80, 120))


@pytest.mark.parametrize(
    "arrays",
    [
        {"bytes": np.zeros(3, np.uint8)},
        {"bytes": np.zeros(3, np.uint8), "offsets": np.array([0, 9]), "name": np.array([b"a"])},
        {"bytes": np.zeros(3, np.uint8), "offsets": np.array([0, 3, 1]), "name": np.array([b"a", b"b"])},
        {"bytes": np.zeros(3, np.uint8), "offsets": np.array([0, 3]), "name": np.array([b"a", b"b"])},
        {"bytes": np.zeros(3, np.uint8), "offsets": np.array([0, 3]), "name": np.array([b"\xff"])},
        {"bytes": np.zeros(3, np.uint8), "offsets": np.array(0), "name": np.array([b"a"])},
    ],
)
def test_malformed_packs(tmp_path, arrays):
    np.savez(tmp_path / "p.npz", **arrays)
    with pytest.raises(ImageError, match=r"p\.npz: not a pack"):
        list(read_pack(tmp_path / "p.npz"))


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04 and then nothing"])
def test_files_that_are_no_archives(tmp_path, content):
    (tmp_path / "p.npz").write_bytes(content)
    with pytest.raises(ImageError, match=r"p\.npz: not a pack"):
        list_pictures([tmp_path / "p.npz"])


def test_missing_pack_and_empty_folder(tmp_path):
    with pytest.raises(ImageError, match="no such file"):
        list_pictures([tmp_path / "p.npz"])
    with pytest.raises(ImageError, match="no photographs"):
        list_pictures([tmp_path])


def test_errors_name_the_damaged_picture(tmp_path):
    np.savez(tmp_path / "p.npz", bytes=np.zeros(30, np.uint8), offsets=np.array([0, 30]), name=np.array([b"x.jpg"]))
    with pytest.raises(ImageError, match=r"x\.jpg: cannot read this image"):
        list(read_pack(tmp_path / "p.npz"))


def test_pack_command(tmp_path, photographs, capsys):
    (tmp_path / "damaged.jpg").write_bytes(b"\xff\xd8\xff nothing")
    out = tmp_path / "p.npz"
    assert main(["pack", str(photographs), str(tmp_path / "damaged.jpg"), "--out", str(out)]) == 3
    assert "damaged.jpg" in capsys.readouterr().err
    assert [name for name, _ in read_pack(out)] == [f"{index:02}.jpg" for index in range(20)]
    content = out.read_bytes()
    with pytest.raises(OutputError, match="exists already"):
        main(["pack", str(photographs), "--out", str(out)])
    assert main(["pack", str(photographs), "--out", str(out), "--overwrite"]) == 0
    assert out.read_bytes() == content


def test_packing_nothing(tmp_path, photographs):
    with pytest.raises(UsageError, match="no photographs left to pack"):
        main(["pack", str(photographs), "--exclude", str(photographs), "--out", str(tmp_path / "p.npz")])
    assert not list(tmp_path.iterdir())
