"""Stored features, addressed by position in a list of photographs."""

from __future__ import annotations

from collections.abc import Sequence

import scipy.linalg  # noqa: F401  (its BLAS must be there before it can be kept to one thread)

from vitnp.features.record import FeatureRecord
from vitnp.features.shared import StoredKeys
from vitnp.features.store import FeatureStore


class Entries:
    """Features of photographs by their place among those given."""

    def __init__(self, store: FeatureStore, hashes: Sequence[str | None]) -> None:
        self._store, self.hashes = store, hashes

    def __getitem__(self, index: int) -> FeatureRecord:
        return self._store.entry(self.hashes[index])

    def keys(self, indices: Sequence[int]) -> StoredKeys:
        """Keys of photographs one below the other, not loaded yet."""
        return StoredKeys(self._store, [self.hashes[index] for index in indices])
