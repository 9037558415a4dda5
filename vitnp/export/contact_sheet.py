"""Write ``contact-sheet.png``: a row per class with its most typical photographs, outlined."""

from __future__ import annotations

import bisect
import dataclasses
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vitnp.export.photograph_record import PhotographRecord
from vitnp.export.sheet_style import FAINT, INK, PAPER, Fonts
from vitnp.export.tile import rounded_rectangle, tile
from vitnp.io.path_text import drawable
from vitnp.io.resample import downscale
from vitnp.io.write import write_png
from vitnp.masks.palette import bright_colors

if TYPE_CHECKING:
    from PIL import Image, ImageDraw


# Limit of the pictures in a row.
COLUMNS = 8

# Limits of the side of the square pictures, and the pixels that all of them may take together: few classes get large
# pictures, many get small ones. 255 classes with pictures of the smallest size make a sheet of 9 million pixels.
_SIDE_MAX, _SIDE_MIN = 176, 56
_PIXELS = 4_500_000


class Row(NamedTuple):
    """A row of a contact sheet.

    Attributes
    ----------
    label : int
        Class, 1 to 255.
    caption : str
        Its first line is written large, the others small.
    pictures : sequence of (thumbnail, mask)
        (h, w, 3) uint8 and (h, w) bool, the most typical first; those after the first `COLUMNS` are left out.
        Thumbnails of about 256 pixels are large enough.
    """

    label: int
    caption: str
    pictures: Sequence[tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass
class _Candidates:
    """Photographs for the row of a class: how many have the class, and the most typical ones so far.

    `best` is sorted by falling typicality, then by order of arrival.
    """

    n_photographs: int = 0
    best: list[tuple[float, int, PhotographRecord]] = dataclasses.field(default_factory=list)


class ContactSheetWriter:
    """Write a contact sheet; it appears, complete, when the ``with`` block ends without an exception.

    Thumbnails are loaded at the end, and only those of the sheet.

    Parameters
    ----------
    path : path
        ``contact-sheet.png``; its folder exists.
    names : sequence of str
        Names of the classes 1, 2, ...

    Raises
    ------
    OutputError
        At the end, if the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], names: Sequence[str]) -> None:
        self._path, self._names = path, list(names)
        self._candidates = [_Candidates() for _ in self._names]
        self._count = 0

    def __enter__(self) -> ContactSheetWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            rows = [self._row(label, name) for label, name in enumerate(self._names, 1)]
            write_contact_sheet(self._path, rows)

    def add(self, photograph: PhotographRecord) -> None:
        """Consider a photograph for the rows of its classes."""
        for label, typicality in photograph.typicality.items():
            candidates = self._candidates[label - 1]
            candidates.n_photographs += 1
            bisect.insort(candidates.best, (-typicality, self._count, photograph.without_arrays()))
            del candidates.best[COLUMNS:]
        self._count += 1

    def _row(self, label: int, name: str) -> Row:
        """Return a class's row with the photographs that can still be read."""
        candidates = self._candidates[label - 1]
        pictures = []
        for _, _, photograph in candidates.best:
            thumbnail = photograph.load_thumbnail()
            if thumbnail is not None:
                # A copy, whose label map is released after the picture is made.
                mask = photograph.without_arrays().label_map == label
                pictures.append((thumbnail, _downscale_mask(mask, thumbnail.shape[:2])))
        return Row(label, f"{name}\n{candidates.n_photographs} photographs", pictures)


def _downscale_mask(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return a mask at a smaller (h, w), True where at least half of the pixels were."""
    height, width = shape
    gray = np.repeat(mask[..., None], 3, axis=2).view(np.uint8) * np.uint8(255)
    return downscale(gray, (height, width))[..., 0] >= 128


def contact_sheet(rows: Iterable[Row], *, title: str = "") -> Image.Image:
    r"""Draw a contact sheet.

    Each picture is cropped to a square around its object and outlined in the color of the class
    (:func:`vitnp.masks.palette.bright_colors`). The size of the sheet is bounded for any number of classes.

    Parameters
    ----------
    rows : iterable of Row
    title : str
        A line above the rows.

    Returns
    -------
    PIL image, RGB

    Examples
    --------
    >>> gray, mask = np.full((60, 80, 3), 128, np.uint8), np.ones((60, 80), bool)
    >>> contact_sheet([Row(1, "class 1\n1 photograph", [(gray, mask)])]).size
    (347, 212)
    """
    from PIL import Image, ImageDraw

    rows = [Row(label, _drawable_lines(caption), list(pictures[:COLUMNS])) for label, caption, pictures in rows]
    title = _drawable_lines(title)
    columns = max([1, *(len(row.pictures) for row in rows)])
    side = int(math.sqrt(_PIXELS / (COLUMNS * max(1, len(rows)))))
    side = min(max(side, _SIDE_MIN), _SIDE_MAX)
    gap = max(4, side // 18)
    fonts = Fonts.load(max(12, side // 8), max(10, side // 11))

    ruler = ImageDraw.Draw(Image.new("L", (1, 1)))
    title_height = int(2.2 * fonts.large_size) if title else 0
    margin = 2 * gap
    chip = max(6, side // 22)
    caption_width = max([0, *(_caption_width(ruler, row.caption, fonts) for row in rows)])
    caption_width += chip + 3 * gap
    width = margin + caption_width + columns * (side + gap) - gap + margin
    height = margin + title_height + len(rows) * (side + gap) - gap + margin
    if title:
        width = max(width, int(ruler.textlength(title, fonts.large)) + 2 * margin)
    sheet = Image.new("RGB", (width, max(height, 1)), PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((margin, margin), title, INK, fonts.large)

    colors = bright_colors().tolist()
    corners = rounded_rectangle(side, side, max(2, side // 22))
    for index, (label, caption, pictures) in enumerate(rows):
        top = margin + title_height + index * (side + gap)
        sheet.paste(tuple(colors[label]), (margin, top), rounded_rectangle(chip, side, chip / 2))
        _draw_caption(draw, (margin + chip + gap, top + side // 2), caption, fonts)
        for column, (rgb, mask) in enumerate(pictures):
            picture = tile(rgb, mask, side, colors[label])
            sheet.paste(picture, (margin + caption_width + column * (side + gap), top), corners)
    return sheet


def write_contact_sheet(
    path: str | os.PathLike[str],
    rows: Iterable[Row],
    *,
    title: str = "",
    text: Mapping[str, str] | None = None,
) -> None:
    """Draw a contact sheet and write it as a PNG with the stamp of vitnp.

    Parameters
    ----------
    path : path
    rows, title
        See :func:`contact_sheet`.
    text : mapping of str to str
        Additional text chunks, see :func:`vitnp.io.write.write_png`.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    write_png(path, contact_sheet(rows, title=title), text)


def _drawable_lines(text: str) -> str:
    return "\n".join(map(drawable, text.split("\n")))


def _caption_width(draw: ImageDraw.ImageDraw, caption: str, fonts: Fonts) -> int:
    first, *others = caption.split("\n")
    widths = [draw.textlength(first, fonts.large), *(draw.textlength(line, fonts.small) for line in others)]
    return math.ceil(max(widths))


def _draw_caption(draw: ImageDraw.ImageDraw, position: tuple[int, int], caption: str, fonts: Fonts) -> None:
    """Draw a caption that begins at x and is vertically centered at y, with `position` = (x, y)."""
    first, *others = caption.split("\n")
    x, y = position[0], position[1] - (1.25 * fonts.large_size + 1.35 * fonts.small_size * len(others)) / 2
    draw.text((x, y), first, INK, fonts.large)
    y += 1.35 * fonts.large_size
    for line in others:
        draw.text((x, y), line, FAINT, fonts.small)
        y += 1.35 * fonts.small_size
