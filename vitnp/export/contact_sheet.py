"""``contact-sheet.png``: one look at all classes, a row each, with the outlines of what was found."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from vitnp.io.write import write_png
from vitnp.masks.contours import smooth_rings
from vitnp.masks.palette import bright_colors
from vitnp.masks.rle import extent

if TYPE_CHECKING:
    from PIL import Image


# Most pictures of a row; a caller needs to make no more.
COLUMNS = 8

# Sides of the square pictures: large while there are few classes, then smaller, so that they share so many pixels. At
# the smallest, 255 classes make a sheet of 9 million pixels.
_SIDE_MAX, _SIDE_MIN = 176, 56
_PIXELS = 4_500_000

# Paper, ink of titles, ink of the small print.
_PAPER, _INK, _FAINT = (250, 250, 248), (28, 28, 30), (118, 118, 122)

# How bright the surroundings of an object remain, and how much of their color.
_DIM, _COLOR = 0.80, 0.55

# Shapes are drawn so many times larger, then scaled down: Pillow's own lines have steps.
_FINE = 4


def contact_sheet(
    rows: Iterable[tuple[int, str, Sequence[tuple[np.ndarray, np.ndarray]]]], *, title: str = ""
) -> Image.Image:
    """Draw a contact sheet.

    Each picture is cut to a square around its object and outlined in the class's color
    (:func:`vitnp.masks.palette.bright_colors`). The sheet's size is bounded, however many classes there are.

    Parameters
    ----------
    rows : iterable of (class, caption, pictures)
        Class number in 1..255. Of the caption the first line is large, the others are small. Pictures are pairs of
        a thumbnail (h, w, 3) uint8 and a mask (h, w) bool, the most typical one first; those after the first `COLUMNS`
        are left out. Thumbnails of about 256 pixels are large enough.
    title : str
        A line above the rows.

    Returns
    -------
    PIL image, RGB

    Examples
    --------
    >>> gray, mask = np.full((60, 80, 3), 128, np.uint8), np.ones((60, 80), bool)
    >>> contact_sheet([(1, "class 1\\n1 photograph", [(gray, mask)])]).size
    (347, 212)
    """
    from PIL import Image, ImageDraw

    rows = [(number, caption, list(pictures[:COLUMNS])) for number, caption, pictures in rows]
    columns = max([1, *(len(pictures) for _, _, pictures in rows)])
    side = int(math.sqrt(_PIXELS / (COLUMNS * max(1, len(rows)))))
    side = min(max(side, _SIDE_MIN), _SIDE_MAX)
    gap = max(4, side // 18)
    large, small = _font(max(12, side // 8)), _font(max(10, side // 11))

    scratch = ImageDraw.Draw(Image.new("L", (1, 1)))
    title_height = int(2.2 * large.size) if title else 0
    margin = 2 * gap
    chip = max(6, side // 22)
    caption_width = max([0, *(_caption_width(scratch, caption, large, small) for _, caption, _ in rows)])
    caption_width += chip + 3 * gap
    width = margin + caption_width + columns * (side + gap) - gap + margin
    height = margin + title_height + len(rows) * (side + gap) - gap + margin
    if title:
        width = max(width, int(scratch.textlength(title, large)) + 2 * margin)
    sheet = Image.new("RGB", (width, max(height, 1)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((margin, margin), title, _INK, large)

    colors = bright_colors().tolist()
    corners = _rounded(side, side, max(2, side // 22))
    for index, (number, caption, pictures) in enumerate(rows):
        top = margin + title_height + index * (side + gap)
        sheet.paste(tuple(colors[number]), (margin, top), _rounded(chip, side, chip / 2))
        _write_caption(draw, (margin + chip + gap, top + side // 2), caption, large, small)
        for column, (rgb, mask) in enumerate(pictures):
            tile = _tile(rgb, mask, side, colors[number])
            sheet.paste(tile, (margin + caption_width + column * (side + gap), top), corners)
    return sheet


def write_contact_sheet(
    path: str | os.PathLike[str],
    rows: Iterable[tuple[int, str, Sequence[tuple[np.ndarray, np.ndarray]]]],
    *,
    title: str = "",
    text: Mapping[str, str] | None = None,
) -> None:
    """Draw a contact sheet and write it as a PNG with vitnp's stamp.

    Parameters
    ----------
    path : path
    rows, title
        See :func:`contact_sheet`.
    text : mapping of str to str
        Further text chunks, see :func:`vitnp.io.write.write_png`.

    Raises
    ------
    OutputError
        When the file can't be written.
    """
    write_png(path, contact_sheet(rows, title=title), text)


def _font(size: int):
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _caption_width(draw, caption: str, large, small) -> int:
    first, *others = caption.split("\n")
    return math.ceil(max([draw.textlength(first, large), *(draw.textlength(line, small) for line in others)]))


def _write_caption(draw, place: tuple[int, int], caption: str, large, small) -> None:
    """Write a caption whose middle is at the height of `place`."""
    first, *others = caption.split("\n")
    x, y = place[0], place[1] - (1.25 * large.size + 1.35 * small.size * len(others)) / 2
    draw.text((x, y), first, _INK, large)
    y += 1.35 * large.size
    for line in others:
        draw.text((x, y), line, _FAINT, small)
        y += 1.35 * small.size


def _tile(rgb: np.ndarray, mask: np.ndarray, side: int, color: Sequence[int]) -> Image.Image:
    """A square picture of the object: its surroundings dimmed, its outline drawn."""
    from PIL import Image

    box = _square(mask)
    picture = Image.fromarray(rgb).resize((side, side), Image.Resampling.LANCZOS, box=box)
    soft = Image.fromarray(mask.view(np.uint8) * np.uint8(255)).resize((side, side), Image.Resampling.BOX, box=box)
    faded = Image.blend(picture.convert("L").convert("RGB"), picture, _COLOR)
    dim = faded.point([int(_DIM * value) for value in range(256)] * 3)
    picture = Image.composite(picture, dim, soft)
    # The outline's points in the tile: its scale follows from the box that was cut out.
    scale = side / (box[2] - box[0])
    curves = [(ring - box[:2]) * scale for ring in smooth_rings(mask)]
    line = max(1.5, side / 64)
    picture.paste((255, 255, 255), mask=_lines(curves, side, 1.9 * line))
    picture.paste(tuple(color), mask=_lines(curves, side, line))
    return picture


def _square(mask: np.ndarray) -> tuple[float, float, float, float]:
    """The largest square of the picture whose middle is as near as can be to the object's: left, top, right, bottom."""
    height, width = mask.shape
    side = min(height, width)
    top, bottom, left, right = extent(mask) if mask.any() else (0, height, 0, width)
    x = min(max((left + right - side) / 2, 0), width - side)
    y = min(max((top + bottom - side) / 2, 0), height - side)
    return x, y, x + side, y + side


def _lines(curves: Sequence[np.ndarray], side: int, width: float) -> Image.Image:
    """Closed curves as a soft-edged mask."""
    from PIL import Image, ImageDraw

    canvas = Image.new("L", (side * _FINE, side * _FINE))
    draw = ImageDraw.Draw(canvas)
    for curve in curves:
        points = np.concatenate([curve, curve[:2]]) * _FINE
        draw.line([tuple(point) for point in points.tolist()], 255, round(width * _FINE), joint="curve")
    return canvas.resize((side, side), Image.Resampling.BOX)


def _rounded(width: int, height: int, radius: float) -> Image.Image:
    """A rectangle with round corners as a soft-edged mask."""
    from PIL import Image, ImageDraw

    canvas = Image.new("L", (width * _FINE, height * _FINE))
    ImageDraw.Draw(canvas).rounded_rectangle((0, 0, width * _FINE - 1, height * _FINE - 1), radius * _FINE, 255)
    return canvas.resize((width, height), Image.Resampling.BOX)
