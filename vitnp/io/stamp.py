"""Marks by which vitnp recognizes files that it wrote."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from vitnp.errors import OutputError

if TYPE_CHECKING:
    pass

_PNG = b"\x89PNG\r\n\x1a\n"

# A stamp is a few hundred bytes near a file's start (PNG) or at its very end (npy, npz); no more is looked at.
_STAMP_BYTES = 4096
_STAMP_CHUNKS = 32


# --- Stamps: whose file is this, and is it still good? ---------------------------------------------------------------


def parameters_hash(parameters: Mapping[str, object]) -> str:
    """Fingerprint of parameters, whatever their order: 32 hexadecimal digits of BLAKE2b over canonical JSON.

    Examples
    --------
    >>> parameters_hash({"seed": 0, "size": 320}) == parameters_hash({"size": 320, "seed": 0})
    True
    """
    return hashlib.blake2b(canonical_json(parameters).encode(), digest_size=16).hexdigest()


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces: equal values give equal texts."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=json_default)


def json_default(value: object) -> object:
    """JSON for what json doesn't know: mappings, NumPy's numbers and arrays, and paths."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def with_software(text: Mapping[str, str] | None) -> dict[str, str]:
    from vitnp import __version__

    return {"Software": f"vitnp {__version__}", **(text or {})}


def stamp(path: str | os.PathLike[str]) -> dict[str, str] | None:
    """Read what vitnp noted in a file it wrote; pixels and arrays aren't decoded.

    Parameters
    ----------
    path : path
        Of a PNG, .npy or .npz file, or of anything at all.

    Returns
    -------
    dict of str to str, or None
        The entries whose names begin with "vitnp:"; None when vitnp didn't write the file, or there is none. Never
        raises, whatever the file holds.
    """
    try:
        # Only regular files: opening a pipe would wait for its writer.
        if not stat.S_ISREG(os.stat(path).st_mode):
            return None
        with open(path, "rb") as file:
            head = file.read(len(_PNG))
            if head == _PNG:
                entries = _png_text(file)
            elif head.startswith((b"\x93NUMPY", b"PK\x03\x04")):
                file.seek(-min(_STAMP_BYTES, file.seek(0, os.SEEK_END)), os.SEEK_END)
                entries = _last_json(file.read())
            else:
                return None
        if not str(entries.get("Software")).startswith("vitnp "):
            return None
        return {key: value for key, value in entries.items() if key.startswith("vitnp:") and isinstance(value, str)}
    except (OSError, ValueError, RecursionError):
        return None


def _png_text(file: BinaryIO) -> dict[str, str]:
    """TEXt chunks that stand before a PNG's pixels (PNG specification, 11.3.3.2)."""
    entries = {}
    for _ in range(_STAMP_CHUNKS):
        header = file.read(8)
        length, kind = int.from_bytes(header[:4], "big"), header[4:]
        if len(header) < 8 or kind == b"IDAT":
            break
        if kind == b"tEXt" and length <= _STAMP_BYTES:
            key, _, value = file.read(length).partition(b"\0")
            entries[key.decode("latin-1")] = value.decode("latin-1")
            length = 0
        file.seek(length + 4, os.SEEK_CUR)
    return entries


def _last_json(tail: bytes) -> dict[str, str]:
    """The JSON object with which a file ends, when it's a stamp."""
    start = tail.rfind(b'{"Software":"vitnp ')
    entries = json.loads(tail[start:]) if start >= 0 else {}
    return entries if isinstance(entries, dict) else {}


def is_own_output(path: str | os.PathLike[str]) -> bool:
    """Whether vitnp wrote this file; see :func:`stamp`."""
    return stamp(path) is not None


def refuse_foreign(paths: Iterable[str | os.PathLike[str]]) -> None:
    """Make sure that writing to `paths` destroys nothing that vitnp didn't write.

    Raises
    ------
    OutputError
        For the first one that exists and isn't vitnp's own.
    """
    for path in paths:
        if os.path.lexists(path) and not is_own_output(path):
            raise OutputError(f"{path}: this file exists and vitnp didn't write it; move it away or give --overwrite")
