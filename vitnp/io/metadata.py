"""What outputs carry of a photograph besides pixels and colors: its resolution, and where on Earth it lies."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from vitnp.io.georeference import Georeference, georeference_of

if TYPE_CHECKING:
    from PIL import Image

_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What outputs carry of a photograph besides pixels and colors.

    Attributes
    ----------
    dpi : (float, float), optional
        Pixels per inch, horizontally and vertically, of the upright picture.
    georeference : Georeference, optional
        Of a GeoTIFF.
    """

    dpi: tuple[float, float] | None = None
    georeference: Georeference | None = None

    def cropped(self, left: int, top: int) -> Metadata:
        """Return the metadata of a crop whose first pixel is at (left, top)."""
        if self.georeference is None:
            return self
        return dataclasses.replace(self, georeference=self.georeference.cropped(left, top))


NO_METADATA = Metadata()


def metadata_of(image: Image.Image, *, from_file: bool) -> tuple[Metadata, str | None]:
    """Return the metadata of an image whose pixels are not loaded yet, and what could not be used, in words.

    Parameters
    ----------
    image : PIL image
    from_file : bool
        Whether it was opened from a file or bytes. Of other images it is not known whether they were turned since, so
        they have no georeference.
    """
    georeference, notice = georeference_of(image) if from_file else (None, None)
    return Metadata(_dpi_of(image), georeference), notice


def _dpi_of(image: Image.Image) -> tuple[float, float] | None:
    """Return the resolution of the upright picture; None if there is none, or it makes no sense."""
    try:
        across, down = (float(value) for value in image.info["dpi"])
        if not (math.isfinite(across) and math.isfinite(down) and 1 <= min(across, down) <= max(across, down) < 1e6):
            return None
        if across != down and image.getexif().get(_ORIENTATION) in _TURNED:
            across, down = down, across
        return across, down
    except Exception:  # whatever a damaged block of EXIF raises
        return None
