"""Find the file of a checkpoint: a name of the registry, a file, a folder, or a model in the Hugging Face cache."""

from __future__ import annotations

import pathlib
from typing import NamedTuple

from vitnp.checkpoints import hub_cache, registry
from vitnp.checkpoints.container import INDEX_SUFFIX, require_regular_file
from vitnp.checkpoints.download import fetch
from vitnp.checkpoints.sharded import checkpoint_sha256
from vitnp.errors import CheckpointError

# Files that a folder is searched for, the first that it has counts: what transformers and timm write.
_NAMES = (
    "model.safetensors",
    f"model.safetensors{INDEX_SUFFIX}",
    "pytorch_model.bin",
    f"pytorch_model.bin{INDEX_SUFFIX}",
)
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")


class Location(NamedTuple):
    """Where a checkpoint is.

    Attributes
    ----------
    entry : Entry or None
        Its entry in the registry, if it was asked for by name.
    name : str
        Its name for people: of the registry, of the Hub, of its folder, or of its file without extension.
    path : pathlib.Path
        File with the weights, or the index of several; the files that describe it are in the same folder.
    sha256 : str
        See :func:`vitnp.checkpoints.sharded.checkpoint_sha256`.
    """

    entry: registry.Entry | None
    name: str
    path: pathlib.Path
    sha256: str


def locate(name: str) -> Location:
    """Find a checkpoint, and download it if it is a name of the registry that isn't in the cache.

    Names of the registry take precedence over files, and files over models in the Hugging Face cache.

    Raises
    ------
    CheckpointError
        If there is no such checkpoint; the message says what to do.
    """
    if name == "auto" or name in registry.entries():
        path, sha256 = fetch(name)
        entry = registry.find(name)
        return Location(entry, entry.name, path, sha256)
    try:
        file, label = _find(name)
    except (OSError, RuntimeError, ValueError) as error:  # no permission, too long a name, ~ of nobody
        raise CheckpointError(f"{name} can't be read: {getattr(error, 'strerror', None) or error}") from None
    return Location(None, label, file, checkpoint_sha256(file))


def _find(name: str) -> tuple[pathlib.Path, str]:
    """Return the file of a checkpoint that isn't in the registry, and its name for people."""
    path = pathlib.Path(name).expanduser()
    if path.is_dir():
        return weights_in(path), hub_cache.repo_id_of(path) or path.absolute().name
    if path.exists():
        require_regular_file(path)
        return path, path.name.removesuffix(INDEX_SUFFIX) if path.name.endswith(INDEX_SUFFIX) else path.stem
    if hub_cache.is_repo_id(name):
        folder, label = hub_cache.find_snapshot(name)
        return weights_in(folder), label
    if path.suffix or len(path.parts) > 1:
        raise CheckpointError(
            f"{path} doesn't exist: give a checkpoint file, or a name of `python -m vitnp.weights list`"
        )
    registry.find(name)  # raises, with a suggestion
    raise AssertionError(name)


def weights_in(folder: pathlib.Path) -> pathlib.Path:
    """Return the file with the weights in a folder, or the index of several.

    Parameters
    ----------
    folder : pathlib.Path
        Folder of a model as transformers or timm save it, or that of a model in the Hugging Face cache.

    Raises
    ------
    CheckpointError
        If there is none, or several and none of the usual name.
    """
    if folder.name.startswith("models--"):
        folder = hub_cache.snapshot_of(folder) or folder
    for name in _NAMES:
        if (folder / name).is_file():
            return folder / name
        if (folder / name).is_symlink():
            raise CheckpointError(f"{folder / name} is a link to a file that is gone: download the model again")
    try:
        others = sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES and path.is_file())
    except OSError as error:
        raise CheckpointError(f"{folder} can't be read: {error.strerror or error}") from None
    if len(others) == 1:
        return others[0]
    if others:
        listed = ", ".join(path.name for path in others[:3]) + (", ..." if len(others) > 3 else "")
        raise CheckpointError(f"{folder} is a folder with several checkpoints: give one of its files, {listed}")
    raise CheckpointError(f"{folder} is a folder without {' or '.join(_NAMES[::2])}: give the file with the weights")
