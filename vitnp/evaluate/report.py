"""Pictures of an evaluation: the best, the middle and the worst, each beside its truth."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vitnp.errors import OutputError
from vitnp.io.resample import downscale
from vitnp.io.stamp import is_own_output
from vitnp.io.write import make_folder, write_png
from vitnp.masks.palette import bright_colors

if TYPE_CHECKING:
    from PIL import Image


# Photographs in each picture, and the box in pixels that each panel fits into.
ROWS = 3
_WIDTH, _HEIGHT = 360, 300

_GAP = 14
_PAPER, _INK, _FAINT = (250, 250, 248), (28, 28, 30), (118, 118, 122)
_TITLES = ("photograph", "truth", "vitnp")

# Boxes: what is true, and what was found.
TRUE_COLOR, FOUND_COLOR = (60, 220, 90), (0, 190, 255)


class Case(NamedTuple):
    """One photograph, what is true and what was found: (height, width, 3) uint8 each, and a line about them."""

    photograph: np.ndarray
    truth: np.ndarray
    found: np.ndarray
    caption: str


def write_report(
    folder: str | os.PathLike[str], ranking: Mapping[int, float], picture: Callable[[int], Case], measure: str
) -> list[Path]:
    """Write ``best.png``, ``median.png`` and ``worst.png``.

    Parameters
    ----------
    folder : path
        Made if it isn't there.
    ranking : mapping of int to float
        Score of each photograph by its place.
    picture : callable
        Gives the case of a photograph; called for at most nine.
    measure : str
        What the score is called.

    Returns
    -------
    list of Path

    Raises
    ------
    OutputError
        When a file can't be written, or one that vitnp didn't write is in the way.
    ImageError
        When a photograph has disappeared.
    """
    paths = report_paths(folder)
    for path, places in zip(paths, chosen(ranking)):
        cases = [picture(place) for place in places]
        captioned = [
            case._replace(caption=f"{case.caption}  ·  {measure} {ranking[place]:.3f}")
            for place, case in zip(places, cases)
        ]
        write_png(path, sheet(captioned))
    return paths


def report_paths(folder: str | os.PathLike[str]) -> list[Path]:
    """The files of a report, in a folder that is made if it isn't there.

    Raises
    ------
    OutputError
        As for :func:`write_report`; whoever has long work to do asks before it.
    """
    folder = Path(folder)
    make_folder(folder)
    paths = [folder / f"{name}.png" for name in ("best", "median", "worst")]
    for path in paths:
        if os.path.lexists(path) and not is_own_output(path):
            raise OutputError(
                f"{path}: this file exists and vitnp didn't write it; move it away or name another folder"
            )
    return paths


def chosen(ranking: Mapping[int, float], rows: int = ROWS) -> tuple[list[int], list[int], list[int]]:
    """Places of the best, the middle and the worst photographs, the best (worst) first.

    Examples
    --------
    >>> chosen({0: 0.1, 1: 0.9, 2: 0.5, 3: 0.6, 4: 0.2}, rows=1)
    ([1], [2], [0])
    """
    order = sorted(ranking, key=lambda place: (-ranking[place], place))
    rows = min(rows, len(order))
    middle = (len(order) - rows + 1) // 2
    return order[:rows], order[middle : middle + rows], order[::-1][:rows]


def sheet(cases: Sequence[Case]) -> Image.Image:
    """Draw cases below each other: photograph, truth, what was found, and the caption below.

    Examples
    --------
    >>> gray = np.full((30, 40, 3), 128, np.uint8)
    >>> sheet([Case(gray, gray, gray, "cat.jpg")]).size[0]
    1136
    """
    from PIL import Image, ImageDraw, ImageFont

    font, small = ImageFont.load_default(17), ImageFont.load_default(15)
    rows = [[_fitted(picture) for picture in case[:3]] for case in cases]
    heights = [panels[0].height for panels in rows]
    line = 26
    size = (3 * _WIDTH + 4 * _GAP, _GAP + line + sum(height + line + _GAP for height in heights))
    made = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(made)
    for column, title in enumerate(_TITLES):
        draw.text((_GAP + column * (_WIDTH + _GAP), _GAP), title, _INK, font)
    top = _GAP + line
    for panels, case in zip(rows, cases):
        for column, panel in enumerate(panels):
            made.paste(panel, (_GAP + column * (_WIDTH + _GAP), top))
        top += panels[0].height + 5
        draw.text((_GAP, top), _clipped(draw, case.caption, small, size[0] - 2 * _GAP), _FAINT, small)
        top += line - 5 + _GAP
    return made


def paint(rgb: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """A photograph with its classes in their colors; the background dimmed, ignored pixels (255) white.

    Parameters
    ----------
    rgb : (height, width, 3) uint8
    labels : (height, width) uint8

    Returns
    -------
    (height, width, 3) uint8

    Examples
    --------
    >>> paint(np.full((1, 2, 3), 100, np.uint8), np.array([[0, 1]], np.uint8)).tolist()
    [[[60, 60, 60], [153, 35, 35]]]
    """
    gray = rgb.mean(axis=2, dtype=np.float32)[..., None]
    colors = bright_colors().astype(np.float32)
    colors[255] = 255
    share = np.full(256, 0.65, np.float32)
    share[0] = 0.4
    share = share[labels][..., None]
    return ((1 - share) * gray + share * colors[labels] + 0.5).astype(np.uint8)


def draw_boxes(rgb: np.ndarray, boxes: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """A photograph with boxes (M, 4): left, top, right, bottom; each line twice, so that it shows on any ground."""
    from PIL import Image, ImageDraw

    made = Image.fromarray(rgb)
    draw = ImageDraw.Draw(made)
    width = max(2, round(max(made.size) / 150))
    for left, top, right, bottom in np.asarray(boxes).round().astype(int).tolist():
        corners = (left, top, max(left, right - 1), max(top, bottom - 1))
        draw.rectangle(corners, outline=(255, 255, 255), width=width + max(1, width // 2))
        draw.rectangle(corners, outline=color, width=width)
    return np.asarray(made)


def _fitted(picture: np.ndarray) -> Image.Image:
    from PIL import Image

    height, width = picture.shape[:2]
    scale = min(_WIDTH / width, _HEIGHT / height)
    return Image.fromarray(downscale(picture, (max(1, round(scale * height)), max(1, round(scale * width)))))


def _clipped(draw, text: str, font, width: int) -> str:
    """The text, without its beginning where it is too long: what a path ends in tells more."""
    text = text.replace("\n", " ")
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength("…" + text, font) > width:
        text = text[max(1, len(text) // 50) :]
    return "…" + text
