"""Initial centroids for k-means: greedy k-means++ over chunks of rows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from vitnp import kernels
from vitnp.kernels.reference import n_candidates, n_draws


def kmeans_plusplus(
    n_rows: int,
    n_clusters: int,
    rng: np.random.Generator,
    rows_at: Callable[[Sequence[int]], np.ndarray],
    min_distances: Callable[[np.ndarray, list[np.ndarray] | None], Iterable[np.ndarray]],
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """Choose initial centroids with greedy k-means++.

    Each next centroid is the best of 2 + ln K candidate rows, drawn with probability proportional to their distance
    from the centroids chosen so far (Arthur and Vassilvitskii 2007, section 2; the greedy variant is described in its
    section 6). The function reads rows only through its two callables, with one pass over the data per centroid.

    Parameters
    ----------
    n_rows : int
        N.
    n_clusters : int
        K.
    rng : numpy.random.Generator
    rows_at : callable
        Maps m row numbers to the rows, (m, D).
    min_distances : callable
        Maps candidates (m, D) and the distance of each row to its nearest centroid so far, an array (n,) per chunk or
        None at first, to the distances with each candidate added: an array (n, m) per chunk, on the device of the rows.
    weights : (N,) float64, optional
        Weights of the rows, all 1 by default.

    Returns
    -------
    (K, D) float

    Examples
    --------
    >>> x = np.array([[0.0], [0.1], [9.0]])
    >>> def min_distances(candidates, nearest):
    ...     distance = np.abs(x - candidates.T)
    ...     return [distance if nearest is None else np.minimum(distance, nearest[0][:, None])]
    >>> sorted(kmeans_plusplus(3, 2, np.random.default_rng(0), x.__getitem__, min_distances).ravel().tolist())
    [0.0, 9.0]
    """
    draws = draw_numbers(rng, n_rows, n_clusters, weighted=weights is not None)
    first = int(draws[0]) if weights is None else _draw([weights], draws[:1])[0]
    chosen = [rows_at([first])]
    nearest = [distance[:, 0] for distance in min_distances(chosen[0], None)]
    for uniform in draws[1:].reshape(n_clusters - 1, n_candidates(n_clusters)):
        candidates = rows_at(_draw(_weighted(nearest, weights), uniform))
        distances = list(min_distances(candidates, nearest))
        totals = (kernels.to_host(distance.sum(axis=0, dtype=np.float64)) for distance in _weighted(distances, weights))
        best = int(functools.reduce(np.add, totals).argmin())
        chosen.append(candidates[best : best + 1])
        nearest = [kernels.array_module(distance).ascontiguousarray(distance[:, best]) for distance in distances]
    return np.concatenate(chosen)


def draw_numbers(rng: np.random.Generator, n_rows: int, n_clusters: int, *, weighted: bool = False) -> np.ndarray:
    """Draw the random numbers of one start of greedy k-means++.

    How many there are does not depend on the rows, so they can be drawn before a GPU runs the start.

    Parameters
    ----------
    rng : numpy.random.Generator
    n_rows, n_clusters : int
    weighted : bool
        Whether the first row is drawn like the others, with probability proportional to weights.

    Returns
    -------
    (n_draws,) float64
        The first row, or a uniform number for it; then uniform numbers below 1, for each further centroid one for each
        candidate.

    Examples
    --------
    >>> len(draw_numbers(np.random.default_rng(0), 100, 3))
    7
    """
    first = rng.random() if weighted else float(rng.integers(n_rows))
    return np.array([first, *rng.random(n_draws(n_clusters) - 1)])


def _weighted(distances: list[np.ndarray], weights: np.ndarray | None) -> list[np.ndarray]:
    """Multiply the distances of each chunk, (n,) or (n, m), by the weights of its rows."""
    if weights is None:
        return distances
    parts = np.split(weights, np.cumsum([len(distance) for distance in distances])[:-1])
    return [(distance.T * part).T for distance, part in zip(distances, parts)]


def _draw(weights: list[np.ndarray], uniform: np.ndarray) -> list[int]:
    """Draw one row per uniform random number, with probability proportional to the rows' weights.

    First the chunk is drawn, then the row in it, so that cumulative sums of one chunk at a time are kept.
    """

    @functools.lru_cache(maxsize=1)
    def cumulative(chunk: int) -> np.ndarray:
        return weights[chunk].cumsum(dtype=np.float64)

    totals = np.array([float(cumulative(chunk)[-1]) for chunk in range(len(weights))])
    ends = totals.cumsum()
    first_rows = np.cumsum([0, *map(len, weights)])
    rows = []
    for target in uniform * ends[-1]:
        # If every row coincides with a centroid, the total is 0 and any row will do.
        chunk = min(int(np.searchsorted(ends, target, side="right")), len(ends) - 1)
        sums = cumulative(chunk)
        xp = kernels.array_module(sums)
        row = int(xp.searchsorted(sums, xp.asarray(target - (ends[chunk] - totals[chunk])), side="right"))
        rows.append(int(first_rows[chunk]) + min(row, len(sums) - 1))
    return rows
