"""Where on Earth a GeoTIFF lies: its tags, carried from the photograph to its masks (OGC GeoTIFF 1.1).

The tags are kept as they are, without interpreting the coordinate reference system.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vitnp.errors import ImageError
from vitnp.io.headers import open_header

if TYPE_CHECKING:
    from PIL import Image
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

PIXEL_SCALE, TIEPOINTS, TRANSFORMATION, KEYS, DOUBLES, TEXTS = 33550, 33922, 34264, 34735, 34736, 34737
# Types of TIFF 6.0: SHORT, ASCII, DOUBLE.
_TYPES = {PIXEL_SCALE: 12, TIEPOINTS: 12, TRANSFORMATION: 12, KEYS: 3, DOUBLES: 12, TEXTS: 2}

_ORIENTATION = 274


@dataclasses.dataclass(frozen=True)
class Georeference:
    """Tags of a GeoTIFF that say where its pixels lie.

    Attributes
    ----------
    tags : mapping of int to tuple or str
        Values of ModelPixelScale, ModelTiepoint, ModelTransformation, GeoKeyDirectory, GeoDoubleParams and
        GeoAsciiParams, as far as the file has them.
    """

    tags: Mapping[int, tuple[float, ...] | str]

    def cropped(self, left: int, top: int) -> Georeference:
        """Return the georeference of a crop whose first pixel is at (left, top).

        Examples
        --------
        >>> scale, tiepoint = (0.5, 0.5, 0.0), (0.0, 0.0, 0.0, 500000.0, 4100000.0, 0.0)
        >>> Georeference({PIXEL_SCALE: scale, TIEPOINTS: tiepoint}).cropped(10, 20).tags[TIEPOINTS]
        (0.0, 0.0, 0.0, 500005.0, 4099990.0, 0.0)
        """
        tags: dict[int, Any] = dict(self.tags)
        if TRANSFORMATION in tags:
            m = list(tags[TRANSFORMATION])  # a 4 x 4 matrix from columns and rows to coordinates
            for row in (0, 4, 8):
                m[row + 3] += m[row] * left + m[row + 1] * top
            tags[TRANSFORMATION] = tuple(m)
        points = tags.get(TIEPOINTS, ())
        if len(points) == 6 and PIXEL_SCALE in tags:
            # The point becomes that of the first corner, which is what simple readers take it for.
            column, row, level, x, y, z = points
            across, down, _ = tags[PIXEL_SCALE]
            tags[TIEPOINTS] = (0.0, 0.0, level, x + (left - column) * across, y - (top - row) * down, z)
        elif points:
            tags[TIEPOINTS] = tuple(
                value - (left, top)[index % 6] if index % 6 < 2 else value for index, value in enumerate(points)
            )
        return Georeference(tags)

    def directory(self) -> ImageFileDirectory_v2:
        """Return the tags as Pillow writes them."""
        from PIL.TiffImagePlugin import ImageFileDirectory_v2

        directory = ImageFileDirectory_v2()
        for tag, value in self.tags.items():
            directory.tagtype[tag] = _TYPES[tag]
            directory[tag] = value
        return directory


def georeference_of(image: Image.Image) -> tuple[Georeference | None, str | None]:
    """Return the georeference of a TIFF whose pixels are not loaded yet, and why there is none although there are tags.

    Parameters
    ----------
    image : PIL image
        As :func:`vitnp.io.headers.open_header` yields it; of other formats nothing is returned.
    """
    stored = getattr(image, "tag_v2", None)
    if stored is None or KEYS not in stored or not ({TIEPOINTS, TRANSFORMATION} & set(stored)):
        return None, None
    if stored.get(_ORIENTATION, 1) != 1:
        return None, "its georeference is not used, because its orientation tag turns the picture"
    tags = {}
    for tag in _TYPES:
        if tag in stored:
            value = stored[tag]
            tags[tag] = value if isinstance(value, (tuple, str)) else (value,)
    lengths = {PIXEL_SCALE: 3, TRANSFORMATION: 16}
    numbers = [value for tag in tags if tag not in (TEXTS, KEYS) for value in tags[tag]]
    if (
        any(len(tags[tag]) != length for tag, length in lengths.items() if tag in tags)
        or len(tags.get(TIEPOINTS, ())) % 6
        or not all(isinstance(value, (int, float)) and math.isfinite(value) for value in numbers)
    ):
        return None, "its georeference is not used, because the GeoTIFF tags are damaged"
    return Georeference(tags), None


def is_georeferenced(path: str | os.PathLike[str] | bytes) -> bool:
    """Tell whether a file is a GeoTIFF whose georeference can be carried; False if the file cannot be read."""
    try:
        with open_header(path) as (image, _):
            return georeference_of(image)[0] is not None
    except ImageError:
        return False
