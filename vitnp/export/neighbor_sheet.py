"""Draw similar photographs and near duplicates: each query, or photograph to keep, in front of the others."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from vitnp.export.photograph_record import read_thumbnail
from vitnp.export.sheet_style import FAINT, INK, PAPER, Fonts
from vitnp.export.tile import rounded_rectangle
from vitnp.io.path_text import printable
from vitnp.io.source import Source, path_of
from vitnp.retrieval.duplicates import Duplicate, Duplicates
from vitnp.retrieval.search import SimilarPhotographs

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

# Pictures beside the first one in a line, and the limit of pictures on a sheet; what comes after is left out.
_COLUMNS = 6
MAX_PICTURES = 400

# Side of the square for a picture, and gap between squares, in pixels.
_SIDE, _GAP = 170, 12

# Color of the frame of the first picture.
_ACCENT = (0, 150, 136)


@dataclasses.dataclass(frozen=True)
class _Tile:
    """A photograph, and two lines of caption."""

    photograph: Source
    caption: str
    name: str


def similar_sheet(found: SimilarPhotographs) -> Image.Image:
    """Draw each query and its neighbors.

    Parameters
    ----------
    found : SimilarPhotographs

    Returns
    -------
    PIL image, RGB
    """
    rows = [
        [
            _Tile(ranking.query, "query", _name(ranking.query)),
            *(_Tile(one.photograph, f"{one.similarity:.3f}", _name(one.photograph)) for one in ranking.neighbors),
        ]
        for ranking in found.rankings
        if ranking.error is None
    ]
    return _draw(rows, "queries")


def duplicates_sheet(found: Duplicates) -> Image.Image:
    """Draw the photograph to keep of each group, and its near duplicates.

    Parameters
    ----------
    found : Duplicates

    Returns
    -------
    PIL image, RGB
    """
    rows = [
        [_duplicate_tile(group.representative, "keep"), *(_duplicate_tile(one) for one in group.members)]
        for group in found.groups
    ]
    return _draw(rows, "groups")


def _duplicate_tile(one: Duplicate, likeness: str = "") -> _Tile:
    likeness = likeness or ("identical" if one.identical else f"{one.similarity:.3f}")
    size = "" if one.size is None else f"  {one.size[1]} x {one.size[0]}"
    return _Tile(one.photograph, f"{likeness}{size}", _name(one.photograph))


def _name(source: Source) -> str:
    path = path_of(source)
    return "" if path is None else printable(path.name)


def _draw(rows: Sequence[Sequence[_Tile]], things: str) -> Image.Image:
    from PIL import Image, ImageDraw

    fonts = Fonts.load(14, 12)
    shown = [row[:MAX_PICTURES] for row, first in zip(rows, _starts(rows)) if first < MAX_PICTURES]
    title = f"the first {len(shown)} of {len(rows)} {things}" if len(shown) < len(rows) else ""
    cell = _SIDE + 40
    lines = [max(1, math.ceil((len(row) - 1) / _COLUMNS)) for row in shown]
    columns = 1 + min(_COLUMNS, max([0, *(len(row) - 1 for row in shown)]))
    margin = 2 * _GAP
    top = margin + (2 * fonts.large_size if title else 0)
    width = 2 * margin + columns * (_SIDE + _GAP) - _GAP
    sheet = Image.new("RGB", (width, top + sum(lines) * cell + _GAP * max(0, len(lines) - 1) + margin), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((margin, margin // 2), title, INK, fonts.large)
    for row, count in zip(shown, lines):
        for index, tile in enumerate(row):
            line, column = divmod(index - 1, _COLUMNS) if index else (0, -1)
            corner = (margin + (column + 1) * (_SIDE + _GAP), top + line * cell)
            _paste(sheet, draw, corner, tile, fonts, framed=index == 0)
        top += count * cell + _GAP
    return sheet


def _starts(rows: Sequence[Sequence[_Tile]]) -> Iterator[int]:
    """Yield the number of pictures before each row."""
    return itertools.accumulate((len(row) for row in rows), initial=0)


def _paste(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, corner: tuple[int, int], tile: _Tile, fonts: Fonts, *, framed: bool
) -> None:
    """Draw a photograph in the middle of its square, and its caption below."""
    from PIL import Image

    left, top = corner
    pixels = read_thumbnail(tile.photograph)
    if pixels is not None:
        picture = Image.fromarray(pixels)
        scale = _SIDE / max(picture.size)
        size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        place = left + (_SIDE - size[0]) // 2, top + _SIDE - size[1]
        if framed:
            box = (place[0] - 4, place[1] - 4, place[0] + size[0] + 3, place[1] + size[1] + 3)
            draw.rounded_rectangle(box, 8, outline=_ACCENT, width=3)
        picture = picture.resize(size, Image.Resampling.LANCZOS)
        sheet.paste(picture, place, rounded_rectangle(*size, radius=5))
    draw.text((left, top + _SIDE + 6), tile.caption, _ACCENT if framed else INK, fonts.large)
    draw.text((left, top + _SIDE + 23), _shortened(draw, tile.name, fonts), FAINT, fonts.small)


def _shortened(draw: ImageDraw.ImageDraw, name: str, fonts: Fonts) -> str:
    """Return a name that fits below a picture: its middle is left out if it is long."""
    length = len(name)
    text = name
    while draw.textlength(text, fonts.small) > _SIDE and length > 4:
        length -= 1
        text = f"{name[: length // 2]}...{name[-(length - length // 2) :]}"
    return text
