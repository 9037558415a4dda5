"""Lloyd's k-means by scikit-learn, faiss and vitnp: whole fits from the same centroids, of the same number of iterations.

An iteration's time is the fit's, divided by their number: whatever a library does before, in between and after is part of
what its users wait for. (Differences between fits of few and of many iterations, tried at first, are more noise than signal:
what a library does besides takes it as long as several iterations, and each time another time.)
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from bench.cpu.comparison import WrongAnswer
from vitnp.clustering.kmeans import KMeans

# Largest relative difference of inertia after the same number of iterations, from scikit-learn's.
INERTIA_TOLERANCE = 1e-4

# Iterations of a fit: faiss' own number.
MOVES = 25

# Gives the centroids after so many moves.
Run = Callable[[int], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Case:
    """So many rows of such a width, into so many clusters."""

    rows: int
    width: int
    clusters: int

    @property
    def label(self) -> str:
        """In words."""
        return f"{self.rows:,} x {self.width}, K = {self.clusters}"


@functools.lru_cache(maxsize=1)
def rows_of(count: int, width: int) -> np.ndarray:
    """Rows without clear clusters, (count, width) float32: on them k-means goes on for dozens of iterations.

    They are like keys of patches in that most of their variance lies in few directions.
    """
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((12, width), np.float32) / np.float32(12**0.5)
    rows = np.empty((count, width), np.float32)
    for first in range(0, count, 50_000):
        part = rows[first : first + 50_000]
        np.matmul(rng.standard_normal((len(part), 12), np.float32), directions, out=part)
        part += np.float32(0.3) * rng.standard_normal(part.shape, np.float32)
    return rows


def chosen_rows(count: int, clusters: int) -> np.ndarray:
    """Numbers of the rows that everybody starts from, (clusters,) int64."""
    return np.random.default_rng(1).choice(count, clusters, replace=False)


def inertia(rows: np.ndarray, centroids: np.ndarray) -> float:
    """Sum of squared distances to the nearest centroid."""
    total = 0.0
    squares = np.square(centroids, dtype=np.float64).sum(axis=1)
    for first in range(0, len(rows), 50_000):
        part = rows[first : first + 50_000]
        own = np.einsum("nd,nd->n", part, part, dtype=np.float64)
        total += float((own + (squares - 2.0 * (part @ centroids.T)).min(axis=1)).sum())
    return total


def checker(rows: np.ndarray) -> Callable[[str, np.ndarray], None]:
    """A check that everybody's centroids are as good as the first one's.

    Raises
    ------
    WrongAnswer
        From the check.
    """
    first: list[tuple[str, float]] = []

    def check(name: str, centroids: np.ndarray) -> None:
        found = inertia(rows, centroids)
        first.append((name, found))
        other, expected = first[0]
        if not abs(found - expected) <= INERTIA_TOLERANCE * expected:
            raise WrongAnswer(
                f"{name} ends at an inertia of {found:.7g}, {other} at {expected:.7g}: not the same iterations"
            )

    return check


def scikit_learn(rows: np.ndarray, start: np.ndarray) -> Run:
    """scikit-learn's own Lloyd, from the centroids `start`, on a copy that it may shift and shift back: that's its fastest way."""
    from sklearn.cluster import KMeans as Theirs

    rows = rows.copy()

    def run(moves: int) -> np.ndarray:
        model = Theirs(len(start), init=start, n_init=1, max_iter=moves, tol=0, algorithm="lloyd", copy_x=False).fit(
            rows
        )
        if model.n_iter_ != moves:
            raise WrongAnswer(f"scikit-learn stopped after {model.n_iter_} iterations of {moves}")
        return model.cluster_centers_

    return run


def faiss(rows: np.ndarray, start: np.ndarray, n_threads: int) -> Run:
    """Faiss from the centroids `start`, on all rows: by default it takes 256 for each centroid, and no others."""
    import faiss as library

    library.omp_set_num_threads(n_threads)

    def run(moves: int) -> np.ndarray:
        model = library.Kmeans(
            rows.shape[1], len(start), niter=moves, max_points_per_centroid=len(rows), min_points_per_centroid=1
        )
        model.train(rows, init_centroids=start)
        return model.centroids

    return run


def ours(rows: np.ndarray, start: np.ndarray, n_threads: int) -> Run:
    """Vitnp's Euclidean k-means, from the centroids `start`."""

    def run(moves: int) -> np.ndarray:
        model = KMeans(len(start), metric="euclidean", init=start, max_iter=moves, n_threads=n_threads).fit(rows)
        if model.n_iter_ != moves:
            raise WrongAnswer(f"vitnp stopped after {model.n_iter_} iterations of {moves}")
        return model.cluster_centers_

    return run
