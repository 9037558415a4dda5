"""EXIF orientation: how the pixels of a file lie in the upright image."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

# For each EXIF orientation, a view of the upright image with the pixels in the order in which the file stores them.
_STORED_VIEW: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}


def stored_view_of(image: Image.Image) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from an upright array to a view of it in the order in which an image's file stores the pixels.

    If the EXIF block is damaged, the image is taken as upright, because the pixels may be intact.
    """
    try:
        value = image.getexif().get(0x0112, 1)
    except Exception:
        value = 1
    return _STORED_VIEW[value if isinstance(value, int) and value in _STORED_VIEW else 1]
