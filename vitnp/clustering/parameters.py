"""Check the parameters of :class:`vitnp.clustering.kmeans.KMeans`, and centroids that its caller gives."""

from __future__ import annotations

import numbers
from typing import TYPE_CHECKING

import numpy as np

from vitnp import kernels
from vitnp.clustering.metric import Metric
from vitnp.errors import UsageError

if TYPE_CHECKING:
    from vitnp.clustering.kmeans import KMeans

# Largest n_clusters that the CUDA kernels support.
MAX_GPU_CLUSTERS = 256


def check_parameters(model: KMeans) -> str:
    """Check the parameters of an estimator and return the device, "cpu" or "cuda".

    Raises
    ------
    UsageError
        If one is out of its range.
    """
    for name, value in ("n_clusters", model.n_clusters), ("max_iter", model.max_iter):
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
            raise UsageError(f"{name} must be a whole number of at least 1, got {value!r}")
    if model.n_init != "auto" and (not isinstance(model.n_init, numbers.Integral) or model.n_init < 1):
        raise UsageError(f"n_init must be 'auto' or a whole number of at least 1, got {model.n_init!r}")
    if model.metric not in ("cosine", "euclidean"):
        raise UsageError(f"metric must be 'cosine' or 'euclidean', got {model.metric!r}")
    if not isinstance(model.tol, numbers.Real) or not model.tol >= 0:
        raise UsageError(f"tol must be a number of at least 0, got {model.tol!r}")
    _check_init(model.init, model.n_clusters, model.n_init)
    device = kernels.choose_device(model.device)
    if device == "cuda" and model.n_clusters > MAX_GPU_CLUSTERS:
        raise UsageError(
            f"n_clusters must be at most {MAX_GPU_CLUSTERS} on a GPU, got {model.n_clusters}; choose device='cpu'"
        )
    return device


def _check_init(init: str | np.ndarray, n_clusters: int, n_init: int | str) -> None:
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
    if n_init not in (1, "auto"):
        raise UsageError(f"n_init must be 1 if init is an array of centroids, got {n_init}")


def given_centroids(init: np.ndarray, n_features: int | None, metric: Metric) -> np.ndarray:
    """Return the caller's initial centroids as the metric sees them."""
    centroids = np.asarray(init)
    if centroids.shape[1] != n_features:
        raise UsageError(f"init must have {n_features} numbers per centroid as the rows have, got {centroids.shape[1]}")
    with np.errstate(over="ignore"):
        centroids = centroids.astype(np.float32)
    if not np.isfinite(centroids).all():
        raise UsageError("init must be finite, but contains NaN, infinity, or values too large for float32")
    return kernels.for_device("cpu").kmeans_rows(centroids, **metric.kernel_options(centroids))
