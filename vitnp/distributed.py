"""Features and k-means on several machines, by dask.distributed, with the answer of one process to the bit.

Dask moves all that is moved and repeats what a lost worker had begun. That changes no answer: features depend on the photograph
alone, files of the store are named by their content, and sums over rows are added in the order of the rows, here.

Machines should be of one kind, though: processors that add up a product in another order round it otherwise.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any

import numpy as np

from vitnp import __version__, kernels
from vitnp.checkpoints.load import load_vit
from vitnp.clustering.chunks import Chunk
from vitnp.errors import CheckpointError, ClusterError, ImageError, UsageError, VitnpError
from vitnp.features.shared import StoredKeys, await_photographs, open_shared
from vitnp.features.spec import FeatureSpec
from vitnp.features.store import SPEC_FILE, FeatureStore
from vitnp.features.stream import Extraction, extract_to_store
from vitnp.io import decode
from vitnp.io.source import Source, path_of
from vitnp.kernels.threads.pool import resolve_n_threads
from vitnp.vit.config import ViTConfig
from vitnp.vit.model import ViT

if TYPE_CHECKING:
    from distributed import Client, Future

LOCAL = "local"

# A task of a second or more hides what it costs to hand it out; a killed worker loses no more than this.
PHOTOGRAPHS_A_TASK = 16

# Rows that workers keep from pass to pass. The scheduler has a copy too, to give them out again when a worker is lost.
_HELD_BYTES = 256 << 20

_CONNECT_SECONDS = 8
_WORKERLESS_SECONDS = 60


@contextlib.contextmanager
def connected(
    scheduler: str, *, cache: str | os.PathLike[str] | None = None, workers: int | None = None
) -> Iterator[Cluster]:
    """A cluster to work on; let go of at the end, with what is still to be done cancelled.

    Parameters
    ----------
    scheduler : str
        Address of a dask scheduler, ``tcp://HOST:PORT``, or "local" for processes of this machine's own.
    cache : path, optional
        Folder for features; all but "local" need one, and all machines must see it under the same path.
    workers : int, optional
        Processes of "local", as :func:`vitnp.kernels.threads.pool.resolve_n_threads` takes it.

    Raises
    ------
    ClusterError
        When dask isn't installed, nobody answers, no worker is there, or one has other versions of what results depend on.
    UsageError
        Without a cache where one is needed.

    Examples
    --------
    >>> with connected("tcp://desk:8786", cache="/shared/features") as cluster:                          # doctest: +SKIP
    ...     segmenter = Segmenter(
    ...         cache="/shared/features", mapper=cluster.map, extractor=cluster.extract_to_store
    ...     ).fit(photographs)
    """
    if scheduler != LOCAL and cache is None:
        raise UsageError("other machines need a place for features; give --cache a folder that all of them share")
    try:
        import dask
        import distributed
    except ImportError:
        raise ClusterError("--scheduler needs dask, which isn't installed; run pip install 'vitnp[dask]'") from None
    with contextlib.ExitStack() as stack:
        settings = {
            # Rows in a graph are meant to be there: dask has to keep them for when a worker is lost.
            "distributed.admin.large-graph-warning-threshold": "1 GB",
            # A worker that is lost, comes back and is lost again isn't given up.
            "distributed.deploy.lost-worker-timeout": "1 day",
        }
        stack.enter_context(dask.config.set(settings))
        # Lost workers and lost connections are told below, in one sentence each.
        stack.enter_context(_quiet_logs())
        address = scheduler
        if scheduler == LOCAL:
            with _interrupts_for_us_alone():
                address = stack.enter_context(
                    distributed.LocalCluster(
                        n_workers=resolve_n_threads(workers), threads_per_worker=1, processes=True, host="127.0.0.1",
                        dashboard_address="127.0.0.1:0", memory_limit=0, silence_logs=logging.CRITICAL,
                    )
                )  # fmt: skip
        else:
            _greet(scheduler)
        with distributed.Client(address, timeout=_CONNECT_SECONDS, set_as_default=False) as client:
            _check_workers(client, scheduler)
            yield Cluster(client)


class Cluster:
    """What :class:`vitnp.segmenter.Segmenter` has done elsewhere; made by :func:`connected`.

    Parameters
    ----------
    client : distributed.Client
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        self._held: collections.OrderedDict[str, tuple[Future, int]] = collections.OrderedDict()

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """``function(item)`` for each item, in order: the `mapper` of :meth:`vitnp.clustering.kmeans.KMeans.fit`.

        Rows of chunks are sent once and stay with a worker from pass to pass; rows of a store on a shared folder are not sent
        at all.

        Parameters
        ----------
        function : callable
        items : iterable
            Anything; a :class:`vitnp.clustering.chunks.Chunk`, or a tuple that begins with one, is treated as said.

        Raises
        ------
        ClusterError
            When the workers or the connection are lost for good.
        """
        items = iter(items)
        ahead = list(itertools.islice(items, 2))
        if len(ahead) < 2:  # not worth the journey
            yield from map(function, ahead)
            return
        yield from self._in_order(functools.partial(self._submit_item, function), itertools.chain(ahead, items))

    def extract_to_store(
        self,
        photographs: Sequence[Source],
        vit: ViT,
        store: FeatureStore,
        *,
        threads: int | None = None,
        max_pixels: int = decode.MAX_PIXELS,
        progress: Callable[[int], object] | None = None,
    ) -> Extraction:
        """As :func:`vitnp.features.stream.extract_to_store`, by workers that read the photographs, the checkpoint and the store themselves.

        Parameters
        ----------
        photographs : sequence of Photograph, path, PIL image or array
            Files must be seen by the workers under the same absolute path; what is in memory is done here.
        vit : ViT
            From a file or a registered name. A worker loads it once.
        store : FeatureStore
            In a folder that all machines share.
        threads : int, optional
            For what is done here.
        max_pixels, progress
            As there.

        Raises
        ------
        CheckpointError
            When a worker doesn't have the same checkpoint.
        ClusterError
            When a worker doesn't see the photographs or the store, or all workers are lost.
        OutputError
            When the store can't be written.
        """
        hashes: list[str | None] = [None] * len(photographs)
        failures: dict[int, ImageError] = {}
        files, in_memory = [], []
        for index, photograph in enumerate(photographs):
            (in_memory if path_of(photograph) is None else files).append(index)
        if in_memory:
            found = extract_to_store(
                [photographs[index] for index in in_memory],
                vit,
                store,
                n_threads=threads,
                max_pixels=max_pixels,
                progress=progress,
            )
            _take_over(found, in_memory, hashes, failures)
        if not (store.folder / SPEC_FILE).exists():
            store.make_writable()  # by that file workers tell that the folder is the same
        network = _Network.of(vit)
        tasks = [files[start : start + PHOTOGRAPHS_A_TASK] for start in range(0, len(files), PHOTOGRAPHS_A_TASK)]

        def submit(indices: list[int]) -> Future:
            paths = [os.path.abspath(path_of(photographs[index])) for index in indices]
            folder = os.path.abspath(store.folder.parent)
            return self._submit(_extract, paths, network, folder, store.spec, max_pixels)

        for indices, (found, unseen) in zip(tasks, self._in_order(submit, tasks)):
            for place in unseen:
                path = path_of(photographs[indices[place]])
                if path.exists():
                    raise ClusterError(
                        f"{path} can't be seen from a worker; move the photographs to a folder that all machines share"
                    )
            _take_over(found, indices, hashes, failures)
            if progress is not None:
                progress(len(indices))
        await_photographs(store, {photograph for photograph in hashes if photograph is not None})
        return Extraction(hashes, dict(sorted(failures.items())))

    def _submit(self, function: Callable[..., Any], *arguments: Any) -> Future:
        return self.client.submit(_checked, _versions(), function, *arguments, pure=False)

    def _submit_item(self, function: Callable[[Any], Any], item: Any) -> Future:
        if isinstance(item, Chunk):
            return self._submit(function, self._portable(item))
        if isinstance(item, tuple) and item and isinstance(item[0], Chunk):
            return self._submit(_with_tuple, function, self._portable(item[0]), *item[1:])
        return self._submit(function, item)

    def _portable(self, chunk: Chunk) -> Chunk | Future:
        """A chunk that takes along no more than it must."""
        if isinstance(chunk.source, StoredKeys):
            return Chunk(chunk.first, chunk.source.part(chunk.part), slice(None))
        rows = np.ascontiguousarray(chunk.source[chunk.part])
        # By content, so that an array that was changed meanwhile isn't taken for what it was. SHA-256 for its speed: processors
        # have instructions for it, and this is done in every pass.
        digest = hashlib.sha256(f"{chunk.first} {rows.shape} {rows.dtype.str}".encode())
        digest.update(rows)
        key = f"vitnp-rows-{digest.hexdigest()}"
        if key in self._held:
            self._held.move_to_end(key)
        else:
            # A task, not scattered data: dask can repeat it when the worker that has the rows is lost.
            future = self.client.submit(_itself, Chunk(chunk.first, rows, slice(None)), key=key)
            self._held[key] = future, rows.nbytes
            while len(self._held) > 1 and sum(size for _, size in self._held.values()) > _HELD_BYTES:
                self._held.popitem(last=False)
        return self._held[key][0]

    def _in_order(self, submit: Callable[[Any], Future], items: Iterable[Any]) -> Iterator[Any]:
        """Results in the order of the items; so few are on their way that memory stays bounded here and at the scheduler."""
        at_once = max(4, 3 * sum(self.client.nthreads().values()))
        waiting: collections.deque[Future] = collections.deque()
        try:
            for item in items:
                waiting.append(submit(item))
                if len(waiting) >= at_once:
                    yield self._result(waiting[0])
                    waiting.popleft()
            while waiting:
                yield self._result(waiting[0])
                waiting.popleft()
        finally:
            # After an error or Ctrl-C. What a worker is at it finishes, the rest isn't begun.
            if waiting:
                with contextlib.suppress(Exception):
                    self.client.cancel(list(waiting), force=True)

    def _result(self, future: Future) -> Any:
        import distributed

        workers_seen = time.monotonic()
        try:
            while True:
                with contextlib.suppress(distributed.TimeoutError):
                    return future.result(timeout=5)
                if self.client.nthreads():
                    workers_seen = time.monotonic()
                elif time.monotonic() - workers_seen > _WORKERLESS_SECONDS:
                    raise ClusterError(
                        "the cluster has lost all its workers; start some and run again: finished features are kept"
                    )
        except distributed.KilledWorker:
            raise ClusterError(
                "a task has brought down several workers, one after the other, for want of memory probably; "
                "give each worker more of it, or fewer threads"
            ) from None
        except (distributed.CancelledError, distributed.comm.CommClosedError):
            raise ClusterError(
                "the connection to the dask scheduler was lost; run again: finished features are kept"
            ) from None
        except VitnpError as error:
            raise error from None


@dataclasses.dataclass(frozen=True)
class _Network:
    """What a worker needs to load the same network."""

    path: str
    name: str
    sha256: str
    config: ViTConfig
    precision: str

    @classmethod
    def of(cls, vit: ViT) -> _Network:
        if vit.source is None:
            raise UsageError(
                "workers load the network from its file, but this one was made in memory; save it, and load it with load_vit"
            )
        return cls(os.path.abspath(vit.source), vit.name, vit.sha256, vit.config, vit.precision)

    def load(self) -> ViT:
        # The built-in and the registered ones may lie elsewhere on that machine.
        place = self.path if os.path.exists(self.path) else self.name
        try:
            vit = load_vit(place, heads=self.config.heads, pos_embed=self.config.pos_embed)
        except CheckpointError as error:
            raise CheckpointError(f"a worker can't load the network: {error}") from None
        if vit.sha256 != self.sha256:
            raise CheckpointError(
                f"on a worker {place} is another checkpoint; put the same one into a folder that all machines share"
            )
        return ViT(
            self.config, vit.weights, name=self.name, source=vit.source, sha256=self.sha256, precision=self.precision
        )


_loading = threading.Lock()
_load_once = functools.lru_cache(maxsize=2)(_Network.load)


# --- what runs on the workers ----------------------------------------------------------------------------------------------


def _checked(versions: dict[str, str], function: Callable[..., Any], *arguments: Any) -> Any:
    """Workers may join at any time; none of another version takes part."""
    if (own := _versions()) != versions:
        raise _other_versions("a worker", own, versions)
    return function(*arguments)


def _extract(
    paths: list[str], network: _Network, folder: str, spec: FeatureSpec, max_pixels: int
) -> tuple[Extraction, list[int]]:
    """Features of some photographs into the store; which of them aren't there."""
    store = open_shared(folder, spec)
    if not (store.folder / SPEC_FILE).exists():
        raise ClusterError(
            f"{folder} can't be seen from a worker; give --cache a folder that all machines share under the same path"
        )
    with _loading:  # several threads want it at once
        vit = _load_once(network)
    found = extract_to_store(paths, vit, store, n_threads=1, max_pixels=max_pixels)
    return found, [place for place in found.failures if not os.path.exists(paths[place])]


def _itself(chunk: Chunk) -> Chunk:
    return chunk


def _with_tuple(function: Callable[[Any], Any], *item: Any) -> Any:
    return function(item)


# --- what the connection needs ---------------------------------------------------------------------------------------------


def _versions() -> dict[str, str]:
    """Of everything that decides the last bit of a result: decoding, scaling, products."""
    import PIL

    return {"vitnp": __version__, "numpy": np.__version__, "Pillow": PIL.__version__, "kernels": kernels.describe()}


def _greet(scheduler: str) -> None:
    """See that a scheduler answers; a client that finds none takes its time to go."""
    from distributed import rpc

    async def name() -> str:
        async with rpc(scheduler, timeout=_CONNECT_SECONDS) as remote:
            return (await remote.spec())["type"]

    async def in_time() -> str:
        return await asyncio.wait_for(name(), _CONNECT_SECONDS)

    try:
        # In a thread of its own, for notebooks have a loop running already.
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(asyncio.run, in_time()).result()
    except Exception:
        answer = None
    if answer != "Scheduler":
        raise ClusterError(
            f"no dask scheduler answers at {scheduler}; start one with `dask scheduler`, or check the address"
        )


def _check_workers(client: Client, scheduler: str) -> None:
    import distributed

    try:
        client.wait_for_workers(1, timeout=_CONNECT_SECONDS)
    except distributed.TimeoutError:
        raise ClusterError(f"{scheduler} has no workers; start some with `dask worker {scheduler}`") from None
    # The scheduler unpickles what is sent, so it needs vitnp too.
    everybody = {"the dask scheduler": _answer(client.run_on_scheduler)}
    everybody |= {f"the worker {worker}": theirs for worker, theirs in client.run(_versions, on_error="return").items()}
    ours = _versions()
    for who, theirs in everybody.items():
        if theirs != ours:
            raise _other_versions(who, theirs, ours)


def _answer(run: Callable[[Callable[[], Any]], Any]) -> dict[str, str] | Exception:
    try:
        return run(_versions)
    except ImportError as error:
        return error


def _other_versions(who: str, theirs: dict[str, str] | Exception, ours: dict[str, str]) -> ClusterError:
    if isinstance(theirs, Exception):  # vitnp isn't there to answer, or can't be imported
        return ClusterError(f"{who} can't run vitnp ({theirs}); install vitnp {ours['vitnp']} there")
    name = next(name for name in ours if theirs[name] != ours[name])
    return ClusterError(
        f"{who} has {name} {theirs[name]}, not {ours[name]} as here; install the same version everywhere"
    )


def _take_over(
    found: Extraction, indices: Sequence[int], hashes: list[str | None], failures: dict[int, ImageError]
) -> None:
    for place, index in enumerate(indices):
        hashes[index] = found.hashes[place]
        if place in found.failures:
            failures[index] = found.failures[place]


@contextlib.contextmanager
def _quiet_logs() -> Iterator[None]:
    logger = logging.getLogger("distributed")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextlib.contextmanager
def _interrupts_for_us_alone() -> Iterator[None]:
    """Ctrl-C reaches all processes of a terminal. Those begun in here leave it to this one, which ends them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # would lift the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
