"""Draw similar photographs and near duplicates: each query, or photograph to keep, in front of the others."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from vitnp.export.photograph_record import read_thumbnail
from vitnp.export.sheet_style import FAINT, INK, PAPER, Fonts
from vitnp.export.tile import rounded_rectangle
from vitnp.io.path_text import drawable
from vitnp.io.source import Source, path_of
from vitnp.retrieval.groups import Duplicate, Duplicates
from vitnp.retrieval.search import SimilarPhotographs

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

# Pictures beside the first one in a line, and the limit of pictures on a sheet; what comes after is left out.
_COLUMNS = 6
MAX_PICTURES = 400

# Side of the square for a picture, and gap between squares, in pixels.
_SIDE, _GAP = 170, 12

# Color of the frame of the first picture, and its width in pixels.
_ACCENT, _FRAME = (0, 150, 136), 4


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
    return "" if path is None else drawable(path.name)


def _draw(rows: Sequence[Sequence[_Tile]], things: str) -> Image.Image:
    """Draw rows of pictures, each row in one or more lines: the first picture, and the others to the right of it."""
    from PIL import Image, ImageDraw

    fonts = Fonts.load(14, 12)
    before = itertools.accumulate((len(row) for row in rows), initial=0)
    shown = [row[:MAX_PICTURES] for row, count in zip(rows, before) if count < MAX_PICTURES]
    lines = [line for row in shown for line in _lines(row, fonts)]
    title = f"the first {len(shown)} of {len(rows)} {things}" if len(shown) < len(rows) else ""
    top = 2 * _GAP + (2 * fonts.large_size if title else 0)
    width = max([2 * _SIDE, *(line.width for line in lines)]) + 4 * _GAP
    sheet = Image.new("RGB", (width, top + sum(line.height for line in lines) + _GAP), PAPER)
    ImageDraw.Draw(sheet).text((2 * _GAP, _GAP), title, INK, fonts.large)
    for line in lines:
        sheet.paste(line, (2 * _GAP, top))
        top += line.height
    return sheet


def _lines(row: Sequence[_Tile], fonts: Fonts) -> Iterator[Image.Image]:
    """Yield the lines of a row; the place below the first picture stays empty."""
    first, others = row[0], row[1:]
    for start in range(0, max(1, len(others)), _COLUMNS):
        tiles: list[_Tile | None] = [None if start else first, *others[start : start + _COLUMNS]]
        yield _line(tiles, fonts)


def _line(tiles: Sequence[_Tile | None], fonts: Fonts) -> Image.Image:
    """Draw pictures side by side, each with its caption below; the first one is framed."""
    from PIL import Image, ImageDraw

    pictures = [None if tile is None else _picture(tile.photograph) for tile in tiles]
    height = max([0, *(picture.height for picture in pictures if picture is not None)])
    line = Image.new("RGB", (len(tiles) * (_SIDE + _GAP), _FRAME + height + 3 * fonts.large_size + _GAP), PAPER)
    draw = ImageDraw.Draw(line)
    for column, (tile, picture) in enumerate(zip(tiles, pictures)):
        left, bottom = _FRAME + column * (_SIDE + _GAP), _FRAME + height
        if picture is not None:
            box = (left, bottom - picture.height, left + picture.width - 1, bottom - 1)
            line.paste(picture, box[:2], rounded_rectangle(*picture.size, radius=5))
            if column == 0:
                frame = (box[0] - _FRAME, box[1] - _FRAME, box[2] + _FRAME, box[3] + _FRAME)
                draw.rounded_rectangle(frame, 2 * _FRAME, outline=_ACCENT, width=_FRAME - 1)
        if tile is not None:
            top = bottom + _FRAME + 3
            draw.text((left, top), tile.caption, INK if column else _ACCENT, fonts.large)
            draw.text((left, top + 1.2 * fonts.large_size), _shortened(draw, tile.name, fonts), FAINT, fonts.small)
    return line


def _picture(photograph: Source) -> Image.Image | None:
    """Return a photograph scaled to fit its square; None if it can no longer be read."""
    from PIL import Image

    pixels = read_thumbnail(photograph)
    if pixels is None:
        return None
    picture = Image.fromarray(pixels)
    scale = _SIDE / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.LANCZOS)


def _shortened(draw: ImageDraw.ImageDraw, name: str, fonts: Fonts) -> str:
    """Return a name that fits below a picture: its middle is left out if it is long."""
    length = len(name)
    text = name
    while draw.textlength(text, fonts.small) > _SIDE and length > 4:
        length -= 1
        text = f"{name[: length // 2]}...{name[-(length - length // 2) :]}"
    return text
