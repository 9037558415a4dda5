"""Read the tensors of one file by the names that it gives them, whichever container it is."""

from __future__ import annotations

import pathlib

import numpy as np

from vitnp.checkpoints.nested import flatten
from vitnp.checkpoints.safetensors_io import read_safetensors
from vitnp.checkpoints.torch_io import read_torch_file
from vitnp.errors import CheckpointError

INDEX_SUFFIX = ".index.json"

_MISTAKEN_FILES = {  # first bytes of files that are often saved under the name of a checkpoint
    b"<": "a web page, not a checkpoint: the download went wrong",
    b"version https://git-lfs": "a Git LFS pointer, not the checkpoint itself: run `git lfs pull` or download it",
    b"{": "JSON text, not a checkpoint: give the file with the weights",
}


def container_format(path: pathlib.Path) -> str:
    """Return "safetensors" or "torch" according to the first bytes of a file, or "index" for one of a sharded one.

    Raises
    ------
    CheckpointError
        If it is none of them; the message says what the file looks like, where that is known.
    """
    require_regular_file(path)
    try:
        with open(path, "rb") as file:
            start = file.read(64)
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}") from None
    if path.name.endswith(INDEX_SUFFIX) and start.lstrip().startswith(b"{"):
        return "index"
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


def read_tensors(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read all tensors of a safetensors or torch file; nested names of a torch file are joined by dots.

    Returns
    -------
    tensors : dict of str to array
        Read-only views of the mapped file where their type allows that.
    metadata : dict of str to str
        Metadata of a safetensors file; empty for torch files.

    Raises
    ------
    CheckpointError
        If the file can't be read, or is damaged.
    """
    if container_format(path) == "safetensors":
        return read_safetensors(path)
    tree = read_torch_file(path)
    try:
        return flatten(tree), {}
    except CheckpointError as error:
        raise CheckpointError(f"{path} can't be used: {error}") from None


def require_regular_file(path: pathlib.Path) -> None:
    """Raise CheckpointError unless a path is that of a file, which can be read to its end: no pipe or device is."""
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} is a {'folder' if path.is_dir() else 'pipe or device'}: give a checkpoint file")
