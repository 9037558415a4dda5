"""Many photographs through the ViT: decoded side by side, batched with others of the same grid, memory bounded."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from vitnp import kernels
from vitnp.errors import ImageError, UsageError
from vitnp.features.batching import BatchSizer, group_by_shape
from vitnp.features.extract import Prepared, as_batch, prepare
from vitnp.features.record import FeatureRecord
from vitnp.features.shards import SHARD_BYTES
from vitnp.features.spec import FeatureSpec
from vitnp.features.store import FeatureStore
from vitnp.io.decode import MAX_PIXELS
from vitnp.io.source import Source, content_hash, fingerprint, opened
from vitnp.kernels.threads import blas, pool
from vitnp.vit.model import ViT


@dataclasses.dataclass(frozen=True)
class Extracted:
    """What became of one photograph.

    Attributes
    ----------
    index : int
        Its place among those given.
    photograph : str or None
        Its fingerprint; None where it can't be read.
    features : FeatureRecord or None
        None for one that was skipped or failed.
    error : ImageError or None
    """

    index: int
    photograph: str | None = None
    features: FeatureRecord | None = None
    error: ImageError | None = None


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
    threads: int | None = None,
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
        With the identity of this network.
    threads : int, optional
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
        photographs, vit, store.identity,
        skip=lambda index, photograph: in_store(store, photograph),
        n_threads=threads, batch=batch, max_pixels=max_pixels,
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
    identity: FeatureSpec,
    *,
    skip: Callable[[int, str], bool] = lambda index, photograph: False,
    n_threads: int | None = None,
    batch: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[Extracted]:
    """Features of photographs, in the order in which they are done.

    Parameters
    ----------
    photographs : sequence of Photograph, path, PIL image or array
    vit : ViT
    identity : FeatureSpec
        Of this network: it holds the options.
    skip : callable
        Given a photograph's place and fingerprint, whether it needs no work. Called from several threads.
    n_threads, batch, max_pixels
        As for :func:`extract_to_store`.

    Yields
    ------
    Extracted
        One for each photograph.

    Raises
    ------
    UsageError
        When the features don't fit the precision.
    """
    if batch is not None and batch < 1:
        raise UsageError(f"the batch is {batch}; choose 1 or more")
    count = pool.resolve_n_threads(n_threads)
    at_once = BatchSizer(vit, batch)
    run = partial(_run, vit=vit, identity=identity, at_once=at_once)
    decode = partial(_decode, vit=vit, identity=identity, skip=skip, max_pixels=max_pixels)
    with (
        blas.one_blas_thread(),
        contextlib.closing(pool.map_ordered(decode, enumerate(photographs), count)) as decoded,
        contextlib.closing(group_by_shape(decoded, _kind, at_once.most)) as batches,
        # A GPU does one thing after the other anyhow.
        contextlib.closing(pool.map_ordered(run, batches, count if vit.device == "cpu" else 1)) as results,
    ):
        for group in results:
            yield from group


def stored_features(rgb: np.ndarray, vit: ViT, identity: FeatureSpec) -> FeatureRecord:
    """The features of one photograph as a store would have them, without one, on the network's device.

    Parameters
    ----------
    rgb : (height, width, 3) uint8
    vit : ViT
    identity : FeatureSpec
        Of this network.

    Raises
    ------
    UsageError
        When the features don't fit the precision.
    """
    decoded = Decoded(0, content_hash(rgb), rgb.shape[:2], _prepare(rgb, vit, identity))
    (features,) = stored_batch([decoded], vit, identity, lambda array: array)
    return features


@dataclasses.dataclass(frozen=True)
class Decoded:
    """A photograph on its way into the network.

    Attributes
    ----------
    index : int
        Its place among those given.
    photograph : str
        Its fingerprint.
    size : (int, int)
        Height and width in pixels.
    prepared : Prepared
    """

    index: int
    photograph: str
    size: tuple[int, int]
    prepared: Prepared


def _decode(
    item: tuple[int, Source], *, vit: ViT, identity: FeatureSpec, skip: Callable[[int, str], bool], max_pixels: int
) -> Decoded | Extracted:
    index, source = item
    try:
        photograph = fingerprint(source)
        if skip(index, photograph):
            return Extracted(index, photograph)
        with opened(source, max_pixels) as rgb:
            return Decoded(index, photograph, rgb.shape[:2], _prepare(rgb, vit, identity))
    except ImageError as error:
        return Extracted(index, error=error)


def _prepare(rgb: np.ndarray, vit: ViT, identity: FeatureSpec) -> Prepared:
    return prepare(rgb, vit, size=identity.size, stride=identity.stride, max_tokens=identity.max_tokens)


def _kind(item: Decoded | Extracted) -> tuple[int, ...] | None:
    """Of photographs that can go together; None for what needs no network."""
    return None if isinstance(item, Extracted) else item.prepared.pixels.shape


def _run(
    group: list[Decoded] | list[Extracted], *, vit: ViT, identity: FeatureSpec, at_once: BatchSizer
) -> list[Extracted]:
    if isinstance(group[0], Extracted):
        return group
    rows, columns = vit.grid(*group[0].prepared.pixels.shape[:2], identity.stride)
    run = partial(stored_batch, vit=vit, identity=identity)
    return [
        Extracted(item.index, item.photograph, features)
        for batch, found in at_once.through(group, rows * columns, run)
        for item, features in zip(batch, found)
    ]


def stored_batch(
    group: Sequence[Decoded],
    vit: ViT,
    identity: FeatureSpec,
    place_for: Callable[[np.ndarray], np.ndarray] = kernels.to_host,
) -> list[FeatureRecord]:
    """Features of photographs of one grid, in one pass.

    Parameters
    ----------
    group : sequence of Decoded
    vit : ViT
    identity : FeatureSpec
        Of this network.
    place_for : callable
        Brings arrays to where they are kept.

    Raises
    ------
    UsageError
        When the features don't fit the precision.
    """
    found = {
        name: place_for(array)
        for name, array in _forward(as_batch([item.prepared for item in group], vit), vit, identity).items()
    }
    _refuse_overflow(found, identity)
    features = []
    for place, item in enumerate(group):
        arrays = {name: kernels.array_module(array).ascontiguousarray(array[place]) for name, array in found.items()}
        features.append(
            FeatureRecord(
                photograph=item.photograph,
                grid=vit.grid(*item.prepared.pixels.shape[:2], identity.stride),
                pixels=item.prepared.pixels.shape[:2],
                size=item.size,
                digest=item.prepared.digest,
                capped=item.prepared.capped,
                arrays=arrays.copy,
            )
        )
    return features


def _forward(batch: np.ndarray, vit: ViT, identity: FeatureSpec) -> dict[str, np.ndarray]:
    """The arrays of a store, one entry an image in front."""
    by_regions = ("key", "value", "cls_state") if identity.regions else ()
    if identity.layer == vit.config.depth - 1:
        wanted = dict.fromkeys((identity.facet, "attention", "cls", *by_regions))
        found = last = vit(batch, wanted, stride=identity.stride)
    else:
        found = vit(batch, (identity.facet, "attention"), layer=identity.layer, stride=identity.stride)
        last = vit(batch, ("cls", *by_regions), stride=identity.stride)
    arrays = {
        "keys": _stored(found[identity.facet], identity),
        "attention": found["attention"].mean(axis=1, dtype=np.float32),
        "cls": last["cls"].astype(np.float32, copy=False),
    }
    if identity.regions:
        arrays["cls_state"] = last["cls_state"].astype(np.float32, copy=False)
        arrays["value"] = _stored(last["value"], identity)
        if not identity.keys_are_last(vit):
            arrays["last_key"] = _stored(last["key"], identity)
    return arrays


def _stored(rows: np.ndarray, identity: FeatureSpec) -> np.ndarray:
    with np.errstate(over="ignore"):
        return rows.astype(identity.precision)


def _refuse_overflow(arrays: dict[str, np.ndarray], identity: FeatureSpec) -> None:
    stored = [arrays[name] for name in ("keys", "value", "last_key") if name in arrays]
    if not all(kernels.array_module(rows).isfinite(rows).all() for rows in stored):
        raise UsageError(
            f"the network gives features that {identity.precision} can't hold; "
            + (
                "another facet or layer may fit, and python -m vitnp.features has --dtype float32"
                if identity.precision == "float16"
                else "the checkpoint is damaged"
            )
        )
