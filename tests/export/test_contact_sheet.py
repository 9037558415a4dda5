"""Contact sheets: layout, colors and bounded size."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vitnp.export.contact_sheet import COLUMNS, ContactSheetWriter, Row, contact_sheet, write_contact_sheet
from vitnp.export.photograph_record import PhotographRecord, RegionRecord
from vitnp.io import stamp
from vitnp.masks.palette import bright_colors

GRAY = np.full((120, 160, 3), 128, np.uint8)
PAPER = np.array([250, 250, 248])


def disc(height, width, row, column, radius):
    i, j = np.mgrid[:height, :width]
    return (i - row) ** 2 + (j - column) ** 2 < radius**2


def blob(image, color):
    """Pixels of about this color."""
    return (np.abs(np.asarray(image).astype(int) - np.asarray(color)) <= 24).all(axis=2)


def test_outline_has_the_color_of_the_class_and_runs_around_the_object():
    mask = disc(120, 160, 60, 80, 30)
    sheet = contact_sheet([Row(4, "class 4", [(GRAY, mask)])])
    color = bright_colors()[4]
    # The only picture is at the right end; left of it stands the class's bar, in the same color.
    picture = np.asarray(sheet)[:, -200:]
    i, j = np.nonzero(blob(picture, color))
    side = 176
    center = np.array([i.min() + i.max(), j.min() + j.max()]) / 2
    distances = np.hypot(i - center[0], j - center[1])
    # The square of 120 pixels is enlarged to the tile.
    assert abs(distances.mean() - 30 * side / 120) < 1.5 and distances.std() < 1.5
    angles = np.histogram(np.arctan2(i - center[0], j - center[1]), bins=24, range=(-np.pi, np.pi))[0]
    assert (angles > 0).all()
    assert not blob(np.asarray(sheet)[:, -200:], bright_colors()[1]).any()
    assert blob(np.asarray(sheet)[:, :30], color).any()


def test_object_keeps_its_colors_and_its_surroundings_are_dimmed():
    mask = disc(120, 160, 60, 80, 40)
    red = np.zeros((120, 160, 3), np.uint8)
    red[..., 0] = 200
    picture = np.asarray(contact_sheet([Row(2, "", [(red, mask)])]))[:, -190:].astype(int)
    middle, corner = picture[105, 102], picture[20, 160]
    assert np.abs(middle - [200, 0, 0]).max() <= 2
    assert corner[0] < 150 and corner[1] > 20


def test_pictures_are_cut_around_the_object():
    # The object lies at the right end of a wide picture, whose left is black: no black remains.
    wide = np.full((100, 400, 3), 200, np.uint8)
    wide[:, :300] = 0
    mask = disc(100, 400, 50, 350, 20)
    picture = np.asarray(contact_sheet([Row(2, "", [(wide, mask)])]))[20:-20, -170:-30]
    assert picture.max(axis=2).min() > 60


def test_rows_columns_and_captions():
    mask = disc(120, 160, 60, 80, 30)
    one = contact_sheet([Row(1, "class 1", [(GRAY, mask)])])
    two = contact_sheet([Row(1, "class 1", [(GRAY, mask)] * 2)])
    many = contact_sheet([Row(1, "class 1", [(GRAY, mask)] * 50)])
    step = two.width - one.width
    assert 176 < step < 200
    assert many.width == one.width + (COLUMNS - 1) * step
    tall = contact_sheet([Row(1, "class 1", [(GRAY, mask)]), Row(2, "class 2", [])])
    assert tall.height - one.height == step
    # A longer caption takes more room, a title a line above everything; both leave ink.
    assert contact_sheet([Row(1, "class 1\n1,234,567 photographs", [(GRAY, mask)])]).width > one.width
    titled = contact_sheet([Row(1, "class 1", [(GRAY, mask)])], title="holidays")
    extra = titled.height - one.height
    assert extra > 0 and (np.asarray(titled)[:extra].min(axis=2) < 100).any()
    # The second row has no pictures: nothing but paper there.
    right = np.asarray(tall)[-150:-20, -170:].astype(int)
    assert np.abs(right - PAPER).max() == 0


@pytest.mark.slow(reason="draws large sheets")
@pytest.mark.parametrize("count", [0, 1, 3, 30, 255])
def test_size_is_bounded(count):
    picture = (GRAY, np.ones((120, 160), bool))
    pictures = [picture] * (COLUMNS if count <= 30 else 1)
    sheet = contact_sheet([Row(number, f"class {number}", pictures) for number in range(1, count + 1)])
    assert sheet.mode == "RGB" and sheet.width * sheet.height < 9_000_000
    assert max(sheet.size) < 16_000


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (3, 500)])
@pytest.mark.parametrize("full", [True, False])
def test_extreme_shapes_are_drawn(shape, full):
    picture = (np.full((*shape, 3), 90, np.uint8), np.full(shape, full))
    assert contact_sheet([Row(9, "class 9", [picture])]).height > 100


def test_file_is_stamped_and_the_same_each_time(tmp_path):
    rows = [Row(1, "class 1\n1 photograph", [(GRAY, disc(120, 160, 60, 80, 30))])]
    for name in ("a.png", "b.png"):
        write_contact_sheet(tmp_path / name, iter(rows), title="holidays", text={"vitnp:parameters": "ab"})
    assert stamp.stamp(tmp_path / "a.png") == {"vitnp:parameters": "ab"}
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(np.asarray(image), np.asarray(contact_sheet(rows, title="holidays")))


def test_writer_shows_the_most_typical_photographs_that_can_still_be_read(tmp_path):
    mask = disc(120, 160, 60, 80, 30).astype(np.uint8)

    def photograph(number, typicality, gray):
        rgb = None if gray is None else np.full((120, 160, 3), gray, np.uint8)
        regions = (RegionRecord(1, 0.5, typicality, 3),)
        return PhotographRecord(f"{number}.jpg", 0.5, regions, lambda: mask, lambda: rgb)

    # Twenty photographs, the later the more typical; the most typical one is gone when its thumbnail is wanted.
    grays = [*range(50, 240, 10), None]
    with ContactSheetWriter(tmp_path / "a.png", ["class 1", "class 2"]) as sheet:
        for number, gray in enumerate(grays):
            sheet.add(photograph(number, number / 20, gray))
    shown = [(np.full((120, 160, 3), gray, np.uint8), mask > 0) for gray in grays[-2 : -COLUMNS - 1 : -1]]
    assert len(shown) == COLUMNS - 1
    expected = contact_sheet([Row(1, "class 1\n20 photographs", shown), Row(2, "class 2\n0 photographs", [])])
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(np.asarray(image), np.asarray(expected))
