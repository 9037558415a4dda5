"""A feature store in a folder that several machines see: found again from a pickle, waited for, read by rows."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Collection, Sequence

import numpy as np

from vitnp.errors import OutputError
from vitnp.features.spec import FeatureSpec
from vitnp.features.store import FeatureStore

# Seconds after which a network file system shows all machines what one of them has written; NFS takes up to sixty.
_SEEN_AFTER = 90.0


@functools.lru_cache(maxsize=4)
def open_shared(folder: str, spec: FeatureSpec) -> FeatureStore:
    """The store of an spec in a cache folder, one object for a whole process."""
    return FeatureStore(folder, spec)


def await_photographs(store: FeatureStore, photographs: Collection[str], seconds: float = _SEEN_AFTER) -> None:
    """Wait until what others have written to a store is seen here.

    Parameters
    ----------
    store : FeatureStore
    photographs : collection of str
    seconds : float
        To wait at most.

    Raises
    ------
    OutputError
        When some of the photographs don't appear.
    """
    until = time.monotonic() + seconds
    while missing := [photograph for photograph in photographs if photograph not in store]:
        store.refresh()
        if all(photograph in store for photograph in missing):
            return
        if time.monotonic() > until:
            raise OutputError(
                f"features that a worker wrote can't be seen in {store.folder}; "
                "give --cache a folder that all machines share under the same path"
            )
        time.sleep(0.2)


class StoredKeys:
    """Keys of photographs, one below the other, read from the store when they are sliced; it can be pickled.

    Whoever unpickles it opens the store anew: the rows themselves don't travel, but the folder must be seen from there,
    under the same path.

    Parameters
    ----------
    store : FeatureStore
    photographs : sequence of str
        At least one.
    rows : slice
        Which of all rows; without a step.

    Attributes
    ----------
    photographs : tuple of str
    shape : (int, int)
    dtype : dtype

    Examples
    --------
    >>> keys = StoredKeys(store, hashes)                     # doctest: +SKIP
    >>> KMeans(5).fit(keys).labels_.shape == keys.shape[:1]  # doctest: +SKIP
    True
    """

    def __init__(self, store: FeatureStore, photographs: Sequence[str], rows: slice = slice(None)) -> None:
        self._store, self.photographs = store, tuple(photographs)
        self._blocks = store.blocks(self.photographs)
        self._first, self._stop, _ = rows.indices(self._blocks.shape[0])
        self.shape, self.dtype = (self._stop - self._first, self._blocks.shape[1]), self._blocks.dtype

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self._blocks[self._within(rows)]

    def part(self, rows: slice) -> StoredKeys:
        """The same for some of the rows, with no more photographs than these are from."""
        rows = self._within(rows)
        ends = np.cumsum([0, *self._store.patches(self.photographs)])
        lead = min(int(np.searchsorted(ends, rows.start, side="right")), len(self.photographs)) - 1
        past = max(lead + 1, int(np.searchsorted(ends, rows.stop)))
        start = int(ends[lead])
        return StoredKeys(self._store, self.photographs[lead:past], slice(rows.start - start, rows.stop - start))

    def _within(self, rows: slice) -> slice:
        """The same rows, numbered from the first of the first photograph."""
        first, stop, _ = rows.indices(self.shape[0])
        return slice(first + self._first, stop + self._first)

    def __reduce__(self) -> tuple:
        folder = os.path.abspath(self._store.folder.parent)
        return _stored_keys, (folder, self._store.spec, self.photographs, slice(self._first, self._stop))


def _stored_keys(folder: str, spec: FeatureSpec, photographs: tuple[str, ...], rows: slice) -> StoredKeys:
    store = open_shared(folder, spec)
    await_photographs(store, photographs)
    return StoredKeys(store, photographs, rows)
