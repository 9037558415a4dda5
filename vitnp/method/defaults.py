"""The network and the collection that apply when none is given."""

from __future__ import annotations

import functools
import os

from vitnp.checkpoints.load import load_vit
from vitnp.checkpoints.registry import BUILT_IN, collection_path
from vitnp.method.collection import Collection
from vitnp.method.parameters import run_parameters
from vitnp.options import Settings
from vitnp.vit.model import ViT


@functools.lru_cache(maxsize=1)
def default_vit() -> ViT:
    """Return the built-in network; its checkpoint is read once."""
    return load_vit("auto")


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
    return (collection if isinstance(collection, Collection) else Collection.load(collection)), None
