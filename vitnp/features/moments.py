"""Mean, covariance and percentiles of more rows than fit into memory, the same to the bit for any number of threads.

Every number is computed on chunks of one fixed size (:mod:`vitnp.clustering.chunks`), each by one thread in float64,
and put together in the order of the chunks.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from vitnp import kernels
from vitnp.clustering.chunks import Chunk, Chunks
from vitnp.errors import UsageError
from vitnp.kernels.threads import blas, pool

# Histograms reach this many standard deviations to both sides of the mean. At most one row in 257 lies beyond one of
# the ends, whatever the distribution (Cantelli's inequality), so that percentiles from 1 to 99 are always inside.
REACH = 16.0
# Bins of a histogram: 0.0005 standard deviations each.
BINS = 65_536

# Select rows of a chunk: from float64 (n, D) to bool (n,).
Keep = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """Number, mean and scatter of rows.

    Attributes
    ----------
    n : int
        Number of rows.
    mean : (D,) float64
    scatter : (D, D) float64
        Sum of the outer products of the rows minus the mean.
    weighted : (D,) float64
        Sum of the rows times their weights.
    weight : float
        Sum of the weights.
    """

    n: int
    mean: np.ndarray
    scatter: np.ndarray
    weighted: np.ndarray
    weight: float

    def merged(self, other: Moments) -> Moments:
        """Return the moments of the rows of both (Chan, Golub and LeVeque 1983)."""
        if not self.n or not other.n:
            return self if self.n else other
        n = self.n + other.n
        step = other.mean - self.mean
        return Moments(
            n,
            self.mean + step * (other.n / n),
            self.scatter + other.scatter + np.outer(step, step) * (self.n * other.n / n),
            self.weighted + other.weighted,
            self.weight + other.weight,
        )

    @property
    def covariance(self) -> np.ndarray:
        """(D, D) float64: scatter / (n - 1), as scikit-learn and ``np.cov`` define it."""
        return self.scatter / max(1, self.n - 1)


def moments(chunks: Chunks, n_threads: int, *, weights: np.ndarray | None = None, keep: Keep | None = None) -> Moments:
    """Compute the moments of rows in one pass over them.

    Parameters
    ----------
    chunks : Chunks
    n_threads : int
        Chunks in flight.
    weights : (N,) float, optional
        Weights for the sum `weighted`, missing ones are 0; mean and scatter are without weights.
    keep : callable, optional
        Selects the rows that count.

    Returns
    -------
    Moments

    Raises
    ------
    UsageError
        If a row contains NaN or infinity; the first one is named.
    """
    function = functools.partial(_moments, weights=weights, keep=keep)
    parts = each_chunk(function, chunks, n_threads)
    total = next(parts, None)
    if total is None:
        raise UsageError("there are no rows; give at least as many as components")
    for part in parts:
        total = total.merged(part)
    return total


def histograms(
    chunks: Chunks,
    n_threads: int,
    project: Callable[[np.ndarray], np.ndarray],
    scale: np.ndarray,
    keep: Keep | None = None,
) -> np.ndarray:
    """Count the projections of rows in :data:`BINS` bins, which reach from -REACH to REACH times `scale`.

    Parameters
    ----------
    chunks : Chunks
    n_threads : int
    project : callable
        From rows (n, D) float64 to projections (n, K) float64, whose mean is 0.
    scale : (K,) float64
        Standard deviation of each projection; where it is 0, all are counted in the middle.
    keep : callable, optional
        Selects the rows that count.

    Returns
    -------
    (K, BINS) int64
        What lies beyond the ends is counted in the outermost bins.
    """
    function = functools.partial(_histograms, project=project, scale=scale, keep=keep)
    total = np.zeros((len(scale), BINS), np.int64)
    for part in each_chunk(function, chunks, n_threads):
        total += part
    return total


def percentiles(counts: np.ndarray, scale: np.ndarray, percent: float) -> np.ndarray:
    """Return a percentile of each histogram, interpolated within its bin: (K,) float64.

    Examples
    --------
    >>> counts = np.zeros((1, BINS), int)
    >>> counts[0, BINS // 2 : BINS // 2 + 4] = 25
    >>> float(percentiles(counts, np.array([1.0]), 50)[0] / (2 * REACH / BINS))
    2.0
    """
    below = np.cumsum(counts, axis=1)
    rank = percent / 100 * below[:, -1:]
    bins = np.minimum((below < rank).sum(axis=1), BINS - 1)
    inside = np.take_along_axis(counts, bins[:, None], axis=1)[:, 0]
    before = np.take_along_axis(below, bins[:, None], axis=1)[:, 0] - inside
    share = (rank[:, 0] - before) / np.maximum(inside, 1)
    return bin_edges(bins + share) * scale


def otsu_threshold(counts: np.ndarray) -> float:
    """Return the threshold between two classes that are as far apart as possible, in standard deviations.

    It maximizes the variance between the classes (Otsu 1979).

    Parameters
    ----------
    counts : (BINS,) int
        Histogram of :func:`histograms`.

    Examples
    --------
    >>> counts = np.zeros(BINS, int)
    >>> counts[[20_000, 40_000]] = 1
    >>> bool(bin_edges(20_000) < otsu_threshold(counts) < bin_edges(40_000))
    True
    """
    centers = bin_edges(np.arange(BINS) + 0.5)
    below, total = np.cumsum(counts, dtype=np.float64), float(counts.sum())
    sums = np.cumsum(counts * centers)
    above = total - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (sums[-1] * below - sums * total) ** 2 / (below * above)
    between[~np.isfinite(between)] = -1
    # Between two classes that are far apart all thresholds are equally good: take the middle.
    best = np.flatnonzero(between >= between.max() * (1 - 1e-12))
    return float(bin_edges((best[0] + best[-1]) / 2 + 1))


def bin_edges(bins: Any) -> Any:
    """Return the lower edges of bins, in standard deviations."""
    return (np.asarray(bins) / BINS * 2 - 1) * REACH


def each_chunk(function: Callable[[Chunk], Any], chunks: Chunks, n_threads: int) -> Iterator[Any]:
    """Apply a function to all chunks in threads; the results come in the order of the chunks."""

    def work(chunk: Chunk) -> Any:
        with blas.one_blas_thread():
            return function(chunk)

    return pool.map_ordered(work, chunks, n_threads)


def rows_of(chunk: Chunk) -> np.ndarray:
    """Return the rows of a chunk, (n, D) float64 in host memory.

    Raises
    ------
    UsageError
        If a row contains NaN or infinity; the first one is named.
    """
    rows = np.asarray(kernels.to_host(chunk.rows()), np.float64)
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise UsageError(
            f"row {chunk.first + int(finite.argmin())} contains NaN or infinity; leave out such rows, or replace them"
        )
    return rows


def _moments(chunk: Chunk, weights: np.ndarray | None, keep: Keep | None) -> Moments:
    rows = rows_of(chunk)
    width = rows.shape[1]
    own = np.zeros(len(rows))
    if weights is not None:
        given = weights[chunk.first : chunk.first + len(rows)]
        own[: len(given)] = given
    if keep is not None:
        kept = keep(rows)
        rows, own = rows[kept], own[kept]
    if not len(rows):
        return Moments(0, np.zeros(width), np.zeros((width, width)), np.zeros(width), 0.0)
    mean = rows.mean(axis=0)
    centered = rows - mean
    return Moments(len(rows), mean, centered.T @ centered, own @ rows, float(own.sum()))


def _histograms(
    chunk: Chunk, project: Callable[[np.ndarray], np.ndarray], scale: np.ndarray, keep: Keep | None
) -> np.ndarray:
    rows = rows_of(chunk)
    if keep is not None:
        rows = rows[keep(rows)]
    projected = project(rows) / np.where(scale > 0, scale, np.inf)
    bins = np.floor((projected / REACH + 1) / 2 * BINS).clip(0, BINS - 1).astype(np.int64)
    return np.stack([np.bincount(column, minlength=BINS) for column in bins.T])
