"""Stamps: entries by which vitnp recognizes the files that it wrote.

PNG, .npy and .npz files hold their own stamp. Any other file may have one beside it, in a sidecar
(:func:`vitnp.io.write.write_sidecar`).
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vitnp.errors import OutputError

_PNG = b"\x89PNG\r\n\x1a\n"
_NUMPY = (b"\x93NUMPY", b"PK\x03\x04")

# A stamp is a few hundred bytes near the start (PNG) or at the very end (npy, npz) of a file; no more is read.
_STAMP_BYTES = 4096
_STAMP_CHUNKS = 32

SIDECAR_SUFFIX = ".vitnp.json"

# Entry of a sidecar: the hash of the file that it describes.
_CONTENT = "content"


def parameters_hash(parameters: Mapping[str, object]) -> str:
    """Return the fingerprint of parameters in any order: BLAKE2b of their canonical JSON, 32 hexadecimal digits.

    Examples
    --------
    >>> parameters_hash({"seed": 0, "size": 320}) == parameters_hash({"size": 320, "seed": 0})
    True
    """
    return hashlib.blake2b(canonical_json(parameters).encode(), digest_size=16).hexdigest()


def canonical_json(value: object) -> str:
    """Return JSON with sorted keys and no spaces, so that equal values give equal texts.

    Examples
    --------
    >>> canonical_json({"b": np.float64(0.5), "a": (1, 2)})
    '{"a":[1,2],"b":0.5}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=json_default)


def json_default(value: object) -> object:
    """Return what JSON can represent for mappings, NumPy numbers and arrays, and paths; see :func:`json.dumps`.

    Raises
    ------
    TypeError
        If the value is of another type.
    """
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"JSON cannot represent values of type {type(value).__name__}")


def with_software(text: Mapping[str, str] | None) -> dict[str, str]:
    """Return the entries of a stamp, after one that names vitnp and its version."""
    from vitnp import __version__

    return {"Software": f"vitnp {__version__}", **(text or {})}


def stamp(path: str | os.PathLike[str]) -> dict[str, str] | None:
    """Read the stamp of a file, without decoding pixels or arrays.

    Parameters
    ----------
    path : path
        Any path. A PNG, .npy or .npz file holds its own stamp, by content, not by name; any other file has it in its
        sidecar, which counts only while the file is unchanged.

    Returns
    -------
    dict of str to str, or None
        The entries whose names begin with "vitnp:"; None if vitnp did not write the file, or it does not exist. No
        content raises an error.
    """
    try:
        if not _is_regular(path):
            return None
        with open(path, "rb") as file:
            entries = _read_entries(file, path)
        if not str(entries.get("Software")).startswith("vitnp "):
            return None
        return {key: value for key, value in entries.items() if key.startswith("vitnp:") and isinstance(value, str)}
    except (OSError, ValueError, RecursionError):
        return None


def _read_entries(file: BinaryIO, path: str | os.PathLike[str]) -> dict[str, str]:
    """Return all entries of an open file's stamp, where its format keeps them."""
    head = file.read(len(_PNG))
    if head == _PNG:
        return _png_text(file)
    if head.startswith(_NUMPY):
        file.seek(-min(_STAMP_BYTES, file.seek(0, os.SEEK_END)), os.SEEK_END)
        return _last_json(file.read())
    return _read_sidecar(path)


def _png_text(file: BinaryIO) -> dict[str, str]:
    """Return the tEXt chunks before the pixels of a PNG (PNG specification, 11.3.3.2)."""
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
    """Return the JSON object at the end of a file if it is a stamp, else nothing."""
    start = tail.rfind(b'{"Software":"vitnp ')
    entries = json.loads(tail[start:]) if start >= 0 else {}
    return entries if isinstance(entries, dict) else {}


def sidecar_path(path: str | os.PathLike[str]) -> Path:
    """Return the path of a file's sidecar.

    Examples
    --------
    >>> sidecar_path("out/cat_overlay.jpg").as_posix()
    'out/cat_overlay.jpg.vitnp.json'
    """
    return Path(f"{os.fspath(path)}{SIDECAR_SUFFIX}")


def sidecar_entries(path: str | os.PathLike[str], text: Mapping[str, str] | None) -> dict[str, str]:
    """Return what the sidecar of a file holds: its stamp and the hash of the file as it is now."""
    return {**with_software(text), _CONTENT: _content_hash(path)}


def _read_sidecar(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return the entries of a file's sidecar; nothing if the file has changed since."""
    if not _is_regular(sidecar_path(path)):
        return {}
    with open(sidecar_path(path), "rb") as file:
        entries = json.loads(file.read(_STAMP_BYTES))
    if not isinstance(entries, dict) or entries.get(_CONTENT) != _content_hash(path):
        return {}
    return entries


def _is_regular(path: str | os.PathLike[str]) -> bool:
    """Tell whether a path names a regular file: opening a pipe would wait for its writer."""
    return stat.S_ISREG(os.stat(path).st_mode)


def _content_hash(path: str | os.PathLike[str]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def is_own_output(path: str | os.PathLike[str]) -> bool:
    """Tell whether vitnp wrote a file; see :func:`stamp`."""
    return stamp(path) is not None


def refuse_foreign(paths: Iterable[str | os.PathLike[str]]) -> None:
    """Check that writing to `paths` destroys no file of another program.

    Raises
    ------
    OutputError
        For the first path that exists and is not a file that vitnp wrote.
    """
    for path in paths:
        if os.path.lexists(path) and not is_own_output(path):
            raise foreign_error(path)


def foreign_error(path: str | os.PathLike[str]) -> OutputError:
    """Return the error for a path where a file of another program is in the way."""
    return OutputError(f"{path}: this file exists and vitnp did not write it; move it away or give --overwrite")
