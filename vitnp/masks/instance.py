"""One object of a photograph: its pixels, box, confidence and cutout."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from vitnp.masks.rle import extent

if TYPE_CHECKING:
    from PIL import Image


@dataclasses.dataclass(frozen=True, eq=False)
class Instance:
    """An object that was separated from the others of its photograph.

    Attributes
    ----------
    mask : (height, width) bool
        True on the object.
    confidence : float
        By which objects are ranked, 0 to 1.
    make_cutout : callable
        Returns :meth:`cutout`.
    """

    mask: np.ndarray
    confidence: float
    make_cutout: Callable[[np.ndarray], Image.Image]

    def __repr__(self) -> str:
        x, y, width, height = self.box
        return f"Instance({width} x {height} at ({x}, {y}), confidence {self.confidence:.2f})"

    @functools.cached_property
    def box(self) -> tuple[int, int, int, int]:
        """Bounding box in pixels: x, y, width, height."""
        top, bottom, left, right = extent(self.mask)
        return left, top, right - left, bottom - top

    @functools.cached_property
    def area(self) -> int:
        """Number of pixels."""
        return int(np.count_nonzero(self.mask))

    @property
    def share(self) -> float:
        """Share of the photograph, 0 to 1."""
        return self.area / self.mask.size

    def cutout(self) -> Image.Image:
        """Return the photograph with everything but this object transparent, RGBA, of the photograph's size."""
        return self.make_cutout(self.mask)
