"""Lloyd's k-means in scikit-learn, faiss and vitnp: fits from the same centroids with the same number of iterations.

The time of an iteration is that of the fit divided by their number, since users also wait for whatever a library does
before, between and after them. (Differences between fits of few and of many iterations are dominated by noise: the
overhead of a fit takes as long as several iterations, and varies.)
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
from vitnp.kernels import reference

from bench.cpu.comparison import Missing, WrongAnswer
from vitnp import kernels
from vitnp.clustering.kmeans import KMeans

# Largest relative difference from the first contender's inertia after the same number of iterations.
INERTIA_TOLERANCE = 1e-4

# Iterations per fit, the default of faiss.
ITERATIONS = 25

# Returns the centroids after a number of iterations.
Run = Callable[[int], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Case:
    """Numbers of rows, columns and clusters."""

    rows: int
    width: int
    clusters: int

    @property
    def label(self) -> str:
        """Description for tables."""
        return f"{self.rows:,} x {self.width}, K = {self.clusters}"


@functools.lru_cache(maxsize=1)
def rows_of(count: int, width: int) -> np.ndarray:
    """Return rows without clear clusters, (count, width) float32, on which k-means takes dozens of iterations.

    As in keys of patches, most of the variance lies in few directions.
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
    """Return the indices of the rows that serve as initial centroids, (clusters,) int64."""
    return np.random.default_rng(1).choice(count, clusters, replace=False)


def inertia(rows: np.ndarray, centroids: np.ndarray) -> float:
    """Compute the sum of squared distances to the nearest centroid."""
    total = 0.0
    squares = np.square(centroids, dtype=np.float64).sum(axis=1)
    for first in range(0, len(rows), 50_000):
        part = rows[first : first + 50_000]
        own = np.einsum("nd,nd->n", part, part, dtype=np.float64)
        total += float((own + (squares - 2.0 * (part @ centroids.T)).min(axis=1)).sum())
    return total


def checker(rows: np.ndarray) -> Callable[[str, np.ndarray], None]:
    """Return a check that centroids are as good as those of the first contender; it raises WrongAnswer."""
    first: list[tuple[str, float]] = []

    def check(name: str, centroids: np.ndarray) -> None:
        found = inertia(rows, centroids)
        first.append((name, found))
        other, expected = first[0]
        if not abs(found - expected) <= INERTIA_TOLERANCE * expected:
            raise WrongAnswer(
                f"{name} ends at an inertia of {found:.7g}, {other} at {expected:.7g}; they must do the same iterations"
            )

    return check


def scikit_learn(rows: np.ndarray, start: np.ndarray) -> Run:
    """Return scikit-learn's k-means from the centroids `start`.

    It gets its own copy of the rows and works in place (``copy_x=False``), its fastest way.
    """
    from sklearn.cluster import KMeans as SklearnKMeans

    rows = rows.copy()
    options = {"init": start, "n_init": 1, "tol": 0, "algorithm": "lloyd", "copy_x": False}

    def run(iterations: int) -> np.ndarray:
        model = SklearnKMeans(len(start), max_iter=iterations, **options).fit(rows)
        if model.n_iter_ != iterations:
            raise WrongAnswer(f"scikit-learn stopped after {model.n_iter_} iterations of {iterations}")
        return model.cluster_centers_

    return run


def faiss(rows: np.ndarray, start: np.ndarray, n_threads: int) -> Run:
    """Return faiss' k-means from the centroids `start`, on all rows (by default it samples 256 per centroid)."""
    import faiss as library

    library.omp_set_num_threads(n_threads)

    def run(iterations: int) -> np.ndarray:
        model = library.Kmeans(
            rows.shape[1], len(start), niter=iterations, max_points_per_centroid=len(rows), min_points_per_centroid=1
        )
        model.train(rows, init_centroids=start)
        return model.centroids

    return run


def ours(rows: np.ndarray, start: np.ndarray, n_threads: int) -> Run:
    """Return vitnp's Euclidean k-means from the centroids `start`."""

    def run(iterations: int) -> np.ndarray:
        model = KMeans(len(start), metric="euclidean", init=start, max_iter=iterations, n_jobs=n_threads).fit(rows)
        if model.n_iter_ != iterations:
            raise WrongAnswer(f"vitnp stopped after {model.n_iter_} iterations of {iterations}")
        return model.cluster_centers_

    return run


def whole_fit(rows: np.ndarray, start: np.ndarray, n_threads: int, bounds: bool) -> Callable[[], np.ndarray]:
    """Return vitnp's Euclidean k-means from the centroids `start` until no label changes, or 300 iterations.

    Parameters
    ----------
    rows, start : (N, D), (K, D) float32
    n_threads : int
    bounds : bool
        Whether to skip distances where bounds show that they change nothing; the result is the same to the bit.
    """
    if kernels.for_device("cpu") is reference:
        raise Missing("bounds need compiled kernels")
    from vitnp.kernels.cpu import lloyd

    used = lloyd.bounds_per_row

    def run() -> np.ndarray:
        lloyd.bounds_per_row = used if bounds else lambda *_: 0
        try:
            return KMeans(len(start), metric="euclidean", init=start, n_jobs=n_threads).fit(rows).cluster_centers_
        finally:
            lloyd.bounds_per_row = used

    return run


def same_bits() -> Callable[[str, np.ndarray], None]:
    """Return a check that centroids are those of the first contender to the bit; it raises WrongAnswer."""
    first: list[tuple[str, bytes]] = []

    def check(name: str, centroids: np.ndarray) -> None:
        first.append((name, centroids.tobytes()))
        if first[0][1] != centroids.tobytes():
            raise WrongAnswer(f"the centroids of {name} are not those of {first[0][0]}")

    return check
