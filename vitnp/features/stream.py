"""Features of many photographs: decoded side by side, batched by size, in bounded memory."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

from vitnp import kernels
from vitnp.errors import ImageError
from vitnp.features.batching import Job, through_network
from vitnp.features.extract import extract_batch, prepare
from vitnp.features.record import FeatureRecord
from vitnp.features.shards import SHARD_BYTES
from vitnp.features.spec import FeatureSpec
from vitnp.features.store import FeatureStore
from vitnp.io.decode import MAX_PIXELS
from vitnp.io.source import Source, fingerprint, opened
from vitnp.kernels.threads import blas, pool
from vitnp.vit.model import ViT


@dataclasses.dataclass(frozen=True)
class Extraction:
    """What :func:`extract_to_store` did.

    Attributes
    ----------
    hashes : list of str or None
        Fingerprint of each photograph, under which the store has its features; None where it failed.
    failures : dict of int to ImageError
        What went wrong, by the photograph's place among those given.
    """

    hashes: list[str | None]
    failures: dict[int, ImageError]


def extract_to_store(
    photographs: Sequence[Source],
    vit: ViT,
    store: FeatureStore,
    *,
    n_threads: int | None = None,
    batch: int | None = None,
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[int], object] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Extraction:
    """See to it that a store has the features of photographs; shards that it has are checked before they are relied on.

    The features are the same to the bit whatever the batches, the threads, the order, and the breaks in between. When
    it's interrupted, all that was finished is in the store.

    Parameters
    ----------
    photographs : sequence of Photograph, path, PIL image or array
    vit : ViT
    store : FeatureStore
        With the spec of this network.
    n_threads : int, optional
        Photographs decoded, and batches in the network, at the same time; by default one a core.
    batch : int, optional
        Most photographs in a batch. By default 8 on the CPU, and what fits into half of the free memory on a GPU, where a batch
        that doesn't fit is halved, and tried again.
    max_pixels : int
        Larger photographs are failures.
    progress : callable, optional
        Called with the number of photographs that have come to an end since the last call (``tqdm.update``).
    shard_bytes : int
        Size at which a shard is written.

    Returns
    -------
    Extraction

    Raises
    ------
    OutputError
        When the store can't be written.
    UsageError
        When the features don't fit the precision of the store.
    """
    hashes: list[str | None] = [None] * len(photographs)
    failures: dict[int, ImageError] = {}
    store.refresh()
    results = stream(
        photographs, vit, store.spec,
        skip=lambda index, photograph: in_store(store, photograph),
        n_threads=n_threads, batch=batch, max_pixels=max_pixels,
    )  # fmt: skip
    with contextlib.closing(results), ShardWriter(store, shard_bytes) as writer:
        for result in results:
            if result.error is not None:
                failures[result.index] = result.error
            else:
                hashes[result.index] = result.photograph
            if result.features is not None:
                writer.add(result.features)
            if progress is not None:
                progress(1)
    return Extraction(hashes, dict(sorted(failures.items())))


def in_store(store: FeatureStore, photograph: str) -> bool:
    """Whether a store has sound features of a photograph; if not, it's seen to that it can be given them.

    Raises
    ------
    OutputError
        When the store can't be written: before any work is done that couldn't be kept.
    """
    if photograph in store:
        store.verify([photograph])
    if photograph in store:
        return True
    store.make_writable()
    return False


class ShardWriter:
    """Gathers features and writes them to a store, a shard at a time.

    As a context manager it writes the last, smaller shard at the end, after an exception or an interruption too: what
    is computed is kept.

    Parameters
    ----------
    store : FeatureStore
    shard_bytes : int
        Size at which a shard is written.
    """

    def __init__(self, store: FeatureStore, shard_bytes: int = SHARD_BYTES) -> None:
        self._store, self._limit = store, shard_bytes
        self._entries: dict[str, FeatureRecord] = {}
        self._bytes = 0

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.flush()

    def add(self, features: FeatureRecord) -> None:
        """Take the features of a photograph; of one that is there already nothing happens.

        Raises
        ------
        OutputError
            When a shard was full and can't be written; what it held is lost.
        """
        if features.photograph in self._entries:
            return
        self._entries[features.photograph] = features
        self._bytes += sum(array.nbytes for array in features.arrays().values())
        if self._bytes >= self._limit:
            self.flush()

    def flush(self) -> None:
        """Write what has been gathered."""
        entries, self._entries, self._bytes = list(self._entries.values()), {}, 0
        self._store.add(entries)


def stream(
    photographs: Sequence[Source],
    vit: ViT,
    spec: FeatureSpec,
    *,
    skip: Callable[[int, str], bool] = lambda index, photograph: False,
    n_threads: int | None = None,
    batch: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[Job]:
    """Extract the features of photographs, in the order in which they are done.

    Parameters
    ----------
    photographs : sequence of Photograph, path, PIL image or array
    vit : ViT
    spec : FeatureSpec
        Made from this network.
    skip : callable
        Tells from a photograph's position and fingerprint whether it needs no work. Called from several threads.
    n_threads, batch, max_pixels
        As for :func:`extract_to_store`.

    Yields
    ------
    Job
        One per photograph, with its features, its error, or neither if it was skipped.

    Raises
    ------
    UsageError
        If the features exceed the range of ``spec.precision``.
    """
    n_threads = pool.resolve_n_threads(n_threads)

    def decode(item: tuple[int, Source]) -> Job:
        index, source = item
        try:
            photograph = fingerprint(source)
            if skip(index, photograph):
                return Job(index, photograph)
            with opened(source, max_pixels) as rgb:
                return Job(index, photograph, prepare(rgb, vit, spec, photograph))
        except ImageError as error:
            return Job(index, error=error)

    extract = functools.partial(extract_batch, vit=vit, spec=spec, place=kernels.to_host)
    with (
        blas.one_blas_thread(),
        contextlib.closing(pool.map_ordered(decode, enumerate(photographs), n_threads)) as jobs,
        contextlib.closing(
            through_network(jobs, vit, extract, batch=batch, stride=spec.stride, n_threads=n_threads)
        ) as done,
    ):
        yield from done
