"""k-means by cosine or Euclidean distance: greedy k-means++ starts, Lloyd iterations, a deterministic answer.

:func:`spherical_kmeans` is for the few hundred patches of one image, :class:`KMeans` for any number of rows, in memory or not.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from vitnp import kernels, threads
from vitnp.chunks import Chunk, Chunks
from vitnp.errors import UsageError
from vitnp.lloyd import Cosine, Euclidean, Found, Geometry, Partial, lloyd, partial_step, reduce
from vitnp.seeding import greedy_plus_plus


@dataclasses.dataclass(frozen=True)
class Clustering:
    """What k-means found.

    Attributes
    ----------
    centroids : (K, D) float
        Unit rows.
    labels : (N,) int64
        Cluster of each row; of equally near ones the lower.
    counts : (K,) int64
        Rows of each cluster; 0 where there are fewer distinct rows than clusters.
    inertia : float
        Sum over rows of 1 - cosine to the row's centroid; what the iterations lower.
    """

    centroids: np.ndarray
    labels: np.ndarray
    counts: np.ndarray
    inertia: float


def spherical_kmeans(
    x: np.ndarray,
    clusters: int,
    rng: np.random.Generator,
    *,
    starts: int = 1,
    max_iterations: int = 30,
    tolerance: float = 0.0,
) -> Clustering:
    """Cluster unit vectors by cosine; the best of several starts.

    Parameters
    ----------
    x : (N, D) float
        Unit rows, N >= `clusters`.
    clusters : int
        K.
    rng : numpy.random.Generator
        Decides the starts, hence the answer.
    starts : int
        Independent k-means++ starts; the lowest inertia wins, the earlier start among equals.
    max_iterations : int
        Of Lloyd's algorithm, for each start.
    tolerance : float
        Stop when the inertia falls by no more than this share of itself. With 0 until the labels stay.

    Returns
    -------
    Clustering

    Raises
    ------
    ValueError
        If there are fewer rows than clusters, or values that are not finite.

    Examples
    --------
    >>> x = np.array([[1.0, 0.0], [0.96, 0.28], [0.0, 1.0]])
    >>> found = spherical_kmeans(x, 2, np.random.default_rng(0))
    >>> bool(found.labels[0] == found.labels[1] != found.labels[2])
    True
    """
    if not 1 <= clusters <= len(x):
        raise ValueError(f"{clusters} clusters can't be made of {len(x)} rows")
    if not np.isfinite(x).all():
        raise ValueError("the features hold values that are not finite")
    geometry = Cosine()

    def closer(candidates: np.ndarray, nearest: list[np.ndarray] | None) -> list[np.ndarray]:
        losses = geometry.losses(x, candidates)
        return [losses if nearest is None else np.minimum(losses, nearest[0][:, None])]

    best = None
    for _ in range(starts):
        seeds = greedy_plus_plus(len(x), clusters, rng, x.__getitem__, closer)
        found = lloyd(lambda centroids: partial_step(x, centroids, geometry), seeds, geometry, max_iterations, tolerance)
        if best is None or found.total.inertia < best.total.inertia:
            best = found
    return Clustering(best.centroids, best.total.labels, best.total.counts, best.total.inertia)


Mapper = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]


class KMeans:
    """k-means of more rows than fit into memory.

    Rows are read in chunks of a fixed size, in every pass anew, and sums over chunks are added in their order. So labels and
    centroids are the same to the bit whether the rows come as an array, a memory map or blocks of any size, and whatever works
    on the chunks: one thread, many, or other machines of the same kind. Computation is in float32, sums over chunks in float64.

    Memory: chunks in flight, and for each row two labels of 4 bytes and, while starting, (3 + ln K) distances of 4 bytes.

    Parameters
    ----------
    n_clusters : int
        K.
    metric : {"cosine", "euclidean"}
        With cosine rows are scaled to unit length on the fly, and centroids are unit vectors (spherical k-means).
    n_init : int
        Independent k-means++ starts; the lowest inertia wins, the earlier start among equals.
    max_iter : int
        Iterations at most, for each start.
    tol : float
        Stop when the inertia falls by no more than this share of itself. With 0 until the labels stay.
    seed : int or sequence of int
        Decides the starts, hence the answer.
    thread_count : int, optional
        Chunks worked on at the same time, as in :func:`vitnp.threads.thread_count`.

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
        n_init: int = 1,
        max_iter: int = 30,
        tol: float = 0.0,
        seed: int | Sequence[int] = 0,
        thread_count: int | None = None,
    ) -> None:
        for name, value in ("n_clusters", n_clusters), ("n_init", n_init), ("max_iter", max_iter):
            if value < 1:
                raise UsageError(f"{name} is {value}; choose 1 or more")
        if metric not in ("cosine", "euclidean"):
            raise UsageError(f"there is no metric {metric!r}; choose cosine or euclidean")
        if not tol >= 0:
            raise UsageError(f"tol is {tol}; choose 0 or more")
        self.n_clusters = n_clusters
        self.metric = metric
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.seed = seed
        self.thread_count = thread_count

    def fit(self, X: Any, *, mapper: Mapper | None = None) -> KMeans:
        """Find the clusters.

        Parameters
        ----------
        X : (N, D) array, memory map, anything with ``shape`` and slices of rows, or an iterable of (n, D) blocks
            Real numbers, float16 for instance. What :class:`vitnp.chunks.Chunks` takes.
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
        data = Chunks(X)
        with threads.one_blas_thread():
            run = mapper or self._threads()
            geometry = self._survey(data, run)
            if data.count < self.n_clusters:
                raise UsageError(f"{self.n_clusters} clusters can't be made of {data.count} rows")
            rng = np.random.default_rng(self.seed)
            best = None
            for _ in range(self.n_init):
                found = self._start(data, geometry, rng, run)
                if best is None or found.total.inertia < best.total.inertia:
                    best = found
        self._geometry, self._centroids = geometry, best.centroids
        self.cluster_centers_ = geometry.centres(best.centroids)
        self.labels_, self.counts_, self.inertia_ = best.total.labels, best.total.counts, best.total.inertia
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
        data = Chunks(X, width=self.cluster_centers_.shape[1])
        with threads.one_blas_thread():
            run = mapper or self._threads()
            function = functools.partial(_labels, geometry=self._geometry, centroids=self._centroids)
            return np.concatenate([np.empty(0, np.int32), *run(function, data)])

    def fit_predict(self, X: Any, *, mapper: Mapper | None = None) -> np.ndarray:
        """Labels of :meth:`fit`, (N,) int32."""
        return self.fit(X, mapper=mapper).labels_

    def _threads(self) -> Mapper:
        return functools.partial(threads.in_order, threads=threads.thread_count(self.thread_count))

    def _survey(self, data: Chunks, run: Mapper) -> Geometry:
        """Count the rows, see that they are finite, find what the geometry needs to know of them all."""
        count, total = 0, 0.0
        for rows, sums in run(_sum, data):
            count, total = count + rows, total + sums
        data.count = count
        if self.metric == "cosine":
            return Cosine()
        return Euclidean((total / max(count, 1)).astype(np.float32) if count else np.zeros(0, np.float32))

    def _start(self, data: Chunks, geometry: Geometry, rng: np.random.Generator, run: Mapper) -> Found:
        """One k-means++ start and its Lloyd iterations."""

        def pick(rows: Sequence[int]) -> np.ndarray:
            return geometry.centroids_at(geometry.prepare(Chunk(0, data.take(rows), slice(None))))

        def closer(candidates: np.ndarray, nearest: list[np.ndarray] | None) -> Iterable[np.ndarray]:
            items = zip(data, itertools.repeat(None) if nearest is None else nearest)
            return run(functools.partial(_closer, geometry=geometry, candidates=candidates), items)

        def step(centroids: np.ndarray) -> Partial:
            return reduce(run(functools.partial(_step, geometry=geometry, centroids=centroids), data))

        seeds = greedy_plus_plus(data.count, self.n_clusters, rng, pick, closer)
        return lloyd(step, seeds, geometry, self.max_iter, self.tol)


# What is done to one chunk. BLAS keeps to one thread here too, for the sake of chunks that are worked on in other processes.


def _sum(chunk: Chunk) -> tuple[int, np.ndarray]:
    """Number and sum of the rows."""
    x = Euclidean(np.float32(0)).prepare(chunk)[:, :-1]
    return len(x), x.sum(axis=0, dtype=np.float64)


def _closer(item: tuple[Chunk, np.ndarray | None], geometry: Geometry, candidates: np.ndarray) -> np.ndarray:
    """Distance of every row to the nearest centroid so far or the candidate, (n, candidates) float32."""
    chunk, nearest = item
    with threads.one_blas_thread():
        losses = geometry.losses(geometry.prepare(chunk), candidates).astype(np.float32)
    return losses if nearest is None else np.minimum(losses, nearest[:, None])


def _step(chunk: Chunk, geometry: Geometry, centroids: np.ndarray) -> Partial:
    with threads.one_blas_thread():
        part = partial_step(geometry.prepare(chunk), centroids, geometry, chunk.first)
    return dataclasses.replace(part, labels=part.labels.astype(np.int32))


def _labels(chunk: Chunk, geometry: Geometry, centroids: np.ndarray) -> np.ndarray:
    with threads.one_blas_thread():
        return kernels.for_device().kmeans_assign(geometry.prepare(chunk), centroids)[0].astype(np.int32)
