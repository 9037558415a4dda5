"""Extract the features of many photographs: decode in parallel, run in batches of one size, in bounded memory."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Generator, Sequence

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
    """Result of :func:`extract_to_store`.

    Attributes
    ----------
    hashes : list of str or None
        Fingerprint of each photograph, the key to its features in the store; None if it failed.
    failures : dict of int to ImageError
        Errors by position of the photograph.
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
    """Extract the features of photographs that a store lacks; shards that it has are verified before they are used.

    The features are the same to the bit for any batch size, number of threads and order, and after interruptions. After
    an interruption the store has all features that were finished.

    Parameters
    ----------
    photographs : sequence of Photograph, path, PIL image or array
    vit : ViT
    store : FeatureStore
        Store whose spec was made from this network.
    n_threads : int, optional
        Number of photographs decoded, and of batches in the network, at the same time; by default one per core.
    batch : int, optional
        Maximum number of photographs per forward pass, see :func:`vitnp.features.batching.through_network`.
    max_pixels : int
        Larger photographs fail.
    progress : callable, optional
        Called with the number of photographs finished since the last call, like ``tqdm.update``.
    shard_bytes : int
        Size in bytes at which a shard is written.

    Returns
    -------
    Extraction

    Raises
    ------
    OutputError
        If the store cannot be written.
    UsageError
        If the features exceed the range of the store's precision.
    """
    hashes: list[str | None] = [None] * len(photographs)
    failures: dict[int, ImageError] = {}
    store.refresh()
    results = stream(
        photographs, vit, store.spec,
        skip=lambda index, photograph: in_store(store, photograph, vit),
        n_threads=n_threads, batch=batch, max_pixels=max_pixels,
    )  # fmt: skip
    with contextlib.closing(results), ShardWriter(store, shard_bytes) as writer:
        for result in results:
            if isinstance(result.error, ImageError):
                failures[result.index] = result.error
            else:
                hashes[result.index] = result.photograph
            if result.features is not None:
                writer.add(result.features)
            if progress is not None:
                progress(1)
    return Extraction(hashes, dict(sorted(failures.items())))


def in_store(store: FeatureStore, photograph: str, vit: ViT) -> bool:
    """Return whether a store has the features of a photograph, undamaged; if not, check that they can be written.

    Raises
    ------
    OutputError
        If the store cannot be written: before features are computed that would be lost.
    """
    if photograph in store:
        store.verify([photograph], vit)
    if photograph in store:
        return True
    store.make_writable()
    return False


class ShardWriter:
    """Collect features and write them to a store in shards.

    As a context manager it writes the last, smaller shard at the end, after an exception or an interruption as well.

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
        """Add the features of a photograph, unless it was added before.

        Raises
        ------
        OutputError
            If a full shard cannot be written; its features are lost.
        """
        if features.photograph in self._entries:
            return
        self._entries[features.photograph] = features
        self._bytes += sum(array.nbytes for array in features.arrays().values())
        if self._bytes >= self._limit:
            self.flush()

    def flush(self) -> None:
        """Write the features added since the last shard."""
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
) -> Generator[Job, None, None]:
    """Extract the features of photographs, in the order in which they are done.

    Parameters
    ----------
    photographs : sequence of Photograph, path, PIL image or array
    vit : ViT
    spec : FeatureSpec
        Made from this network.
    skip : callable
        Called with the position and fingerprint of a photograph, from several threads; if it returns True, the
        photograph is not processed.
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
            photograph = fingerprint(source, alpha=spec.alpha)
            if skip(index, photograph):
                return Job(index, photograph)
            with opened(source, max_pixels, spec.alpha) as image, kernels.own_stream(vit.device):
                return Job(index, photograph, prepare(image.rgb, vit, spec, photograph, profile=image.profile))
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
