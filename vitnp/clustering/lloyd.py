"""Lloyd's algorithm from pieces that can be worked on anywhere: what one chunk of rows contributes, how contributions add up,
where centroids move.

Cosine and Euclidean k-means share everything but a geometry: what the kernels are told.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from vitnp import kernels
from vitnp.errors import UsageError
from vitnp.kernels.reference import Step


@dataclasses.dataclass(frozen=True)
class Cosine:
    """Rows and centroids are unit vectors (Dhillon and Modha 2001); the loss of a row is 1 - cosine.

    A row of zeros stays one: its cosine to everything is 0, it falls to the lowest cluster and moves nothing.
    """

    metric = "cosine"

    def options(self, x: np.ndarray) -> dict[str, object]:
        """What the kernels for these rows are told."""
        return {"metric": self.metric}

    def centers(self, centroids: np.ndarray) -> np.ndarray:
        """Centroids as users know them."""
        return centroids


@dataclasses.dataclass(frozen=True)
class Euclidean:
    """Ordinary k-means; the loss of a row is the squared distance.

    Attributes
    ----------
    shift : (D,) float32 or None
        Mean of all rows, subtracted first. Far from the origin products would be large, their differences lost in rounding.
    """

    shift: np.ndarray | None
    metric = "euclidean"

    def options(self, x: np.ndarray) -> dict[str, object]:
        """What the kernels for these rows are told."""
        shift = None if self.shift is None else kernels.to_device(self.shift, kernels.device_of(x))
        return {"metric": self.metric, "shift": shift}

    def centers(self, centroids: np.ndarray) -> np.ndarray:
        """Centroids as users know them."""
        return centroids + self.shift


Geometry = Cosine | Euclidean

ROWS_AT_A_TIME = 4096  # that are copied


class Farthest(NamedTuple):
    """Candidates for empty clusters, farthest first, ties to the lower row: losses, row numbers, labels (m,), the rows (m, D)."""

    loss: np.ndarray
    row: np.ndarray
    label: np.ndarray
    vector: np.ndarray


class Partial(NamedTuple):
    """What some consecutive rows contribute to one iteration, and from which row on.

    `farthest` is None when no cluster is empty here, since then none is empty in the whole either. Otherwise it holds the K rows
    farthest from their centroids: as many as relocation can look at (see :func:`move`).
    """

    step: Step
    farthest: Farthest | None


class Total(NamedTuple):
    """What all rows say.

    Attributes
    ----------
    labels : (N,) int32
        Nearest centroid of each row, ties to the lower one; where the rows are.
    sums : (K, D) float64
        Sum of each cluster's rows, as the metric sees them.
    counts : (K,) int64
    inertia : float
        Sum of the rows' losses.
    farthest : Farthest or None
        None when no cluster is empty.
    """

    labels: np.ndarray
    sums: np.ndarray
    counts: np.ndarray
    inertia: float
    farthest: Farthest | None


def partial_step(
    x: np.ndarray, centroids: np.ndarray, geometry: Geometry, first: int = 0, block: int | None = None
) -> Partial:
    """Some rows' share of a Lloyd iteration: a pure function, to be run anywhere.

    Parameters
    ----------
    x : (n, D) real
        On whatever device; labels and losses stay there, all else comes to the host: K rows, where centroids are moved.
    centroids : (K, D) float
        Their type is that of the computation; in the host's memory.
    geometry : Cosine or Euclidean
    first : int
        Number of the first row in the whole.
    block : int, optional
        Rows whose sum is made in one go, all by default.

    Returns
    -------
    Partial

    Raises
    ------
    UsageError
        For a row that isn't finite.

    Examples
    --------
    >>> part = partial_step(np.array([[1.0, 0.0], [0.6, 0.8]]), np.eye(2), Cosine())
    >>> part.step.labels, part.step.counts, part.step.inertia.round(3)
    (array([0, 1], dtype=int32), array([1, 1]), array([0.2]))
    """
    there = kernels.to_device(centroids, kernels.device_of(x))
    step = kernels.for_array(x).kmeans_step(x, there, **geometry.options(x), block=block)
    step = step._replace(**{name: kernels.to_host(getattr(step, name)) for name in ("sums", "counts", "inertia")})
    if not np.isfinite(step.inertia).all():
        refuse_infinite(step.losses, first)
    return Partial(step, None if step.counts.all() else _farthest(x, step, centroids, geometry, first))


def refuse_infinite(losses: np.ndarray, first: int) -> None:
    """Name the first row that isn't finite, which shows in its loss; `first` is the number of the first row.

    Raises
    ------
    UsageError
    """
    bad = ~np.isfinite(kernels.to_host(losses))
    if bad.any():
        raise UsageError(
            f"row {first + int(bad.argmax())} of the features is not finite: it holds NaN, infinity, or values too large for "
            "float32; leave it out or repair it"
        )


def _farthest(x: np.ndarray, step: Step, centroids: np.ndarray, geometry: Geometry, first: int) -> Farthest:
    """The K rows farthest from their centroids, in the host's memory."""
    xp = kernels.array_module(x)
    loss = kernels.to_host(step.losses).astype(np.float64)
    if isinstance(geometry, Cosine):
        # Rows of zeros, whose loss is 1 exactly, can't be anybody's centroid.
        doubtful = np.flatnonzero(loss == 1)
        for start in range(0, len(doubtful), ROWS_AT_A_TIME):
            rows = doubtful[start : start + ROWS_AT_A_TIME]
            loss[rows[~kernels.to_host(x[xp.asarray(rows)].any(axis=1))]] = -np.inf
    candidates = np.flatnonzero(loss > -np.inf)
    wanted = len(centroids)
    if len(candidates) > wanted:
        bar = -np.partition(-loss[candidates], wanted - 1)[wanted - 1]
        candidates = candidates[loss[candidates] >= bar]
    kept = candidates[np.argsort(-loss[candidates], kind="stable")[:wanted]]
    found, labels = (kernels.to_host(array[xp.asarray(kept)]) for array in (x, step.labels))
    rows = kernels.for_array(found).kmeans_rows(found, **geometry.options(found), dtype=centroids.dtype)
    return Farthest(loss[kept], kept + first, labels, rows)


def sum_partials(partials: Iterable[Partial]) -> Total:
    """Add up what consecutive rows contribute. Blocks' sums are added one by one in the order given, so the order of the rows is
    the one to give, and how many blocks come at a time makes no difference.

    Examples
    --------
    >>> chunks = np.array([[1.0, 0.0], [0.6, 0.8]]), np.array([[0.0, 1.0]])
    >>> sum_partials(partial_step(rows, np.eye(2), Cosine()) for rows in chunks).counts
    array([1, 2])
    """
    labels, sums, counts, inertia, farthest, empty = [], 0.0, 0, 0.0, None, True
    for (some_labels, _, blocks, some_counts, losses), some_farthest in partials:
        labels.append(some_labels)
        counts = counts + some_counts
        for block in blocks:
            sums = sums + block if isinstance(sums, float) else np.add(sums, block, out=sums)
        for loss in losses.tolist():
            inertia += loss
        empty = empty and some_farthest is not None
        if not empty:
            farthest = None
        elif farthest is None:
            farthest = some_farthest
        else:
            both = Farthest(*(np.concatenate(pair) for pair in zip(farthest, some_farthest)))
            order = np.lexsort((both.row, -both.loss))[: len(counts)]
            farthest = Farthest(*(field[order] for field in both))
    if len(labels) != 1:
        labels = [kernels.array_module(labels[0]).concatenate(labels) if labels else np.empty(0, np.int32)]
    return Total(labels[0], sums, counts, inertia, farthest)


def move(total: Total, centroids: np.ndarray, geometry: Geometry) -> np.ndarray:
    """New centroids. An empty cluster takes over the row farthest from its own centroid, the next empty one the next; ties to
    the lower row, so that the answer is the same everywhere.

    A cluster's last row is never taken, or the two would swap for ever. Each occupied cluster can thus turn away one candidate
    and each empty one takes one: K candidates always suffice.

    Parameters
    ----------
    total : Total
    centroids : (K, D) float
    geometry : Cosine or Euclidean

    Returns
    -------
    (K, D) float
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
    return kernels.for_device("cpu").kmeans_move(sums, counts, centroids, metric=geometry.metric)


class Found(NamedTuple):
    """Where Lloyd's algorithm ended: centroids, the last pass with them, the inertia of every pass, the number of moves."""

    centroids: np.ndarray
    total: Total
    history: list[float]
    moves: int


def lloyd(
    step: Callable[[np.ndarray], Total],
    centroids: np.ndarray,
    max_iterations: int,
    tolerance: float,
    geometry: Geometry,
    rows: np.ndarray | None = None,
    block: int | None = None,
) -> Found:
    """Assign rows to the nearest centroid, move centroids to the mean of their rows, and again.

    Parameters
    ----------
    step : callable
        One pass over all rows: the reduced :func:`partial_step` for given centroids.
    centroids : (K, D) float
        Where to start.
    max_iterations : int
        Moves at most.
    tolerance : float
        Stop when the inertia falls by no more than this share of itself. With 0 until the labels stay.
    geometry : Cosine or Euclidean
    rows : (N, D) array, optional
        All of them, where they are few and at hand: the kernel then does in one go what it can, with the same answer.
    block : int, optional
        As in :func:`partial_step`, for `rows`.

    Returns
    -------
    Found
        The total belongs to the centroids.
    """
    history: list[float] = []
    before: Total | None = None
    if rows is not None:
        moves = kernels.for_array(rows).kmeans_moves(
            rows, centroids, max_iterations, tolerance, **geometry.options(rows), block=block
        )
        centroids, history = moves.centroids, moves.history
        if history:
            before = Total(moves.labels, moves.sums, moves.counts, history[-1], None)
        if moves.ended:
            return Found(centroids, before, history, len(history) - 1)
    for moved in range(len(history), max_iterations):
        total = step(centroids)
        history.append(total.inertia)
        if before is not None:
            small = before.inertia - total.inertia <= tolerance * before.inertia
            if small or kernels.array_module(total.labels).array_equal(total.labels, before.labels):
                return Found(centroids, total, history, moved)
        before = total
        centroids = move(total, centroids, geometry)
    total = step(centroids)
    return Found(centroids, total, [*history, total.inertia], max_iterations)
