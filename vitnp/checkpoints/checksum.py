"""The SHA-256 of checkpoint files, and the notes of it that lie beside files of which no page records one."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import re

from vitnp.errors import CheckpointError, OutputError
from vitnp.io.write import write_text

_CHUNK_BYTES = 2**20


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Compute the SHA-256 of a file, in hexadecimal.

    Raises
    ------
    CheckpointError
        If the file can't be read.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}") from None
    return digest.hexdigest()


def _sidecar(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(path.name + ".sha256")


def read_sidecar(path: pathlib.Path) -> str | None:
    """Return the SHA-256 that was written beside a file, or None."""
    if not _sidecar(path).is_file():  # opening a pipe would wait for its writer
        return None
    try:
        words = _sidecar(path).read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    return words[0] if words and re.fullmatch("[0-9a-f]{64}", words[0]) else None


def write_sidecar(path: pathlib.Path, sha256: str) -> None:
    """Write a SHA-256 beside a file, in the format of ``sha256sum --check``; a read-only cache is no error."""
    with contextlib.suppress(OutputError):
        write_text(_sidecar(path), f"{sha256}  {path.name}\n")
