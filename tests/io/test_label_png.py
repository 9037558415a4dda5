"""Label images: the colors of VOC, and PNG files whose pixel values are the classes."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vitnp.errors import OutputError
from vitnp.io import stamp
from vitnp.io.label_png import write_labels
from vitnp.masks.palette import bright_colors, voc_colors

# Colors of the 20 classes of PASCAL VOC and of the border between objects, as in its label images.
VOC = {
    0: (0, 0, 0),
    1: (128, 0, 0),
    2: (0, 128, 0),
    3: (128, 128, 0),
    4: (0, 0, 128),
    5: (128, 0, 128),
    6: (0, 128, 128),
    7: (128, 128, 128),
    8: (64, 0, 0),
    9: (192, 0, 0),
    10: (64, 128, 0),
    11: (192, 128, 0),
    12: (64, 0, 128),
    13: (192, 0, 128),
    14: (64, 128, 128),
    15: (192, 128, 128),
    16: (0, 64, 0),
    17: (128, 64, 0),
    18: (0, 192, 0),
    19: (128, 192, 0),
    20: (0, 64, 128),
    255: (224, 224, 192),
}


def loop_colors():
    """Compute the colors with the loop over bits of the VOC development kit."""
    colors = []
    for number in range(256):
        red = green = blue = 0
        rest = number
        for bit in range(8):
            red |= (rest & 1) << (7 - bit)
            green |= (rest >> 1 & 1) << (7 - bit)
            blue |= (rest >> 2 & 1) << (7 - bit)
            rest >>= 3
        colors.append((red, green, blue))
    return colors


def test_colors_are_those_of_voc():
    colors = [tuple(color) for color in voc_colors().tolist()]
    assert colors == loop_colors()
    assert {number: colors[number] for number in VOC} == VOC


@pytest.mark.parametrize("n", [0, 1, 21, 256])
def test_fewer_colors_are_the_first_ones(n):
    colors = voc_colors(n)
    assert colors.dtype == np.uint8 and colors.shape == (n, 3)
    assert np.array_equal(colors, voc_colors()[:n])


@pytest.mark.parametrize("n", [-1, 257])
def test_more_than_256_colors_are_an_error(n):
    with pytest.raises(ValueError, match="256"):
        voc_colors(n)


def test_bright_colors_are_brighter_and_differ():
    plain, bright = voc_colors().astype(int), bright_colors().astype(int)
    assert (bright >= plain).all() and (bright[plain > 0] > plain[plain > 0]).all()
    assert len({tuple(color) for color in bright.tolist()}) == 256


@pytest.mark.parametrize(
    "labels",
    [
        np.zeros((1, 1), np.uint8),
        np.arange(256, dtype=np.uint8).reshape(8, 32),
        np.arange(35, dtype=np.uint8).reshape(5, 7)[:, ::2] % 3,
    ],
)
def test_pixel_values_are_classes_with_the_voc_palette(tmp_path, labels):
    path = tmp_path / "a_labels.png"
    write_labels(path, labels)
    # Byte 24 of a PNG is the bit depth, byte 25 the color type: 3 is a palette.
    assert list(path.read_bytes()[24:26]) == [8, 3]
    with Image.open(path) as image:
        assert image.mode == "P"
        assert np.array_equal(np.asarray(image), labels)
        assert np.array_equal(np.asarray(image.convert("RGB")), voc_colors()[labels])


def test_stamp_is_kept(tmp_path):
    path = tmp_path / "a_labels.png"
    write_labels(path, np.zeros((2, 3), np.uint8), {"vitnp:parameters": "ab", "vitnp:photograph": "cd"})
    assert stamp.stamp(path) == {"vitnp:parameters": "ab", "vitnp:photograph": "cd"}


@pytest.mark.parametrize(
    "labels",
    [np.zeros((2, 2), np.int64), np.zeros((2, 2, 3), np.uint8), np.zeros((0, 2), np.uint8), np.zeros((2, 2), bool)],
)
def test_other_arrays_are_an_error(tmp_path, labels):
    with pytest.raises(ValueError, match="uint8"):
        write_labels(tmp_path / "a.png", labels)
    assert list(tmp_path.iterdir()) == []


def test_missing_folder_is_an_error(tmp_path):
    with pytest.raises(OutputError, match="folder doesn't exist"):
        write_labels(tmp_path / "missing" / "a.png", np.zeros((2, 2), np.uint8))
