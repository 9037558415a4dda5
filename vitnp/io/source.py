"""Photographs as files or in memory: their names in a store, their sizes, their pixels."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Union

import numpy as np

from vitnp.errors import ImageError
from vitnp.io import decode, find
from vitnp.io.decode import stored_size
from vitnp.kernels.threads import pool

if TYPE_CHECKING:
    from PIL import Image

Source = Union[find.Photograph, str, os.PathLike, "Image.Image", np.ndarray]


def path_of(source: Source) -> Path | None:
    """The file of a photograph; None where it's in memory."""
    if isinstance(source, find.Photograph):
        return source.path
    return Path(source) if isinstance(source, (str, os.PathLike)) else None


def content_hash(rgb: np.ndarray) -> str:
    """Fingerprint of a picture's shape and pixels: 32 hexadecimal digits of BLAKE2b.

    Two files that decode to the same pixels share it, whatever their names and formats.

    Examples
    --------
    >>> import numpy as np
    >>> content_hash(np.zeros((2, 3, 3), np.uint8))
    '3034a84a7690e6cd97747e2c803230b8'
    """
    digest = hashlib.blake2b(repr(rgb.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(rgb))
    return digest.hexdigest()


def fingerprint(source: Source, rgb: np.ndarray | None = None) -> str:
    """Identify a photograph by its content: by the bytes of a file, else by its pixels.

    Parameters
    ----------
    source : Photograph, path, PIL image or array
    rgb : (height, width, 3) uint8, optional
        The decoded pixels, where they are at hand.

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
        return decode.file_hash(path)
    return content_hash(decode.read_image(source) if rgb is None else rgb)


def size_of(source: Source) -> tuple[int, int]:
    """Height and width, not turned upright yet; of a file only the header is read.

    Raises
    ------
    ImageError
        When there are none.
    """
    path = path_of(source)
    if path is not None:
        height, width = stored_size(path)
    elif hasattr(source, "getexif"):
        height, width = source.height, source.width
    else:
        height, width = decode.read_image(source).shape[:2]
    if height < 1 or width < 1:
        raise ImageError(f"{path or 'the picture'}: it has no pixels; use a picture of at least 1 x 1")
    return height, width


@contextlib.contextmanager
def opened(source: Source, max_pixels: int):
    """The pixels of a photograph, (height, width, 3) uint8, to be let go of soon: large ones come one at a time.

    Raises
    ------
    ImageError
        When it can't be read.
    """
    path = path_of(source)
    with contextlib.nullcontext() if path is None else pool.large_image_lock(decode.pixels_of(path)):
        yield decode.read_image(source if path is None else path, max_pixels=max_pixels)
