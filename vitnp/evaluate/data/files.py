"""Files of data sets: pictures that hold masks or labels, and text files."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from vitnp.errors import ImageError, UsageError
from vitnp.io.decode import MAX_PIXELS, unopened
from vitnp.io.headers import open_header
from vitnp.io.tiff import check_tiff

if TYPE_CHECKING:
    from PIL import Image
    from PIL.TiffImagePlugin import TiffImageFile


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


def is_file(path: str | os.PathLike[str]) -> bool:
    """Tell whether a path names a regular file; a name that no file can have does not.

    Examples
    --------
    >>> is_file("a" * 10_000)
    False
    """
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def read_lines(path: str | os.PathLike[str]) -> list[tuple[int, str]]:
    """Read a text file without comments (from # to the end of a line), surrounding spaces and empty lines.

    Returns
    -------
    list of (int, str)
        Line number, from 1, and text of each line that is not empty.

    Raises
    ------
    UsageError
        When the file can't be read or isn't UTF-8.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"{path}: this is not a text file in UTF-8; name a text file") from None
    except OSError as error:
        raise UsageError(str(unopened(path, error))) from None
    stripped = ((number, line.partition("#")[0].strip()) for number, line in enumerate(text.splitlines(), 1))
    return [(number, line) for number, line in stripped if line]


def shorten_text(text: str, limit: int = 300) -> str:
    """Cut a text of unknown origin for a message, and show what is not printable as escapes.

    Examples
    --------
    >>> shorten_text("a" * 10, 4)
    'aaaa…'
    """
    printable = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text[: limit + 1])
    return printable if len(text) <= limit else f"{printable[:limit]}…"


def shorten_list(names: Sequence[str], limit: int) -> str:
    """Join names for a message, at most `limit` of them.

    Examples
    --------
    >>> shorten_list(["a", "b", "c", "d", "e"], 3)
    'a, b, c and 2 more'
    """
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")
