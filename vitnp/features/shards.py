"""Shards: the files of a feature store. A shard holds the features of some photographs, and its name is its checksum.

A shard is a safetensors file. Arrays with one row per patch (keys, attention and others) are concatenated over the
photographs, those with one row per photograph (cls, cls_state) are stacked. The metadata lists the photographs. The
name is the BLAKE2b hash of the content: the same photographs give the same file, and a file that does not match its
name is damaged.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from vitnp.checkpoints.safetensors_io import read_safetensors, serialized
from vitnp.errors import CheckpointError, OutputError
from vitnp.features.record import FeatureRecord
from vitnp.features.spec import FeatureSpec
from vitnp.io import preprocess
from vitnp.io.write import replacing
from vitnp.vit.model import ViT

SUFFIX = ".safetensors"

# Size of a full shard in bytes: the memory it takes until it is written, and what is lost if the power fails.
SHARD_BYTES = 64 << 20

# Arrays with one row per photograph; all others have one per patch.
_BY_PHOTOGRAPH = ("cls", "cls_state")

# Numbers in the metadata are below this: heights, widths and counts of patches.
_MAX_INT = 1 << 31


class DamagedShard(Exception):
    """A file differs from what was written, or from what the spec says."""


class _Metadata(TypedDict):
    """Fields of a FeatureRecord without its arrays."""

    photograph: str
    grid: tuple[int, int]
    pixels: tuple[int, int]
    size: tuple[int, int]
    digest: int
    capped: bool


class Shard:
    """A shard, of which only the header is read.

    Parameters
    ----------
    path : path
    spec : FeatureSpec
        Spec of the store.

    Attributes
    ----------
    path : Path
    photographs : dict of str to int
        Position of each photograph in the shard.
    bytes : int
        Size of the file in bytes.

    Raises
    ------
    DamagedShard
        If the file is incomplete or no shard, or its arrays are not those of the spec and of the photographs it lists.
    FileNotFoundError
        If another process has removed it.
    OutputError
        If it cannot be read.
    """

    def __init__(self, path: Path, spec: FeatureSpec) -> None:
        from safetensors import SafetensorError, safe_open

        self.path, self._spec = path, spec
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for its writer
                raise DamagedShard
            with safe_open(os.fspath(path), framework="numpy") as file:
                rows = json.loads((file.metadata() or {})["photographs"])
                self._metadata = [_parse_metadata(*row) for row in rows]
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
                arrays = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
        except FileNotFoundError:
            raise
        except OSError as error:
            raise _unreadable(path, error) from None
        except (SafetensorError, KeyError, ValueError, TypeError, OverflowError, RecursionError):
            raise DamagedShard from None
        self.bytes = status.st_size
        self.photographs = {metadata["photograph"]: index for index, metadata in enumerate(self._metadata)}
        patches = (metadata["grid"][0] * metadata["grid"][1] for metadata in self._metadata)
        self._starts = [0, *itertools.accumulate(patches)]
        self._width = arrays["cls"][1][-1] if arrays.get("cls", ("", ()))[1] else 0
        if len(self.photographs) != len(self._metadata) or not self._are_expected(arrays):
            raise DamagedShard

    def _are_expected(self, arrays: Mapping[str, tuple[str, tuple[int, ...]]]) -> bool:
        """Return whether dtypes and shapes are those of the spec and of the photographs listed."""
        n, n_patches, width = len(self._metadata), self._starts[-1], self._width
        stored = "F16" if self._spec.precision == "float16" else "F32"
        expected = {
            "keys": (stored, (n_patches, width)),
            "attention": ("F32", (n_patches,)),
            "cls": ("F32", (n, width)),
        }
        if self._spec.regions:
            expected |= {"value": (stored, (n_patches, width)), "cls_state": ("F32", (n, 4, width))}
        if self._spec.attention_heads:
            expected["attention_heads"] = ("F32", (n_patches, self._spec.heads))
        if "last_key" in arrays:  # not stored if it is the same array as the keys
            expected["last_key"] = (stored, (n_patches, width))
        return n > 0 and width > 0 and arrays == expected

    def fits(self, vit: ViT) -> bool:
        """Return whether a network gives features of these shapes for photographs of these sizes."""
        spec = self._spec
        for metadata in self._metadata:
            size = preprocess.network_size(
                *metadata["size"],
                short_side=spec.short_side,
                patch=vit.config.patch,
                stride=spec.stride,
                max_tokens=spec.max_tokens,
            )
            if size != (metadata["pixels"], metadata["capped"]):
                return False
            if vit.grid(*metadata["pixels"], spec.stride) != metadata["grid"]:
                return False
        return self._width == vit.config.width

    def verify(self) -> None:
        """Compare the file with its checksum.

        Raises
        ------
        DamagedShard
            If they differ.
        FileNotFoundError, OutputError
            If the file is gone or cannot be read.
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
        """Return the arrays of all photographs, views of the memory-mapped file.

        Raises
        ------
        DamagedShard, FileNotFoundError
            If the file is damaged or gone.
        """
        try:
            return read_safetensors(self.path)[0]
        except CheckpointError:
            if not self.path.exists():
                raise FileNotFoundError(self.path) from None
            raise DamagedShard from None

    def patches(self, position: int) -> int:
        """Return the number of patches of a photograph."""
        return self._starts[position + 1] - self._starts[position]

    def arrays(self, position: int, mapped: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the arrays of one photograph, taken from those of :meth:`map`."""
        rows = slice(self._starts[position], self._starts[position + 1])
        return {name: array[position if name in _BY_PHOTOGRAPH else rows] for name, array in mapped.items()}

    def features(self, position: int, arrays: Callable[[], Mapping[str, np.ndarray]]) -> FeatureRecord:
        """Return the features of a photograph; `arrays` returns its arrays when they are accessed."""
        return FeatureRecord(**self._metadata[position], arrays=arrays)


def write_shard(
    folder: Path, entries: Sequence[FeatureRecord], *, close: Callable[[Path], None] = lambda path: None
) -> Path:
    """Write a shard, in full or not at all, and flush it to the disk.

    Parameters
    ----------
    folder : Path
    entries : sequence of FeatureRecord
        At least one; their order makes no difference.
    close : callable, optional
        Called with the path before a file of that name is replaced, which must not be mapped then (on Windows).

    Returns
    -------
    Path

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    entries = sorted(entries, key=lambda entry: entry.photograph)
    tensors = _concatenate([entry.arrays() for entry in entries])
    rows = [
        [entry.photograph, entry.grid, entry.pixels, entry.size, f"{entry.digest:032x}", entry.capped]
        for entry in entries
    ]
    parts = list(serialized(tensors, {"photographs": json.dumps(rows, separators=(",", ":"))}))
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    path = folder / f"{digest.hexdigest()}{SUFFIX}"
    close(path)
    with replacing(path) as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())
    return path


def remove_shard(path: Path) -> None:
    """Remove a shard, if it exists.

    Raises
    ------
    OutputError
        If it cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot remove {path}: {error.strerror}; check the permissions of its folder") from None


def _concatenate(arrays: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the arrays of a shard, from those of its photographs."""
    return {
        name: (np.stack if name in _BY_PHOTOGRAPH else np.concatenate)([by_name[name] for by_name in arrays])
        for name in arrays[0]
    }


def _parse_metadata(photograph: Any, grid: Any, pixels: Any, size: Any, digest: Any, capped: Any) -> _Metadata:
    """Return the metadata of a photograph; raise ValueError or TypeError if it is not what `write_shard` writes."""
    number = int(digest, 16)
    if not (isinstance(photograph, str) and isinstance(capped, bool) and 0 <= number < 1 << 128):
        raise ValueError
    return {
        "photograph": photograph,
        "grid": _two_ints(grid),
        "pixels": _two_ints(pixels),
        "size": _two_ints(size),
        "digest": number,
        "capped": capped,
    }


def _two_ints(values: Any) -> tuple[int, int]:
    first, second = values
    if not all(type(value) is int and 0 < value < _MAX_INT for value in (first, second)):
        raise ValueError
    return first, second


def _unreadable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"cannot read {path} of the feature store: {error.strerror or error}; check its permissions and the disk"
    )
