"""Read pictures whose values are numbers: masks and label images of any program."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import numpy as np

from vitnp.errors import ImageError
from vitnp.io.decode import MAX_PIXELS, unopened
from vitnp.io.headers import open_header
from vitnp.io.tiff import check_tiff

if TYPE_CHECKING:
    from PIL import Image
    from PIL.TiffImagePlugin import TiffImageFile

# Largest number of a region.
MAX_VALUE = 65_535


@contextlib.contextmanager
def open_picture(path: str | os.PathLike[str], content: str) -> Iterator[Image.Image]:
    """Open a picture with Pillow, and turn whatever goes wrong within the ``with`` block into an ImageError.

    Only the formats of photographs are read, and PBM, PGM and PPM. Pillow knows many more, and starts another program
    for one of them (PostScript, whatever the name of the file).

    Parameters
    ----------
    path : path
    content : str
        Noun for error messages, such as "mask".

    Yields
    ------
    PIL.Image.Image
        Decoded lazily, so that its size can be checked first.

    Raises
    ------
    ImageError
        When the file is missing or damaged, is no picture in one of these formats, is larger than the limit for
        photographs, or doesn't fit in memory.
    """
    try:
        with open_header(path, mask=True) as (picture, file_format):
            if picture.width * picture.height > MAX_PIXELS:
                raise ImageError(f"{path}: {picture.width} x {picture.height} pixels are too many; scale it down")
            if file_format == "TIFF" and check_tiff(cast("TiffImageFile", picture), path, MAX_PIXELS).inverted:
                raise ImageError(f"{path}: the TIFF stores white as 0, in more than 8 bits; save it again in 8 bits")
            yield picture
    except ImageError:
        raise
    except MemoryError:
        raise ImageError(f"{path}: not enough memory to decode this {content}; close other programs") from None
    # Damaged files make Pillow's decoders raise almost anything: OSError, SyntaxError, ValueError, struct.error ...
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise unopened(path, error) from None
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{path}: this {content} is damaged or not a picture ({reason}); get a sound copy") from None


def read_values(path: str | os.PathLike[str], size: tuple[int, int]) -> tuple[np.ndarray, bool]:
    """Read the values of a gray or palette picture, whatever colors they are shown in.

    Parameters
    ----------
    path : path
        A picture in a format of photographs, or PBM or PGM.
    size : (int, int)
        Height and width of the upright photograph. A picture of another size is refused before it is decoded.

    Returns
    -------
    values : (height, width) uint8, uint16 or int32
        From 0 to 65535; of one bit 0 and 1.
    palette : bool
        Whether the values are shown in colors of a palette.

    Raises
    ------
    ImageError
        If the file is missing or damaged, has another size, or shows colors or fractions.
    """
    with open_picture(path, "mask") as picture:
        if picture.size != (size[1], size[0]):
            raise ImageError(
                f"{path}: the mask has {picture.width} x {picture.height} pixels, but its photograph has "
                f"{size[1]} x {size[0]}; give each photograph a mask of its own size"
            )
        if len(picture.getbands()) > 1 or picture.mode == "F":
            raise ImageError(
                f"{path}: regions must be numbers in a gray or palette picture, got the mode {picture.mode}; convert it"
            )
        values, palette = np.asarray(picture), picture.mode == "P"
    if values.dtype == bool:
        values = values.view(np.uint8)
    if values.min() < 0 or values.max() > MAX_VALUE:
        wrong = values.min() if values.min() < 0 else values.max()
        raise ImageError(f"{path}: regions must be numbers from 0 to {MAX_VALUE}, got {wrong}; renumber them")
    return values, palette
