"""Stream the features of many photographs, read from a store where it has them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence

from vitnp.features.batching import Job
from vitnp.features.spec import FeatureSpec
from vitnp.features.store import FeatureStore
from vitnp.features.stream import ShardWriter, in_store, stream
from vitnp.io.decode import MAX_PIXELS
from vitnp.io.source import Source
from vitnp.vit.model import ViT


def stream_through_store(
    photographs: Sequence[Source],
    vit: ViT,
    spec: FeatureSpec,
    store: FeatureStore | None,
    *,
    skip: Callable[[int, str], bool] = lambda index, photograph: False,
    n_threads: int | None = None,
    batch: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Generator[Job, None, None]:
    """Extract features as :func:`vitnp.features.stream.stream` does; those of a store are read, and others added to it.

    Parameters
    ----------
    photographs, vit, spec, skip, n_threads, batch, max_pixels
        As for :func:`vitnp.features.stream.stream`.
    store : FeatureStore, optional

    Yields
    ------
    Job
        One per photograph, in the order in which they are done, with its features unless it failed or was skipped.

    Raises
    ------
    OutputError
        If the store cannot be written.
    UsageError
        If the features exceed the range of ``spec.precision``.
    """
    skipped: set[int] = set()

    def leave_out(index: int, photograph: str) -> bool:
        if skip(index, photograph):
            skipped.add(index)
            return True
        return store is not None and in_store(store, photograph, vit)

    with contextlib.ExitStack() as stack:
        jobs = stack.enter_context(
            contextlib.closing(
                stream(photographs, vit, spec, skip=leave_out, n_threads=n_threads, batch=batch, max_pixels=max_pixels)
            )
        )
        writer = None if store is None else stack.enter_context(ShardWriter(store))
        for job in jobs:
            if job.features is not None and writer is not None:
                writer.add(job.features)
            elif job.photograph is not None and job.error is None and job.index not in skipped and store is not None:
                job.features = store.entry(job.photograph)
            yield job
