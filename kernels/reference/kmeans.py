"""Passes of k-means over the data, with cosine or Euclidean distances.

Letters in shapes: N rows, D features, K centroids.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

# Rows whose products with all centroids are in memory at once. They are copied as float32: 6 MB at a width of 192.
ROW_BLOCK = 8192


class Step(NamedTuple):
    """Result of one Lloyd iteration's pass over the rows, with sums in B separate blocks.

    Attributes
    ----------
    labels : (N,) int32
        Nearest centroid of each row; ties go to the lower index.
    losses : (N,) float
        Loss of each row for its centroid, see :func:`kmeans_assign`.
    sums : (B, K, D) float64
        Sum of the rows of each cluster per block, after normalization or shift as in :func:`kmeans_rows`.
    counts : (K,) int64
        Number of rows of each cluster in all blocks; 0 for an empty cluster.
    inertia : (B,) float64
        Sum of the losses per block.
    """

    labels: np.ndarray
    losses: np.ndarray
    sums: np.ndarray
    counts: np.ndarray
    inertia: np.ndarray


def kmeans_rows(
    x: np.ndarray, *, metric: str = "cosine", shift: np.ndarray | None = None, dtype: DTypeLike = np.float32
) -> np.ndarray:
    """Prepare rows for k-means: scale them to unit length (cosine), or subtract a shift (Euclidean).

    Parameters
    ----------
    x : (N, D) real
    metric : {"cosine", "euclidean"}
    shift : (D,) float, optional
        A point near the rows, for the Euclidean metric. Far from the origin the products are large, and rounding would
        hide their differences.
    dtype : float dtype
        Type of the computation.

    Returns
    -------
    (N, D) of `dtype`
        With the cosine, a row of zeros stays zero, and a row with NaN, infinity or an overflowing length becomes NaN.

    Examples
    --------
    >>> kmeans_rows(np.array([[3.0, 4.0], [0.0, 0.0]]))
    array([[0.6, 0.8],
           [0. , 0. ]], dtype=float32)
    """
    with np.errstate(over="ignore", invalid="ignore"):
        rows: np.ndarray = np.array(x, dtype, order="C")
        if metric == "euclidean":
            if shift is not None:
                rows -= shift
            return rows
        squares = np.einsum("nd,nd->n", rows, rows)
        tiny = squares < 1e-30  # the squares of such rows underflow, so scale the rows up first
        if tiny.any():
            peak = np.abs(rows[tiny]).max(axis=1, keepdims=True, initial=0)
            rows[tiny] /= np.where(peak > 0, peak, 1)
            squares[tiny] = np.einsum("nd,nd->n", rows[tiny], rows[tiny])
        squares[~np.isfinite(squares)] = np.nan
        rows /= np.sqrt(np.where(squares == 0, 1, squares))[:, None]
        return rows


def kmeans_assign(
    x: np.ndarray, centroids: np.ndarray, *, metric: str = "cosine", shift: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Assign every row to its nearest centroid; exact ties go to the lower index.

    Since |x - c|^2 = |x|^2 - 2 x.c + |c|^2 and |x|^2 is the same for all centroids, the nearest centroid has the
    largest x.c - |c|^2 / 2. The loss of the chosen centroid is computed from the differences instead, because this
    formula is accurate enough to compare centroids but not to measure a small distance.

    Parameters
    ----------
    x : (N, D) float
        With the cosine, rows may have any length: they are normalized on the fly, and a row of zeros has the cosine 0
        to every centroid.
    centroids : (K, D) float
        Their type is the type of the computation. With the cosine they are unit rows; with the Euclidean metric the
        shift is already subtracted.
    metric : {"cosine", "euclidean"}
    shift : (D,) float, optional
        Subtracted from the rows, see :func:`kmeans_rows`.

    Returns
    -------
    labels : (N,) int32
    losses : (N,) float
        1 - cosine, or the squared distance; NaN or infinity if the row contains NaN or infinity.

    Examples
    --------
    >>> labels, losses = kmeans_assign(np.array([[2.0, 0.0], [0.6, 0.8]]), np.eye(2))
    >>> labels, losses.round(1)
    (array([0, 1], dtype=int32), array([0. , 0.2]))
    """
    labels, losses = np.empty(len(x), np.int32), np.empty(len(x), centroids.dtype)
    for start in range(0, len(x), ROW_BLOCK):
        part = slice(start, start + ROW_BLOCK)
        rows = kmeans_rows(x[part], metric=metric, shift=shift, dtype=centroids.dtype)
        labels[part], losses[part] = _nearest(rows, centroids, metric)
    return labels, losses


def _nearest(rows: np.ndarray, centroids: np.ndarray, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and losses of rows that :func:`kmeans_rows` has prepared."""
    with np.errstate(over="ignore", invalid="ignore"):
        score = rows @ centroids.T  # (N, K)
        if metric == "euclidean":
            score -= (0.5 * np.square(centroids, dtype=np.float64).sum(axis=1)).astype(centroids.dtype)
        labels = score.argmax(axis=1)
        if metric == "cosine":
            return labels, 1 - np.take_along_axis(score, labels[:, None], axis=1)[:, 0]
        difference = rows - centroids[labels]
        return labels, np.einsum("nd,nd->n", difference, difference)


def kmeans_step(
    x: np.ndarray,
    centroids: np.ndarray,
    *,
    metric: str = "cosine",
    shift: np.ndarray | None = None,
    block: int | None = None,
) -> Step:
    """Run one Lloyd iteration's pass over the data: assign every row, and sum the rows of each cluster.

    Parameters
    ----------
    x, centroids, metric, shift
        As in :func:`kmeans_assign`.
    block : int, optional
        Number of rows per block of sums; all by default. Adding the sums of the blocks in order gives the same result
        to the bit, however the blocks were distributed over threads, machines or calls.

    Returns
    -------
    Step

    Examples
    --------
    >>> step = kmeans_step(np.array([[2.0, 0.0], [0.6, 0.8]]), np.eye(2))
    >>> step.sums, step.counts
    (array([[[1. , 0. ],
            [0.6, 0.8]]]), array([1, 1]))
    """
    block = block or max(len(x), 1)
    clusters, blocks = len(centroids), -(-len(x) // block)
    labels, losses = np.empty(len(x), np.int32), np.empty(len(x), centroids.dtype)
    sums, inertia = np.zeros((blocks, *centroids.shape)), np.zeros(blocks)
    for start in range(0, len(x), block):
        for first in range(start, min(start + block, len(x)), ROW_BLOCK):
            part = slice(first, min(first + ROW_BLOCK, start + block))
            rows = kmeans_rows(x[part], metric=metric, shift=shift, dtype=centroids.dtype)
            labels[part], losses[part] = _nearest(rows, centroids, metric)
            one_hot = (labels[part] == np.arange(clusters)[:, None]).astype(rows.dtype)  # (K, rows)
            with np.errstate(over="ignore", invalid="ignore"):
                sums[start // block] += one_hot @ rows
            inertia[start // block] += losses[part].sum(dtype=np.float64)
    return Step(labels, losses, sums, np.bincount(labels, minlength=clusters), inertia)


def kmeans_closer(
    x: np.ndarray,
    candidates: np.ndarray,
    nearest: np.ndarray | None,
    *,
    metric: str = "cosine",
    shift: np.ndarray | None = None,
) -> np.ndarray:
    """Compute the loss of every row for its nearest centroid if one more were added, for each candidate (k-means++).

    Parameters
    ----------
    x, metric, shift
        As in :func:`kmeans_assign`.
    candidates : (M, D) float
        Possible next centroids.
    nearest : (N,) float or None
        Loss of each row for the nearest of the present centroids; None if there are none.

    Returns
    -------
    (N, M) float
        The smaller of `nearest` and the loss for the candidate, at least 0.

    Examples
    --------
    >>> kmeans_closer(np.array([[2.0], [5.0]]), np.array([[1.0], [6.0]]), np.array([9.0, 2.0]), metric="euclidean")
    array([[1., 9.],
           [2., 1.]])
    """
    losses = np.empty((len(x), len(candidates)), candidates.dtype)
    for start in range(0, len(x), ROW_BLOCK):
        part = slice(start, start + ROW_BLOCK)
        rows = kmeans_rows(x[part], metric=metric, shift=shift, dtype=candidates.dtype)
        if metric == "cosine":
            losses[part] = np.maximum(1 - rows @ candidates.T, 0)
        else:
            for column, candidate in enumerate(candidates):
                difference = rows - candidate
                losses[part, column] = np.einsum("nd,nd->n", difference, difference)
    return losses if nearest is None else np.minimum(losses, nearest[:, None])


def kmeans_plusplus(x: np.ndarray, n_clusters: int, draws: np.ndarray) -> np.ndarray:
    """Choose initial centroids among rows in memory by greedy k-means++, with the cosine.

    Each next centroid is the best of several candidate rows, drawn with probability proportional to their loss for the
    nearest of the centroids chosen so far (Arthur and Vassilvitskii 2007).

    Parameters
    ----------
    x : (N, D) float
        Unit rows, all of them finite.
    n_clusters : int
        K.
    draws : (n_draws,) float64
        The first row; then uniform numbers below 1, for each further centroid one for each candidate, see
        :func:`vitnp.kernels.reference.n_draws`.

    Returns
    -------
    (K,) int64
        Numbers of the rows.

    Examples
    --------
    >>> x = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> kmeans_plusplus(x, 2, np.array([0, 0.3, 0.6]))
    array([0, 2])
    """
    chosen = [int(draws[0])]
    nearest = kmeans_closer(x, x[chosen], None)[:, 0]
    for uniform in np.split(draws[1:], n_clusters - 1) if n_clusters > 1 else ():
        sums = nearest.cumsum(dtype=np.float64)
        candidates = np.searchsorted(sums, uniform * sums[-1], side="right").clip(max=len(x) - 1)
        losses = kmeans_closer(x, x[candidates], nearest)
        best = losses.sum(axis=0, dtype=np.float64).argmin()
        chosen.append(int(candidates[best]))
        nearest = losses[:, best]
    return np.array(chosen)
