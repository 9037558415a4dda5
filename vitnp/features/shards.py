"""Files of a feature store: a shard holds the features of some photographs, and its name is its checksum.

A shard is a safetensors file. What has one row a patch (keys, attention …) stands concatenated over the photographs,
what has one a photograph (cls, cls_state) stacked. The metadata lists the photographs. The name is a BLAKE2b of the
content: the same photographs give the same file whoever writes it, and a file that doesn't match its name is damaged.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from vitnp.checkpoints.safetensors_io import read_safetensors, serialized
from vitnp.errors import CheckpointError, OutputError
from vitnp.features.record import FeatureRecord
from vitnp.io.write import replacing

SUFFIX = ".safetensors"

# Bytes of arrays at which a shard is full: what is held in memory while it's gathered, and lost when the power fails.
SHARD_BYTES = 64 << 20

# Arrays with one row a photograph; all others have one a patch.
_BY_PHOTOGRAPH = ("cls", "cls_state")


class DamagedShard(Exception):
    """A file that isn't what was written."""


class Shard:
    """A shard of which only the header was read.

    Parameters
    ----------
    path : path

    Attributes
    ----------
    path : Path
    photographs : dict of str to int
        Place of each photograph's features.
    bytes : int
        Size of the file.

    Raises
    ------
    DamagedShard
        When the file isn't whole.
    FileNotFoundError
        When somebody has removed it.
    OutputError
        When it can't be read.
    """

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self.path = path
        try:
            with safe_open(os.fspath(path), framework="numpy") as file:
                facts = json.loads((file.metadata() or {})["photographs"])
            self._facts = [_facts(*row) for row in facts]
            self.bytes = path.stat().st_size
        except FileNotFoundError:
            raise
        except OSError as error:
            raise _unreadable(path, error) from None
        except (SafetensorError, KeyError, ValueError, TypeError):
            raise DamagedShard from None
        self.photographs = {facts["photograph"]: place for place, facts in enumerate(self._facts)}
        patches = [facts["grid"][0] * facts["grid"][1] for facts in self._facts]
        self._starts = np.cumsum([0, *patches]).tolist()

    def verify(self) -> None:
        """Compare the file with its checksum.

        Raises
        ------
        DamagedShard
            When they differ.
        FileNotFoundError
        OutputError
            As for the shard itself.
        """
        digest = hashlib.blake2b(digest_size=16)
        try:
            with open(self.path, "rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise _unreadable(self.path, error) from None
        if digest.hexdigest() != self.path.stem:
            raise DamagedShard

    def map(self) -> Mapping[str, np.ndarray]:
        """The arrays of all photographs, views of the mapped file.

        Raises
        ------
        DamagedShard
        FileNotFoundError
        """
        try:
            return read_safetensors(self.path)[0]
        except CheckpointError:
            if not self.path.exists():
                raise FileNotFoundError(self.path) from None
            raise DamagedShard from None

    def patches(self, place: int) -> int:
        """N of a photograph."""
        return self._starts[place + 1] - self._starts[place]

    def arrays(self, place: int, mapped: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A photograph's part of what :meth:`map` gives."""
        rows = slice(self._starts[place], self._starts[place + 1])
        return {name: array[place if name in _BY_PHOTOGRAPH else rows] for name, array in mapped.items()}

    def features(self, place: int, arrays: Callable[[], Mapping[str, np.ndarray]]) -> FeatureRecord:
        """Features of a photograph; `arrays` gives its arrays when they are asked for."""
        return FeatureRecord(**self._facts[place], arrays=arrays)


def write_shard(folder: Path, entries: Sequence[FeatureRecord]) -> Path:
    """Write a shard, whole or not at all, and see it to the disk.

    Parameters
    ----------
    folder : Path
    entries : sequence of FeatureRecord
        At least one; their order doesn't matter.

    Returns
    -------
    Path

    Raises
    ------
    OutputError
        When it can't be written.
    """
    entries = sorted(entries, key=lambda entry: entry.photograph)
    arrays = [entry.arrays() for entry in entries]
    tensors = {
        name: (np.stack if name in _BY_PHOTOGRAPH else np.concatenate)([by_name[name] for by_name in arrays])
        for name in arrays[0]
    }
    rows = [
        [entry.photograph, entry.grid, entry.pixels, entry.size, f"{entry.digest:032x}", entry.capped]
        for entry in entries
    ]
    pieces = list(serialized(tensors, {"photographs": json.dumps(rows, separators=(",", ":"))}))
    digest = hashlib.blake2b(digest_size=16)
    for piece in pieces:
        digest.update(piece)
    path = folder / f"{digest.hexdigest()}{SUFFIX}"
    with replacing(path) as file:
        file.writelines(pieces)
        file.flush()
        os.fsync(file.fileno())
    return path


def _facts(photograph: str, grid: list, pixels: list, size: list, digest: str, capped: bool) -> dict[str, object]:
    return {
        "photograph": photograph,
        "grid": tuple(map(int, grid)),
        "pixels": tuple(map(int, pixels)),
        "size": tuple(map(int, size)),
        "digest": int(digest, 16),
        "capped": bool(capped),
    }


def _unreadable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"can't read {path} of the feature store: {error.strerror or error}; check its permissions and the disk"
    )
