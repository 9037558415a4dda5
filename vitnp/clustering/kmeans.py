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
from vitnp.clustering.chunks import rows_per_block
from vitnp.clustering.estimator import Estimator, check_rows, check_weights, not_fitted
from vitnp.clustering.kmeans_plusplus import kmeans_plusplus
from vitnp.clustering.lloyd import LloydResult, lloyd
from vitnp.clustering.metric import Cosine, Euclidean, Metric
from vitnp.clustering.parameters import check_parameters, given_centroids
from vitnp.clustering.passes import MAX_BUFFERED_SUMS, Mapper, Passes
from vitnp.errors import UsageError
from vitnp.kernels.threads import blas, pool


class KMeans(Estimator):
    """k-means of more rows than fit into memory.

    Rows are read in chunks of a fixed size, again in every pass, and sums over chunks are added in the order of the
    chunks. Labels and centroids are therefore the same to the bit whether the rows come as an array, a memory map or
    blocks of any size, and whether one thread, many threads, or other machines of the same kind process the chunks.
    Computation is in float32, sums over chunks are in float64.

    A GPU gives the same result every time as well. It may differ from that of the CPU in the last bits of the sums, and
    therefore where a row is equally near to two centroids, or where this sends the iterations another way.

    Memory: the chunks in flight (none for an array of floats, which is read in place), at most 32 MB of sums per
    thread, and for each row three numbers of 4 bytes, or 3 + ln K of them during k-means++.

    It follows the conventions of scikit-learn's estimators (without scikit-learn): it can be cloned, and used in
    pipelines and searches. Parameters are checked by :meth:`fit`.

    Parameters
    ----------
    n_clusters : int
        K.
    metric : {"cosine", "euclidean"}
        With "cosine" rows are scaled to unit length on the fly, and centroids are unit vectors (spherical k-means).
    init : "k-means++" or (K, D) array
        Greedy k-means++, or the initial centroids.
    n_init : "auto" or int
        Number of independent k-means++ starts; "auto" is 1. The result with the lowest inertia is kept, the earlier one
        if equal. Must be 1 or "auto" if `init` is an array.
    max_iter : int
        Largest number of iterations of each start.
    tol : float
        Stop when the inertia falls by no more than this fraction of itself; 0 stops when the labels no longer change.
    random_state : int, sequence of int, or NumPy random generator
        Seed of the random numbers of k-means++; None for other numbers each time.
    n_jobs : int, optional
        Number of chunks processed at the same time; all cores if None or -1.
    device : {"auto", "cpu", "cuda"}
        Where to compute. Rows that do not fit into GPU memory are copied chunk by chunk; rows already there are used in
        place.

    Attributes
    ----------
    cluster_centers_ : (K, D) float32, or float64 if the rows are
    labels_ : (N,) int32
        Nearest centroid of each row, ties to the lower one.
    counts_ : (K,) int64
        Number of rows of each cluster; 0 is possible if there are fewer distinct rows than clusters. With
        ``sample_weight`` their weight, (K,) float64.
    inertia_ : float
        Sum over rows of 1 - cosine, or of the squared distance, to the row's centroid.
    n_iter_ : int
        Number of times the centroids moved in the best start.
    inertia_history_ : list of float
        Inertia before each move of the best start and after the last one.
    n_features_in_ : int
        D.
    feature_names_in_ : (D,) object
        Names of the columns, if the rows came as a data frame.

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
        n_clusters: int = 8,
        *,
        metric: str = "cosine",
        init: str | np.ndarray = "k-means++",
        n_init: int | str = "auto",
        max_iter: int = 300,
        tol: float = 0.0,
        random_state: int | Sequence[int] | np.random.Generator | None = 0,
        n_jobs: int | None = None,
        device: str = "cpu",
    ) -> None:
        self.n_clusters = n_clusters
        self.metric = metric
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.device = device

    def fit(self, X: Any, y: object = None, sample_weight: Any = None, *, mapper: Mapper | None = None) -> KMeans:
        """Compute the clusters.

        Parameters
        ----------
        X : (N, D) array, memory map, object with ``shape`` and slices of rows, or iterable of (n, D) blocks
            Real numbers, for example float16. See :class:`vitnp.clustering.chunks.Chunks`. Sparse rows are refused.
        y : ignored
        sample_weight : (N,) array, optional
            Weight of each row, not negative; all are 1 by default. Rows of weight 0 have no influence. Weights need
            rows in memory and ``device="cpu"``.
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
            If a parameter is out of its range, there are fewer rows than clusters, a row is not finite (the first one
            is named), X is an iterator, which can be read only once, or blocks change from one pass to the next.
        """
        device = check_parameters(self)
        x = check_rows(X)
        weights = None if sample_weight is None else check_weights(sample_weight, x)
        passes = self._passes(x, mapper, device, weights)
        with blas.one_blas_thread():
            metric = self._survey(passes)
            rng = np.random.default_rng(self.random_state)
            n_init = 1 if isinstance(self.n_init, str) else self.n_init
            best = min((self._run(passes, metric, rng) for _ in range(n_init)), key=lambda run: run.total.inertia)
        self._note_columns(X, int(best.centroids.shape[1]))
        self._metric, self._centroids = metric, best.centroids
        dtype = np.float64 if getattr(x, "dtype", None) == np.float64 else np.float32
        self.cluster_centers_ = metric.cluster_centers(best.centroids).astype(dtype)
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
        passes = self._passes_of_new_rows(X, mapper)
        with blas.one_blas_thread():
            return passes.assign(self._centroids, self._metric)

    def fit_predict(
        self, X: Any, y: object = None, sample_weight: Any = None, *, mapper: Mapper | None = None
    ) -> np.ndarray:
        """Compute the clusters and return the label of each row, (N,) int32; arguments as in :meth:`fit`."""
        return self.fit(X, sample_weight=sample_weight, mapper=mapper).labels_

    def transform(self, X: Any) -> np.ndarray:
        """Return the distance of each row to each centroid, (N, K) float: 1 - cosine, or the Euclidean distance.

        Raises
        ------
        UsageError
            As for :meth:`predict`.
        """
        passes = self._passes_of_new_rows(X, None)
        with blas.one_blas_thread():
            distances = np.concatenate(list(passes.distances(self._centroids, self._metric)))
        return distances.astype(self.cluster_centers_.dtype)

    def fit_transform(self, X: Any, y: object = None, sample_weight: Any = None) -> np.ndarray:
        """Compute the clusters and return :meth:`transform` of the same rows."""
        return self.fit(X, sample_weight=sample_weight).transform(X)

    def score(self, X: Any, y: object = None, sample_weight: Any = None) -> float:
        """Return minus the inertia of rows: a larger score is a better fit."""
        x = check_rows(X)
        weights = 1.0 if sample_weight is None else check_weights(sample_weight, x)
        nearest = self.transform(X).astype(np.float64).min(axis=1)
        losses = nearest if self._metric.name == "cosine" else nearest**2
        return -float((losses * weights).sum())

    @property
    def _n_threads(self) -> int | None:
        return None if self.n_jobs == -1 else self.n_jobs

    @property
    def _n_features_out(self) -> int:
        """Number of columns of :meth:`transform`, for scikit-learn."""
        return len(self.cluster_centers_)

    def __sklearn_tags__(self) -> Any:
        """Return what scikit-learn wants to know of an estimator; only scikit-learn calls this."""
        from sklearn.utils import Tags, TargetTags, TransformerTags

        return Tags(
            estimator_type="clusterer",
            target_tags=TargetTags(required=False),
            transformer_tags=TransformerTags(preserves_dtype=["float64", "float32"]),
        )

    def _passes_of_new_rows(self, X: Any, mapper: Mapper | None) -> Passes:
        if not hasattr(self, "_centroids"):
            raise not_fitted(self)
        self._check_columns(X)
        return self._passes(check_rows(X), mapper, kernels.choose_device(self.device), n_features=self.n_features_in_)

    def _passes(
        self,
        x: Any,
        mapper: Mapper | None,
        device: str,
        weights: np.ndarray | None = None,
        n_features: int | None = None,
    ) -> Passes:
        return Passes(
            x, device=device, n_threads=self._n_threads, mapper=mapper, n_features=n_features, weights=weights
        )

    def _survey(self, passes: Passes) -> Metric:
        """Check the rows, and return the metric, which may depend on their mean."""
        total = passes.survey()
        n_rows = 0 if total is None else len(total.labels)
        if total is None or n_rows < self.n_clusters:
            raise UsageError(
                f"n_clusters must be at most the number of rows, got {self.n_clusters} with n_samples = {n_rows}"
            )
        return Cosine() if self.metric == "cosine" else Euclidean((total.sums[0] / total.counts[0]).astype(np.float32))

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
                passes.weights,
            )
        else:
            centroids = given_centroids(self.init, data.n_features, metric)
        block = rows_per_block(data.n_rows)
        # The sums of all blocks are in memory at once.
        room = -(-data.n_rows // block) * centroids.size <= MAX_BUFFERED_SUMS
        at_once = room and passes.mapper is None and passes.device == "cpu" and passes.weights is None
        with pool.thread_limit(pool.resolve_n_threads(self._n_threads)):
            return lloyd(
                functools.partial(passes.step, metric=metric, block=block),
                centroids,
                self.max_iter,
                self.tol,
                metric,
                data.array if at_once else None,
                block,
            )
