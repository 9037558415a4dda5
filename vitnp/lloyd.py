"""Lloyd's algorithm from pieces that can be worked on anywhere: what one chunk of rows contributes, how contributions add up,
where centroids move.

Cosine and Euclidean k-means share everything but a geometry, which turns features into rows for one and the same kernel: the
nearest centroid is the one with the largest product, whose value the kernel calls similarity.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from vitnp import kernels
from vitnp.chunks import Chunk
from vitnp.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Cosine:
    """Rows and centroids are unit vectors (Dhillon and Modha 2001); the loss of a row is 1 - cosine.

    A row of zeros stays one: its cosine to everything is 0, it falls to the lowest cluster and moves nothing.
    """

    def prepare(self, chunk: Chunk) -> np.ndarray:
        """The chunk's rows at unit length."""
        x = chunk.load()
        squares = _finite_squares(x, chunk.first)
        faint = squares < 1e-30  # the squares of such rows underflow, unless they are zero
        if faint.any():
            peak = np.abs(x[faint]).max(axis=1, keepdims=True, initial=0)
            x[faint] /= np.where(peak > 0, peak, 1)
            squares[faint] = _squares(x[faint])
        x /= np.sqrt(np.where(squares > 0, squares, 1))[:, None]
        return x

    def centroids_at(self, rows: np.ndarray) -> np.ndarray:
        """Centroids that lie on prepared rows."""
        return rows

    def centres(self, centroids: np.ndarray) -> np.ndarray:
        """Centroids as users know them."""
        return centroids

    def losses(self, rows: np.ndarray, centroids: np.ndarray) -> np.ndarray:
        """Loss of every row for every centroid, (n, K) float64, never below 0."""
        return np.maximum(1.0 - (rows @ centroids.T).astype(np.float64), 0.0)

    def row_losses(
        self, rows: np.ndarray, centroids: np.ndarray, labels: np.ndarray, similarity: np.ndarray
    ) -> np.ndarray:
        """Loss of every row for its own centroid, (n,) float64."""
        return 1.0 - similarity.astype(np.float64)

    def inertia(self, rows: np.ndarray, centroids: np.ndarray, labels: np.ndarray, similarity: np.ndarray) -> float:
        """Sum of the rows' losses."""
        return float(len(rows) - similarity.sum(dtype=np.float64))

    def move(self, sums: np.ndarray, counts: np.ndarray, centroids: np.ndarray) -> np.ndarray:
        """New centroids: the mean direction of each cluster's rows."""
        # Back to the rows' type first, so that one chunk's centroids are what the kernel alone would give.
        sums = sums.astype(centroids.dtype)
        moved = kernels.for_device().normalise_rows(sums)
        # Empty, or opposite rows that cancel out: no direction to move to.
        stuck = (counts == 0) | ~np.any(sums, axis=1)
        moved[stuck] = centroids[stuck]
        return moved


@dataclasses.dataclass(frozen=True)
class Euclidean:
    """Ordinary k-means; the loss of a row is the squared distance.

    |x - c|^2 = |x|^2 - 2 x.c + |c|^2, and |x|^2 is the same for every centroid: dropping it changes no minimum. What is left is
    -2 (x.c - |c|^2 / 2), so the nearest centroid has the largest product of the row (x, 1) and the centroid (c, -|c|^2 / 2): the
    cosine's kernel on rows longer by one number.

    Attributes
    ----------
    shift : (D,) float32
        Mean of all rows, subtracted first. Far from the origin the products would be large, their differences lost in rounding.
    """

    shift: np.ndarray

    def prepare(self, chunk: Chunk) -> np.ndarray:
        """The chunk's rows less the shift, extended by 1."""
        x = chunk.load()
        _finite_squares(x, chunk.first)
        rows = np.ones((len(x), x.shape[1] + 1), np.float32)
        np.subtract(x, self.shift, out=rows[:, :-1])
        return rows

    def centroids_at(self, rows: np.ndarray) -> np.ndarray:
        """Centroids that lie on prepared rows."""
        centroids = rows.copy()
        centroids[:, -1] = -0.5 * np.square(rows[:, :-1], dtype=np.float64).sum(axis=1)
        return centroids

    def centres(self, centroids: np.ndarray) -> np.ndarray:
        """Centroids as users know them."""
        return centroids[:, :-1] + self.shift

    def losses(self, rows: np.ndarray, centroids: np.ndarray) -> np.ndarray:
        """Loss of every row for every centroid, (n, K) float64, never below 0."""
        squares = _squares(rows[:, :-1]).astype(np.float64)
        return np.maximum(squares[:, None] - 2.0 * (rows @ centroids.T), 0.0)

    def row_losses(
        self, rows: np.ndarray, centroids: np.ndarray, labels: np.ndarray, similarity: np.ndarray
    ) -> np.ndarray:
        """Loss of every row for its own centroid, (n,) float64."""
        # From the differences themselves: the dropped form is good enough to compare centroids, not to tell how near one is.
        return _squares(rows[:, :-1] - centroids[labels, :-1]).astype(np.float64)

    def inertia(self, rows: np.ndarray, centroids: np.ndarray, labels: np.ndarray, similarity: np.ndarray) -> float:
        """Sum of the rows' losses."""
        return float(self.row_losses(rows, centroids, labels, similarity).sum())

    def move(self, sums: np.ndarray, counts: np.ndarray, centroids: np.ndarray) -> np.ndarray:
        """New centroids: the mean of each cluster's rows; an empty cluster stays where it is."""
        mean = (sums / np.maximum(counts, 1)[:, None]).astype(np.float32)
        return np.where((counts > 0)[:, None], self.centroids_at(mean), centroids)


Geometry = Cosine | Euclidean


class Farthest(NamedTuple):
    """Candidates for empty clusters, farthest first, ties to the lower row: losses, row numbers, labels (m,), the rows (m, E)."""

    loss: np.ndarray
    row: np.ndarray
    label: np.ndarray
    vector: np.ndarray


@dataclasses.dataclass(frozen=True)
class Partial:
    """What some consecutive rows contribute to one iteration.

    Attributes
    ----------
    labels : (n,) int
        Nearest centroid of each row, ties to the lower one.
    sums : (K, E) float64
        Sum of each cluster's prepared rows.
    counts : (K,) int64
    inertia : float
        Sum of the rows' losses.
    farthest : Farthest or None
        None when no cluster is empty here, since then none is empty in the whole either. Otherwise the K rows farthest from
        their centroids: as many as relocation can look at (see :func:`move`).
    """

    labels: np.ndarray
    sums: np.ndarray
    counts: np.ndarray
    inertia: float
    farthest: Farthest | None


def partial_step(rows: np.ndarray, centroids: np.ndarray, geometry: Geometry, first: int = 0) -> Partial:
    """One chunk's share of a Lloyd iteration: a pure function, to be run anywhere.

    Parameters
    ----------
    rows : (n, E) float
        As the geometry prepares them.
    centroids : (K, E) float
    geometry : Cosine or Euclidean
    first : int
        Number of the first row in the whole.

    Returns
    -------
    Partial

    Examples
    --------
    >>> part = partial_step(np.array([[1.0, 0.0], [0.6, 0.8]]), np.eye(2), Cosine())
    >>> part.labels, part.counts, round(part.inertia, 3)
    (array([0, 1]), array([1, 1]), 0.2)
    """
    labels, similarity, sums, counts = kernels.for_device().kmeans_step(rows, centroids)
    farthest = None
    if not counts.all():
        loss = geometry.row_losses(rows, centroids, labels, similarity)
        # Rows of zeros can't be anybody's centroid.
        candidates = np.flatnonzero(rows.any(axis=1))
        kept = candidates[np.argsort(-loss[candidates], kind="stable")[: len(centroids)]]
        farthest = Farthest(loss[kept], kept + first, labels[kept], rows[kept])
    inertia = geometry.inertia(rows, centroids, labels, similarity)
    return Partial(labels, sums.astype(np.float64), counts, inertia, farthest)


def reduce(partials: Iterable[Partial]) -> Partial:
    """Add up what consecutive chunks contribute. The sums run in the order given, so the order of the rows is the one to give.

    Examples
    --------
    >>> chunks = np.array([[1.0, 0.0], [0.6, 0.8]]), np.array([[0.0, 1.0]])
    >>> reduce(partial_step(rows, np.eye(2), Cosine()) for rows in chunks).counts
    array([1, 2])
    """
    labels, total = [], None
    for part in partials:
        labels.append(part.labels)
        if total is None:
            total = part
            continue
        farthest = None
        if total.farthest is not None and part.farthest is not None:
            both = Farthest(*(np.concatenate(pair) for pair in zip(total.farthest, part.farthest)))
            order = np.lexsort((both.row, -both.loss))[: len(total.counts)]
            farthest = Farthest(*(field[order] for field in both))
        total = Partial(
            labels[0],
            total.sums + part.sums,
            total.counts + part.counts,
            total.inertia + part.inertia,
            farthest,
        )
    return dataclasses.replace(total, labels=np.concatenate(labels)) if len(labels) > 1 else total


def move(total: Partial, centroids: np.ndarray, geometry: Geometry) -> np.ndarray:
    """New centroids. An empty cluster takes over the row farthest from its own centroid, the next empty one the next; ties to
    the lower row, so that the answer is the same everywhere.

    A cluster's last row is never taken, or the two would swap for ever. Each occupied cluster can thus turn away one candidate
    and each empty one takes one: K candidates always suffice.

    Parameters
    ----------
    total : Partial
        Of all rows.
    centroids : (K, E) float
    geometry : Cosine or Euclidean

    Returns
    -------
    (K, E) float
    """
    sums, counts = total.sums, total.counts
    if total.farthest is not None:
        sums, counts = sums.copy(), counts.copy()
        empty = iter(np.flatnonzero(counts == 0))
        for label, vector in zip(total.farthest.label, total.farthest.vector):
            if counts[label] == 1:
                continue
            cluster = next(empty, None)
            if cluster is None:
                break
            sums[label] -= vector
            counts[label] -= 1
            sums[cluster], counts[cluster] = vector, 1
    return geometry.move(sums, counts, centroids)


class Found(NamedTuple):
    """Where Lloyd's algorithm ended: centroids, the last pass with them, the inertia of every pass, the number of moves."""

    centroids: np.ndarray
    total: Partial
    history: list[float]
    moves: int


def lloyd(
    step: Callable[[np.ndarray], Partial],
    centroids: np.ndarray,
    geometry: Geometry,
    max_iterations: int,
    tolerance: float,
) -> Found:
    """Assign rows to the nearest centroid, move centroids to the mean of their rows, and again.

    Parameters
    ----------
    step : callable
        One pass over all rows: the reduced :func:`partial_step` for given centroids.
    centroids : (K, E) float
        Where to start.
    geometry : Cosine or Euclidean
    max_iterations : int
        Moves at most.
    tolerance : float
        Stop when the inertia falls by no more than this share of itself. With 0 until the labels stay.

    Returns
    -------
    Found
        The total belongs to the centroids.
    """
    history, before = [], None
    for moves in range(max_iterations):
        total = step(centroids)
        history.append(total.inertia)
        if before is not None:
            small = before.inertia - total.inertia <= tolerance * before.inertia
            if small or np.array_equal(total.labels, before.labels):
                return Found(centroids, total, history, moves)
        before = total
        centroids = move(total, centroids, geometry)
    total = step(centroids)
    return Found(centroids, total, [*history, total.inertia], max_iterations)


def _squares(x: np.ndarray) -> np.ndarray:
    """Squared lengths of rows, (n,)."""
    return np.einsum("nd,nd->n", x, x)


def _finite_squares(x: np.ndarray, first: int) -> np.ndarray:
    """Squared lengths of rows; what is not finite shows in them."""
    squares = _squares(x)
    bad = ~np.isfinite(squares)
    if bad.any():
        raise UsageError(
            f"row {first + int(bad.argmax())} of the features is not finite: it holds NaN, infinity, or values too large for "
            "float32; leave it out or repair it"
        )
    return squares
