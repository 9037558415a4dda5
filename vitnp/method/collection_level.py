"""Clusters fitted to many images: the data set level and the category level."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from vitnp import kernels
from vitnp.clustering.kmeans import KMeans, Mapper


@dataclasses.dataclass(frozen=True)
class CollectionLevelConfig:
    """Constants of the data set's level, or of a category's.

    Attributes
    ----------
    clusters : tuple of int
        Numbers of clusters to try; the answers are averaged.
    starts, max_iterations, tolerance : int, int, float
        Of k-means.
    temperature : float
        Of the softmax over cosines by which a patch belongs to several clusters.
    sample : int
        Most patches to fit on; more change centroids in the third digit.
    """

    clusters: tuple[int, ...]
    starts: int
    max_iterations: int
    tolerance: float = 1e-4
    temperature: float = 0.05
    sample: int = 60_000


DATASET = CollectionLevelConfig(clusters=(2, 5), starts=3, max_iterations=30)
# A category is more alike: fewer patches describe it, and three clusters are the least that part its objects from two grounds.
CATEGORY = CollectionLevelConfig(clusters=(3, 5), starts=2, max_iterations=25, sample=20_000)


@dataclasses.dataclass(frozen=True, eq=False)
class FittedLevel:
    """Clusters of many images' patches, and how much foreground each holds.

    Attributes
    ----------
    centroids : tuple of (K, D) float32
        One array for each number of clusters; unit rows.
    shares : tuple of (K,) float32
        r_j: mean of the image level's hard answer over the patches of each cluster, 0..1.
    temperature : float
        Of the softmax over cosines.
    """

    centroids: tuple[np.ndarray, ...]
    shares: tuple[np.ndarray, ...]
    temperature: float

    def soft_foreground(self, keys: np.ndarray) -> np.ndarray:
        """Soft foreground of patches: mean over K of sum_j softmax(cosine / temperature)_j r_j.

        Parameters
        ----------
        keys : (N, D) float
            Unit rows.

        Returns
        -------
        (N,) float32
        """
        k, device = kernels.for_array(keys), kernels.device_of(keys)
        found = kernels.array_module(keys).zeros(len(keys), np.float32)
        for level in zip(self.centroids, self.shares):
            centroids, shares = (kernels.to_device(part, device) for part in level)
            found += k.softmax(keys @ centroids.T / np.float32(self.temperature)) @ shares
        return found / np.float32(len(self.centroids))

    def hard_foreground(self, keys: np.ndarray) -> np.ndarray:
        """Patches of the one cluster that holds most foreground, at the first K: (N,) float32 of 0 and 1."""
        centroids = kernels.to_device(self.centroids[0], kernels.device_of(keys))
        labels, _ = kernels.for_array(keys).kmeans_assign(keys, centroids)
        return (labels == int(self.shares[0].argmax())).astype(np.float32)


def fit_level(
    keys: Any, hard: np.ndarray, seed: tuple[int, ...], config: CollectionLevelConfig, *, mapper: Mapper | None = None,
    n_threads: int | None = None, device: str = "cpu",
) -> FittedLevel:  # fmt: skip
    """Cluster patches of many images, and measure how much foreground each cluster holds.

    The soft form of "the foreground cluster is the one that the image-level masks cover".

    Parameters
    ----------
    keys : (M, D) array, or blocks of rows
        Keys of patches, of any length; what :meth:`vitnp.clustering.kmeans.KMeans.fit` takes.
    hard : (M,) float
        The image level's hard answer for the same patches.
    seed : tuple of int
        Seeds k-means.
    constants : CollectionLevelConfig
    mapper : callable, optional
        Who does the passes over the keys, see :meth:`vitnp.clustering.kmeans.KMeans.fit`.
    n_threads : int, optional
        Chunks of keys worked on at the same time.
    device : {"cpu", "cuda"}
        Where to cluster.

    Returns
    -------
    FittedLevel
        With no more clusters than patches.

    Examples
    --------
    >>> keys = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], np.float32)
    >>> level = fit_level(keys, np.array([1.0, 0.5, 0.0]), (0,), CollectionLevelConfig(clusters=(2,), starts=1, max_iterations=5))
    >>> sorted(level.shares[0].tolist())
    [0.0, 0.75]
    """
    centroids, shares = [], []
    for clusters in config.clusters:
        clusters = min(clusters, len(hard))
        found = KMeans(
            clusters,
            n_init=config.starts,
            max_iter=config.max_iterations,
            tol=config.tolerance,
            seed=(*seed, clusters),
            n_threads=n_threads,
            device=device,
        ).fit(keys, mapper=mapper)
        covered = np.bincount(found.labels_, weights=hard, minlength=clusters)
        centroids.append(found.cluster_centers_)
        shares.append((covered / np.maximum(found.counts_, 1)).astype(np.float32))
    return FittedLevel(tuple(centroids), tuple(shares), config.temperature)


def default_categories(images: int) -> int:
    """How many categories a collection is parted into: one for 20 images, 1 to 20.

    Examples
    --------
    >>> default_categories(160), default_categories(5), default_categories(10_000)
    (8, 1, 20)
    """
    return min(max(round(images / 20), 1), 20)
