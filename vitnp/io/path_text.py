"""File names in text: printed without control characters, and in JSON with a way back to their bytes.

A file name is any sequence of bytes (POSIX) or of 16-bit units (Windows). Python decodes those that are not valid
Unicode to lone surrogates (PEP 383), which neither UTF-8 nor strict readers of JSON accept.
"""

from __future__ import annotations

import base64
import json
import os
import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

# Control characters, line separators, marks that change the direction of text, and lone surrogates.
_INVISIBLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_SURROGATE = re.compile("[\ud800-\udfff]")

# Letters that do not decompose into one of ASCII and an accent, and what Pillow's own font has beyond ASCII.
_IN_ASCII = str.maketrans(
    {"ß": "ss", "Æ": "AE", "æ": "ae", "Œ": "OE", "œ": "oe", "Þ": "Th", "þ": "th"} | dict(zip("ØøŁłĐđÐðı", "OoLlDdDdi"))
)
_FONT_SIGNS = "©«°±´·»‘’“”…‹›⁄™"  # noqa: RUF001  these are the signs
_NOT_DRAWABLE = re.compile(f"[^ -~{_FONT_SIGNS}]")

# In ASCII JSON: an escaped backslash, a pair of surrogates (one character), or a lone surrogate.
_JSON_ESCAPE = re.compile(r"\\\\|\\ud[89ab]..\\ud[c-f]..|\\u(?P<lone>d[89a-f]..)")


def printable(text: str) -> str:
    r"""Return text in which everything that a terminal would obey, hide or fail to print is a visible escape.

    These are control characters (terminal escapes and line breaks among them), characters that change the direction of
    text, and bytes of file names that are not valid Unicode.

    Examples
    --------
    >>> print(printable("a\x1b[2Jb\n.jpg"))
    a\x1b[2Jb\n.jpg
    >>> print(printable(os.fsdecode(b"caf\xe9.jpg")))                       # doctest: +SKIP
    caf\xe9.jpg
    """
    return _INVISIBLE.sub(lambda match: _escape(match[0]), text)


def drawable(text: str) -> str:
    """Return printable text in the letters that Pillow's own font has: ASCII and a few signs.

    Accents are left out, ligatures become letters, and any other letter becomes a question mark, because the font draws
    the same empty box for all it lacks.

    Examples
    --------
    >>> drawable("Grüße aus Łódź · 東京.jpg")
    'Grusse aus Lodz · ??.jpg'
    """
    letters = printable(text).translate(_IN_ASCII)
    letters = "".join(c if c in _FONT_SIGNS else unicodedata.normalize("NFKD", c) for c in letters)
    return _NOT_DRAWABLE.sub("?", "".join(letter for letter in letters if not unicodedata.combining(letter)))


def valid_unicode(text: str) -> str:
    r"""Return text in which lone surrogates are visible escapes; all else is unchanged.

    Examples
    --------
    >>> print(valid_unicode("caf\udce9.jpg"))
    caf\xe9.jpg
    """
    return _SURROGATE.sub(lambda match: _escape(match[0]), text)


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that could not be decoded
        return f"\\x{code - 0xDC00:02x}"
    return f"\\u{code:04x}" if 0xD800 <= code <= 0xDFFF else character.encode("unicode_escape").decode("ascii")


def path_entries(key: str, path: str | os.PathLike[str]) -> dict[str, str]:
    r"""Return the entries of a JSON object for a path.

    Parameters
    ----------
    key : str
        Name of the entry.
    path : path

    Returns
    -------
    dict of str to str
        The path as valid Unicode. If that is not the path itself, also ``KEY_bytes``: the bytes of the path in base64,
        to be read by ``os.fsdecode(base64.b64decode(...))``.

    Examples
    --------
    >>> path_entries("photograph", "cat.jpg")
    {'photograph': 'cat.jpg'}
    >>> path_entries("photograph", "caf\udce9.jpg")
    {'photograph': 'caf\\xe9.jpg', 'photograph_bytes': 'Y2Fm6S5qcGc='}
    """
    exact = os.fspath(path)
    text = valid_unicode(exact)
    if text == exact:
        return {key: exact}
    return {key: text, f"{key}_bytes": base64.b64encode(os.fsencode(exact)).decode("ascii")}


def mapping_entries(key: str, paths: Mapping[str, str | os.PathLike[str]]) -> dict[str, dict[str, str]]:
    """Return the entries of a JSON object for several paths by name, likewise.

    Examples
    --------
    >>> mapping_entries("outputs", {"mask": "a_mask.png"})
    {'outputs': {'mask': 'a_mask.png'}}
    """
    entries: dict[str, dict[str, str]] = {key: {}}
    for name, path in paths.items():
        for entry, text in path_entries("", path).items():
            entries.setdefault(f"{key}{entry}", {})[name] = text
    return entries


def read_path(entries: Mapping[str, Any], key: str) -> str:
    r"""Return the exact path that :func:`path_entries` has written.

    Raises
    ------
    KeyError, TypeError, ValueError
        If the entries are not of a path.

    Examples
    --------
    >>> read_path({"photograph": "caf\\xe9.jpg", "photograph_bytes": "Y2Fm6S5qcGc="}, "photograph") == "caf\udce9.jpg"
    True
    """
    exact = entries.get(f"{key}_bytes")
    return str(entries[key]) if exact is None else os.fsdecode(base64.b64decode(exact, validate=True))


def read_mapping(entries: Mapping[str, Any], key: str) -> dict[str, str]:
    """Return the exact paths that :func:`mapping_entries` has written."""
    exact = entries.get(f"{key}_bytes", {})
    return {
        name: read_path({"path": text, **({"path_bytes": exact[name]} if name in exact else {})}, "path")
        for name, text in entries[key].items()
    }


def ascii_json(
    value: object,
    *,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    default: Callable[[object], object] | None = None,
    allow_nan: bool = True,
) -> str:
    r"""Return JSON in ASCII that every reader accepts: lone surrogates in strings are visible escapes.

    Parameters are those of :func:`json.dumps`.

    Examples
    --------
    >>> print(ascii_json(["\u732b", "caf\udce9"]))
    ["\u732b", "caf\\xe9"]
    """
    text = json.dumps(value, indent=indent, separators=separators, default=default, allow_nan=allow_nan)
    return _JSON_ESCAPE.sub(_visible, text).replace("\x7f", "\\u007f")  # JSON allows this control character, unescaped


def _visible(match: re.Match[str]) -> str:
    lone = match["lone"]
    return match[0] if lone is None else "\\" + _escape(chr(int(lone, 16)))
