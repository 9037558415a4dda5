"""Features of many photographs on disk, so that none is computed twice and all of them may exceed the memory.

A cache folder holds one subfolder for each :class:`FeatureSpec`, a subfolder any number of shards
(:mod:`vitnp.features.shards`). Whatever writes there only ever adds whole files, each named by its content: a process
killed at any moment loses the shard it was at, and several processes on one store at worst do the same work twice.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import json
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from vitnp.errors import OutputError, UsageError
from vitnp.features import shards
from vitnp.features.record import FeatureRecord
from vitnp.features.shards import DamagedShard, Shard, write_shard
from vitnp.features.spec import FeatureSpec
from vitnp.io.write import make_folder, write_json

SPEC_FILE = "identity.json"

# Pages of a mapped file count as this process's memory until the file is let go: eight shards are half a gigabyte.
_MAPPED_SHARDS = 8

# Seconds after which an unfinished file belongs to a process that was killed: writing one takes a few.
_LEFTOVER_AGE = 3600


class FeatureStore:
    """The features of photographs under one spec.

    Reading is safe from several threads. Photographs are named by :func:`vitnp.io.decode.file_hash`, arrays by
    :func:`vitnp.io.source.content_hash`.

    Parameters
    ----------
    folder : path
        The cache folder; the store is a subfolder of it. Nothing is made before something is written.
    spec : FeatureSpec
    notice : callable, optional
        Is told, in a line each, of damaged files that were thrown away. By default the log.

    Raises
    ------
    OutputError
        When there is a store that can't be read.

    Examples
    --------
    >>> store = FeatureStore("cache", FeatureSpec.of(vit))                                  # doctest: +SKIP
    >>> extract_to_store(["cat.jpg"], vit, store).hashes                                 # doctest: +SKIP
    ['1f0c…']
    >>> store.entry("1f0c…").keys.shape                                                  # doctest: +SKIP
    (540, 192)
    """

    def __init__(self, folder: Path | str, spec: FeatureSpec, *, notice: Callable[[str], None] | None = None) -> None:
        self.folder = Path(folder) / spec.name
        self.spec = spec
        self.notice = notice or logging.getLogger("vitnp").warning
        self._lock = threading.RLock()
        self._shards: dict[str, Shard] = {}
        self._sound: set[str] = set()  # names of shards whose checksum was found right
        self._damaged: set[str] = set()  # and of those that are damaged and can't be removed
        self._mapped: collections.OrderedDict[str, Mapping[str, np.ndarray]] = collections.OrderedDict()
        self._index: dict[str, tuple[Shard, int]] = {}
        self._writable = False
        self.refresh()

    def __contains__(self, photograph: str) -> bool:
        return photograph in self._index

    def __len__(self) -> int:
        return len(self._index)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._index))

    def refresh(self) -> None:
        """Take note of shards that other processes have added or removed; only headers of new ones are read."""
        with self._lock:
            try:
                names = {path.name for path in self.folder.iterdir() if path.suffix == shards.SUFFIX}
            except (FileNotFoundError, NotADirectoryError):
                names = set()
            except OSError as error:
                raise OutputError(
                    f"can't read the feature store {self.folder}: {error.strerror}; check its permissions"
                ) from None
            self._forget(self._shards.keys() - names)
            for name in sorted(names - self._shards.keys() - self._damaged):
                try:
                    shard = self._shards[name] = Shard(self.folder / name)
                    _take_up(self._index, shard)
                except DamagedShard:
                    self._throw_away(name)
                except FileNotFoundError:
                    continue  # another process was faster

    def entry(self, photograph: str) -> FeatureRecord:
        """The features of a photograph.

        Raises
        ------
        KeyError
            When the store doesn't have them.
        OutputError
            Later, when the arrays are asked for and turn out damaged.
        """
        shard, place = self._index[photograph]
        return shard.features(place, functools.partial(self._arrays, photograph))

    def patches(self, photographs: Sequence[str]) -> np.ndarray:
        """Numbers of patches of photographs, (len(photographs),) int64; no array is read."""
        return np.array([shard.patches(place) for shard, place in map(self._index.__getitem__, photographs)], np.int64)

    def blocks(self, photographs: Sequence[str]) -> Blocks:
        """Keys of photographs, a block for each, in the order given: what :class:`vitnp.clustering.kmeans.KMeans` reads."""
        return Blocks(self, tuple(photographs))

    def sample(self, photographs: Sequence[str], limit: int, seed: int | Sequence[int] = 0) -> np.ndarray:
        """Keys of patches drawn at random from all photographs, each with the same chance, none twice.

        The draw depends on the seed, the limit, the order of the photographs and their numbers of patches alone, not
        on how the store is laid out.

        Parameters
        ----------
        photographs : sequence of str
        limit : int
            Most patches; where there are no more than that, all are taken.
        seed : int or sequence of int

        Returns
        -------
        (M, D) float16 or float32
            In the order of the photographs and their patches.

        Raises
        ------
        KeyError
            When the store lacks one of them.
        UsageError
            When there is nothing to draw, or from.
        """
        if limit < 1 or not photographs:
            raise UsageError(
                f"{limit} patches can't be drawn from {len(photographs)} photographs; choose 1 or more of each"
            )
        ends = np.cumsum([0, *self.patches(photographs)])
        total = int(ends[-1])
        if total <= limit:
            return np.concatenate([*self.blocks(photographs)])
        chosen = np.sort(np.random.default_rng(seed).choice(total, limit, replace=False, shuffle=False))
        bounds = np.searchsorted(chosen, ends)
        pieces = [
            self.entry(photograph).keys[chosen[first:last] - start]
            for photograph, start, first, last in zip(photographs, ends, bounds, bounds[1:])
            if last > first
        ]
        return np.concatenate(pieces)

    def add(self, entries: Sequence[FeatureRecord]) -> None:
        """Write features as a shard of their own.

        Raises
        ------
        OutputError
            When that can't be done; nothing half-written is left behind.
        """
        if not entries:
            return
        self.make_writable()
        path = write_shard(self.folder, entries)
        with self._lock:
            self._sound.add(path.name)
            self._damaged.discard(path.name)
            self.refresh()

    def make_writable(self) -> None:
        """Make the folder unless it's there, see that it takes files, and clear it of what killed processes left.

        Raises
        ------
        OutputError
            When nothing can be written there.
        """
        with self._lock:
            if self._writable:
                return
            make_folder(self.folder)
            # For people who wonder what is in here; and the first sign of a folder that refuses files.
            write_json(self.folder / SPEC_FILE, self.spec.as_stored())
            _remove_leftovers(self.folder)
            self._writable = True

    def verify(self, photographs: Iterable[str] | None = None) -> None:
        """Compare shards with their checksums, once each; those that are damaged are thrown away, with a notice.

        Parameters
        ----------
        photographs : iterable of str, optional
            Only the shards that hold these; by default all.
        """
        with self._lock:
            wanted = list(self._index) if photographs is None else photographs
            found = {self._index[photograph][0] for photograph in wanted if photograph in self._index}
            for shard in sorted(found, key=lambda shard: shard.path):
                try:
                    self._check(shard)
                except DamagedShard:
                    self._throw_away(shard.path.name)
                except FileNotFoundError:
                    self.refresh()

    def prune(self, keep: Collection[str]) -> int:
        """Remove the features of all photographs but those in `keep`, and what is there twice.

        Returns
        -------
        int
            Bytes freed.

        Raises
        ------
        OutputError
            When the store can't be changed.
        """
        self.refresh()
        self.verify()
        freed, written, useless = 0, set(), []
        for shard in self._shards.values():
            kept = [name for name in shard.photographs if name in keep and self._index[name][0] is shard]
            if len(kept) == len(shard.photographs):
                continue
            useless.append(shard)
            if kept:
                self.make_writable()
                written.add(write_shard(self.folder, [self.entry(photograph) for photograph in kept]))
        # Not before all is written elsewhere, or a kill now would lose it.
        for shard in useless:
            freed += shard.bytes
            if shard.path not in written:
                _remove(shard.path)
        self.refresh()
        return freed - sum(path.stat().st_size for path in written)

    def _check(self, shard: Shard) -> None:
        if shard.path.name not in self._sound:
            shard.verify()
            self._sound.add(shard.path.name)

    def _arrays(self, photograph: str) -> Mapping[str, np.ndarray]:
        for _ in range(3):
            if photograph not in self._index:
                break
            shard, place = self._index[photograph]
            try:
                return shard.arrays(place, self._map(shard))
            except FileNotFoundError:
                # Another process has rewritten the shard: what it held is in one with a new name.
                self.refresh()
        raise OutputError(
            f"features are no longer in the feature store {self.folder}, pruned or damaged; run again to compute them"
        )

    def _map(self, shard: Shard) -> Mapping[str, np.ndarray]:
        """The arrays of a shard, mapped; the checksum is looked at the first time."""
        name = shard.path.name
        with self._lock:
            if name in self._mapped:
                self._mapped.move_to_end(name)
                return self._mapped[name]
            try:
                self._check(shard)
                mapped = self._mapped[name] = shard.map()
            except DamagedShard:
                self._throw_away(name)
                raise OutputError(
                    f"{shard.path} of the feature store is damaged; run again to compute its part anew"
                ) from None
            while len(self._mapped) > _MAPPED_SHARDS:
                self._mapped.popitem(last=False)
            return mapped

    def _throw_away(self, name: str) -> None:
        path = self.folder / name
        self.notice(f"{path} of the feature store is damaged; its features are computed anew")
        try:
            path.unlink(missing_ok=True)
        except OSError:
            # In a folder that can't be changed it's passed over from now on.
            self._damaged.add(name)
        self._forget({name})

    def _forget(self, names: Collection[str]) -> None:
        """Take no more note of shards. The index is replaced as a whole, for it's read without the lock."""
        if self._shards.keys().isdisjoint(names):
            return
        for name in names:
            self._shards.pop(name, None)
            self._mapped.pop(name, None)
        self._sound -= set(names)
        index: dict[str, tuple[Shard, int]] = {}
        for shard in self._shards.values():
            _take_up(index, shard)
        self._index = index


def _take_up(index: dict[str, tuple[Shard, int]], shard: Shard) -> None:
    """Note the photographs of a shard. Where one is in several shards any will do: their numbers are the same."""
    for photograph, place in shard.photographs.items():
        index.setdefault(photograph, (shard, place))


class Blocks:
    """Keys of photographs, read when they are asked for: blocks of rows, one a photograph, to be gone through any
    number of times, or any slice of all their rows, from any thread.

    Attributes
    ----------
    shape : (int, int)
        All rows, and D.
    dtype : numpy.dtype
    """

    def __init__(self, store: FeatureStore, photographs: tuple[str, ...]) -> None:
        self._store, self._photographs = store, photographs
        self._ends = np.cumsum([0, *store.patches(photographs)])
        width = store.entry(photographs[0]).keys.shape[1] if photographs else 0
        self.shape = int(self._ends[-1]), width
        self.dtype = np.dtype(store.spec.precision)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self._store.entry(photograph).keys for photograph in self._photographs)

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Consecutive rows, (n, D)."""
        first, last, step = rows.indices(self.shape[0])
        if step != 1:
            raise UsageError("rows of a store are read one after the other; take a slice without a step")
        pieces = [np.empty((0, self.shape[1]), self.dtype)]
        place = int(np.searchsorted(self._ends, first, side="right")) - 1
        while first < last:
            start, end = int(self._ends[place]), int(self._ends[place + 1])
            pieces.append(self._store.entry(self._photographs[place]).keys[first - start : last - start])
            first, place = end, place + 1
        return np.concatenate(pieces)


def prune(folder: Path | str, keep: Collection[str], *, notice: Callable[[str], None] | None = None) -> int:
    """Empty a cache folder, whatever the settings its stores were made with, of all photographs but those in `keep`.

    Parameters
    ----------
    folder : path
    keep : collection of str
        Fingerprints of photographs.
    notice : callable, optional
        As for the store.

    Returns
    -------
    int
        Bytes freed.

    Raises
    ------
    OutputError
        When it can't be changed.
    """
    freed = 0
    try:
        subfolders = sorted(path for path in Path(folder).iterdir() if path.is_dir())
    except OSError as error:
        raise OutputError(f"can't read the cache folder {folder}: {error.strerror}; check its path") from None
    for subfolder in subfolders:
        spec = _read_spec(subfolder)
        if spec is not None:
            freed += FeatureStore(folder, spec, notice=notice).prune(keep)
    return freed


def _read_spec(folder: Path) -> FeatureSpec | None:
    """Return the spec of the store in a folder; None for anything else, stores of other versions included."""
    try:
        fields = json.loads((folder / SPEC_FILE).read_bytes())
        spec = FeatureSpec.from_stored(fields)
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return spec if spec.name == folder.name else None


def _remove_leftovers(folder: Path) -> None:
    """Remove unfinished files of processes that were killed."""
    for path in folder.glob(".vitnp-*.part"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _LEFTOVER_AGE:
                path.unlink()


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"can't remove {path}: {error.strerror}; check the permissions of its folder") from None
