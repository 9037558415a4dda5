"""The pass over the data of a Lloyd iteration, in parts: the contribution of some rows, and the sum of contributions.

Parts may be computed anywhere and in any order. They are added in the order of the rows, so the result does not depend
on where they were computed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from vitnp import kernels
from vitnp.clustering.metric import Cosine, Metric
from vitnp.errors import UsageError
from vitnp.kernels.reference import Step

# Rows copied at a time while looking for rows of zeros.
COPIED_ROWS = 4096


class FarthestRows(NamedTuple):
    """Rows that may become centroids of empty clusters, farthest first, ties to the lower row.

    Attributes
    ----------
    losses : (m,) float64
    indices : (m,) int
        Row numbers in the whole data.
    labels : (m,) int32
        Cluster of each row.
    rows : (m, D) float
        The rows as the metric sees them.
    """

    losses: np.ndarray
    indices: np.ndarray
    labels: np.ndarray
    rows: np.ndarray


class PartialStep(NamedTuple):
    """Contribution of consecutive rows to one Lloyd iteration.

    Attributes
    ----------
    step : Step
        Result of the kernel.
    farthest : FarthestRows or None
        The K rows farthest from their centroids, which is as many as :func:`~vitnp.clustering.lloyd.move_centroids` can
        need. None when no cluster is empty here, because then none is empty in the whole either.
    """

    step: Step
    farthest: FarthestRows | None


class TotalStep(NamedTuple):
    """Sum of the contributions of all rows.

    Attributes
    ----------
    labels : (N,) int32
        Nearest centroid of each row, ties to the lower one; on the device of the rows.
    sums : (K, D) float64
        Sum of each cluster's rows, as the metric sees them.
    counts : (K,) int64
        Number of rows of each cluster.
    inertia : float
        Sum of the rows' losses.
    farthest : FarthestRows or None
        None when no cluster is empty.
    """

    labels: np.ndarray
    sums: np.ndarray
    counts: np.ndarray
    inertia: float
    farthest: FarthestRows | None


def partial_step(
    x: np.ndarray,
    centroids: np.ndarray,
    metric: Metric,
    first: int = 0,
    block: int | None = None,
    weights: np.ndarray | None = None,
) -> PartialStep:
    """Compute the contribution of some rows to a Lloyd iteration.

    Parameters
    ----------
    x : (n, D) real
        On any device. Labels and losses stay there; everything else is copied to the host.
    centroids : (K, D) float
        In host memory. Their dtype is that of the computation.
    metric : Cosine or Euclidean
    first : int
        Number of the first row in the whole data.
    block : int, optional
        Number of rows that are summed in one go; all by default.
    weights : (n,) float64, optional
        Weights of the rows in the sums, all 1 by default; for rows in host memory. Counts are sums of weights then.

    Returns
    -------
    PartialStep

    Raises
    ------
    UsageError
        If a row is not finite.

    Examples
    --------
    >>> part = partial_step(np.array([[1.0, 0.0], [0.6, 0.8]]), np.eye(2), Cosine())
    >>> part.step.labels, part.step.counts, part.step.inertia.round(3)
    (array([0, 1], dtype=int32), array([1, 1]), array([0.2]))
    """
    if weights is not None:
        step = _weighted_step(x, centroids, metric, first, weights)
        return PartialStep(step, None if step.counts.all() else _farthest_rows(x, step, centroids, metric, first))
    on_device = kernels.to_device(centroids, kernels.device_of(x))
    step = kernels.for_array(x).kmeans_step(x, on_device, **metric.kernel_options(x), block=block)
    step = step._replace(**{name: kernels.to_host(getattr(step, name)) for name in ("sums", "counts", "inertia")})
    if not np.isfinite(step.inertia).all():
        check_finite(step.losses, first)
    return PartialStep(step, None if step.counts.all() else _farthest_rows(x, step, centroids, metric, first))


def _weighted_step(x: np.ndarray, centroids: np.ndarray, metric: Metric, first: int, weights: np.ndarray) -> Step:
    """Return the pass over some rows with weights, which the fused kernel does not have: assign, then sum."""
    from scipy import sparse

    operations = kernels.for_array(x)
    labels, losses = operations.kmeans_assign(x, centroids, **metric.kernel_options(x))
    check_finite(losses, first)
    rows = operations.kmeans_rows(x, **metric.kernel_options(x), dtype=centroids.dtype)
    shape = (len(centroids), len(labels))
    # A product with a sparse matrix of one weight per row adds up rows one by one, in their order.
    membership = sparse.csc_matrix((weights, labels, np.arange(len(labels) + 1)), shape)
    sums = membership @ rows.astype(np.float64)
    counts = np.bincount(labels, weights, len(centroids))
    return Step(labels, losses, sums[None], counts, np.array([losses @ weights], np.float64))


def check_finite(losses: np.ndarray, first: int) -> None:
    """Raise an error that names the first row with a loss that is not finite; `first` is the number of the first row.

    Raises
    ------
    UsageError
    """
    bad = ~np.isfinite(kernels.to_host(losses))
    if bad.any():
        raise UsageError(
            f"row {first + int(bad.argmax())} of the features is not finite: it contains NaN, infinity, or values too "
            "large for float32; remove or repair it"
        )


def sum_partials(partials: Iterable[PartialStep]) -> TotalStep:
    """Add up the contributions of all rows.

    Sums of blocks are added one by one in the order given. Give them in the order of the rows: then the result does not
    depend on how many blocks each contribution has.

    Examples
    --------
    >>> chunks = np.array([[1.0, 0.0], [0.6, 0.8]]), np.array([[0.0, 1.0]])
    >>> sum_partials(partial_step(rows, np.eye(2), Cosine()) for rows in chunks).counts
    array([1, 2])
    """
    labels: list[np.ndarray] = []
    sums: np.ndarray | None = None
    counts, inertia = np.zeros((), np.int64), 0.0
    farthest: FarthestRows | None = None
    for step, some_farthest in partials:
        for block in step.sums:
            sums = block + 0.0 if sums is None else np.add(sums, block, out=sums)
        for loss in step.inertia.tolist():
            inertia += loss
        farthest = some_farthest if not labels else _merge(farthest, some_farthest, len(step.counts))
        labels.append(step.labels)
        counts = counts + step.counts
    if len(labels) != 1:
        labels = [kernels.array_module(labels[0]).concatenate(labels) if labels else np.empty(0, np.int32)]
    return TotalStep(labels[0], np.empty((0, 0)) if sums is None else sums, counts, inertia, farthest)


def _merge(first: FarthestRows | None, second: FarthestRows | None, n_clusters: int) -> FarthestRows | None:
    """Return the `n_clusters` farthest rows of two lists; None if either is None: then no cluster is empty."""
    if first is None or second is None:
        return None
    both = FarthestRows(*(np.concatenate(pair) for pair in zip(first, second)))
    order = np.lexsort((both.indices, -both.losses))[:n_clusters]
    return FarthestRows(*(field[order] for field in both))


def _farthest_rows(x: np.ndarray, step: Step, centroids: np.ndarray, metric: Metric, first: int) -> FarthestRows:
    """Return the K rows farthest from their centroids, in host memory."""
    xp = kernels.array_module(x)
    losses = kernels.to_host(step.losses).astype(np.float64)
    if isinstance(metric, Cosine):
        # A row of zeros, whose loss is exactly 1, has no direction and cannot be a centroid.
        maybe_zero = np.flatnonzero(losses == 1)
        for start in range(0, len(maybe_zero), COPIED_ROWS):
            rows = maybe_zero[start : start + COPIED_ROWS]
            losses[rows[~kernels.to_host(x[xp.asarray(rows)].any(axis=1))]] = -np.inf
    candidates = np.flatnonzero(losses > -np.inf)
    n_clusters = len(centroids)
    if len(candidates) > n_clusters:
        threshold = -np.partition(-losses[candidates], n_clusters - 1)[n_clusters - 1]
        candidates = candidates[losses[candidates] >= threshold]
    kept = candidates[np.argsort(-losses[candidates], kind="stable")[:n_clusters]]
    raw, labels = (kernels.to_host(array[xp.asarray(kept)]) for array in (x, step.labels))
    rows = kernels.for_array(raw).kmeans_rows(raw, **metric.kernel_options(raw), dtype=centroids.dtype)
    return FarthestRows(losses[kept], kept + first, labels, rows)
