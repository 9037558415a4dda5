"""Feature stores in a folder that several machines share."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Collection, Sequence

import numpy as np

from vitnp.errors import OutputError
from vitnp.features.blocks import KeyBlocks
from vitnp.features.spec import FeatureSpec
from vitnp.features.store import FeatureStore

# Seconds until all machines see a file that one of them has written to a network file system; NFS takes up to 60.
_VISIBLE_AFTER = 90.0


@functools.lru_cache(maxsize=4)
def open_shared(folder: str, spec: FeatureSpec) -> FeatureStore:
    """Return the store of a spec in a cache folder; the same object within a process."""
    return FeatureStore(folder, spec)


def await_photographs(store: FeatureStore, photographs: Collection[str], seconds: float = _VISIBLE_AFTER) -> None:
    """Wait until the features that other machines have written are visible here.

    Parameters
    ----------
    store : FeatureStore
    photographs : collection of str
        Fingerprints.
    seconds : float
        Maximum time to wait.

    Raises
    ------
    OutputError
        If some of them do not appear.
    """
    until = time.monotonic() + seconds
    while missing := [photograph for photograph in photographs if photograph not in store]:
        store.refresh()
        if all(photograph in store for photograph in missing):
            return
        if time.monotonic() > until:
            raise OutputError(
                f"features that a worker wrote are not visible in {store.folder}; "
                "give --cache a folder that all machines share under the same path"
            )
        time.sleep(0.2)


class StoredKeys:
    """Keys of photographs, concatenated and read from the store when they are sliced.

    Pickling writes a reference to the store, not the rows. So another machine can load it if it sees the folder of the
    store under the same path.

    Parameters
    ----------
    store : FeatureStore
    photographs : sequence of str
        Fingerprints, at least one.
    rows : slice
        Part of all rows, with step 1.

    Attributes
    ----------
    photographs : tuple of str
        Fingerprints.
    shape : (int, int)
        Number of rows, and D.
    dtype : numpy.dtype

    Examples
    --------
    >>> keys = StoredKeys(store, hashes)                     # doctest: +SKIP
    >>> KMeans(5).fit(keys).labels_.shape == keys.shape[:1]  # doctest: +SKIP
    True
    """

    def __init__(self, store: FeatureStore, photographs: Sequence[str], rows: slice = slice(None)) -> None:
        self._store, self.photographs = store, tuple(photographs)
        self._blocks = KeyBlocks(store, self.photographs)
        self._first, self._stop, _ = rows.indices(self._blocks.shape[0])
        self.shape, self.dtype = (self._stop - self._first, self._blocks.shape[1]), self._blocks.dtype

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self._blocks[self._within(rows)]

    def part(self, rows: slice) -> StoredKeys:
        """Return a part of the rows, with only the photographs that they are from."""
        rows = self._within(rows)
        ends = np.cumsum([0, *self._store.patches(self.photographs)])
        first = min(int(np.searchsorted(ends, rows.start, side="right")), len(self.photographs)) - 1
        stop = max(first + 1, int(np.searchsorted(ends, rows.stop)))
        start = int(ends[first])
        return StoredKeys(self._store, self.photographs[first:stop], slice(rows.start - start, rows.stop - start))

    def _within(self, rows: slice) -> slice:
        """Return the same rows, counted from the first row of the first photograph."""
        first, stop, _ = rows.indices(self.shape[0])
        return slice(first + self._first, stop + self._first)

    def __reduce__(self) -> tuple:
        folder = os.path.abspath(self._store.folder.parent)
        return _stored_keys, (folder, self._store.spec, self.photographs, slice(self._first, self._stop))


def _stored_keys(folder: str, spec: FeatureSpec, photographs: tuple[str, ...], rows: slice) -> StoredKeys:
    store = open_shared(folder, spec)
    await_photographs(store, photographs)
    return StoredKeys(store, photographs, rows)
