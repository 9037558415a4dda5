"""Describe many photographs: what an index knows already is taken from it, and all else goes through the network."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import threading
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import numpy as np

from vitnp.errors import ImageError
from vitnp.features.batching import Job
from vitnp.features.store import FeatureStore
from vitnp.features.stream import ShardWriter, in_store, stream
from vitnp.io.decode import MAX_PIXELS
from vitnp.io.source import Source, path_of
from vitnp.io.write import check_names, prepare_folder
from vitnp.kernels.threads import pool
from vitnp.retrieval.descriptor import Describer
from vitnp.retrieval.index import Entry, Index, stamp_of

# Number of new vectors after which the index file is written, so that a killed process loses no more.
SAVE_EVERY = 5000

# Number of photographs after which the mapped files of a store are closed, whose pages count as memory until then.
_MAPPED_PHOTOGRAPHS = 500


@dataclasses.dataclass(frozen=True)
class Run:
    """How photographs are described, whatever they are.

    Attributes
    ----------
    store : FeatureStore, optional
        Features that it has are not computed again; others are added to it.
    n_threads, batch, max_pixels
        As for :func:`vitnp.features.stream.extract_to_store`.
    progress : callable, optional
        Called with the number of photographs finished since the last call, like ``tqdm.update``.
    """

    store: FeatureStore | None = None
    n_threads: int | None = None
    batch: int | None = None
    max_pixels: int = MAX_PIXELS
    progress: Callable[[int], object] | None = None


@dataclasses.dataclass(frozen=True)
class Described:
    """Result of :func:`describe`.

    Attributes
    ----------
    index : Index
    rows : list of int or None
        Row of each photograph in the index; None if it failed.
    failures : dict of int to ImageError
        Errors by position of the photograph.
    changed : bool
        Whether the index had to be changed.
    """

    index: Index
    rows: list[int | None]
    failures: dict[int, ImageError]
    changed: bool

    def entry(self, position: int) -> Entry:
        """Return what the index knows of a photograph that was read."""
        row = self.rows[position]
        assert row is not None
        return self.index.entries[row]

    def vector_rows(self, positions: Sequence[int]) -> np.ndarray:
        """Return the rows of photographs that were read in the index, (len(positions),) int64."""
        return np.array([self.rows[position] for position in positions], np.int64)

    @property
    def with_vector(self) -> list[int]:
        """Positions of the photographs that have a vector other than zeros."""
        return [position for position, row in enumerate(self.rows) if row is not None and self.index.has_vector(row)]

    @property
    def without_object(self) -> list[int]:
        """Positions of the photographs that were read, but show no object."""
        return [
            position for position, row in enumerate(self.rows) if row is not None and not self.index.has_vector(row)
        ]


def describe_with_index(
    photographs: Sequence[Source], describer: Describer, path: str | os.PathLike[str] | None, run: Run = Run()
) -> Described:
    """Describe photographs with an index file, which is made or renewed.

    Photographs that were described are added to the file, those that have changed are replaced, and those that are gone
    are removed; of other folders, those that still exist are kept. What is finished is in the file after an
    interruption as well.

    Parameters
    ----------
    photographs, describer, run
        As for :func:`describe`.
    path : path, optional
        The index file; without, the index is in memory alone.

    Raises
    ------
    OutputError
        If the file exists and is not an index, is damaged, or cannot be written.
    UsageError
        If it was made with another network or other options.
    """
    if path is None:
        return describe(photographs, describer, Index(describer, room=len(photographs)), run)
    index = Index.load(path, describer, room=len(photographs))
    prepare_folder(Path(path).parent)  # before hours of work that could not be kept
    check_names([path])
    given = {os.path.abspath(file) for file in map(path_of, photographs) if file is not None}
    gone = [known for known in index.paths() if known not in given and not os.path.exists(known)]
    for known in gone:
        index.forget(known)
    described = describe(photographs, describer, index, run, save=functools.partial(index.save, path))
    if gone and not described.changed:
        index.save(path)
    return described


def describe(
    photographs: Sequence[Source],
    describer: Describer,
    index: Index,
    run: Run = Run(),
    *,
    save: Callable[[], object] | None = None,
) -> Described:
    """Add the vectors of photographs to an index, unless it has them.

    A file with the size and time of the last change that the index knows is not read. A file that was moved, copied or
    touched is read, but does not go through the network. The vectors are the same to the bit for any batch size, number
    of threads and order.

    Parameters
    ----------
    photographs : sequence of Photograph, path, PIL image or array
    describer : Describer
    index : Index
        Changed in place.
    run : Run
    save : callable, optional
        Writes the index; called now and then, and at the end, after an exception as well, if there was anything new.

    Raises
    ------
    OutputError
        If the store or the index cannot be written.
    UsageError
        If the features exceed the range of the store's precision.
    """
    files = [_File.of(photograph) for photograph in photographs]
    rows = [None if file is None else index.row_of_path(file.path, file.stamp) for file in files]
    todo = [position for position, row in enumerate(rows) if row is None]
    progress = run.progress or (lambda steps: None)
    progress(len(rows) - len(todo))
    failures: dict[int, ImageError] = {}
    unsaved = 0
    try:
        for position, fingerprint, found in _vectors(photographs, todo, describer, index, run):
            file = files[position]
            if isinstance(found, ImageError):
                failures[position] = found
                gone = path_of(photographs[position])
                if gone is not None:
                    index.forget(os.path.abspath(gone))
            else:
                path, stamp = ("", (0, 0)) if file is None else (file.path, file.stamp)
                rows[position] = index.add(Entry(path, stamp, fingerprint, found.size), found.vector)
            unsaved += 1
            if save is not None and unsaved >= SAVE_EVERY:
                save()
                unsaved = 0
            progress(1)
    finally:
        if save is not None and unsaved:
            save()
    return Described(index, rows, dict(sorted(failures.items())), changed=bool(todo))


@dataclasses.dataclass(frozen=True)
class _File:
    path: str
    stamp: tuple[int, int]

    @classmethod
    def of(cls, photograph: Source) -> _File | None:
        """Return absolute path and stamp of a photograph, before it is read; None if it is no file."""
        path = path_of(photograph)
        stamp = None if path is None else stamp_of(path)
        return None if path is None or stamp is None else cls(os.path.abspath(path), stamp)


@dataclasses.dataclass(frozen=True, eq=False)
class _Vector:
    vector: np.ndarray
    size: tuple[int, int]


def _vectors(
    photographs: Sequence[Source], todo: Sequence[int], describer: Describer, index: Index, run: Run
) -> Generator[tuple[int, str, _Vector | ImageError], None, None]:
    """Yield position, fingerprint and vector, or error, of photographs, in the order in which they are done.

    Of files with the same bytes one goes through the network.
    """
    claims = _Claims(index, run.store, describer)
    same: list[tuple[int, str]] = []
    for position, job, found in _through_network(photographs, todo, describer, run, claims):
        if found is None:
            assert job.photograph is not None  # those that cannot be read have an error
            same.append((position, job.photograph))
        else:
            yield position, job.photograph or "", found
    failed: list[int] = []
    for position, fingerprint in same:
        row = index.row_of(fingerprint)
        if row is None:
            failed.append(position)
        else:
            yield position, fingerprint, _Vector(index.vectors[row], index.entries[row].size)
    # The file with the same bytes has failed, and so will these, under their own names.
    for position, job, found in _through_network(photographs, failed, describer, run, None):
        assert found is not None
        yield position, job.photograph or "", found


class _Claims:
    """Decide which photographs need not go through the network; called from several threads."""

    def __init__(self, index: Index, store: FeatureStore | None, describer: Describer) -> None:
        self._index, self._store, self._vit = index, store, describer.vit
        self._claimed: set[str] = set()
        self._lock = threading.Lock()

    def skip(self, index: int, photograph: str) -> bool:
        """Return whether the vector is known, will be that of another file, or its features are in the store."""
        with self._lock:
            if photograph in self._claimed or self._index.row_of(photograph) is not None:
                return True
            self._claimed.add(photograph)
        return self._store is not None and in_store(self._store, photograph, self._vit)


def _through_network(
    photographs: Sequence[Source], todo: Sequence[int], describer: Describer, run: Run, claims: _Claims | None
) -> Generator[tuple[int, Job, _Vector | ImageError | None], None, None]:
    """Yield position, job and vector, or error, of photographs; None for those that were skipped."""
    store = run.store
    sources = [photographs[position] for position in todo]
    skip = {} if claims is None else {"skip": claims.skip}

    def work(job: Job) -> tuple[Job, _Vector | ImageError | None]:
        if job.error is not None:
            assert isinstance(job.error, ImageError)  # outputs are not written here
            return job, job.error
        features = job.features
        if features is None and job.photograph is not None and store is not None and job.photograph in store:
            features = store.entry(job.photograph)
        return job, None if features is None else _Vector(describer(features), features.size)

    with (
        contextlib.closing(
            stream(
                sources, describer.vit, describer.spec, **skip,
                n_threads=run.n_threads, batch=run.batch, max_pixels=run.max_pixels,
            )
        ) as jobs,
        contextlib.nullcontext() if store is None else ShardWriter(store) as writer,
        contextlib.closing(pool.map_ordered(work, jobs, pool.resolve_n_threads(run.n_threads))) as done,
    ):  # fmt: skip
        for count, (job, found) in enumerate(done, 1):
            if job.features is not None and writer is not None:
                writer.add(job.features)
            yield todo[job.index], job, found
            if store is not None and count % _MAPPED_PHOTOGRAPHS == 0:
                store.close()
