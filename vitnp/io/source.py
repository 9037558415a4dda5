"""Photographs as files, PIL images or arrays: their fingerprints, sizes and pixels."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Union, cast

import numpy as np

from vitnp.errors import ImageError
from vitnp.io.decode import read_image
from vitnp.io.find import Photograph
from vitnp.io.headers import file_hash, pixels_of, stored_size
from vitnp.kernels.threads import pool

if TYPE_CHECKING:
    from PIL import Image

Source = Union[Photograph, str, os.PathLike[str], "Image.Image", np.ndarray]


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


def fingerprint(source: Source, rgb: np.ndarray | None = None) -> str:
    """Return the fingerprint of a photograph: :func:`file_hash` of a file, else :func:`content_hash` of the pixels.

    Parameters
    ----------
    source : Photograph, path, PIL image or array
    rgb : (height, width, 3) uint8, optional
        The decoded pixels, if available.

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
    return content_hash(_read(source) if rgb is None else rgb)


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
        height, width = _read(source).shape[:2]
    if height < 1 or width < 1:
        raise ImageError(f"{path or 'the image'}: it has no pixels; use an image of at least 1 x 1")
    return height, width


@contextlib.contextmanager
def opened(source: Source, max_pixels: int) -> Iterator[np.ndarray]:
    """Yield the pixels of a photograph, (height, width, 3) uint8.

    Large files are opened one at a time (:func:`vitnp.kernels.threads.pool.large_image_lock`), so do not keep them open
    for longer than needed.

    Raises
    ------
    ImageError
        If the photograph cannot be read.
    """
    path = path_of(source)
    with contextlib.nullcontext() if path is None else pool.large_image_lock(pixels_of(path)):
        yield _read(source, max_pixels=max_pixels)


def _read(source: Source, **options: int) -> np.ndarray:
    return read_image(source.path if isinstance(source, Photograph) else source, **options)
