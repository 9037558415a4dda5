"""A feature store for one run, and whether the disk has room for it."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from vitnp.errors import ImageError, OutputError
from vitnp.features.spec import FeatureSpec
from vitnp.features.store import FeatureStore
from vitnp.io import preprocess
from vitnp.io.source import Source, size_of
from vitnp.vit.model import ViT

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_PREFIX, _MARK = "vitnp-features-", "in-use"

# Photographs whose headers are read to tell how large a store will be.
_ESTIMATED_FROM = 1000


@contextlib.contextmanager
def temporary_store(
    spec: FeatureSpec,
    *,
    needed: int = 0,
    folder: Path | str | None = None,
    notice: Callable[[str], None] | None = None,
) -> Iterator[FeatureStore]:
    """A store for one run.

    It's removed at the end, after an error too; one whose process was killed is removed when the next is made. Only
    when the run is interrupted from the keyboard, and something is in it, does it stay, and the notice says where.

    Parameters
    ----------
    spec : FeatureSpec
    needed : int
        Bytes that it'll take, see :func:`estimate_bytes`.
    folder : path, optional
        Where to make it; by default the system's place for temporary files (TMPDIR).
    notice : callable, optional
        As for the store.

    Raises
    ------
    OutputError
        When there isn't that much space, or nothing can be written there.
    """
    place = Path(tempfile.gettempdir() if folder is None else folder)
    _remove_abandoned(place)
    check_space(place, needed)
    try:
        made = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
    except OSError as error:
        raise OutputError(
            f"can't make a temporary folder in {place}: {error.strerror}; set TMPDIR or give --cache DIR"
        ) from None
    kept = False
    try:
        with _marked_in_use(made):
            store = FeatureStore(made, spec, notice=notice)
            try:
                yield store
            except KeyboardInterrupt:
                if kept := len(store) > 0:
                    store.notice(
                        f"the features of {len(store)} photographs are kept in {made}; "
                        f"go on with --cache {made}, or delete it"
                    )
                raise
    finally:
        if not kept:
            shutil.rmtree(made, ignore_errors=True)


@contextlib.contextmanager
def _marked_in_use(folder: Path) -> Iterator[None]:
    """Keep a locked file in a folder.

    The system undoes a process's locks however it ends: a mark without a lock says that nobody wants the folder.
    """
    mark = folder / _MARK
    with contextlib.ExitStack() as stack:
        # Where files can't be locked there is no mark, and nobody but its process ever removes the folder.
        with contextlib.suppress(OSError, AttributeError):
            file = stack.enter_context(open(folder / f"{_MARK}.new", "wb"))
            fcntl.flock(file, fcntl.LOCK_EX)
            os.rename(file.name, mark)  # locked from the first moment that it's seen
        try:
            yield
        finally:
            mark.unlink(missing_ok=True)


def _remove_abandoned(place: Path) -> None:
    """Remove temporary stores of one's own processes that were killed."""
    if fcntl is None:
        return
    for mark in place.glob(f"{_PREFIX}*/{_MARK}"):
        with contextlib.suppress(OSError), open(mark, "rb") as file:
            if os.fstat(file.fileno()).st_uid == os.getuid():
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(mark.parent, ignore_errors=True)


def check_space(folder: Path | str, needed: int) -> None:
    """Make sure that a disk has room.

    Parameters
    ----------
    folder : path
        On the disk in question; it needn't be there yet.
    needed : int
        Bytes.

    Raises
    ------
    OutputError
        When fewer are free.
    """
    place = Path(folder).absolute()
    place = next((parent for parent in (place, *place.parents) if parent.exists()), place)
    try:
        free = shutil.disk_usage(place).free
    except OSError as error:
        raise OutputError(
            f"can't tell how much space is free in {folder}: {error.strerror}; choose another folder"
        ) from None
    if needed > free:
        raise OutputError(
            f"the features need about {needed / 1e9:.1f} GB in {folder}, where {free / 1e9:.1f} GB are free; "
            "give --cache DIR or set TMPDIR to a folder on a larger disk"
        )


def estimate_bytes(photographs: Sequence[Source], vit: ViT, spec: FeatureSpec) -> int:
    """Bytes that the features of photographs will take on disk, within a few per cent.

    Of many photographs the headers of a thousand are read, evenly spread. What can't be read counts nothing.

    Parameters
    ----------
    photographs : sequence of Photograph, path, PIL image or array
    vit : ViT
    spec : FeatureSpec
    """
    step = max(1, len(photographs) // _ESTIMATED_FROM)
    looked_at = photographs[::step]
    total = sum(_bytes_of(photograph, vit, spec) for photograph in looked_at)
    return int(total * len(photographs) / max(1, len(looked_at)))


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
    width, item = vit.config.width, np.dtype(spec.precision).itemsize
    facets = 1 if not spec.regions else 2 if spec.keys_are_last(vit) else 3
    tokens = 5 if spec.regions else 1
    # Attention stands beside the facets; some 150 bytes tell what it's all about.
    return rows * columns * (facets * width * item + 4) + tokens * width * 4 + 150
