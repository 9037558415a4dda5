"""GeoTIFF tags and resolution: read, carried to the outputs, moved with a crop."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from vitnp import segment_image
from vitnp.export import naming
from vitnp.export.per_image import segment_files
from vitnp.io import stamp
from vitnp.io.decode import decode_image
from vitnp.io.find import Photograph
from vitnp.io.georeference import Georeference, is_georeferenced
from vitnp.io.geotiff import write_geotiff
from vitnp.masks.cutout_options import CutoutOptions

SCALE, TIEPOINT, TRANSFORMATION, KEYS, TEXTS = 33550, 33922, 34264, 34735, 34737
# Half a meter per pixel, north up, from (500000, 4100000.25) in UTM zone 33N.
TAGS = {
    SCALE: (0.5, 0.25, 0.0),
    TIEPOINT: (0.0, 0.0, 0.0, 500000.0, 4100000.25, 0.0),
    KEYS: (1, 1, 0, 2, 1024, 0, 1, 1, 3072, 0, 1, 32633),
    TEXTS: "WGS 84 / UTM zone 33N|",
}
TYPES = {SCALE: 12, TIEPOINT: 12, TRANSFORMATION: 12, KEYS: 3, TEXTS: 2}


def scene() -> np.ndarray:
    rgb = np.full((96, 128, 3), (40, 160, 60), np.uint8)
    y, x = np.mgrid[:96, :128]
    rgb[np.hypot(y - 48, x - 60) < 25] = (250, 80, 30)
    return rgb


def save(path, tags=TAGS, orientation: int | None = None, **keywords) -> None:
    directory = ImageFileDirectory_v2()
    for tag, value in tags.items():
        directory.tagtype[tag] = TYPES[tag]
        directory[tag] = value
    if orientation is not None:
        directory[274] = orientation
    Image.fromarray(scene()).save(path, tiffinfo=directory, **keywords)


def tags_of(path) -> dict:
    with Image.open(path) as picture:
        return {tag: picture.tag_v2[tag] for tag in TYPES if tag in picture.tag_v2}


@pytest.mark.parametrize("compression", [None, "tiff_adobe_deflate"])
def test_tags_are_read(tmp_path, compression):
    save(tmp_path / "a.tif", compression=compression, dpi=(300, 200))
    image = decode_image(tmp_path / "a.tif")
    assert image.metadata.georeference is not None
    assert dict(image.metadata.georeference.tags) == TAGS
    assert image.metadata.dpi == (300, 200)
    assert is_georeferenced(tmp_path / "a.tif")
    assert not image.notices


def test_photographs_without_a_georeference(tmp_path):
    Image.fromarray(scene()).save(tmp_path / "a.tif")
    Image.fromarray(scene()).save(tmp_path / "a.png")
    (tmp_path / "b.tif").write_bytes(b"II*\0 nothing else")
    for path in ("a.tif", "a.png", "b.tif", "c.tif"):
        assert not is_georeferenced(tmp_path / path)
    assert decode_image(tmp_path / "a.png").metadata.dpi is None
    assert decode_image(scene()).metadata.georeference is None


def test_georeferences_that_cannot_be_carried_are_said(tmp_path):
    save(tmp_path / "turned.tif", orientation=6)
    save(tmp_path / "damaged.tif", {**TAGS, SCALE: (0.5, float("nan"), 0.0)})
    save(tmp_path / "short.tif", {**TAGS, TIEPOINT: (0.0, 1.0)})
    for name, reason in (("turned", "orientation tag"), ("damaged", "are damaged"), ("short", "are damaged")):
        image = decode_image(tmp_path / f"{name}.tif")
        assert image.metadata.georeference is None
        (notice,) = image.notices
        assert "its georeference is not used" in notice and reason in notice


def test_a_crop_moves_the_tiepoint():
    """By hand: 10 columns of half a meter to the east, 20 rows of a quarter to the south."""
    moved = Georeference(TAGS).cropped(10, 20).tags
    assert moved == {**TAGS, TIEPOINT: (0.0, 0.0, 0.0, 500005.0, 4099995.25, 0.0)}
    # The same by a tiepoint in the middle, at pixel (60, 40).
    middle = (60.0, 40.0, 0.0, 500030.0, 4099990.25, 0.0)
    assert Georeference({**TAGS, TIEPOINT: middle}).cropped(10, 20).tags == moved


def test_a_crop_moves_control_points_and_matrices():
    points = (0.0, 0.0, 0.0, 7.0, 8.0, 9.0, 100.0, 50.0, 0.0, 17.0, 18.0, 0.0)
    moved = Georeference({KEYS: TAGS[KEYS], TIEPOINT: points}).cropped(10, 20).tags[TIEPOINT]
    assert moved == (-10.0, -20.0, 0.0, 7.0, 8.0, 9.0, 90.0, 30.0, 0.0, 17.0, 18.0, 0.0)
    turned = (0.0, 2.0, 0.0, 100.0, 3.0, 0.0, 0.0, 200.0, 0.0, 0.0, 0.0, 5.0, 0.0, 0.0, 0.0, 1.0)
    moved = Georeference({KEYS: TAGS[KEYS], TRANSFORMATION: turned}).cropped(10, 20).tags[TRANSFORMATION]
    assert moved == (0.0, 2.0, 0.0, 140.0, 3.0, 0.0, 0.0, 230.0, 0.0, 0.0, 0.0, 5.0, 0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    "picture",
    [
        np.random.default_rng(0).integers(0, 256, (7, 5), dtype=np.uint8),
        np.random.default_rng(0).integers(0, 65536, (7, 5), dtype=np.uint16),
        np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8),
        np.random.default_rng(0).integers(0, 256, (7, 5, 4), dtype=np.uint8),
    ],
    ids=["L", "16 bit", "RGB", "RGBA"],
)
def test_geotiff_round_trip(tmp_path, picture):
    entries = {"vitnp:parameters": "12ab", "vitnp:photograph": "34cd"}
    write_geotiff(tmp_path / "a.tif", picture, Georeference(TAGS), entries, dpi=(300.0, 300.0))
    with Image.open(tmp_path / "a.tif") as file:
        np.testing.assert_array_equal(np.asarray(file), picture)
        assert file.info["dpi"] == (300, 300)
    assert tags_of(tmp_path / "a.tif") == TAGS
    assert stamp.stamp(tmp_path / "a.tif") == entries
    with open(tmp_path / "a.tif", "ab") as file:
        file.write(b"\0")
    assert stamp.stamp(tmp_path / "a.tif") is None


def test_masks_and_cutouts_lie_where_the_photograph_lies(tmp_path, builtin):
    save(tmp_path / "a.tif", dpi=(300, 300))
    result = segment_image(tmp_path / "a.tif", builtin, short_side=96)
    files = result.save(tmp_path / "out" / "a", ["mask", "overlay", "cutout", "soft"], crop=0)
    names = {"mask": "a_mask.tif", "overlay": "a_overlay.png", "cutout": "a_cutout.tif", "soft": "a_soft.tif"}
    assert {kind: path.name for kind, path in files.items()} == names
    assert tags_of(files["mask"]) == tags_of(files["soft"]) == TAGS
    with Image.open(files["mask"]) as picture:
        np.testing.assert_array_equal(np.asarray(picture) > 0, result.mask)
    rows, columns = np.nonzero(np.asarray(result.cutout())[..., 3])
    moved = (0.0, 0.0, 0.0, 500000 + 0.5 * columns.min(), 4100000.25 - 0.25 * rows.min(), 0.0)
    assert tags_of(files["cutout"]) == {**TAGS, TIEPOINT: moved}
    with Image.open(files["cutout"]) as picture:
        assert picture.size == (int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1)


def test_a_second_run_redoes_only_what_changed(tmp_path, builtin):
    save(tmp_path / "a.tif")
    photographs = [Photograph(tmp_path / "a.tif", tmp_path / "a.tif")]
    stems = naming.output_stems(photographs, tmp_path / "out")

    def run(**options):
        (outcome,) = segment_files(photographs, stems, builtin, ["mask", "cutout"], cutout=CutoutOptions(**options))
        assert outcome.error is None
        return outcome.status

    assert [run(), run(), run(crop=5), run(crop=5), run(background="red")] == [
        "done",
        "skipped",
        "done",
        "skipped",
        "done",
    ]


def test_resolution_is_turned_with_the_pixels(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(scene()).save(tmp_path / "a.jpg", dpi=(300, 150), exif=exif)
    assert decode_image(tmp_path / "a.jpg").metadata.dpi == (150, 300)
    assert decode_image(tmp_path / "a.jpg").rgb.shape == (128, 96, 3)
