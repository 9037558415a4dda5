"""Data sets made by others: masks of other kinds, names that leave the folder."""

from __future__ import annotations

import json
import os
import pathlib
import struct
import zlib

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from vitnp.errors import ImageError, UsageError
from vitnp.evaluate.data.coco import read_coco
from vitnp.evaluate.data.label_images import read_labels
from vitnp.evaluate.data.layouts import detect_layout
from vitnp.evaluate.data.pairs import read_truth
from vitnp.evaluate.data.voc import read_split

OBJECT = np.array([[True, False, False], [False, True, True]])

# --- formats ----------------------------------------------------------------------------------------------------------

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 3 2\n%%EndComments\nshowpage\n"


@pytest.fixture
def no_ghostscript(monkeypatch):
    """Fail if Pillow is about to start Ghostscript."""

    def fail(*arguments: object, **options: object) -> None:
        pytest.fail("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", fail)


@pytest.mark.parametrize("read", [read_truth, read_labels])
def test_postscript_is_no_mask_whatever_its_name(tmp_path, read, no_ghostscript):
    path = tmp_path / "mask.png"
    path.write_bytes(POSTSCRIPT)
    with pytest.raises(ImageError, match=r"mask\.png: this is not an image in a supported format"):
        read(path, (2, 3))


def test_postscript_is_not_started_to_detect_the_layout(tmp_path, no_ghostscript):
    for folder in ("images", "masks"):
        (tmp_path / folder / "cat").mkdir(parents=True)
    Image.new("L", (3, 2)).save(tmp_path / "images" / "cat" / "a.jpg")
    (tmp_path / "masks" / "cat" / "a.png").write_bytes(POSTSCRIPT)
    assert detect_layout([tmp_path / "images", tmp_path / "masks"]) == "coseg"


@pytest.mark.parametrize("form", ["PCX", "SGI", "TGA", "DDS", "ICO", "PDF", "EPS", "JPEG2000", "PALM"])
def test_formats_that_photographs_do_not_have_are_refused(tmp_path, form):
    path = tmp_path / "mask.png"
    try:
        with open(path, "wb") as file:
            Image.fromarray(OBJECT.astype(np.uint8) * np.uint8(255)).save(file, form)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow does not write {form}")
    with pytest.raises(ImageError, match="not an image in a supported format"):
        read_truth(path, OBJECT.shape)


def tiled_tiff(side: int) -> bytes:
    """Return a TIFF of 3 x 2 pixels in one tile of zeros, deflated as if it were larger than it is."""
    data = zlib.compress(bytes(16 * 16))
    entries = {
        256: (3, 3), 257: (3, 2), 258: (3, 8), 259: (3, 8), 262: (3, 1), 277: (3, 1), 322: (4, side), 323: (4, side),
        324: (4, 8), 325: (4, len(data)),
    }  # fmt: skip
    directory = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, (kind, value) in entries.items())
    head = b"II*\0" + struct.pack("<I", 8 + len(data)) + data
    return head + struct.pack("<H", len(entries)) + directory + bytes(4)


def test_huge_tiles_are_refused_before_they_take_memory(tmp_path):
    (tmp_path / "mask.tif").write_bytes(tiled_tiff(16))
    assert not read_truth(tmp_path / "mask.tif", (2, 3)).any()
    (tmp_path / "mask.tif").write_bytes(tiled_tiff(40_000))
    with pytest.raises(ImageError, match="tiles of 40000 x 40000 pixels"):
        read_truth(tmp_path / "mask.tif", (2, 3))


@pytest.mark.parametrize("read", [read_truth, read_labels])
def test_huge_pictures_are_refused_by_their_header(tmp_path, read):
    content = tiled_tiff(16).replace(struct.pack("<HHII", 257, 3, 1, 2), struct.pack("<HHII", 257, 4, 1, 1_644_167_192))
    (tmp_path / "mask.tif").write_bytes(content)
    with pytest.raises(ImageError, match="3 x 1644167192 pixels are too many"):
        read(tmp_path / "mask.tif", (2, 3))


# --- mattes -----------------------------------------------------------------------------------------------------------


def save_rgba(path: pathlib.Path, colors: np.ndarray, alpha: np.ndarray, mode: str = "RGBA") -> None:
    rgba = np.dstack([np.broadcast_to(colors, (*alpha.shape, 3)), alpha]).astype(np.uint8)
    Image.fromarray(rgba).convert(mode).save(path)


COLORFUL = np.array([[[200, 20, 20], [0, 0, 0], [0, 0, 0]], [[0, 0, 0], [20, 200, 20], [20, 20, 200]]])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
@pytest.mark.parametrize("colors", [np.array([0, 0, 0]), np.array([255, 255, 255]), np.array([90, 90, 90]), COLORFUL])
def test_what_is_visible_is_the_object(tmp_path, mode, colors):
    if colors is COLORFUL and mode == "LA":
        pytest.skip("LA has no colors")
    path = tmp_path / ("mask.tif" if mode == "PA" else "mask.png")
    try:
        save_rgba(path, colors, np.where(OBJECT, 255, 0), mode)
    except (ValueError, OSError):
        pytest.skip(f"this Pillow does not write {mode}")
    np.testing.assert_array_equal(read_truth(path, OBJECT.shape), OBJECT)


def test_soft_edges_are_cut_in_the_middle(tmp_path):
    alpha = np.array([[0, 127, 128, 255]])
    colors = np.array([[[0, 0, 0], [100, 100, 100], [100, 100, 100], [255, 255, 255]]])  # premultiplied
    save_rgba(tmp_path / "mask.png", colors, alpha)
    assert read_truth(tmp_path / "mask.png", (1, 4)).tolist() == [[False, False, True, True]]


def test_without_transparent_parts_alpha_says_nothing(tmp_path):
    save_rgba(tmp_path / "mask.png", np.where(OBJECT[..., None], 255, 0), np.full(OBJECT.shape, 255))
    np.testing.assert_array_equal(read_truth(tmp_path / "mask.png", OBJECT.shape), OBJECT)


def test_fully_transparent_is_an_empty_mask(tmp_path):
    save_rgba(tmp_path / "mask.png", np.array([255, 255, 255]), np.zeros(OBJECT.shape))
    assert not read_truth(tmp_path / "mask.png", OBJECT.shape).any()


def test_black_and_white_beside_transparent_parts_is_refused(tmp_path):
    save_rgba(tmp_path / "mask.png", np.where(OBJECT[..., None], 255, 0), np.array([[0, 255, 255], [255, 255, 255]]))
    with pytest.raises(ImageError, match="transparent parts and shows both background and object"):
        read_truth(tmp_path / "mask.png", OBJECT.shape)


def save_palette(path: pathlib.Path, labels: list[list[int]], transparency: int | bytes) -> None:
    picture = Image.fromarray(np.array(labels, np.uint8)).convert("L")
    picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    picture.save(path, transparency=transparency)


def test_palettes_with_a_transparent_entry(tmp_path):
    path = tmp_path / "mask.png"
    save_palette(path, [[1, 0, 0], [0, 2, 1]], 0)  # labels whose background is transparent
    np.testing.assert_array_equal(read_truth(path, OBJECT.shape), OBJECT)
    save_palette(path, [[1, 2, 2], [2, 1, 1]], 2)  # a cutout of few colors
    np.testing.assert_array_equal(read_truth(path, OBJECT.shape), OBJECT)
    save_palette(path, [[1, 0, 0], [2, 1, 1]], 2)  # labels of which some are transparent: void, or background?
    with pytest.raises(ImageError, match="both background and object"):
        read_truth(path, OBJECT.shape)


def test_a_gray_mask_with_a_transparent_level(tmp_path):
    path = tmp_path / "mask.png"
    Image.fromarray(np.where(OBJECT, 255, 0).astype(np.uint8)).save(path, transparency=0)
    np.testing.assert_array_equal(read_truth(path, OBJECT.shape), OBJECT)


# --- depth ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("white", [511, 1023, 4095, 16383, 65535, 40_000])
def test_masks_of_9_to_16_bits(tmp_path, white):
    Image.fromarray(np.where(OBJECT, white, 0).astype(np.uint16)).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_truth(tmp_path / "mask.png", OBJECT.shape), OBJECT)


@pytest.mark.parametrize("white", [256, 1000, 32_767])
def test_a_mask_whose_white_is_unknown_is_refused(tmp_path, white):
    Image.fromarray(np.where(OBJECT, white, 0).astype(np.uint16)).save(tmp_path / "mask.png")
    with pytest.raises(ImageError, match=f"the largest value of this mask is {white}, which is no white"):
        read_truth(tmp_path / "mask.png", OBJECT.shape)


@pytest.mark.parametrize("white", [np.nan, np.inf, 70_000])
def test_a_mask_of_floats_without_a_white_is_refused(tmp_path, white):
    Image.fromarray(np.where(OBJECT, white, 0).astype(np.float32)).save(tmp_path / "mask.tif")
    with pytest.raises(ImageError, match="which is no white"):
        read_truth(tmp_path / "mask.tif", OBJECT.shape)


# --- names ------------------------------------------------------------------------------------------------------------


def coco(folder: pathlib.Path, *names: str) -> tuple[pathlib.Path, pathlib.Path]:
    """Return an instances file that lists these photographs, and the folder of photographs."""
    photographs = folder / "photographs"
    (photographs / "in").mkdir(parents=True)
    for path in (photographs / "a.png", photographs / "in" / "b.png", folder / "secret.png"):
        Image.new("L", (3, 2)).save(path)
    content = {
        "images": [{"id": i, "file_name": name, "height": 2, "width": 3} for i, name in enumerate(names)],
        "annotations": [],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (folder / "instances.json").write_text(json.dumps(content))
    return folder / "instances.json", photographs


@pytest.mark.parametrize("name", ["a" * 256 + ".png", "a" * 5000, "in/" * 2000 + "b.png", "a\0b.png", "", ".", "in"])
def test_names_that_no_photograph_has(tmp_path, name):
    with pytest.raises(UsageError, match="this photograph is missing") as caught:
        read_coco(*coco(tmp_path, name))
    assert len(str(caught.value)) < 1500 and "\0" not in str(caught.value)


@pytest.mark.parametrize("name", ["../secret.png", "in/../../secret.png", "..", "/etc/passwd", "{folder}/secret.png"])
def test_names_that_leave_the_folder_are_refused(tmp_path, name):
    with pytest.raises(UsageError, match="outside the folder .* without"):
        read_coco(*coco(tmp_path, name.format(folder=tmp_path)))


def test_names_that_stay_in_the_folder(tmp_path):
    found = read_coco(*coco(tmp_path, "in/../a.png", "./in/b.png"))
    assert [os.path.relpath(sample.image, tmp_path / "photographs") for sample in found.samples] == [
        "a.png", os.path.join("in", "b.png")
    ]  # fmt: skip


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_no_photograph(tmp_path):
    path, photographs = coco(tmp_path, "pipe.png")
    os.mkfifo(photographs / "pipe.png")
    with pytest.raises(UsageError, match="this photograph is missing"):
        read_coco(path, photographs)


def test_a_long_name_of_a_voc_list(tmp_path):
    with pytest.raises(UsageError, match="there is no such list"):
        read_split(tmp_path, "a" * 300)
