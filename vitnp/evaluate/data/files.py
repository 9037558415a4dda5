"""Files of data sets: pictures that hold masks or labels, and text files."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from vitnp.errors import UsageError
from vitnp.io.decode import unopened
from vitnp.io.label_pictures import open_picture as open_picture


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
