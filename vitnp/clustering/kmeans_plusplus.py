"""Starting centroids for k-means: greedy k-means++ over chunks of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from vitnp import kernels


def kmeans_plusplus(
    count: int,
    clusters: int,
    rng: np.random.Generator,
    pick: Callable[[Sequence[int]], np.ndarray],
    closer: Callable[[np.ndarray, list[np.ndarray] | None], Iterable[np.ndarray]],
) -> np.ndarray:
    """Greedy k-means++ (Arthur and Vassilvitskii 2007, section 2; the greedy form of its section 6): each next centroid is the
    best of 2 + ln K rows drawn with chance proportional to their distance from those chosen already.

    It sees the rows through two functions alone, so that they may be anywhere. One pass over them a centroid.

    Parameters
    ----------
    count : int
        N.
    clusters : int
        K.
    rng : numpy.random.Generator
    pick : callable
        Row numbers to centroids at these rows, (m, E).
    closer : callable
        Given candidates (m, E) and, chunk by chunk, each row's distance to its nearest centroid so far (None at first): chunk by
        chunk, (n, m), what the distances would be with each candidate added. Distances live where the rows do.

    Returns
    -------
    (K, E) float

    Examples
    --------
    >>> x = np.array([[0.0], [0.1], [9.0]])
    >>> def closer(candidates, nearest):
    ...     distance = np.abs(x - candidates.T)
    ...     return [distance if nearest is None else np.minimum(distance, nearest[0][:, None])]
    >>> sorted(kmeans_plusplus(3, 2, np.random.default_rng(0), x.__getitem__, closer).ravel().tolist())
    [0.0, 9.0]
    """
    candidates = 2 + int(np.log(clusters))
    chosen = [pick([int(rng.integers(count))])]
    nearest = [distance[:, 0] for distance in closer(chosen[0], None)]
    while len(chosen) < clusters:
        drawn = pick(_draw(nearest, rng.random(candidates)))
        with_each = list(closer(drawn, nearest))
        winner = int(sum(kernels.to_host(distance.sum(axis=0, dtype=np.float64)) for distance in with_each).argmin())
        chosen.append(drawn[winner : winner + 1])
        nearest = [kernels.array_module(distance).ascontiguousarray(distance[:, winner]) for distance in with_each]
    return np.concatenate(chosen)


def _draw(weights: list[np.ndarray], chances: np.ndarray) -> list[int]:
    """Row numbers drawn in proportion to the rows' weights: first the chunk, then the row in it, so that no running sum over
    all rows is kept.
    """
    totals = np.array([float(weight.cumsum(dtype=np.float64)[-1]) for weight in weights])
    ends = totals.cumsum()
    firsts = np.cumsum([0, *map(len, weights)])
    rows = []
    for target in chances * ends[-1]:
        # Where all rows coincide with a centroid the total is 0 and any row serves.
        chunk = min(int(np.searchsorted(ends, target, side="right")), len(ends) - 1)
        within = weights[chunk].cumsum(dtype=np.float64)
        xp = kernels.array_module(within)
        row = int(xp.searchsorted(within, xp.asarray(target - (ends[chunk] - totals[chunk])), side="right"))
        rows.append(int(firsts[chunk]) + min(row, len(within) - 1))
    return rows
