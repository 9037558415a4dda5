"""Keys of stored photographs as blocks of rows, read when they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from vitnp.errors import UsageError
from vitnp.features.store import FeatureStore


class KeyBlocks:
    """Keys of photographs as :class:`vitnp.clustering.kmeans.KMeans` reads them.

    Iterating yields one block of rows per photograph, as often as needed; slicing gives any consecutive rows. Both are
    safe from several threads.

    Parameters
    ----------
    store : FeatureStore
    photographs : sequence of str
        Fingerprints.

    Attributes
    ----------
    shape : (int, int)
        Number of all rows, and D.
    dtype : numpy.dtype

    Raises
    ------
    KeyError
        If the store lacks one of the photographs.
    """

    def __init__(self, store: FeatureStore, photographs: Sequence[str]) -> None:
        self._store, self._photographs = store, tuple(photographs)
        self._bounds = np.cumsum([0, *store.patches(photographs)])
        width = store.entry(photographs[0]).keys.shape[1] if photographs else 0
        self.shape = int(self._bounds[-1]), width
        self.dtype = np.dtype(store.spec.precision)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self._store.entry(photograph).keys for photograph in self._photographs)

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Return consecutive rows, (n, D)."""
        first, stop, step = rows.indices(self.shape[0])
        if step != 1:
            raise UsageError(f"rows of a feature store are sliced with step 1, got {step}; take every row")
        parts = [np.empty((0, self.shape[1]), self.dtype)]
        index = int(np.searchsorted(self._bounds, first, side="right")) - 1
        while first < stop:
            start, end = int(self._bounds[index]), int(self._bounds[index + 1])
            parts.append(self._store.entry(self._photographs[index]).keys[first - start : stop - start])
            first, index = end, index + 1
        return np.concatenate(parts)
