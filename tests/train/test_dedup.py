"""Photographs of an evaluation set are kept out of a training set."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from toy import picture
from vitnp.weights.train.cli import main
from vitnp.weights.train.data.dedup import Deduplication, thumbnail
from vitnp.weights.train.data.packs import read_pack, write_pack


@pytest.fixture
def known(tmp_path) -> Deduplication:
    for index in range(4):
        Image.fromarray(picture(index)).save(tmp_path / f"known_{index}.png")
    Image.fromarray(picture(9, 200, 600)).save(tmp_path / "long.png")
    return Deduplication([tmp_path])


def small_jpeg(rgb: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(rgb).resize((130, 100)).save(buffer, "JPEG", quality=40)
    return np.asarray(Image.open(buffer))


def test_duplicates_by_name(known):
    assert len(known) == 5
    assert known.reason("somewhere/KNOWN_2.jpg", picture(50)) == "name"
    assert known.reason("known_20.jpg", picture(50)) is None


@pytest.mark.parametrize(
    "change", [lambda rgb: rgb, small_jpeg, lambda rgb: rgb[:, ::-1], lambda rgb: small_jpeg(rgb)[:, ::-1]]
)
def test_duplicates_by_looks(known, change):
    assert all(known.reason("other.jpg", change(picture(index))) == "looks" for index in range(4))


def test_long_pictures_match_by_their_center(known):
    assert known.reason("other.jpg", picture(9, 200, 600)[:, 140:460]) == "looks"


def test_other_pictures_are_no_duplicates(known):
    assert not any(known.reason(f"{index}.jpg", picture(index)) for index in range(100, 150))
    assert known.reason("flat.jpg", np.full((40, 40, 3), 7, np.uint8)) is None
    # Neither an upside-down picture nor a crop is a duplicate.
    assert known.reason("upside_down.jpg", picture(0)[::-1]) is None
    assert known.reason("crop.jpg", picture(0)[:100, :100]) is None


def test_product_of_thumbnails_is_their_correlation():
    one, other = picture(1), picture(2)
    gray = [
        np.asarray(Image.fromarray(rgb).convert("L").resize((32, 32), Image.Resampling.BOX), float).ravel()
        for rgb in (one, other)
    ]
    assert thumbnail(one) @ thumbnail(other) == pytest.approx(np.corrcoef(*gray)[0, 1], abs=1e-5)


def test_pack_command_leaves_out_duplicates(tmp_path, capsys):
    photographs, known = tmp_path / "photographs", tmp_path / "known"
    photographs.mkdir()
    known.mkdir()
    for index in range(6):
        Image.fromarray(picture(index)).save(photographs / f"{index}.png")
    Image.fromarray(picture(3)[:, ::-1]).save(known / "mirrored.png")
    Image.fromarray(picture(77)).save(known / "5.jpg")
    write_pack(tmp_path / "more.npz", [("packed", picture(0))])
    out = tmp_path / "out.npz"
    excluded = ["--exclude", str(known), "--exclude", str(tmp_path / "more.npz")]
    assert main(["pack", str(photographs), *excluded, "--out", str(out)]) == 0
    assert [name for name, _ in read_pack(out)] == ["1.png", "2.png", "4.png"]
    assert "3 photographs, 3 left out" in capsys.readouterr().err
