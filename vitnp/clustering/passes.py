"""Passes of k-means over all rows: what is computed on each chunk, and by which device, threads or other machines."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from vitnp import kernels
from vitnp.clustering import chunks
from vitnp.clustering.chunks import Chunk, Chunks
from vitnp.clustering.metric import Euclidean, Metric
from vitnp.clustering.step import PartialStep, TotalStep, check_finite, partial_step, sum_partials
from vitnp.errors import UsageError
from vitnp.kernels import reference
from vitnp.kernels.threads import blas, pool, team

Mapper = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]

# Largest number of float64 values in the block sums that a thread holds until they are added up: 32 MB.
MAX_BUFFERED_SUMS = 2**22

# Chunks per kernel launch on a GPU: enough to keep it busy, few enough that K distances per row fit beside the rows.
CHUNKS_PER_LAUNCH = 256
# Fraction of a GPU's free memory that rows may occupy permanently; larger data is copied again in every pass.
MEMORY_FRACTION = 0.5


class Passes:
    """Compute something over all rows, chunk by chunk.

    Parameters
    ----------
    x : array, memory map, object with ``shape`` and slices of rows, or iterable of blocks
        See :class:`vitnp.clustering.chunks.Chunks`.
    device : {"cpu", "cuda"}
    n_threads : int or None
    mapper : callable or None
        See :meth:`vitnp.clustering.kmeans.KMeans.fit`.
    n_features : int, optional
        Required length of a row.
    weights : (N,) float64, optional
        Weights of the rows, for rows in one array and ``device="cpu"``.

    Raises
    ------
    UsageError
        If the rows are on another device than the computation, or a mapper or weights are given for a GPU.
    """

    def __init__(
        self,
        x: Any,
        *,
        device: str,
        n_threads: int | None,
        mapper: Mapper | None,
        n_features: int | None = None,
        weights: np.ndarray | None = None,
    ) -> None:
        if kernels.device_of(x) != device == "cpu":
            raise UsageError("the rows are in GPU memory; choose device='cuda', or copy them to host memory")
        if device == "cuda" and mapper is not None:
            raise UsageError("a mapper computes on CPUs; choose device='cpu', or omit the mapper")
        if device == "cuda" and _fits_on_gpu(x):
            x = _to_device(x, device)
        if device == "cuda" and weights is not None:
            raise UsageError("weights of rows are computed on CPUs; choose device='cpu', or omit sample_weight")
        self.weights = weights
        self.data = Chunks(x, n_features)
        self.device = device
        self.n_threads = n_threads
        self.mapper = mapper

    def survey(self) -> TotalStep | None:
        """Count the rows, check that they are finite, and sum them up; None if there are none.

        This is a Lloyd step with one centroid at the origin: the losses are the squared lengths of the rows.
        """
        total = None
        if self.data.n_features is not None and self.data.n_rows != 0:
            origin = np.zeros((1, self.data.n_features), np.float32)
            total = self.step(origin, Euclidean(None), chunks.CHUNK_ROWS)
        self.data.n_rows = 0 if total is None else len(total.labels)
        return total

    def rows_at(self, indices: Sequence[int], metric: Metric) -> np.ndarray:
        """Return single rows as the metric sees them, (len(indices), D) float32."""
        rows = self.data.take(indices)
        return kernels.for_array(rows).kmeans_rows(rows, **metric.kernel_options(rows))

    def min_distances(
        self, candidates: np.ndarray, nearest: list[np.ndarray] | None, metric: Metric
    ) -> Iterable[np.ndarray]:
        """Compute the distance of each row to its nearest centroid with each candidate added, per chunk."""
        items = zip(self._parts(), itertools.repeat(None) if nearest is None else nearest)
        function = functools.partial(_min_distances, metric=metric, candidates=candidates, device=self.device)
        return self._map(function, items)

    def step(self, centroids: np.ndarray, metric: Metric, block: int) -> TotalStep:
        """Compute the pass over the data of one Lloyd iteration."""
        parts = self._parts()
        if self.weights is not None:
            function = functools.partial(_weighted_partial_step, metric=metric, centroids=centroids)
            return sum_partials(self._map(function, ((chunk, self._weights_of(chunk)) for chunk in parts)))
        if self.device == "cpu" and self.mapper is None and self.data.array is not None:
            # Each thread takes its share of the rows at once, if there is room for the sums of all their blocks.
            chunks_per_thread = -(-len(self.data.array) // (chunks.CHUNK_ROWS * pool.resolve_n_threads(self.n_threads)))
            limit = MAX_BUFFERED_SUMS * block // (chunks.CHUNK_ROWS * centroids.size)
            parts = self.data.grouped(max(min(chunks_per_thread, limit), 1))
        function = functools.partial(
            _partial_step,
            metric=metric,
            centroids=centroids,
            # A GPU sums in the kernel's own blocks, in float32.
            block=block if self.device == "cpu" else None,
            device=self.device,
        )
        return sum_partials(self._map(function, parts))

    def assign(self, centroids: np.ndarray, metric: Metric) -> np.ndarray:
        """Return the nearest centroid of each row, (N,) int32."""
        function = functools.partial(_assign, metric=metric, centroids=centroids, device=self.device)
        return np.concatenate([np.empty(0, np.int32), *self._map(function, self._parts())])

    def distances(self, centroids: np.ndarray, metric: Metric) -> Iterable[np.ndarray]:
        """Return the distance of each row to each centroid, an array (n, K) per chunk: 1 - cosine, or Euclidean."""
        function = functools.partial(_distances, metric=metric, centroids=centroids)
        return self._map(function, self._parts())

    def _weights_of(self, chunk: Chunk) -> np.ndarray:
        assert self.weights is not None, "asked for only where there are weights"
        return self.weights[chunk.first : chunk.first + len(chunk.rows())]

    def _parts(self) -> Iterable[Chunk]:
        """Return the units of work: chunks, or many chunks at once if they are in GPU memory already."""
        return self.data if self.data.device == "cpu" else self.data.grouped(CHUNKS_PER_LAUNCH)

    def _map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterable[Any]:
        """Apply a function to all items; the results come in the order of the items."""
        if self.mapper is not None:
            return self.mapper(function, items)
        if self.device == "cuda":
            return map(function, items)
        n_threads = pool.resolve_n_threads(self.n_threads)
        if self.data.in_memory:
            return _map_in_team(function, items, n_threads)
        return pool.map_ordered(function, items, n_threads)


def _map_in_team(function: Callable[[Any], Any], items: Iterable[Any], n_threads: int) -> Iterator[Any]:
    """Map in batches of one item per thread of the permanent team.

    Unlike :func:`vitnp.kernels.threads.pool.map_ordered`, this starts no threads, and does not load items in advance:
    views of an array in memory need no loading.
    """
    items = iter(items)
    while batch := list(itertools.islice(items, n_threads)):
        yield from _map_batch(function, batch, n_threads)


def _map_batch(function: Callable[[Any], Any], batch: list[Any], n_threads: int) -> list[Any]:
    results: list[Any] = [None] * len(batch)

    def work(first: int, last: int) -> None:
        for index in range(first, last):
            results[index] = function(batch[index])

    with pool.thread_limit(n_threads):
        team.parallel_for(work, len(batch))
    return results


def _fits_on_gpu(x: Any) -> bool:
    """Whether `x` is a numeric array that fits into the GPU memory set aside for rows."""
    if not (isinstance(x, np.ndarray) and x.ndim == 2 and x.dtype.kind in "fiub"):
        return False
    limit = MEMORY_FRACTION * kernels.for_device("cuda").free_bytes()
    return bool(x.size * np.dtype(np.float32).itemsize <= limit)


# Functions of one chunk. They may run in another process, so they are pickled with their arguments.


def _one_blas_thread() -> contextlib.AbstractContextManager[None]:
    """Limit BLAS to one thread in another process too.

    Only the reference kernels call BLAS, and to look for the loaded BLAS libraries takes milliseconds.
    """
    return blas.one_blas_thread() if kernels.for_device() is reference else contextlib.nullcontext()


def _to_device(rows: np.ndarray, device: str) -> np.ndarray:
    """Copy rows to a device; for a GPU in one of the two dtypes that its kernels accept."""
    if device != "cpu" and rows.dtype not in (np.float16, np.float32):
        with np.errstate(over="ignore"):
            rows = rows.astype(np.float32)
    return kernels.to_device(rows, device)


def _min_distances(
    item: tuple[Chunk, np.ndarray | None], metric: Metric, candidates: np.ndarray, device: str = "cpu"
) -> np.ndarray:
    """Compute the distance of each row to the nearest of its centroid so far and the candidate, (n, m) float32."""
    chunk, nearest = item
    with _one_blas_thread():
        rows = _to_device(chunk.rows(), device)
        candidates = kernels.to_device(candidates, device)
        return kernels.for_array(rows).kmeans_closer(rows, candidates, nearest, **metric.kernel_options(rows))


def _partial_step(
    chunk: Chunk, metric: Metric, centroids: np.ndarray, block: int | None, device: str = "cpu"
) -> PartialStep:
    with _one_blas_thread():
        return partial_step(_to_device(chunk.rows(), device), centroids, metric, chunk.first, block)


def _weighted_partial_step(item: tuple[Chunk, np.ndarray], metric: Metric, centroids: np.ndarray) -> PartialStep:
    chunk, weights = item
    with _one_blas_thread():
        return partial_step(chunk.rows(), centroids, metric, chunk.first, weights=weights)


def _distances(chunk: Chunk, metric: Metric, centroids: np.ndarray) -> np.ndarray:
    rows = kernels.to_host(chunk.rows())
    rows = kernels.for_device("cpu").kmeans_rows(rows, **metric.kernel_options(rows))
    if isinstance(metric, Euclidean):
        from scipy.spatial.distance import cdist

        distances: np.ndarray = cdist(rows, centroids)
    else:
        # One product in float64 per pair, whatever the number of rows: the same result for any block.
        distances = 1 - np.einsum("nd,kd->nk", rows, centroids, dtype=np.float64)
    check_finite(distances.sum(axis=1), chunk.first)
    return distances


def _assign(chunk: Chunk, metric: Metric, centroids: np.ndarray, device: str = "cpu") -> np.ndarray:
    with _one_blas_thread():
        rows = _to_device(chunk.rows(), device)
        assigned = kernels.for_array(rows).kmeans_assign(
            rows, kernels.to_device(centroids, device), **metric.kernel_options(rows)
        )
    labels, losses = map(kernels.to_host, assigned)
    check_finite(losses, chunk.first)
    return labels
