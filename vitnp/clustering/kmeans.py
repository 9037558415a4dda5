"""k-means of any number of rows, by cosine or Euclidean distance.

:class:`KMeans` reads rows in chunks and need not hold them in memory; for the few hundred patches of one image see
:func:`vitnp.clustering.spherical.spherical_kmeans`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from vitnp import kernels
from vitnp.clustering import chunks
from vitnp.clustering.chunks import rows_per_block
from vitnp.clustering.kmeans_plusplus import kmeans_plusplus
from vitnp.clustering.lloyd import LloydResult, lloyd
from vitnp.clustering.metric import Cosine, Euclidean, Metric
from vitnp.clustering.passes import Mapper, Passes
from vitnp.errors import UsageError
from vitnp.kernels.threads import blas, pool

# Largest n_clusters that the CUDA kernels support.
MAX_GPU_CLUSTERS = 256


class KMeans:
    """k-means of more rows than fit into memory.

    Rows are read in chunks of a fixed size, again in every pass, and sums over chunks are added in the order of the
    chunks. Labels and centroids are therefore the same to the bit whether the rows come as an array, a memory map or
    blocks of any size, and whether one thread, many threads, or other machines of the same kind process the chunks.
    Computation is in float32, sums over chunks are in float64.

    A GPU gives the same result every time as well. It may differ from that of the CPU in the last bits of the sums, and
    therefore where a row is equally near to two centroids, or where this sends the iterations another way.

    Memory: the chunks in flight (none for an array of floats, which is read in place), at most 32 MB of sums per
    thread, and for each row three numbers of 4 bytes, or 3 + ln K of them during k-means++.

    Parameters
    ----------
    n_clusters : int
        K.
    metric : {"cosine", "euclidean"}
        With "cosine" rows are scaled to unit length on the fly, and centroids are unit vectors (spherical k-means).
    init : "k-means++" or (K, D) array
        Greedy k-means++, or the initial centroids.
    n_init : int
        Number of independent k-means++ starts. The result with the lowest inertia is kept, the earlier one if equal.
        Must be 1 if `init` is an array.
    max_iter : int
        Largest number of iterations of each start.
    tol : float
        Stop when the inertia falls by no more than this fraction of itself; 0 stops when the labels no longer change.
    seed : int or sequence of int
        Seed of the random numbers of k-means++.
    n_threads : int, optional
        Number of chunks processed at the same time, as in :func:`vitnp.kernels.threads.pool.resolve_n_threads`.
    device : {"auto", "cpu", "cuda"}
        Where to compute. Rows that do not fit into GPU memory are copied chunk by chunk; rows already there are used in
        place.

    Attributes
    ----------
    cluster_centers_ : (K, D) float32
    labels_ : (N,) int32
        Nearest centroid of each row, ties to the lower one.
    counts_ : (K,) int64
        Number of rows of each cluster; 0 is possible if there are fewer distinct rows than clusters.
    inertia_ : float
        Sum over rows of 1 - cosine, or of the squared distance, to the row's centroid.
    n_iter_ : int
        Number of times the centroids moved in the best start.
    inertia_history_ : list of float
        Inertia before each move of the best start and after the last one.

    Raises
    ------
    UsageError
        If a parameter is out of its range.

    Examples
    --------
    >>> x = np.array([[1.0, 0.0], [9.0, 1.0], [0.0, 2.0]])
    >>> model = KMeans(2).fit(x)
    >>> bool(model.labels_[0] == model.labels_[1] != model.labels_[2])
    True
    >>> bool((model.predict([x[:1], x[1:]]) == model.labels_).all())
    True
    """

    cluster_centers_: np.ndarray
    labels_: np.ndarray
    counts_: np.ndarray
    inertia_: float
    n_iter_: int
    inertia_history_: list[float]

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
                raise UsageError(f"{name} must be at least 1, got {value}")
        if metric not in ("cosine", "euclidean"):
            raise UsageError(f"metric must be 'cosine' or 'euclidean', got {metric!r}")
        if not tol >= 0:
            raise UsageError(f"tol must be at least 0, got {tol}")
        _check_init(init, n_clusters, n_init)
        self.n_clusters = n_clusters
        self.metric = metric
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.seed = seed
        self.n_threads = n_threads
        self.device = kernels.choose_device(device)
        if self.device == "cuda" and n_clusters > MAX_GPU_CLUSTERS:
            raise UsageError(
                f"n_clusters must be at most {MAX_GPU_CLUSTERS} on a GPU, got {n_clusters}; choose device='cpu'"
            )

    def fit(self, X: Any, *, mapper: Mapper | None = None) -> KMeans:
        """Compute the clusters.

        Parameters
        ----------
        X : (N, D) array, memory map, object with ``shape`` and slices of rows, or iterable of (n, D) blocks
            Real numbers, for example float16. See :class:`vitnp.clustering.chunks.Chunks`.
        mapper : callable, optional
            Replaces the threads that do a pass over the data: ``mapper(function, items)`` returns ``function(item)``
            for each item, in order, like the built-in ``map``. Functions, items and results can be pickled, and an item
            carries its rows, or only their slice if X is not a NumPy array. With dask.distributed: ``lambda function,
            items: client.gather(client.map(function, list(items)))``.

        Returns
        -------
        KMeans
            This object.

        Raises
        ------
        UsageError
            If there are fewer rows than clusters, a row is not finite (the first one is named), X is an iterator, which
            can be read only once, or blocks change from one pass to the next.
        """
        passes = self._passes(X, mapper)
        with blas.one_blas_thread():
            metric = self._survey(passes)
            rng = np.random.default_rng(self.seed)
            best = min((self._run(passes, metric, rng) for _ in range(self.n_init)), key=lambda run: run.total.inertia)
        self._metric, self._centroids = metric, best.centroids
        self.cluster_centers_ = metric.cluster_centers(best.centroids)
        self.labels_ = kernels.to_host(best.total.labels)
        self.counts_ = best.total.counts
        self.inertia_ = best.total.inertia
        self.n_iter_ = best.n_moves
        self.inertia_history_ = best.history
        return self

    def predict(self, X: Any, *, mapper: Mapper | None = None) -> np.ndarray:
        """Return the nearest cluster of each row, (N,) int32; `X` and `mapper` as in :meth:`fit`.

        Raises
        ------
        UsageError
            If the rows have another length than those of :meth:`fit` or are not finite, or :meth:`fit` was not called
            yet.
        """
        if not hasattr(self, "_centroids"):
            raise UsageError("this KMeans has no clusters yet; call fit first")
        passes = self._passes(X, mapper, n_features=self.cluster_centers_.shape[1])
        with blas.one_blas_thread():
            return passes.assign(self._centroids, self._metric)

    def fit_predict(self, X: Any, *, mapper: Mapper | None = None) -> np.ndarray:
        """Compute the clusters and return the label of each row, (N,) int32; `X` and `mapper` as in :meth:`fit`."""
        return self.fit(X, mapper=mapper).labels_

    def _passes(self, X: Any, mapper: Mapper | None, n_features: int | None = None) -> Passes:
        return Passes(X, device=self.device, n_threads=self.n_threads, mapper=mapper, n_features=n_features)

    def _survey(self, passes: Passes) -> Metric:
        """Check the rows, and return the metric, which may depend on their mean."""
        total = passes.survey()
        n_rows = 0 if total is None else len(total.labels)
        if total is None or n_rows < self.n_clusters:
            raise UsageError(f"n_clusters must be at most the number of rows, {n_rows}, got {self.n_clusters}")
        return Cosine() if self.metric == "cosine" else Euclidean((total.sums[0] / n_rows).astype(np.float32))

    def _run(self, passes: Passes, metric: Metric, rng: np.random.Generator) -> LloydResult:
        """Run Lloyd's algorithm once, from k-means++ or the given centroids."""
        data = passes.data
        assert data.n_rows is not None, "the rows were counted by the survey"
        if isinstance(self.init, str):
            centroids = kmeans_plusplus(
                data.n_rows,
                self.n_clusters,
                rng,
                functools.partial(passes.rows_at, metric=metric),
                functools.partial(passes.min_distances, metric=metric),
            )
        else:
            centroids = _own_centroids(self.init, data.n_features, metric)
        block = rows_per_block(data.n_rows)
        few = passes.mapper is None and self.device == "cpu" and data.n_rows <= chunks.CHUNK_ROWS
        with pool.thread_limit(pool.resolve_n_threads(self.n_threads)):
            return lloyd(
                functools.partial(passes.step, metric=metric, block=block),
                centroids,
                self.max_iter,
                self.tol,
                metric,
                data.array if few else None,
                block,
            )


def _check_init(init: str | np.ndarray, n_clusters: int, n_init: int) -> None:
    if isinstance(init, str):
        if init != "k-means++":
            raise UsageError(f"init must be 'k-means++' or an array of centroids, got {init!r}")
        return
    centroids = np.asarray(init)
    if centroids.ndim != 2 or len(centroids) != n_clusters or centroids.dtype.kind not in "fiub":
        raise UsageError(
            f"init must be 'k-means++' or real numbers of shape (n_clusters, D) = ({n_clusters}, D), "
            f"got {centroids.dtype} of shape {centroids.shape}"
        )
    if n_init != 1:
        raise UsageError(f"n_init must be 1 if init is an array of centroids, got {n_init}")


def _own_centroids(init: np.ndarray, n_features: int | None, metric: Metric) -> np.ndarray:
    """Return the caller's initial centroids as the metric sees them."""
    centroids = np.asarray(init)
    if centroids.shape[1] != n_features:
        raise UsageError(f"init must have {n_features} numbers per centroid as the rows have, got {centroids.shape[1]}")
    with np.errstate(over="ignore"):
        centroids = centroids.astype(np.float32)
    if not np.isfinite(centroids).all():
        raise UsageError("init must be finite, but contains NaN, infinity, or values too large for float32")
    return kernels.for_device("cpu").kmeans_rows(centroids, **metric.kernel_options(centroids))
