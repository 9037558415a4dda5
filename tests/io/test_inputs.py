"""What users pass as photographs: every form of the same picture gives the same pixels, and all else one sentence."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

import vitnp
from vitnp.errors import ImageError, UsageError
from vitnp.io.inputs import as_photograph, as_photographs

RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


class Wrapped:
    """An object with ``__array__``, as a tensor is."""

    def __array__(self, dtype=None, copy=None):
        return RGB


@pytest.fixture
def path(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def forms(path):
    """Yield the same photograph in every form."""
    data = path.read_bytes()
    yield from (path, str(path), data, bytearray(data), memoryview(data), io.BytesIO(data), Image.open(path), RGB)
    yield from (Wrapped(), {"image": Image.open(path), "label": 1}, {"img": RGB})
    yield from ({"image": {"bytes": data, "path": None}}, {"image": {"bytes": None, "path": str(path)}})


def test_every_form_gives_the_same_pixels(path):
    for form in forms(path):
        np.testing.assert_array_equal(vitnp.read_image(form), RGB, err_msg=type(form).__name__)
    with open(path, "rb") as file:
        np.testing.assert_array_equal(vitnp.read_image(file), RGB)


@pytest.mark.parametrize(
    "value, message",
    [
        (5, "a photograph must be a path, a file object, bytes.*got int"),
        (np.zeros((3, 40, 50), np.uint8), r"looks like \(C, H, W\) with C = 3; transpose it to \(40, 50, 3\)"),
        ({"label": 1, "text": "x"}, "under 'image', got the keys 'label', 'text'"),
        ({}, "got the keys none"),
        (io.StringIO("x"), "opened for bytes"),
        (b"no picture", "the bytes: this is not an image"),
        (b"", "the bytes: "),
    ],
)
def test_anything_else_is_refused_in_a_sentence(value, message):
    with pytest.raises(ImageError, match=message):
        vitnp.read_image(value)


def test_several_photographs(path):
    batch = np.stack([RGB, RGB[::-1]])
    assert [photo.tolist() for photo in as_photographs(batch)] == [RGB.tolist(), RGB[::-1].tolist()]
    assert as_photographs(path.parent) == [path] == as_photographs(str(path.parent))
    rows = ({"image": RGB} for _ in range(3))
    assert len(as_photographs(rows)) == 3
    assert as_photographs([path, RGB])[0] == path


@pytest.mark.parametrize(
    "value, message",
    [
        ("a.jpg", "got the single path 'a.jpg'; put it into a list"),
        (b"x", "got a single one"),
        (Image.fromarray(RGB), "got a single one"),
        (RGB, r"\(N, H, W, 3\), got an array of shape \(20, 30, 3\)"),
        (7, "got int"),
        ({"image": RGB}, "got a single one"),
    ],
)
def test_a_single_photograph_is_no_list(value, message):
    with pytest.raises(UsageError, match=message):
        as_photographs(value)


def test_a_missing_folder_and_an_item_of_the_wrong_kind(tmp_path):
    with pytest.raises(ImageError, match="got NoneType"):
        as_photographs([RGB, None])
    with pytest.raises(ImageError, match="no photograph"):
        as_photographs(tmp_path)


def test_file_objects_are_read_once_and_kept(path):
    with open(path, "rb") as file:
        photo = as_photograph(file)
    assert isinstance(photo, bytes)  # readable again after the file is closed


@pytest.mark.parametrize(
    "keywords, message",
    [
        ({"vit": 5}, "vit must be a ViT, the name of a model, or the path of a checkpoint, got int"),
        ({"collection": 5}, "collection must be a Collection, its file, 'auto' or None, got int"),
        ({"refine": "best"}, "refine must be one of solver, crf, guided, color or none, got 'best'"),
        ({"seed": "x"}, "seed must be a whole number"),
    ],
)
def test_segment_image_names_the_parameter(keywords, message):
    with pytest.raises(UsageError, match=message):
        vitnp.segment_image(RGB, **keywords)


@pytest.mark.parametrize(
    "keywords, message",
    [
        ({"n_threads": "a"}, "n_threads must be a whole number of at least 1, got 'a'"),
        ({"cache": 5}, "cache must be the path of a folder, got int"),
        ({"cleaning": 0.2}, "cleaning must be a CleaningConfig, got float"),
        ({"image_level": 3}, "image_level must be a ImageLevelConfig, got int"),
        ({"vit": []}, "vit must be a ViT"),
    ],
)
def test_segmenter_names_the_parameter(keywords, message):
    with pytest.raises(UsageError, match=message):
        vitnp.Segmenter(**keywords)


def test_a_model_may_be_named():
    result = vitnp.segment_image(RGB, "auto", short_side=64)
    np.testing.assert_array_equal(result.mask, vitnp.segment_image(RGB, vitnp.load_vit(), short_side=64).mask)
