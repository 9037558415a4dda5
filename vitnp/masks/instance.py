"""One separated object of a photograph: a region with a confidence of its own, and a cutout."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from vitnp.masks.region import Region

if TYPE_CHECKING:
    from PIL import Image


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Instance(Region):
    """An object that was separated from the others of its photograph: a region, whose confidence ranks it.

    Attributes
    ----------
    label, mask
        See :class:`vitnp.masks.region.Region`.
    confidence : float
        By which objects are ranked, 0 to 1.
    make_cutout : callable
        Returns :meth:`cutout`.
    """

    make_cutout: Callable[[np.ndarray], Image.Image]

    def cutout(self) -> Image.Image:
        """Return the photograph with everything but this object transparent, RGBA, of the photograph's size."""
        return self.make_cutout(self.mask)
