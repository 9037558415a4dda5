"""Report of an evaluation: pictures of the best, median and worst results beside the truth."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vitnp.errors import OutputError
from vitnp.evaluate.metrics.boxes import Boxes
from vitnp.io.path_text import drawable
from vitnp.io.resample import downscale
from vitnp.io.stamp import is_own_output
from vitnp.io.write import make_folder, write_png
from vitnp.masks.palette import bright_colors

if TYPE_CHECKING:
    from PIL import Image


# Photographs per picture.
ROWS = 3
_TITLES = ("photograph", "truth", "vitnp")

# Sizes in pixels: largest width and height of a panel, gap between panels, height of a line of text.
_WIDTH, _HEIGHT = 360, 300
_GAP, _LINE = 14, 26
_BACKGROUND, _TITLE_COLOR, _CAPTION_COLOR = (250, 250, 248), (28, 28, 30), (118, 118, 122)

# Colors of true and predicted boxes.
TRUE_COLOR, PREDICTED_COLOR = (60, 220, 90), (0, 190, 255)


class Case(NamedTuple):
    """One row of a report.

    Attributes
    ----------
    photograph, truth, predicted : (height, width, 3) uint8
        The photograph as it is, with the truth, and with the prediction drawn on it.
    caption : str
        Text below the row.
    """

    photograph: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray
    caption: str


def write_report(
    folder: str | os.PathLike[str], ranking: Mapping[int, float], picture: Callable[[int], Case], measure: str
) -> list[Path]:
    """Write ``best.png``, ``median.png`` and ``worst.png``.

    Parameters
    ----------
    folder : path
        Created if it doesn't exist.
    ranking : mapping of int to float
        Score of each photograph by its index.
    picture : callable
        ``picture(index)`` returns the case of a photograph; called for at most nine of them.
    measure : str
        Name of the score.

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    OutputError
        When a file can't be written, or would replace one that vitnp didn't write.
    ImageError
        When a photograph can no longer be read.
    """
    paths = report_paths(folder)
    for path, indices in zip(paths, select_cases(ranking)):
        cases = [picture(index) for index in indices]
        captions = [f"{case.caption}  ·  {measure} {ranking[index]:.3f}" for index, case in zip(indices, cases)]
        write_png(path, draw_sheet([case._replace(caption=caption) for case, caption in zip(cases, captions)]))
    return paths


def report_paths(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the paths of a report's files, and create their folder.

    Call it before a long evaluation, so that problems with the folder show first.

    Raises
    ------
    OutputError
        When the folder can't be created, or a file there was not written by vitnp.
    """
    folder = Path(folder)
    make_folder(folder)
    paths = [folder / f"{name}.png" for name in ("best", "median", "worst")]
    for path in paths:
        if os.path.lexists(path) and not is_own_output(path):
            raise OutputError(
                f"{path}: this file exists and was not written by vitnp; move it away or name another folder"
            )
    return paths


def select_cases(ranking: Mapping[int, float], rows: int = ROWS) -> tuple[list[int], list[int], list[int]]:
    """Return the indices of the best, median and worst photographs; the best and the worst come first.

    Examples
    --------
    >>> select_cases({0: 0.1, 1: 0.9, 2: 0.5, 3: 0.6, 4: 0.2}, rows=1)
    ([1], [2], [0])
    """
    order = sorted(ranking, key=lambda index: (-ranking[index], index))
    rows = min(rows, len(order))
    middle = (len(order) - rows + 1) // 2
    return order[:rows], order[middle : middle + rows], order[::-1][:rows]


def draw_sheet(cases: Sequence[Case]) -> Image.Image:
    """Draw one row per case: photograph, truth and prediction, with the caption below.

    Examples
    --------
    >>> gray = np.full((30, 40, 3), 128, np.uint8)
    >>> draw_sheet([Case(gray, gray, gray, "cat.jpg")]).size[0]
    1136
    """
    from PIL import Image, ImageDraw, ImageFont

    title_font, caption_font = ImageFont.load_default(17), ImageFont.load_default(15)
    rows = [[_fit_panel(picture) for picture in case[:3]] for case in cases]
    width = 3 * _WIDTH + 4 * _GAP
    height = _GAP + _LINE + sum(panels[0].height + _LINE + _GAP for panels in rows)
    sheet = Image.new("RGB", (width, height), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    lefts = [_GAP + column * (_WIDTH + _GAP) for column in range(3)]
    for left, title in zip(lefts, _TITLES):
        draw.text((left, _GAP), title, _TITLE_COLOR, title_font)
    top = _GAP + _LINE
    for panels, case in zip(rows, cases):
        for left, panel in zip(lefts, panels):
            sheet.paste(panel, (left, top))
        top += panels[0].height
        caption = _truncate(case.caption, lambda text: draw.textlength(text, caption_font) <= width - 2 * _GAP)
        draw.text((_GAP, top + 5), caption, _CAPTION_COLOR, caption_font)
        top += _LINE + _GAP
    return sheet


def draw_labels(rgb: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Tint a photograph with the colors of its classes; the background is dimmed, ignored pixels (255) are white.

    Parameters
    ----------
    rgb : (height, width, 3) uint8
    labels : (height, width) uint8

    Returns
    -------
    (height, width, 3) uint8

    Examples
    --------
    >>> draw_labels(np.full((1, 2, 3), 100, np.uint8), np.array([[0, 1]], np.uint8)).tolist()
    [[[60, 60, 60], [153, 35, 35]]]
    """
    gray = rgb.mean(axis=2, dtype=np.float32)[..., None]
    colors = bright_colors().astype(np.float32)
    colors[255] = 255
    opacity = np.full(256, 0.65, np.float32)
    opacity[0] = 0.4
    alpha = opacity[labels][..., None]
    return ((1 - alpha) * gray + alpha * colors[labels] + 0.5).astype(np.uint8)


def draw_boxes(rgb: np.ndarray, boxes: Boxes, color: tuple[int, int, int]) -> np.ndarray:
    """Draw boxes on a photograph, with a white border so that they show on any background.

    Parameters
    ----------
    rgb : (height, width, 3) uint8
    boxes : (M, 4) float
        Left, top, right and bottom edge in pixels, right and bottom exclusive.
    color : (int, int, int)
        Red, green and blue.

    Returns
    -------
    (height, width, 3) uint8
    """
    from PIL import Image, ImageDraw

    picture = Image.fromarray(rgb)
    draw = ImageDraw.Draw(picture)
    width = max(2, round(max(picture.size) / 150))
    for left, top, right, bottom in np.asarray(boxes).round().astype(int).tolist():
        corners = (left, top, max(left, right - 1), max(top, bottom - 1))
        draw.rectangle(corners, outline=(255, 255, 255), width=width + max(1, width // 2))
        draw.rectangle(corners, outline=color, width=width)
    return np.asarray(picture)


def _fit_panel(picture: np.ndarray) -> Image.Image:
    """Scale a picture to the largest size of a panel."""
    from PIL import Image

    height, width = picture.shape[:2]
    scale = min(_WIDTH / width, _HEIGHT / height)
    return Image.fromarray(downscale(picture, (max(1, round(scale * height)), max(1, round(scale * width)))))


def _truncate(text: str, fits: Callable[[str], bool]) -> str:
    """Cut the beginning off a text that is too long: the end of a path says more."""
    text = drawable(text)
    if fits(text):
        return text
    while text and not fits("…" + text):
        text = text[max(1, len(text) // 50) :]
    return "…" + text
