"""Photographs as files or in memory: their names in a store, their sizes, their pixels."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Union

import numpy as np

from vitnp import images, threads
from vitnp.decoding import stored_size
from vitnp.errors import ImageError

if TYPE_CHECKING:
    from PIL import Image

Source = Union[images.Photograph, str, os.PathLike, "Image.Image", np.ndarray]


def path_of(source: Source) -> Path | None:
    """The file of a photograph; None where it's in memory."""
    if isinstance(source, images.Photograph):
        return source.path
    return Path(source) if isinstance(source, (str, os.PathLike)) else None


def fingerprint(source: Source) -> str:
    """The name of a photograph in a store: of its bytes where it's a file, else of its pixels.

    Raises
    ------
    ImageError
        When it can't be read.
    """
    path = path_of(source)
    return images.content_hash(images.read_image(source)) if path is None else images.file_hash(path)


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
        height, width = images.read_image(source).shape[:2]
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
    with contextlib.nullcontext() if path is None else threads.room_for(images.pixels_of(path)):
        yield images.read_image(source if path is None else path, max_pixels=max_pixels)
