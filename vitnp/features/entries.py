"""Stored features, addressed by position in a list of photographs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vitnp.features.record import FeatureRecord
from vitnp.features.shared import StoredKeys
from vitnp.features.store import FeatureStore


class Entries:
    """Features of photographs by their position among those given.

    Parameters
    ----------
    store : FeatureStore
    hashes : sequence of str or None
        Fingerprints of the photographs; None for one that failed.
    """

    def __init__(self, store: FeatureStore, hashes: Sequence[str | None]) -> None:
        self._store, self.hashes = store, hashes

    def __getitem__(self, index: int) -> FeatureRecord:
        return self._store.entry(self.hashes[index])

    def keys(self, indices: Sequence[int]) -> StoredKeys:
        """Return the keys of photographs one below the other, not loaded yet."""
        return StoredKeys(self._store, [self.hashes[index] for index in indices])

    def sample(
        self, indices: Sequence[int], counts: Sequence[int], limit: int, seed: tuple[int, ...]
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Draw keys of patches without replacement.

        Parameters
        ----------
        indices : sequence of int
            Photographs to draw from.
        counts : sequence of int
            Number of patches of each.
        limit : int
            Maximum number of keys; all are taken if there are no more.
        seed : tuple of int

        Returns
        -------
        keys : (M, D) array
        rows : list of (m,) int64
            For each photograph, the patches that were drawn.
        """
        total = int(np.sum(counts))
        rng = np.random.default_rng((*seed, 0))
        drawn = np.arange(total) if total <= limit else np.sort(rng.choice(total, limit, replace=False))
        ends = np.cumsum(counts)
        parts = np.split(drawn, np.searchsorted(drawn, ends)[:-1])
        rows = [part - (end - count) for part, end, count in zip(parts, ends, counts)]
        keys = np.concatenate([self[index].keys[part] for index, part in zip(indices, rows) if len(part)])
        return keys, rows
