"""Draw a tile of a contact sheet: an object in the middle of a square, outlined, with its surroundings dimmed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vitnp.masks.contours import smooth_rings
from vitnp.masks.rle import extent

if TYPE_CHECKING:
    from PIL import Image

# Brightness and saturation of the surroundings of an object, as shares of the original.
_DIM, _COLOR = 0.80, 0.55

# Factor of supersampling: Pillow draws lines and corners without antialiasing.
_SUPERSAMPLING = 4


def tile(rgb: np.ndarray, mask: np.ndarray, side: int, color: Sequence[int]) -> Image.Image:
    """Return a square picture of the object, with its surroundings dimmed and its outline drawn."""
    from PIL import Image

    box = _square(mask)
    picture = Image.fromarray(rgb).resize((side, side), Image.Resampling.LANCZOS, box=box)
    soft = Image.fromarray(mask.view(np.uint8) * np.uint8(255)).resize((side, side), Image.Resampling.BOX, box=box)
    faded = Image.blend(picture.convert("L").convert("RGB"), picture, _COLOR)
    dim = faded.point([int(_DIM * value) for value in range(256)] * 3)
    picture = Image.composite(picture, dim, soft)
    # Map the outline to the coordinates of the tile.
    scale = side / (box[2] - box[0])
    curves = [(ring - box[:2]) * scale for ring in smooth_rings(mask)]
    line = max(1.5, side / 64)
    picture.paste((255, 255, 255), mask=_lines(curves, side, 1.9 * line))
    picture.paste(tuple(color), mask=_lines(curves, side, line))
    return picture


def _square(mask: np.ndarray) -> tuple[float, float, float, float]:
    """Return the largest square within the picture, as close as possible to centered on the object.

    Returns
    -------
    left, top, right, bottom : float
    """
    height, width = mask.shape
    side = min(height, width)
    top, bottom, left, right = extent(mask) if mask.any() else (0, height, 0, width)
    x = min(max((left + right - side) / 2, 0), width - side)
    y = min(max((top + bottom - side) / 2, 0), height - side)
    return x, y, x + side, y + side


def _lines(curves: Sequence[np.ndarray], side: int, width: float) -> Image.Image:
    """Return closed curves as an antialiased mask."""
    from PIL import Image, ImageDraw

    canvas = Image.new("L", (side * _SUPERSAMPLING, side * _SUPERSAMPLING))
    draw = ImageDraw.Draw(canvas)
    for curve in curves:
        points = np.concatenate([curve, curve[:2]]) * _SUPERSAMPLING
        draw.line([tuple(point) for point in points.tolist()], 255, round(width * _SUPERSAMPLING), joint="curve")
    return canvas.resize((side, side), Image.Resampling.BOX)


def rounded_rectangle(width: int, height: int, radius: float) -> Image.Image:
    """Return a rectangle with rounded corners as an antialiased mask."""
    from PIL import Image, ImageDraw

    canvas = Image.new("L", (width * _SUPERSAMPLING, height * _SUPERSAMPLING))
    ImageDraw.Draw(canvas).rounded_rectangle(
        (0, 0, width * _SUPERSAMPLING - 1, height * _SUPERSAMPLING - 1), radius * _SUPERSAMPLING, 255
    )
    return canvas.resize((width, height), Image.Resampling.BOX)
