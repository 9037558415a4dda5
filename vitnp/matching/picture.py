"""Draw two photographs side by side, with lines between corresponding points."""

from __future__ import annotations

import colorsys
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from vitnp.io.color import to_srgb
from vitnp.io.resample import downscale

if TYPE_CHECKING:
    from PIL import Image

# Largest height of the two photographs, and largest width of each, in pixels; and the gap between them.
_HEIGHT, _WIDTH, _GAP = 480, 800, 12

# Brightness and saturation of what is not matched, as shares of the original.
_DIM, _COLOR = 0.55, 0.35

# Width of lines and radius of their ends in pixels.
_LINE, _HALO, _RADIUS = 1.6, 3.2, 4.0

# Factor of supersampling: Pillow draws lines and circles without antialiasing.
_SUPERSAMPLING = 3

# Each hue is this part of the circle away from the one before, so that the first dozens differ.
_GOLDEN = (5**0.5 - 1) / 2

_PAPER = (250, 250, 248)


@dataclasses.dataclass(frozen=True, eq=False)
class Side:
    """One of two photographs.

    Attributes
    ----------
    image : (height, width, 3) uint8
    profile : bytes, optional
        ICC profile of the pixels; None if they are sRGB.
    mask : (height, width) bool, optional
        The object; None for the whole photograph.
    entries : mapping
        Entries of the photograph's path for JSON.
    """

    image: np.ndarray
    profile: bytes | None
    mask: np.ndarray | None
    entries: Mapping[str, str | None]

    def to_dict(self) -> dict[str, Any]:
        """Return path and size as JSON can represent them."""
        height, width, _ = self.image.shape
        return {**self.entries, "width": width, "height": height}


def draw_matches(sides: tuple[Side, Side], first: np.ndarray, second: np.ndarray) -> Image.Image:
    """Draw correspondences.

    Parameters
    ----------
    sides : pair of Side
    first, second : (M, 2) float
        Points of each photograph, x and y in its pixels.

    Returns
    -------
    PIL image, RGB
        At most 1612 x 480 pixels; photographs are scaled down, never up, unless one is smaller than the other.

    Examples
    --------
    >>> side = Side(np.full((40, 60, 3), 128, np.uint8), None, None, {})
    >>> draw_matches((side, side), np.array([[5.0, 5.0]]), np.array([[30.0, 20.0]])).size
    (132, 40)
    """
    from PIL import Image, ImageDraw

    height = min(_HEIGHT, max(side.image.shape[0] for side in sides))
    height = min(height, *(int(_WIDTH * side.image.shape[0] / side.image.shape[1]) or 1 for side in sides))
    pictures = [_scaled(side, height) for side in sides]
    left = pictures[0].width + _GAP
    canvas = Image.new("RGB", (left + pictures[1].width, height), _PAPER)
    canvas.paste(pictures[0], (0, 0))
    canvas.paste(pictures[1], (left, 0))
    starts = first * (height / sides[0].image.shape[0])
    ends = second * (height / sides[1].image.shape[0]) + (left, 0)

    size = (canvas.width * _SUPERSAMPLING, canvas.height * _SUPERSAMPLING)
    lines = Image.new("RGBA", size)
    draw = ImageDraw.Draw(lines)
    colors = line_colors(len(starts))
    # The best match is drawn last, on top of the others.
    for start, end, color in reversed(list(zip(starts * _SUPERSAMPLING, ends * _SUPERSAMPLING, colors))):
        for width, ink in ((_HALO, (255, 255, 255, 150)), (_LINE, (*color, 255))):
            draw.line([tuple(start), tuple(end)], ink, round(width * _SUPERSAMPLING))
        for x, y in (start, end):
            radius = _RADIUS * _SUPERSAMPLING
            box = (x - radius, y - radius, x + radius, y + radius)
            draw.ellipse(box, (*color, 255), (255, 255, 255, 255), _SUPERSAMPLING)
    canvas.paste(lines := lines.resize(canvas.size, Image.Resampling.BOX), mask=lines.getchannel("A"))
    return canvas


def line_colors(count: int) -> list[tuple[int, int, int]]:
    """Return bright colors whose hues differ.

    Examples
    --------
    >>> line_colors(2)
    [(255, 64, 64), (64, 120, 255)]
    """
    hues = (index * _GOLDEN % 1 for index in range(count))
    rgb = (colorsys.hsv_to_rgb(hue, 0.75, 1.0) for hue in hues)
    return [(round(255 * red), round(255 * green), round(255 * blue)) for red, green, blue in rgb]


def _scaled(side: Side, height: int) -> Image.Image:
    """Return a photograph at a height, with everything but its object dimmed."""
    from PIL import Image

    rows, columns, _ = side.image.shape
    size = (max(1, round(columns * height / rows)), height)
    small = downscale(side.image, (min(rows, size[1]), min(columns, size[0])))
    pixels = to_srgb(small, side.profile)
    picture = Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.LANCZOS)
    if side.mask is None:
        return picture
    soft = Image.fromarray(side.mask.view(np.uint8) * np.uint8(255)).resize(size, Image.Resampling.BOX)
    faded = Image.blend(picture.convert("L").convert("RGB"), picture, _COLOR)
    return Image.composite(picture, faded.point([int(_DIM * value) for value in range(256)] * 3), soft)
