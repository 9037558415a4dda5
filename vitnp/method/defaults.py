"""The network and the collection that apply when none is given."""

from __future__ import annotations

import functools
import os

from vitnp.checkpoints.load import load_vit
from vitnp.checkpoints.registry import BUILT_IN, collection_path
from vitnp.errors import UsageError
from vitnp.method.collection import Collection
from vitnp.method.parameters import run_parameters
from vitnp.options import Settings
from vitnp.vit.model import ViT


@functools.lru_cache(maxsize=1)
def default_vit() -> ViT:
    """Return the built-in network; its checkpoint is read once."""
    return load_vit("auto")


def resolve_vit(vit: ViT | str | os.PathLike[str] | None) -> ViT:
    """Return the network that a user named: itself, by name or checkpoint (``load_vit``), or the built-in one for None.

    Raises
    ------
    CheckpointError
        If the checkpoint cannot be found or read.
    UsageError
        If it is none of these.
    """
    if vit is None:
        return default_vit()
    if isinstance(vit, ViT):
        return vit
    if isinstance(vit, (str, os.PathLike)):
        return load_vit(vit)
    raise UsageError(f"vit must be a ViT, the name of a model, or the path of a checkpoint, got {type(vit).__name__}")


@functools.lru_cache(maxsize=1)
def default_collection() -> Collection:
    """Return the collection fitted to many photographs with the built-in network; it is read once."""
    return Collection.load(collection_path(BUILT_IN))


def resolve_collection(
    collection: Collection | str | os.PathLike[str] | None, vit: ViT, settings: Settings
) -> tuple[Collection | None, str | None]:
    """Return the fitted collection to apply to single photographs.

    Parameters
    ----------
    collection : "auto", None or "none", path or Collection
        "auto" is the built-in collection where it fits the network and the settings, else none.
    vit : ViT
    settings : Settings

    Returns
    -------
    collection : Collection or None
    reason : str or None
        For "auto", why the built-in collection does not fit: half a sentence.

    Raises
    ------
    CheckpointError
        If the file cannot be read.
    """
    if collection is None or collection == "none":
        return None, None
    if collection == "auto":
        reason = default_collection().mismatch(run_parameters(vit, settings))
        return (None, reason) if reason else (default_collection(), None)
    if isinstance(collection, Collection):
        return collection, None
    if isinstance(collection, (str, os.PathLike)):
        return Collection.load(collection), None
    raise UsageError(f"collection must be a Collection, its file, 'auto' or None, got {type(collection).__name__}")
