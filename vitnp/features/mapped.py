"""The arrays of a few shards, as memory-mapped files."""

from __future__ import annotations

import collections
from collections.abc import Mapping

import numpy as np

from vitnp.features.shards import Shard

# Pages of a mapped file count as memory of the process until the file is closed: eight shards are half a gigabyte.
MAX_SHARDS = 8


class MappedShards:
    """Map shards when they are read, and close the one not read for longest when there are more than MAX_SHARDS.

    Windows neither removes nor replaces a mapped file, so it has to be closed before. Arrays that are still in use
    keep their file open.
    """

    def __init__(self) -> None:
        self._arrays: collections.OrderedDict[str, Mapping[str, np.ndarray]] = collections.OrderedDict()

    def __getitem__(self, shard: Shard) -> Mapping[str, np.ndarray]:
        """Return the arrays of a shard; see :meth:`vitnp.features.shards.Shard.map`."""
        name = shard.path.name
        if name not in self._arrays:
            self._arrays[name] = shard.map()
        self._arrays.move_to_end(name)
        arrays = self._arrays[name]
        while len(self._arrays) > MAX_SHARDS:
            self._arrays.popitem(last=False)
        return arrays

    def close(self, name: str) -> None:
        """Close the shard of a name, if it is open."""
        self._arrays.pop(name, None)

    def close_all(self) -> None:
        """Close all shards."""
        self._arrays.clear()
