"""Read the weights of a checkpoint file, whatever its container and the names of its tensors."""

from __future__ import annotations

import math
import os
import pathlib
from typing import NamedTuple

import numpy as np

from vitnp.checkpoints.safetensors_io import read_safetensors
from vitnp.checkpoints.state_dict_names import Dialect, flatten, to_canonical
from vitnp.checkpoints.torch_io import read_torch_file
from vitnp.errors import CheckpointError

# Tensors as float32 may take this many times the bytes of the file; float16 takes 2, int8 beside it 4. More means
# tensors that share their bytes: as views they take no memory, but each of them is copied later.
_MAX_EXPANSION = 8
_MAX_EXPANSION_SLACK = 2**20  # bytes

_MISTAKEN_FILES = {  # first bytes of files that are often saved under the name of a checkpoint
    b"<": "a web page, not a checkpoint: the download went wrong",
    b"version https://git-lfs": "a Git LFS pointer, not the checkpoint itself: run `git lfs pull` or download it",
    b"{": "JSON text, not a checkpoint: give the file with the weights",
}


class Checkpoint(NamedTuple):
    """Contents of a checkpoint file.

    Attributes
    ----------
    weights : dict of str to float32 array
        Weights under canonical names.
    dialect : Dialect
        Dialect of the names in the file.
    metadata : dict of str to str
        Metadata of a safetensors file; empty for torch files.
    """

    weights: dict[str, np.ndarray]
    dialect: Dialect
    metadata: dict[str, str]


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read the weights of a file in any known container and dialect.

    Shapes are not checked here; :func:`vitnp.checkpoints.infer_config.infer_config` does.

    Raises
    ------
    CheckpointError
        If the file can't be read, is damaged, or holds no plain ViT.

    Examples
    --------
    >>> read_checkpoint("weights/vitnp_tiny.safetensors").dialect.name      # doctest: +SKIP
    'timm'
    """
    path = pathlib.Path(path)
    metadata: dict[str, str] = {}
    if container_format(path) == "safetensors":
        tensors, metadata = read_safetensors(path)
    else:
        tensors = flatten(read_torch_file(path))
    expanded = sum(4 * math.prod(tensor.shape) for tensor in tensors.values())
    if expanded > _MAX_EXPANSION * path.stat().st_size + _MAX_EXPANSION_SLACK:
        raise CheckpointError(f"{path} holds tensors that overlap: expanded they would take {expanded / 1e9:.1f} GB")
    try:
        weights, dialect = to_canonical(tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{path} can't be used: {error}") from None
    return Checkpoint(weights, dialect, metadata)


def container_format(path: pathlib.Path) -> str:
    """Return "safetensors" or "torch" according to the first bytes of a file.

    Raises
    ------
    CheckpointError
        If it is neither; the message says what the file looks like, where that is known.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(64)
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}") from None
    if start[8:9] == b"{":
        return "safetensors"
    if start.startswith((b"PK\x03\x04", b"\x80")):
        return "torch"
    if not start:
        raise CheckpointError(f"{path} is empty")
    for beginning, meaning in _MISTAKEN_FILES.items():
        if start.lstrip().startswith(beginning):
            raise CheckpointError(f"{path} is {meaning}")
    raise CheckpointError(f"{path} is neither a safetensors nor a torch file")
