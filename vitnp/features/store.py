"""Features of many photographs on disk, so that none is computed twice and all together may exceed the memory.

A cache folder has one subfolder per :class:`vitnp.features.spec.FeatureSpec`, with any number of shards
(:mod:`vitnp.features.shards`). Writing only adds complete files, each named by a checksum of its content. So a process
that is killed loses no more than the shard it was writing, and several processes may use one store; at worst they
compute the same features twice.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from vitnp.errors import OutputError
from vitnp.features import shards
from vitnp.features.mapped import MappedShards
from vitnp.features.record import FeatureRecord
from vitnp.features.shards import DamagedShard, Shard, remove_shard, write_shard
from vitnp.features.spec import FeatureSpec
from vitnp.io.part_files import remove_abandoned
from vitnp.io.write import make_folder, write_json
from vitnp.kernels.threads.fork import unlocked_in_child
from vitnp.vit.model import ViT

SPEC_FILE = "identity.json"


class FeatureStore:
    """The features of photographs for one spec, by fingerprint (:func:`vitnp.io.source.fingerprint`).

    Reading is safe from several threads.

    Parameters
    ----------
    folder : path
        The cache folder; the store is a subfolder of it. It is created when features are written.
    spec : FeatureSpec
    notice : callable, optional
        Called with one line of text for each damaged file that was removed; by default the log.

    Attributes
    ----------
    folder : Path
        Folder of the store.

    Raises
    ------
    OutputError
        If the store cannot be read.

    Examples
    --------
    >>> store = FeatureStore("cache", FeatureSpec.of(vit))                               # doctest: +SKIP
    >>> extract_to_store(["cat.jpg"], vit, store).hashes                                 # doctest: +SKIP
    ['1f0c…']
    >>> store.entry("1f0c…").keys.shape                                                  # doctest: +SKIP
    (540, 192)
    """

    def __init__(self, folder: Path | str, spec: FeatureSpec, *, notice: Callable[[str], None] | None = None) -> None:
        self.folder = Path(folder) / spec.name
        self.spec = spec
        self.notice = notice or logging.getLogger("vitnp").warning
        self._lock = unlocked_in_child(threading.RLock())
        self._shards: dict[str, Shard] = {}
        self._verified: set[str] = set()  # names of shards whose checksum is correct
        self._fitting: set[str] = set()  # names of shards whose shapes are those of the network
        self._damaged: set[str] = set()  # names of damaged shards that cannot be removed
        self._mapped = MappedShards()
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
        """Update the index with shards that were added or removed by other processes; only headers are read.

        Raises
        ------
        OutputError
            If the folder cannot be read.
        """
        with self._lock:
            try:
                names = {path.name for path in self.folder.iterdir() if path.suffix == shards.SUFFIX}
            except (FileNotFoundError, NotADirectoryError):
                names = set()
            except OSError as error:
                raise OutputError(
                    f"cannot read the feature store {self.folder}: {error.strerror}; check its permissions"
                ) from None
            self._drop(self._shards.keys() - names)
            for name in sorted(names - self._shards.keys() - self._damaged):
                try:
                    shard = self._shards[name] = Shard(self.folder / name, self.spec)
                    _add_to_index(self._index, shard)
                except DamagedShard:
                    self._remove_damaged(name)
                except FileNotFoundError:
                    continue  # removed by another process in the meantime

    def entry(self, photograph: str) -> FeatureRecord:
        """Return the features of a photograph; its arrays are read when they are accessed.

        Accessing the arrays raises OutputError if they are damaged.

        Raises
        ------
        KeyError
            If the store does not have them.
        """
        shard, position = self._index[photograph]
        return shard.features(position, functools.partial(self._arrays, photograph))

    def patches(self, photographs: Sequence[str]) -> np.ndarray:
        """Return the number of patches of each photograph, (len(photographs),) int64; no array is read."""
        shards_of = [self._index[photograph] for photograph in photographs]
        return np.array([shard.patches(position) for shard, position in shards_of], np.int64)

    def add(self, entries: Sequence[FeatureRecord]) -> None:
        """Write features as one shard, in full or not at all.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        if not entries:
            return
        self.make_writable()
        path = write_shard(self.folder, entries, close=self._close)
        with self._lock:
            self._verified.add(path.name)
            self._damaged.discard(path.name)
            self.refresh()

    def close(self) -> None:
        """Close all mapped files before they are removed or replaced; they are mapped again when needed."""
        with self._lock:
            self._mapped.close_all()

    def make_writable(self) -> None:
        """Create the folder, check that it is writable, and remove unfinished files of killed processes.

        Raises
        ------
        OutputError
            If nothing can be written there.
        """
        with self._lock:
            if self._writable:
                return
            make_folder(self.folder)
            # Documents the store for people, and fails early if the folder is not writable.
            write_json(self.folder / SPEC_FILE, self.spec.as_stored())
            remove_abandoned(self.folder)
            self._writable = True

    def verify(self, photographs: Iterable[str] | None = None, vit: ViT | None = None) -> None:
        """Compare shards with their checksums, once each, and remove damaged ones with a notice.

        Parameters
        ----------
        photographs : iterable of str, optional
            Verify only the shards that hold these; by default all shards.
        vit : ViT, optional
            Network of the spec. Shards whose shapes are not those that it gives are damaged too, whatever their
            checksum says.
        """
        with self._lock:
            names = list(self._index) if photographs is None else photographs
            used = {self._index[photograph][0] for photograph in names if photograph in self._index}
            for shard in sorted(used, key=lambda shard: shard.path):
                try:
                    self._check(shard, vit)
                except DamagedShard:
                    self._remove_damaged(shard.path.name)
                except FileNotFoundError:
                    self.refresh()

    def prune(self, keep: Collection[str]) -> int:
        """Remove the features of all photographs but those in `keep`, and duplicates.

        Returns
        -------
        int
            Number of bytes freed.

        Raises
        ------
        OutputError
            If the store cannot be changed.
        """
        self.refresh()
        self.verify()
        freed = 0
        written: set[Path] = set()
        obsolete: list[Shard] = []
        for shard in self._shards.values():
            kept = [name for name in shard.photographs if name in keep and self._index[name][0] is shard]
            if len(kept) == len(shard.photographs):
                continue
            obsolete.append(shard)
            if kept:
                self.make_writable()
                entries = [self.entry(photograph) for photograph in kept]
                written.add(write_shard(self.folder, entries, close=self._close))
        # Only when everything to keep is in new shards: a process killed before loses nothing.
        for shard in obsolete:
            freed += shard.bytes
            if shard.path not in written:
                self._close(shard.path)
                remove_shard(shard.path)
        self.refresh()
        return freed - sum(path.stat().st_size for path in written)

    def _check(self, shard: Shard, vit: ViT | None = None) -> None:
        name = shard.path.name
        if name not in self._verified:
            shard.verify()
            self._verified.add(name)
        if vit is not None and name not in self._fitting:
            if not shard.fits(vit):
                raise DamagedShard
            self._fitting.add(name)

    def _arrays(self, photograph: str) -> Mapping[str, np.ndarray]:
        for _ in range(3):
            if photograph not in self._index:
                break
            shard, position = self._index[photograph]
            try:
                return shard.arrays(position, self._map(shard))
            except FileNotFoundError:
                # Another process has rewritten the shard; its features are in one with a new name.
                self.refresh()
        raise OutputError(
            f"features are no longer in the feature store {self.folder}, pruned or damaged; run again to compute them"
        )

    def _map(self, shard: Shard) -> Mapping[str, np.ndarray]:
        """Return the memory-mapped arrays of a shard, whose checksum is verified on the first access."""
        name = shard.path.name
        with self._lock:
            try:
                self._check(shard)
                return self._mapped[shard]
            except DamagedShard:
                self._remove_damaged(name)
                raise OutputError(
                    f"{shard.path} of the feature store is damaged; run again to compute its features anew"
                ) from None

    def _close(self, path: Path) -> None:
        """Close a file that is about to be removed or replaced."""
        with self._lock:
            self._mapped.close(path.name)

    def _remove_damaged(self, name: str) -> None:
        path = self.folder / name
        self.notice(f"{path} of the feature store is damaged; its features are computed anew")
        self._close(path)
        try:
            path.unlink(missing_ok=True)
        except OSError:
            # The folder is read-only: ignore the file from now on.
            self._damaged.add(name)
        self._drop({name})

    def _drop(self, names: Collection[str]) -> None:
        """Drop shards from the index, which is replaced as a whole because it is read without the lock."""
        if self._shards.keys().isdisjoint(names):
            return
        for name in names:
            self._shards.pop(name, None)
            self._mapped.close(name)
        self._verified -= set(names)
        self._fitting -= set(names)
        index: dict[str, tuple[Shard, int]] = {}
        for shard in self._shards.values():
            _add_to_index(index, shard)
        self._index = index


def _add_to_index(index: dict[str, tuple[Shard, int]], shard: Shard) -> None:
    """Add the photographs of a shard to an index; of a photograph in several shards the first one stays."""
    for photograph, position in shard.photographs.items():
        index.setdefault(photograph, (shard, position))
