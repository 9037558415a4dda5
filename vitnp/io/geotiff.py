"""Write GeoTIFF files, which programs for maps put where they belong."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from vitnp.io.stamp import canonical_json, with_software
from vitnp.io.write import as_image, replacing

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from vitnp.io.georeference import Georeference


def write_geotiff(
    path: str | os.PathLike[str],
    image: np.ndarray | Image.Image,
    georeference: Georeference | None,
    text: Mapping[str, str] | None = None,
    *,
    profile: bytes | None = None,
    dpi: tuple[float, float] | None = None,
) -> None:
    """Write a TIFF, compressed without loss, with the tags of a georeference and the stamp of vitnp after the data.

    Parameters
    ----------
    path, image, text, profile, dpi
        As for :func:`write_png`.
    georeference : Georeference, optional
        Where the pixels lie.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    tags = None if georeference is None else georeference.directory()
    with replacing(path) as file:
        resolution = {} if dpi is None else {"dpi": dpi}
        buffer = io.BytesIO()  # libtiff moves about in the file
        as_image(image).save(
            buffer, "TIFF", compression="tiff_adobe_deflate", tiffinfo=tags, icc_profile=profile, **resolution
        )
        file.write(buffer.getbuffer())
        file.write(b"\n" + canonical_json(with_software(text)).encode())
