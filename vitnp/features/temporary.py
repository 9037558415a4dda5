"""Temporary feature stores, and checks of the free disk space."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from vitnp.errors import ImageError, OutputError
from vitnp.features.spec import FeatureSpec
from vitnp.features.store import FeatureStore
from vitnp.io import preprocess
from vitnp.io.locked_folder import locked, remove_abandoned
from vitnp.io.source import Source, size_of
from vitnp.vit.model import ViT

# Beginning of the name of a temporary store.
TEMPORARY_STORE = "vitnp-features-"

# Number of photographs whose headers are read to estimate the size of a store.
_HEADERS_READ = 1000

# Bytes per photograph besides the arrays: its entry in the metadata of the shard.
_METADATA_BYTES = 150


@contextlib.contextmanager
def temporary_store(
    spec: FeatureSpec,
    *,
    needed: int = 0,
    folder: Path | str | None = None,
    notice: Callable[[str], None] | None = None,
) -> Iterator[FeatureStore]:
    """Create a store for one run, as a context manager.

    The store is removed at the end, after an error as well; the store of a killed process is removed when the next one
    is created. It is kept only if the run is interrupted from the keyboard and the store is not empty; the notice then
    names its folder.

    Parameters
    ----------
    spec : FeatureSpec
    needed : int
        Expected size in bytes, see :func:`estimate_bytes`.
    folder : path, optional
        Parent folder; by default the system's folder for temporary files (TMPDIR).
    notice : callable, optional
        As for :class:`vitnp.features.store.FeatureStore`.

    Yields
    ------
    FeatureStore

    Raises
    ------
    OutputError
        If the disk has less free space, or nothing can be written there.
    """
    parent = Path(tempfile.gettempdir() if folder is None else folder)
    remove_abandoned(parent, TEMPORARY_STORE)
    check_space(parent, needed)
    try:
        path = Path(tempfile.mkdtemp(prefix=TEMPORARY_STORE, dir=parent))
    except OSError as error:
        raise OutputError(
            f"cannot create a temporary folder in {parent}: {error.strerror}; set TMPDIR or give --cache DIR"
        ) from None
    kept = False
    try:
        with locked(path):
            store = FeatureStore(path, spec, notice=notice)
            try:
                yield store
            except KeyboardInterrupt:
                if kept := len(store) > 0:
                    store.notice(
                        f"the features of {len(store)} photographs are kept in {path}; "
                        f"go on with --cache {path}, or delete it"
                    )
                raise
            finally:
                store.close()
    finally:
        if not kept:
            shutil.rmtree(path, ignore_errors=True)


def check_space(folder: Path | str, needed: int) -> None:
    """Check that a disk has enough free space.

    Parameters
    ----------
    folder : path
        Folder on the disk in question; it need not exist.
    needed : int
        Number of bytes.

    Raises
    ------
    OutputError
        If fewer bytes are free.
    """
    path = Path(folder).absolute()
    existing = next((parent for parent in (path, *path.parents) if parent.exists()), path)
    try:
        free = shutil.disk_usage(existing).free
    except OSError as error:
        raise OutputError(
            f"cannot determine the free space of {folder}: {error.strerror}; choose another folder"
        ) from None
    if needed > free:
        raise OutputError(
            f"the features need about {needed / 1e9:.1f} GB in {folder}, where {free / 1e9:.1f} GB are free; "
            "give --cache DIR or set TMPDIR to a folder on a larger disk"
        )


def estimate_bytes(photographs: Sequence[Source], vit: ViT, spec: FeatureSpec) -> int:
    """Estimate the size of the features of photographs on disk, to within a few percent.

    Of many photographs the headers of a thousand are read, evenly spaced. Unreadable photographs count as 0.

    Parameters
    ----------
    photographs : sequence of Photograph, path, PIL image or array
    vit : ViT
    spec : FeatureSpec

    Returns
    -------
    int
        Number of bytes.
    """
    step = max(1, len(photographs) // _HEADERS_READ)
    sample = photographs[::step]
    total = sum(_bytes_of(photograph, vit, spec) for photograph in sample)
    return int(total * len(photographs) / max(1, len(sample)))


def _bytes_of(photograph: Source, vit: ViT, spec: FeatureSpec) -> int:
    try:
        height, width = size_of(photograph)
    except ImageError:
        return 0
    (height, width), _ = preprocess.network_size(
        height,
        width,
        short_side=spec.short_side,
        patch=vit.config.patch,
        stride=spec.stride,
        max_tokens=spec.max_tokens,
    )
    rows, columns = vit.grid(height, width, spec.stride)
    dim, itemsize = vit.config.width, np.dtype(spec.precision).itemsize
    n_facets = 1 if not spec.regions else 2 if spec.keys_are_last(vit) else 3
    n_tokens = 5 if spec.regions else 1
    n_maps = 1 + (spec.heads if spec.attention_heads else 0)
    per_patch = n_facets * dim * itemsize + 4 * n_maps  # 4: attention in float32
    return rows * columns * per_patch + n_tokens * dim * 4 + _METADATA_BYTES
