"""Photographs as files, PIL images or arrays: their fingerprints, sizes and pixels."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union, cast

import numpy as np

from vitnp.errors import ImageError
from vitnp.io.decode import DecodedImage, decode_image
from vitnp.io.find import Photograph
from vitnp.io.headers import file_hash, pixels_of, stored_size
from vitnp.kernels.threads import pool

if TYPE_CHECKING:
    from PIL import Image

Source = Union[Photograph, str, os.PathLike[str], bytes, "Image.Image", np.ndarray]


def path_of(source: Source) -> Path | None:
    """Return the path of a photograph; None if it is in memory."""
    if isinstance(source, Photograph):
        return source.path
    return Path(source) if isinstance(source, (str, os.PathLike)) else None


def content_hash(rgb: np.ndarray) -> str:
    """Return the fingerprint of an image: the BLAKE2b hash of its shape and pixels as 32 hexadecimal digits.

    Two files that decode to the same pixels have the same hash, whatever their names and formats.

    Examples
    --------
    >>> import numpy as np
    >>> content_hash(np.zeros((2, 3, 3), np.uint8))
    '3034a84a7690e6cd97747e2c803230b8'
    """
    digest = hashlib.blake2b(repr(rgb.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(rgb).reshape(-1).data)
    return digest.hexdigest()


def fingerprint(source: Source, image: DecodedImage | None = None, *, alpha: str = "background") -> str:
    """Return the fingerprint of a photograph: :func:`file_hash` of a file, else the hash of pixels and color profile.

    Parameters
    ----------
    source : Photograph, path, PIL image or array
    image : DecodedImage, optional
        The decoded photograph, if available.
    alpha : str
        How a photograph in memory is decoded, see :func:`vitnp.io.decode.read_image`.

    Returns
    -------
    str
        32 hexadecimal digits.

    Raises
    ------
    ImageError
        If the photograph cannot be read.
    """
    path = path_of(source)
    if path is not None:
        return file_hash(path)
    image = _decode(source, alpha=alpha) if image is None else image
    digest = content_hash(image.rgb)
    if image.profile is None:
        return digest
    # The same values with another profile are other colors.
    return hashlib.blake2b(digest.encode() + image.profile, digest_size=16).hexdigest()


def size_of(source: Source) -> tuple[int, int]:
    """Return height and width as stored, before the EXIF orientation is applied. Only the header of a file is read.

    Raises
    ------
    ImageError
        If the photograph cannot be read or has no pixels.
    """
    path = path_of(source)
    if path is not None:
        height, width = stored_size(path)
    elif hasattr(source, "getexif"):
        image = cast("Image.Image", source)
        height, width = image.height, image.width
    else:
        height, width = _decode(source).rgb.shape[:2]
    if height < 1 or width < 1:
        raise ImageError(f"{path or 'the image'}: it has no pixels; use an image of at least 1 x 1")
    return height, width


@contextlib.contextmanager
def opened(source: Source, max_pixels: int, alpha: str = "background") -> Iterator[DecodedImage]:
    """Yield a decoded photograph; its notices are logged.

    Large files are opened one at a time (:func:`vitnp.kernels.threads.pool.large_image_lock`), so do not keep them open
    for longer than needed.

    Raises
    ------
    ImageError
        If the photograph cannot be read.
    """
    path = path_of(source)
    with contextlib.nullcontext() if path is None else pool.large_image_lock(pixels_of(path)):
        image = _decode(source, max_pixels=max_pixels, alpha=alpha)
        image.log()
        yield image


def _decode(source: Source, **options: Any) -> DecodedImage:
    return decode_image(source.path if isinstance(source, Photograph) else source, **options)
