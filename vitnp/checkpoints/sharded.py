"""Checkpoints in several files, "shards": an index in JSON names the file of each tensor.

``model.safetensors.index.json`` and ``pytorch_model.bin.index.json`` are what transformers, huggingface_hub and timm
write: ``{"metadata": {...}, "weight_map": {"name of a tensor": "name of a file beside the index"}}``.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from typing import Any

import numpy as np

from vitnp.checkpoints.checksum import file_sha256
from vitnp.checkpoints.container import INDEX_SUFFIX, container_format, read_tensors, require_regular_file
from vitnp.checkpoints.nested import MAX_TENSORS
from vitnp.errors import CheckpointError

_MAX_INDEX_BYTES = 16 * 2**20
_MAX_SHARDS = 1000


def files_of(path: pathlib.Path) -> list[pathlib.Path]:
    """Return the files that hold the tensors of a checkpoint: the file itself, or the shards of an index by name.

    Raises
    ------
    CheckpointError
        If the index can't be read, or names a file that is missing or not beside it.
    """
    return [path] if not path.name.endswith(INDEX_SUFFIX) else list(_read_index(path))


def checkpoint_sha256(path: pathlib.Path) -> str:
    """Compute the SHA-256 of a checkpoint.

    That of a sharded one is the hash of the lines that ``sha256sum`` prints for its shards, in the order of their
    names: ``sha256sum model-*.safetensors | sha256sum``.
    """
    files = files_of(path)
    if files == [path]:
        return file_sha256(path)
    lines = (f"{file_sha256(file)}  {file.name}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_sharded(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read the tensors and the metadata of all shards of an index.

    Raises
    ------
    CheckpointError
        If the index or a shard can't be read, a tensor is in two shards or in another than the index says, or shards
        have different metadata.
    """
    tensors: dict[str, np.ndarray] = {}
    metadata: dict[str, str] = {}
    for file, expected in _read_index(path).items():
        if container_format(file) == "index":
            raise CheckpointError(f"{file} is an index, not a file with weights")
        of_file, its_metadata = read_tensors(file)
        if of_file.keys() != expected:
            name = min(of_file.keys() ^ expected)
            verb = "lacks" if name in expected else "has"
            raise CheckpointError(f"{file} {verb} the tensor {name[:100]!r}, but {path.name} says otherwise")
        for key, value in its_metadata.items():
            if metadata.setdefault(key, value) != value:
                raise CheckpointError(f"{file} has other metadata than the shards before it: {key[:100]!r}")
        tensors |= of_file
    return tensors, metadata


def _read_index(path: pathlib.Path) -> dict[pathlib.Path, set[str]]:
    """Return the names of the tensors in each shard, in the order of the shards' names."""
    container_format(path)  # refuses what isn't a file or not JSON
    try:
        if path.stat().st_size > _MAX_INDEX_BYTES:
            raise CheckpointError(f"{path} is too long for the index of a checkpoint")
        index = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique)
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}") from None
    except _DuplicateError as error:
        raise CheckpointError(f"{path} names {str(error)[:100]!r} twice") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path} is damaged: it isn't JSON text") from None
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise CheckpointError(f"{path} isn't the index of a checkpoint: it has no weight_map of names")
    if len(weight_map) > MAX_TENSORS or len(set(weight_map.values())) > _MAX_SHARDS:
        raise CheckpointError(f"{path} lists more tensors or shards than a checkpoint of a ViT has")
    shards: dict[pathlib.Path, set[str]] = {}
    for name in sorted(set(weight_map.values())):
        if not _is_plain_name(name):
            raise CheckpointError(f"{path} names the shard {name[:100]!r}, which isn't a file beside it")
        if not (path.parent / name).exists():
            raise CheckpointError(f"{path.parent / name} is missing, though {path.name} names it: download it too")
        require_regular_file(path.parent / name)
        shards[path.parent / name] = set()
    for tensor, name in weight_map.items():
        shards[path.parent / name].add(tensor)
    return shards


def _is_plain_name(name: str) -> bool:
    """Return whether this is the name of a file in a folder, on any platform."""
    parts = pathlib.PurePosixPath(name).name, pathlib.PureWindowsPath(name).name
    return bool(name) and parts == (name, name) and name not in (".", "..") and name.isprintable() and len(name) < 256


class _DuplicateError(ValueError):
    """A name that a JSON object has twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = {}
    for key, value in pairs:
        if key in table:
            raise _DuplicateError(key)
        table[key] = value
    return table
