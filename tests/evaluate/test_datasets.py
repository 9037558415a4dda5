"""Which mask belongs to which photograph, and what a mask file says."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vitnp.errors import ImageError, UsageError
from vitnp.evaluate.data.pairs import match_pairs, read_truth
from vitnp.io.write import write_png

PICTURE = Image.new("L", (3, 2))


@pytest.fixture
def folders(tmp_path):
    """A function that makes small pictures at the given paths of images/ and masks/, and returns both folders."""

    def make(images, masks):
        for folder, names in (("images", images), ("masks", masks)):
            (tmp_path / folder).mkdir(exist_ok=True)
            for name in names:
                path = tmp_path / folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                PICTURE.save(path)
        return tmp_path / "images", tmp_path / "masks"

    return make


def matched(images, masks):
    """(photograph, mask) names, after checking that the paths exist and fit the names."""
    pairs, unused = match_pairs(images, masks)
    for pair in pairs:
        assert pair.image == images / pair.name
        assert pair.image.is_file()
    found = [(pair.name, pair.mask.relative_to(masks).as_posix()) for pair in pairs]
    return found, [path.relative_to(masks).as_posix() for path in unused]


def test_matches_by_path_without_extension(folders):
    # The same name in two folders, and one name that begins another.
    images = ["cat/1.jpg", "dog/1.JPG", "dog/1.b.jpeg", "z.png"]
    masks = ["dog/1.png", "dog/1.b.png", "cat/1.bmp", "z.gif"]
    assert matched(*folders(images, masks)) == (
        [("cat/1.jpg", "cat/1.bmp"), ("dog/1.JPG", "dog/1.png"), ("dog/1.b.jpeg", "dog/1.b.png"), ("z.png", "z.gif")],
        [],
    )


def test_matches_by_unique_name_where_the_path_differs(folders):
    images, masks = folders(["train/a.jpg", "train/b.jpg", "c.jpg"], ["b.png", "deep/er/a.png", "c.png"])
    assert matched(images, masks)[0] == [("c.jpg", "c.png"), ("train/a.jpg", "deep/er/a.png"), ("train/b.jpg", "b.png")]


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (["x/1.jpg"], ["y/1.png", "z/1.png"]),  # two masks of that name
        (["x/1.jpg", "y/1.jpg"], ["x/1.png"]),  # the only mask belongs to another photograph
        (["x/1.jpg", "y/1.jpg"], ["1.png"]),  # two photographs of that name
    ],
)
def test_a_name_that_is_not_unique_does_not_match(folders, images, masks):
    with pytest.raises(UsageError, match=r"photographs have no mask in .*masks \((x/1|y/1)\.jpg"):
        match_pairs(*folders(images, masks))


def test_photographs_without_mask_are_counted_and_the_first_ones_named(folders):
    images, masks = folders([f"{i}.jpg" for i in range(7)], ["0.png", "2.png"])
    with pytest.raises(UsageError) as error:
        match_pairs(images, masks)
    message = str(error.value)
    assert f"5 of 7 photographs have no mask in {masks} (1.jpg, 3.jpg, 4.jpg and 2 more)" in message
    assert message.startswith(str(images)) and "\n" not in message


def test_masks_without_photograph_are_reported(folders):
    images, masks = folders(["a.jpg"], ["b.png", "a.png", "c/a.png"])
    assert matched(images, masks) == ([("a.jpg", "a.png")], ["b.png", "c/a.png"])


def test_other_files_do_not_count(folders):
    images, masks = folders(["a.jpg", ".hidden.jpg", ".cache/b.jpg"], ["a.png", ".a.png", ".cache/a.png"])
    for folder in (images, masks):
        (folder / "Thumbs.db").write_bytes(b"x")
        (folder / "readme.txt").write_text("x")
        (folder / "folder.png").mkdir()
    assert matched(images, masks) == ([("a.jpg", "a.png")], [])


def test_pictures_that_vitnp_wrote_are_no_photographs(folders):
    images, masks = folders(["a.jpg"], ["a.png"])
    write_png(images / "a_mask.png", PICTURE)
    assert matched(images, masks) == ([("a.jpg", "a.png")], [])


@pytest.mark.parametrize("side", ["images", "masks"])
def test_files_that_differ_only_in_their_extension_are_an_error(folders, side):
    names = {"images": ["a.jpg"], "masks": ["a.png"], side: ["a.jpg", "a.png"]}
    with pytest.raises(UsageError, match=r"a\.jpg and a\.png differ only in their extension"):
        match_pairs(*folders(names["images"], names["masks"]))


def test_one_folder_inside_the_other(tmp_path):
    for name in ("a.jpg", "b.jpg", "masks/a.png", "masks/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        PICTURE.save(tmp_path / name)
    assert [pair.name for pair in match_pairs(tmp_path, tmp_path / "masks")[0]] == ["a.jpg", "b.jpg"]
    pairs, unused = match_pairs(tmp_path / "masks", tmp_path)
    assert [pair.mask.name for pair in pairs] == ["a.jpg", "b.jpg"]
    assert unused == []


def test_folders_are_checked(folders, tmp_path):
    images, masks = folders(["a.jpg"], ["a.png"])
    with pytest.raises(UsageError, match="nowhere: there is no such folder; name the one that holds the photographs"):
        match_pairs(tmp_path / "nowhere", masks)
    with pytest.raises(UsageError, match=r"a\.png: this is not a folder; name the one that holds the masks"):
        match_pairs(images, masks / "a.png")
    with pytest.raises(UsageError, match="in the same folder"):
        match_pairs(images, images / ".")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="this folder contains no masks"):
        match_pairs(images, tmp_path / "empty")
    with pytest.raises((UsageError, ImageError), match="this folder holds no photographs"):
        match_pairs(tmp_path / "empty", masks)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions don't bind this user")
def test_a_folder_that_cannot_be_listed(folders):
    images, masks = folders(["a.jpg"], ["a.png", "in/b.png"])
    (masks / "in").chmod(0)
    try:
        with pytest.raises(ImageError, match="in: no permission to read it"):
            match_pairs(images, masks)
    finally:
        (masks / "in").chmod(0o700)


# What a mask file says.

EXPECTED = np.array([[True, False, False], [False, True, True]])


def truth_of(tmp_path, picture, name="mask.png", **options):
    picture.save(tmp_path / name, **options)
    return read_truth(tmp_path / name, (picture.height, picture.width))


@pytest.mark.parametrize(("low", "high"), [(0, 255), (127, 128), (0, 128), (100, 254)])
def test_gray_masks_are_cut_above_127(tmp_path, low, high):
    truth = truth_of(tmp_path, Image.fromarray(np.where(EXPECTED, high, low).astype(np.uint8)))
    assert truth.dtype == bool
    np.testing.assert_array_equal(truth, EXPECTED)


def test_masks_of_zeros_and_ones(tmp_path):
    np.testing.assert_array_equal(truth_of(tmp_path, Image.fromarray(EXPECTED.astype(np.uint8))), EXPECTED)


def test_one_bit_masks(tmp_path):
    np.testing.assert_array_equal(truth_of(tmp_path, Image.fromarray(EXPECTED)), EXPECTED)


@pytest.mark.parametrize(("low", "high"), [(0, 65535), (32767, 32768), (0, 255), (0, 1), (100, 200)])
def test_masks_of_16_bits(tmp_path, low, high):
    np.testing.assert_array_equal(
        truth_of(tmp_path, Image.fromarray(np.where(EXPECTED, high, low).astype(np.uint16))), EXPECTED
    )


def test_float_masks(tmp_path):
    picture = Image.fromarray(np.where(EXPECTED, 0.75, 0.25).astype(np.float32))
    np.testing.assert_array_equal(truth_of(tmp_path, picture, "mask.tif"), EXPECTED)


@pytest.mark.parametrize("value", [0, 255])
def test_one_sided_masks(tmp_path, value):
    truth = truth_of(tmp_path, Image.new("L", (3, 2), value))
    assert truth.all() if value else not truth.any()


@pytest.mark.parametrize("name", ["mask.png", "mask.bmp", "mask.gif", "mask.jpg", "mask.webp", "mask.tif", "mask.pgm"])
def test_formats(tmp_path, name):
    blocks = np.kron(EXPECTED, np.ones((16, 16), bool))
    picture = Image.fromarray(np.where(blocks, 255, 0).astype(np.uint8))
    np.testing.assert_array_equal(truth_of(tmp_path, picture, name), blocks)
    if not name.endswith("pgm"):
        np.testing.assert_array_equal(truth_of(tmp_path, picture.convert("RGB"), name), blocks)


def palette_picture(labels, colors):
    labels = np.asarray(labels, dtype=np.uint8)
    picture = Image.new("P", labels.shape[::-1])
    picture.putpalette([channel for color in colors for channel in color])
    picture.frombytes(labels.tobytes())
    return picture


def test_colored_palettes_are_maps_of_labels(tmp_path):
    # Dark red and dark green would both be below 127 as gray.
    picture = palette_picture([[1, 0, 0], [0, 2, 1]], [(0, 0, 0), (128, 0, 0), (0, 128, 0)])
    np.testing.assert_array_equal(truth_of(tmp_path, picture), EXPECTED)


def test_gray_palettes_are_what_they_look_like(tmp_path):
    # White first: the labels are the wrong way round; the colored entry is not in use.
    picture = palette_picture([[0, 1, 1], [1, 0, 0]], [(255, 255, 255), (0, 0, 0), (200, 0, 0)])
    np.testing.assert_array_equal(truth_of(tmp_path, picture), EXPECTED)
    # Nearly black: still zeros and ones.
    picture = palette_picture(EXPECTED, [(0, 0, 0), (1, 1, 1)])
    np.testing.assert_array_equal(truth_of(tmp_path, picture), EXPECTED)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_are_background(tmp_path, mode):
    picture = Image.new("L", (3, 2), 255).convert(mode)
    picture.putalpha(Image.fromarray(np.where(EXPECTED, 255, 0).astype(np.uint8)))
    np.testing.assert_array_equal(truth_of(tmp_path, picture), EXPECTED)


def test_masks_painted_in_colors_are_refused(tmp_path):
    colors = np.zeros((2, 3, 3), np.uint8)
    colors[EXPECTED] = (255, 0, 0)
    with pytest.raises(ImageError, match=r"mask\.png: a mask must be black and white.*make the object white"):
        truth_of(tmp_path, Image.fromarray(colors))


def test_the_size_must_be_the_photograph_s(tmp_path):
    PICTURE.save(tmp_path / "mask.png")
    with pytest.raises(ImageError) as error:
        read_truth(tmp_path / "mask.png", (4, 5))
    assert "mask.png: the mask has 3 x 2 pixels, but its photograph has 5 x 4" in str(error.value)
    # On its side is another size too.
    with pytest.raises(ImageError, match="3 x 2 pixels, but its photograph has 2 x 3"):
        read_truth(tmp_path / "mask.png", (3, 2))


def test_exif_orientation_is_applied(tmp_path):
    stored = np.rot90(EXPECTED)  # orientation 6: to be turned clockwise by 90 degrees
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.where(stored, 255, 0).astype(np.uint8)).save(tmp_path / "mask.png", exif=exif)
    np.testing.assert_array_equal(read_truth(tmp_path / "mask.png", EXPECTED.shape), EXPECTED)


def test_files_that_are_no_masks(tmp_path):
    with pytest.raises(ImageError, match=r"gone\.png: there is no such file"):
        read_truth(tmp_path / "gone.png", (2, 3))
    for content, problem in {
        b"": "the file is empty",
        b"not a picture": "not an image in a supported format",
        b"\x89PNG\r\n\x1a\n": "the PNG is truncated, damaged",
    }.items():
        (tmp_path / "mask.png").write_bytes(content)
        with pytest.raises(ImageError, match=rf"mask\.png: .*{problem}"):
            read_truth(tmp_path / "mask.png", (2, 3))
    with pytest.raises(ImageError):
        read_truth(tmp_path, (2, 3))


@pytest.mark.parametrize("name", ["mask.png", "mask.gif", "mask.tif", "mask.bmp", "mask.jpg"])
@settings(derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_masks_give_a_mask_or_one_clear_error(tmp_path, name, data):
    palette_picture(np.arange(48).reshape(6, 8) % 3, [(0, 0, 0), (128, 0, 0), (0, 128, 0)]).convert(
        "RGB" if name == "mask.jpg" else "P"
    ).save(tmp_path / name)
    content = bytearray((tmp_path / name).read_bytes())
    for place, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), min_size=1, max_size=4)
    ):
        content[place] = value
    content = content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    broken = tmp_path / f"broken_{name}"
    broken.write_bytes(content)
    try:
        truth = read_truth(broken, (6, 8))
    except ImageError as error:
        assert str(broken) in str(error) and "\n" not in str(error)
    else:
        assert truth.shape == (6, 8) and truth.dtype == bool


def test_a_real_data_set(shared):
    for name, count in (("duts-dev", 160), ("coseg-dev", 240)):
        folder = shared / "data" / name
        pairs, unused = match_pairs(folder / "images", folder / "masks")
        assert len(pairs) == count and unused == []
        for pair in pairs[::40]:
            with Image.open(pair.image) as photograph:
                truth = read_truth(pair.mask, photograph.size[::-1])
            assert 0.005 < truth.mean() < 0.95
