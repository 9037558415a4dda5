"""k-means by cosine or Euclidean distance: greedy k-means++ starts, Lloyd iterations, a deterministic answer.

:func:`spherical_kmeans` is for the few hundred patches of one image, :class:`KMeans` for any number of rows, in memory or not.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from vitnp import kernels
from vitnp.clustering import chunks
from vitnp.clustering.chunks import Chunk, Chunks, rows_summed_together
from vitnp.clustering.kmeans_plusplus import kmeans_plusplus
from vitnp.clustering.lloyd import (
    Cosine,
    Euclidean,
    Found,
    Geometry,
    Partial,
    Total,
    lloyd,
    partial_step,
    refuse_infinite,
    sum_partials,
)
from vitnp.errors import UsageError
from vitnp.kernels import reference
from vitnp.kernels.threads import blas, pool, team

Mapper = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]

# Numbers of float64 in the sums of blocks that a thread keeps until they are added up: 32 MB.
SUMS_AT_A_TIME = 2**22

# Chunks that one launch on a GPU goes through: enough to keep it busy, few enough that K distances of each row fit beside them.
CHUNKS_OF_A_LAUNCH = 256
# Share of a GPU's free memory that rows may take for good; others come over anew in every pass.
SHARE_OF_MEMORY = 0.5
# Of clusters, that there are kernels for on a GPU.
MOST_ON_A_GPU = 256


class KMeans:
    """k-means of more rows than fit into memory.

    Rows are read in chunks of a fixed size, in every pass anew, and sums over chunks are added in their order. So labels and
    centroids are the same to the bit whether the rows come as an array, a memory map or blocks of any size, and whatever works
    on the chunks: one thread, many, or other machines of the same kind. Computation is in float32, sums over chunks in float64.

    A GPU gives the same answer every time too, which may differ from the CPU's in the last bits of the sums, and so where a row
    is as near to two centroids, or where that leads the iterations elsewhere.

    Memory: chunks in flight (none where the rows are an array of floats, which is read where it lies), sums of at most 32 MB a
    thread, and for each row three numbers of 4 bytes or, while starting, 3 + ln K.

    Parameters
    ----------
    n_clusters : int
        K.
    metric : {"cosine", "euclidean"}
        With cosine rows are scaled to unit length on the fly, and centroids are unit vectors (spherical k-means).
    init : "k-means++" or (K, D) array
        Where to start: greedy k-means++, or centroids of one's own.
    n_init : int
        Independent k-means++ starts; the lowest inertia wins, the earlier start among equals. 1 with centroids of one's own.
    max_iter : int
        Iterations at most, for each start.
    tol : float
        Stop when the inertia falls by no more than this share of itself. With 0 until the labels stay.
    seed : int or sequence of int
        Decides the starts, hence the answer.
    n_threads : int, optional
        Chunks worked on at the same time, as in :func:`vitnp.kernels.threads.pool.resolve_n_threads`.
    device : {"auto", "cpu", "cuda"}
        Where to compute. Rows that don't fit into a GPU's memory go through it chunk by chunk; rows that are there stay.

    Attributes
    ----------
    cluster_centers_ : (K, D) float32
    labels_ : (N,) int32
        Cluster of each row; of equally near ones the lower.
    counts_ : (K,) int64
        Rows of each cluster; 0 where there are fewer distinct rows than clusters.
    inertia_ : float
        Sum over rows of 1 - cosine, or of the squared distance, to the row's centroid.
    n_iter_ : int
        Moves of the centroids in the best start.
    inertia_history_ : list of float
        Inertia before each move of the best start and after the last.

    Raises
    ------
    UsageError
        For parameters that make no sense.

    Examples
    --------
    >>> x = np.array([[1.0, 0.0], [9.0, 1.0], [0.0, 2.0]])
    >>> model = KMeans(2).fit(x)
    >>> bool(model.labels_[0] == model.labels_[1] != model.labels_[2])
    True
    >>> bool((model.predict([x[:1], x[1:]]) == model.labels_).all())
    True
    """

    def __init__(
        self,
        n_clusters: int,
        *,
        metric: str = "cosine",
        init: str | np.ndarray = "k-means++",
        n_init: int = 1,
        max_iter: int = 30,
        tol: float = 0.0,
        seed: int | Sequence[int] = 0,
        n_threads: int | None = None,
        device: str = "cpu",
    ) -> None:
        for name, value in ("n_clusters", n_clusters), ("n_init", n_init), ("max_iter", max_iter):
            if value < 1:
                raise UsageError(f"{name} is {value}; choose 1 or more")
        if metric not in ("cosine", "euclidean"):
            raise UsageError(f"there is no metric {metric!r}; choose cosine or euclidean")
        if not tol >= 0:
            raise UsageError(f"tol is {tol}; choose 0 or more")
        _check_start(init, n_clusters, n_init)
        self.init = init
        self.n_clusters = n_clusters
        self.metric = metric
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.seed = seed
        self.n_threads = n_threads
        self.device = kernels.choose_device(device)
        if self.device == "cuda" and n_clusters > MOST_ON_A_GPU:
            raise UsageError(
                f"{n_clusters} clusters can't be made on a GPU, {MOST_ON_A_GPU} at most; choose the device cpu"
            )

    def fit(self, X: Any, *, mapper: Mapper | None = None) -> KMeans:
        """Find the clusters.

        Parameters
        ----------
        X : (N, D) array, memory map, anything with ``shape`` and slices of rows, or an iterable of (n, D) blocks
            Real numbers, float16 for instance. What :class:`vitnp.clustering.chunks.Chunks` takes.
        mapper : callable, optional
            Whatever does a pass: ``mapper(function, items)`` gives ``function(item)`` for each item, in order, as the built-in
            ``map`` does. Functions, items and results can be pickled, and an item carries its rows, or only the slice of an X
            that is no NumPy array. With dask.distributed:
            ``lambda function, items: client.gather(client.map(function, list(items)))``. The default is threads.

        Returns
        -------
        KMeans
            Itself.

        Raises
        ------
        UsageError
            For fewer rows than clusters, rows that are not finite (the first is named), an iterator that can be read only once,
            or blocks that change from one pass to the next.
        """
        data = self._opened(X, mapper)
        with blas.one_blas_thread():
            geometry = self._survey(data, mapper)
            if data.count < self.n_clusters:
                raise UsageError(f"{self.n_clusters} clusters can't be made of {data.count} rows")
            rng = np.random.default_rng(self.seed)
            best = None
            for _ in range(self.n_init):
                found = self._start(data, geometry, rng, mapper)
                if best is None or found.total.inertia < best.total.inertia:
                    best = found
        self._geometry, self._centroids = geometry, best.centroids
        self.cluster_centers_ = geometry.centers(best.centroids)
        self.labels_, self.counts_, self.inertia_ = (
            kernels.to_host(best.total.labels),
            best.total.counts,
            best.total.inertia,
        )
        self.n_iter_, self.inertia_history_ = best.moves, best.history
        return self

    def predict(self, X: Any, *, mapper: Mapper | None = None) -> np.ndarray:
        """Nearest cluster of each row, (N,) int32; X and `mapper` as in :meth:`fit`.

        Raises
        ------
        UsageError
            For rows of another width or that are not finite, or before :meth:`fit`.
        """
        if not hasattr(self, "_centroids"):
            raise UsageError("this KMeans has no clusters yet; call fit first")
        data = self._opened(X, mapper, width=self.cluster_centers_.shape[1])
        with blas.one_blas_thread():
            function = functools.partial(
                _labels, geometry=self._geometry, centroids=self._centroids, device=self.device
            )
            return np.concatenate([np.empty(0, np.int32), *self._map(data, mapper)(function, self._parts(data))])

    def fit_predict(self, X: Any, *, mapper: Mapper | None = None) -> np.ndarray:
        """Labels of :meth:`fit`, (N,) int32."""
        return self.fit(X, mapper=mapper).labels_

    def _opened(self, X: Any, mapper: Mapper | None, width: int | None = None) -> Chunks:
        """The rows in chunks, on a GPU if that computes and has room for all of them."""
        if kernels.device_of(X) != self.device == "cpu":
            raise UsageError("the rows are on a GPU; choose the device cuda, or move them to the host's memory")
        if self.device == "cuda" and mapper is not None:
            raise UsageError("a mapper's workers compute on CPUs; choose the device cpu, or leave the mapper out")
        if self.device == "cuda" and isinstance(X, np.ndarray) and X.ndim == 2 and X.dtype.kind in "fiub":
            room = SHARE_OF_MEMORY * kernels.for_device("cuda").free_bytes()
            if X.size * np.dtype(np.float32).itemsize <= room:
                X = _moved(X, self.device)
        return Chunks(X, width=width)

    def _parts(self, data: Chunks) -> Iterable[Chunk]:
        """The rows in pieces that are worked on one by one: chunks, or many of them where they are on a GPU already."""
        return data if data.device == "cpu" else data.runs(CHUNKS_OF_A_LAUNCH)

    def _survey(self, data: Chunks, mapper: Mapper | None) -> Geometry:
        """Count the rows, see that they are finite, find what the geometry needs to know of them all.

        One cluster at the origin: the losses are the squared lengths, the sums those of all rows.
        """
        found = None
        if data.width is not None and data.count != 0:
            found = self._pass(data, np.zeros((1, data.width), np.float32), Euclidean(None), mapper, chunks.CHUNK_ROWS)
        data.count = 0 if found is None else len(found.labels)
        if self.metric == "cosine":
            return Cosine()
        return Euclidean((found.sums[0] / data.count).astype(np.float32) if data.count else None)

    def _start(self, data: Chunks, geometry: Geometry, rng: np.random.Generator, mapper: Mapper | None) -> Found:
        """One k-means++ start and its Lloyd iterations."""
        block = rows_summed_together(data.count)

        def pick(rows: Sequence[int]) -> np.ndarray:
            taken = data.take(rows)
            return kernels.for_array(taken).kmeans_rows(taken, **geometry.options(taken))

        def closer(candidates: np.ndarray, nearest: list[np.ndarray] | None) -> Iterable[np.ndarray]:
            items = zip(self._parts(data), itertools.repeat(None) if nearest is None else nearest)
            function = functools.partial(_closer, geometry=geometry, candidates=candidates, device=self.device)
            return self._map(data, mapper)(function, items)

        def step(centroids: np.ndarray) -> Total:
            return self._pass(data, centroids, geometry, mapper, block)

        if isinstance(self.init, str):
            seeds = kmeans_plusplus(data.count, self.n_clusters, rng, pick, closer)
        else:
            seeds = self._own_seeds(data.width, geometry)
        at_hand = data.whole() if mapper is None and self.device == "cpu" and data.count <= chunks.CHUNK_ROWS else None
        with pool.thread_limit(pool.resolve_n_threads(self.n_threads)):
            return lloyd(step, seeds, self.max_iter, self.tol, geometry, at_hand, block)

    def _own_seeds(self, width: int, geometry: Geometry) -> np.ndarray:
        """The centroids that the caller wants to start from, as the geometry sees them."""
        own = np.asarray(self.init)
        if own.shape[1] != width:
            raise UsageError(f"the centroids to start from have {own.shape[1]} numbers each, the rows {width}")
        with np.errstate(over="ignore"):
            own = own.astype(np.float32)
        if not np.isfinite(own).all():
            raise UsageError("the centroids to start from hold NaN, infinity, or values too large for float32")
        return kernels.for_device("cpu").kmeans_rows(own, **geometry.options(own))

    def _pass(
        self, data: Chunks, centroids: np.ndarray, geometry: Geometry, mapper: Mapper | None, block: int
    ) -> Total:
        """One Lloyd iteration's pass over all rows."""
        parts = self._parts(data)
        if self.device == "cpu" and mapper is None and data.in_memory:
            # A thread takes its share of the rows at once, if there is room for the sums of all their blocks.
            share = -(-data.count // (chunks.CHUNK_ROWS * pool.resolve_n_threads(self.n_threads)))
            room = SUMS_AT_A_TIME * block // (chunks.CHUNK_ROWS * centroids.size)
            parts = data.runs(max(min(share, room), 1))
        # A GPU's sums are made in float32 by the kernel's own blocks, whatever the rows that come at a time.
        block = block if self.device == "cpu" else None
        function = functools.partial(_step, geometry=geometry, centroids=centroids, block=block, device=self.device)
        return sum_partials(self._map(data, mapper)(function, parts))

    def _map(self, data: Chunks, mapper: Mapper | None) -> Mapper:
        """Who does a pass."""
        if mapper is not None:
            return mapper
        if self.device == "cuda":
            return map
        count = pool.resolve_n_threads(self.n_threads)
        if data.in_memory:
            return functools.partial(_side_by_side, count=count)
        return functools.partial(pool.map_ordered, threads=count)


def _check_start(init: Any, clusters: int, starts: int) -> None:
    """Refuse what is neither the name of a start nor centroids."""
    if isinstance(init, str):
        if init != "k-means++":
            raise UsageError(f"there is no init {init!r}; choose k-means++ or give the centroids to start from")
        return
    own = np.asarray(init)
    if own.ndim != 2 or len(own) != clusters or own.dtype.kind not in "fiub":
        raise UsageError(
            f"init must be {clusters} centroids, an array of real numbers ({clusters}, D), not {own.dtype} {own.shape}"
        )
    if starts != 1:
        raise UsageError(f"n_init is {starts}, but from given centroids there is one start; leave it at 1")


def _side_by_side(function: Callable[[Any], Any], items: Iterable[Any], count: int) -> Iterable[Any]:
    """As :func:`vitnp.kernels.threads.pool.map_ordered` for items that cost nothing to have: one a thread at a time, in threads that stay."""
    items = iter(items)
    while some := list(itertools.islice(items, count)):
        results = [None] * len(some)

        def work(first: int, last: int) -> None:
            for index in range(first, last):
                results[index] = function(some[index])

        with pool.thread_limit(count):
            team.parallel_for(work, len(some))
        yield from results


# What is done to one chunk, perhaps in another process.


def _one_blas_thread() -> contextlib.AbstractContextManager:
    """BLAS keeps to one thread here too. Only the plain kernels use it, and to find all copies of it takes milliseconds."""
    return blas.one_blas_thread() if kernels.for_device() is reference else contextlib.nullcontext()


def _moved(rows: np.ndarray, device: str) -> np.ndarray:
    """Rows on a device; for a GPU in one of the two types that its kernels take."""
    if device != "cpu" and rows.dtype not in (np.float16, np.float32):
        with np.errstate(over="ignore"):
            rows = rows.astype(np.float32)
    return kernels.to_device(rows, device)


def _closer(
    item: tuple[Chunk, np.ndarray | None], geometry: Geometry, candidates: np.ndarray, device: str = "cpu"
) -> np.ndarray:
    """Distance of every row to the nearest centroid so far or the candidate, (n, candidates) float32."""
    chunk, nearest = item
    with _one_blas_thread():
        rows = _moved(chunk.rows(), device)
        candidates = kernels.to_device(candidates, device)
        return kernels.for_array(rows).kmeans_closer(rows, candidates, nearest, **geometry.options(rows))


def _step(chunk: Chunk, geometry: Geometry, centroids: np.ndarray, block: int | None, device: str = "cpu") -> Partial:
    with _one_blas_thread():
        return partial_step(_moved(chunk.rows(), device), centroids, geometry, chunk.first, block)


def _labels(chunk: Chunk, geometry: Geometry, centroids: np.ndarray, device: str = "cpu") -> np.ndarray:
    with _one_blas_thread():
        rows = _moved(chunk.rows(), device)
        found = kernels.for_array(rows).kmeans_assign(
            rows, kernels.to_device(centroids, device), **geometry.options(rows)
        )
    labels, losses = map(kernels.to_host, found)
    refuse_infinite(losses, chunk.first)
    return labels
