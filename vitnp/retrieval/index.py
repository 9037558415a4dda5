"""The index: one file with the vectors of many photographs, so that a second search reads none of them again.

It is a safetensors file with these tensors; N photographs in the order of their paths, D numbers each:

``vectors``
    (N, D) float32: of length 1, or zeros if the photograph shows no object.
``paths``, ``path_ends``
    (bytes,) uint8: absolute paths, one after the other, as the file system has them; (N,) int64: where each ends.
``stamps``
    (N, 2) int64: size in bytes and time of the last change in nanoseconds. A file with both unchanged is not read.
``fingerprints``
    (N, 16) uint8: BLAKE2b hash of the file, by which a file is known that was moved or copied.
``sizes``
    (N, 2) int64: height and width in pixels, upright.

Its metadata hold everything that the vectors depend on besides the photographs.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vitnp.checkpoints.safetensors_io import read_safetensors, write_safetensors
from vitnp.errors import CheckpointError, OutputError, UsageError
from vitnp.io.stamp import canonical_json, with_software
from vitnp.retrieval.descriptor import Describer

_VERSION = "1"
_KIND, _PARAMETERS = "vitnp:index", "vitnp:parameters"

# How far from 1 the squared length of a vector in float32 may be.
_TOLERANCE = 1e-4

# Names of parameters for people, where they differ.
_NAMES = {"of": "--of", "size": "the short side", "sha256": "the checkpoint", "arithmetic": "device or precision"}


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """What an index knows of a photograph besides its vector.

    Attributes
    ----------
    path : str
        Absolute path.
    stamp : (int, int)
        Size in bytes, and time of the last change in nanoseconds; see :func:`stamp_of`.
    fingerprint : str
        Fingerprint of the file, 32 hexadecimal digits.
    size : (int, int)
        Height and width in pixels.
    """

    path: str
    stamp: tuple[int, int]
    fingerprint: str
    size: tuple[int, int]


class Index:
    """Vectors of photographs in memory, read from an index file and written to one.

    Parameters
    ----------
    describer : Describer
        What makes the vectors.
    room : int
        Number of photographs that will be added, if known.

    Attributes
    ----------
    entries : list of Entry
        One per row. The row of a photograph that has changed since stays, but is found no more.
    """

    def __init__(self, describer: Describer, *, room: int = 0) -> None:
        self.entries: list[Entry] = []
        self._describer = describer
        self._vectors = np.empty((room, describer.width), np.float32)
        self._by_path: dict[str, int] = {}
        self._by_fingerprint: dict[str, int] = {}

    @property
    def vectors(self) -> np.ndarray:
        """(N, D) float32: the vectors by row."""
        return self._vectors[: len(self.entries)]

    def row_of_path(self, path: str, stamp: tuple[int, int]) -> int | None:
        """Return the row of a file that has not changed since it was read."""
        row = self._by_path.get(path)
        return None if row is None or self.entries[row].stamp != stamp else row

    def row_of(self, fingerprint: str) -> int | None:
        """Return the row of a file by its content, under whatever path."""
        return self._by_fingerprint.get(fingerprint)

    def add(self, entry: Entry, vector: np.ndarray) -> int:
        """Add a photograph, or replace what is known of its path, and return its row."""
        row = len(self.entries)
        if row == len(self._vectors):
            larger = np.empty((max(1024, row + row // 4), self._describer.width), np.float32)
            larger[:row] = self._vectors
            self._vectors = larger
        self._vectors[row] = vector
        self.entries.append(entry)
        if entry.path:
            self._by_path[entry.path] = row
        self._by_fingerprint.setdefault(entry.fingerprint, row)
        return row

    def forget(self, path: str) -> None:
        """Forget a photograph that can no longer be read, or that is gone."""
        self._by_path.pop(path, None)

    def has_vector(self, row: int) -> bool:
        """Return whether the vector of a row is not zeros, which stand for a photograph without an object."""
        return bool(self._vectors[row].any())

    def paths(self) -> list[str]:
        """Return the paths of the files that it knows."""
        return list(self._by_path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], describer: Describer, *, room: int = 0) -> Index:
        """Read an index file; an empty index if there is none.

        Raises
        ------
        OutputError
            If the file is not an index, or damaged.
        UsageError
            If its vectors were made with another network or other options.
        """
        if not os.path.lexists(path):
            return cls(describer, room=room)
        if os.path.isdir(path):
            raise OutputError(f"{path}: this is a folder; name a file in it for --index")
        if os.path.isfile(path) and not os.access(path, os.R_OK):
            raise OutputError(f"{path}: no permission to read this index; change its permissions or name another file")
        try:
            tensors, metadata = read_safetensors(path)
        except CheckpointError:
            raise _foreign(path) from None
        if metadata.get(_KIND) != _VERSION:
            raise _foreign(path)
        _check_parameters(path, metadata.get(_PARAMETERS, ""), describer)
        try:
            entries, vectors = _parse(tensors), _check_vectors(tensors, describer.width)
        except (KeyError, ValueError):
            raise OutputError(f"{path}: this index is damaged; remove it, and it is made anew") from None
        index = cls(describer, room=len(entries) + room)
        for entry, vector in zip(entries, vectors):
            index.add(entry, vector)
        return index

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an index file, in full or not at all; the same photographs give the same bytes.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        rows = [row for _, row in sorted((os.fsencode(path), row) for path, row in self._by_path.items())]
        entries = [self.entries[row] for row in rows]
        paths = [os.fsencode(entry.path) for entry in entries]
        fingerprints = b"".join(bytes.fromhex(entry.fingerprint) for entry in entries)
        tensors = {
            "vectors": self.vectors if rows == list(range(len(self.entries))) else self.vectors[rows],
            "paths": np.frombuffer(b"".join(paths), np.uint8),
            "path_ends": np.cumsum([0, *map(len, paths)], dtype=np.int64)[1:],
            "stamps": np.array([entry.stamp for entry in entries], np.int64).reshape(-1, 2),
            "fingerprints": np.frombuffer(fingerprints, np.uint8).reshape(-1, 16),
            "sizes": np.array([entry.size for entry in entries], np.int64).reshape(-1, 2),
        }
        parameters = {_KIND: _VERSION, _PARAMETERS: canonical_json(self._describer.parameters)}
        write_safetensors(path, tensors, with_software(parameters))


def stamp_of(path: Path) -> tuple[int, int] | None:
    """Return size in bytes and time of the last change of a file in nanoseconds; None if it cannot be reached."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


def _parse(tensors: Mapping[str, np.ndarray]) -> list[Entry]:
    """Return the entries of an index; ValueError if its tensors do not fit together."""
    count = len(tensors["path_ends"])
    expected: dict[str, tuple[tuple[int, ...], str]] = {
        "paths": (tensors["paths"].shape[:1], "u1"),
        "path_ends": ((count,), "i8"),
        "stamps": ((count, 2), "i8"),
        "fingerprints": ((count, 16), "u1"),
        "sizes": ((count, 2), "i8"),
    }
    if any(tensors[name].shape != shape or tensors[name].dtype != dtype for name, (shape, dtype) in expected.items()):
        raise ValueError
    ends = [0, *tensors["path_ends"].tolist()]
    if ends[-1] != len(tensors["paths"]) or any(first >= last for first, last in itertools.pairwise(ends)):
        raise ValueError
    text, digests = tensors["paths"].tobytes(), tensors["fingerprints"].tobytes().hex()
    rows = zip(itertools.pairwise(ends), tensors["stamps"].tolist(), tensors["sizes"].tolist())
    return [
        Entry(os.fsdecode(text[first:last]), tuple(stamp), digests[32 * row : 32 * row + 32], tuple(size))
        for row, ((first, last), stamp, size) in enumerate(rows)
    ]


def _check_vectors(tensors: Mapping[str, np.ndarray], width: int) -> np.ndarray:
    """Return the vectors of an index; ValueError if they are none of length 1 or 0."""
    vectors = tensors["vectors"]
    if vectors.shape != (len(tensors["path_ends"]), width) or vectors.dtype != np.float32:
        raise ValueError
    lengths = np.einsum("nd,nd->n", vectors, vectors)
    if not ((np.abs(lengths - 1) < _TOLERANCE) | (lengths == 0)).all():
        raise ValueError
    return vectors


def _check_parameters(path: str | os.PathLike[str], text: str, describer: Describer) -> None:
    """Raise UsageError if an index was made with other parameters, and name the first that differs."""
    if text == canonical_json(describer.parameters):
        return
    try:
        other = dict(json.loads(text))
    except (TypeError, ValueError, RecursionError):
        raise OutputError(f"{path}: this index is damaged; remove it, and it is made anew") from None
    here = json.loads(canonical_json(describer.parameters))
    name = next(name for name in (*describer.parameters, *other) if here.get(name) != other.get(name))
    raise UsageError(
        f"{path}: this index was made with another value of {_NAMES.get(name, name)}: {_short(other.get(name))} there, "
        f"{_short(here.get(name))} here; name another file, or give the options it was made with"
    )


def _short(value: object) -> str:
    """Return a value for a message; of a checksum the first digits."""
    return value[:8] if isinstance(value, str) else json.dumps(value)


def _foreign(path: str | os.PathLike[str]) -> OutputError:
    return OutputError(f"{path}: this file exists and is not an index of vitnp; name another file for --index")
