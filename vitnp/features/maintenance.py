"""Maintenance of cache folders: remove features that are no longer needed."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path

from vitnp.errors import OutputError
from vitnp.features.spec import FeatureSpec
from vitnp.features.store import SPEC_FILE, FeatureStore


def prune(folder: Path | str, keep: Collection[str], *, notice: Callable[[str], None] | None = None) -> int:
    """Remove the features of all photographs but those in `keep` from all stores of a cache folder.

    Parameters
    ----------
    folder : path
        The cache folder.
    keep : collection of str
        Fingerprints of photographs.
    notice : callable, optional
        As for :class:`vitnp.features.store.FeatureStore`.

    Returns
    -------
    int
        Number of bytes freed.

    Raises
    ------
    OutputError
        If the folder cannot be read or changed.
    """
    try:
        subfolders = sorted(path for path in Path(folder).iterdir() if path.is_dir())
    except OSError as error:
        raise OutputError(f"cannot read the cache folder {folder}: {error.strerror}; check its path") from None
    specs = [spec for spec in map(_read_spec, subfolders) if spec is not None]
    return sum(FeatureStore(folder, spec, notice=notice).prune(keep) for spec in specs)


def _read_spec(folder: Path) -> FeatureSpec | None:
    """Return the spec of the store in a folder; None for other folders and for stores of other versions."""
    path = folder / SPEC_FILE
    try:
        if not path.is_file():  # opening a pipe would wait for its writer
            return None
        spec = FeatureSpec.from_stored(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None
    return spec if spec.name == folder.name else None
