"""Run the work of a Segmenter on a cluster of dask workers."""

from __future__ import annotations

import collections
import contextlib
import functools
import hashlib
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitnp.clustering.chunks import Chunk
from vitnp.distributed import tasks
from vitnp.errors import ClusterError, VitnpError
from vitnp.features.shared import StoredKeys, await_photographs
from vitnp.features.store import SPEC_FILE, FeatureStore
from vitnp.features.stream import Extraction, extract_to_store
from vitnp.io import decode
from vitnp.io.source import Source, path_of
from vitnp.vit.model import ViT

if TYPE_CHECKING:
    from distributed import Client, Future

# Photographs per task: a task of a second or more hides the cost of scheduling, and a killed worker loses little.
PHOTOGRAPHS_PER_TASK = 16

# Bytes of rows that workers keep between passes, at most. The scheduler holds a copy, in case a worker is lost.
_KEPT_BYTES = 256 << 20

# Seconds without any worker after which the run fails.
_WORKERLESS_SECONDS = 60


class Cluster:
    """Run the extraction and the passes of k-means on dask workers; made by :func:`vitnp.distributed.connected`.

    Parameters
    ----------
    client : distributed.Client
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        self._kept: collections.OrderedDict[str, tuple[Future, int]] = collections.OrderedDict()

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """Yield ``function(item)`` for each item, in order: a `mapper` for :meth:`vitnp.clustering.kmeans.KMeans.fit`.

        Rows of chunks are sent once and stay with a worker between passes. Rows of a store in a shared folder are not
        sent at all.

        Parameters
        ----------
        function : callable
        items : iterable
            Items of any type. For a :class:`vitnp.clustering.chunks.Chunk`, or a tuple that begins with one, rows are
            handled as described.

        Raises
        ------
        ClusterError
            If all workers or the connection are lost.
        """
        items = iter(items)
        first = list(itertools.islice(items, 2))
        if len(first) < 2:  # sending a single item would only cost time
            yield from map(function, first)
            return
        yield from self._in_order(functools.partial(self._submit_item, function), itertools.chain(first, items))

    def extract_to_store(
        self,
        photographs: Sequence[Source],
        vit: ViT,
        store: FeatureStore,
        *,
        n_threads: int | None = None,
        max_pixels: int = decode.MAX_PIXELS,
        progress: Callable[[int], object] | None = None,
    ) -> Extraction:
        """Extract features like :func:`vitnp.features.stream.extract_to_store`, on workers.

        Parameters
        ----------
        photographs : sequence of Photograph, path, PIL image or array
            Workers must see files under the same absolute path. Photographs in memory are processed here.
        vit : ViT
            Network from a file or a registered name; each worker loads it once.
        store : FeatureStore
            Store in a folder that all machines share.
        n_threads : int, optional
            Number of threads for photographs in memory.
        max_pixels, progress
            As for :func:`vitnp.features.stream.extract_to_store`.

        Returns
        -------
        Extraction

        Raises
        ------
        CheckpointError
            If a worker does not have the same checkpoint.
        ClusterError
            If a worker does not see the photographs or the store, or all workers are lost.
        OutputError
            If the store cannot be written.
        """
        result = Extraction([None] * len(photographs), {})
        paths = [path_of(photograph) for photograph in photographs]
        in_memory = [index for index, path in enumerate(paths) if path is None]
        if in_memory:
            part = extract_to_store(
                [photographs[index] for index in in_memory],
                vit,
                store,
                n_threads=n_threads,
                max_pixels=max_pixels,
                progress=progress,
            )
            _merge(part, in_memory, result)
        if not (store.folder / SPEC_FILE).exists():
            store.make_writable()  # writes SPEC_FILE, by which workers recognize the folder
        network = tasks.NetworkReference.of(vit)
        folder = os.path.abspath(store.folder.parent)
        files = [(index, path) for index, path in enumerate(paths) if path is not None]
        groups = [files[start : start + PHOTOGRAPHS_PER_TASK] for start in range(0, len(files), PHOTOGRAPHS_PER_TASK)]

        def submit(group: list[tuple[int, Path]]) -> Future:
            absolute = [os.path.abspath(path) for _, path in group]
            return self._submit(tasks.extract, absolute, network, folder, store.spec, max_pixels)

        for group, (part, missing) in zip(groups, self._in_order(submit, groups)):
            for position in missing:
                # A photograph that is missing on this machine too is one failure among others; see Extraction.
                if (path := group[position][1]).exists():
                    raise ClusterError(
                        f"a worker does not see {path}; move the photographs to a folder that all machines share"
                    )
            _merge(part, [index for index, _ in group], result)
            if progress is not None:
                progress(len(group))
        await_photographs(store, {photograph for photograph in result.hashes if photograph is not None})
        return Extraction(result.hashes, dict(sorted(result.failures.items())))

    def _submit(self, function: Callable[..., Any], *arguments: Any) -> Future:
        return self.client.submit(tasks.run_checked, tasks.versions(), function, *arguments, pure=False)

    def _submit_item(self, function: Callable[[Any], Any], item: Any) -> Future:
        if isinstance(item, Chunk):
            return self._submit(function, self._portable(item))
        if isinstance(item, tuple) and item and isinstance(item[0], Chunk):
            return self._submit(tasks.call_with_tuple, function, self._portable(item[0]), *item[1:])
        return self._submit(function, item)

    def _portable(self, chunk: Chunk) -> Chunk | Future:
        """Return what is sent for a chunk: a reference to rows of a store, or to rows that a worker keeps."""
        if isinstance(chunk.source, StoredKeys):
            return Chunk(chunk.first, chunk.source.part(chunk.part), slice(None))
        rows = np.ascontiguousarray(chunk.source[chunk.part])
        # The key is a hash of the content, so that changed rows are sent again. SHA-256 because processors have
        # instructions for it, and this happens in every pass.
        digest = hashlib.sha256(f"{chunk.first} {rows.shape} {rows.dtype.str}".encode())
        digest.update(rows.data)
        key = f"vitnp-rows-{digest.hexdigest()}"
        if key in self._kept:
            self._kept.move_to_end(key)
        else:
            # A task instead of scattered data, because dask can repeat it if the worker that has the rows is lost.
            future = self.client.submit(tasks.return_chunk, Chunk(chunk.first, rows, slice(None)), key=key)
            self._kept[key] = future, rows.nbytes
            while len(self._kept) > 1 and sum(size for _, size in self._kept.values()) > _KEPT_BYTES:
                self._kept.popitem(last=False)
        return self._kept[key][0]

    def _in_order(self, submit: Callable[[Any], Future], items: Iterable[Any]) -> Iterator[Any]:
        """Yield results in the order of the items.

        Few tasks are submitted at a time, so that memory stays bounded here and at the scheduler.
        """
        limit = max(4, 3 * sum(self.client.nthreads().values()))
        waiting: collections.deque[Future] = collections.deque()
        try:
            for item in items:
                waiting.append(submit(item))
                if len(waiting) >= limit:
                    yield self._result(waiting[0])
                    waiting.popleft()
            while waiting:
                yield self._result(waiting[0])
                waiting.popleft()
        finally:
            # After an error or Ctrl-C: workers finish the tasks they run, and start no others.
            if waiting:
                with contextlib.suppress(Exception):
                    self.client.cancel(list(waiting), force=True)

    def _result(self, future: Future) -> Any:
        import distributed

        last_seen = time.monotonic()
        try:
            while True:
                with contextlib.suppress(distributed.TimeoutError):
                    return future.result(timeout=5)
                if self.client.nthreads():
                    last_seen = time.monotonic()
                elif time.monotonic() - last_seen > _WORKERLESS_SECONDS:
                    raise ClusterError(
                        "the cluster has lost all its workers; start some and run again: finished features are kept"
                    )
        except distributed.KilledWorker:
            raise ClusterError(
                "a task has brought down several workers one after the other, probably for lack of memory; "
                "give each worker more memory, or fewer threads"
            ) from None
        except (distributed.CancelledError, distributed.comm.CommClosedError):
            raise ClusterError(
                "the connection to the dask scheduler was lost; run again: finished features are kept"
            ) from None
        # The message says what to do, so the chain of exceptions on the worker is left out.
        except VitnpError as error:
            raise error from None


def _merge(part: Extraction, indices: Sequence[int], whole: Extraction) -> None:
    """Copy the results of some photographs to their positions among all photographs."""
    for position, index in enumerate(indices):
        whole.hashes[index] = part.hashes[position]
        if position in part.failures:
            whole.failures[index] = part.failures[position]
