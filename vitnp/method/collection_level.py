"""The data set level and the category level: foreground from clusters of the patches of many images.

Both levels of arXiv 2311.18628 are fitted in the same way, one to the patches of all images, the other to those of a
category of similar images. In the paper the foreground cluster is the one that the masks of the image level cover. Here
each cluster j has a share of foreground r_j, the mean of the image level's hard answer over its patches, and a patch
belongs to the clusters in proportion to a softmax of its cosines.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from vitnp import kernels
from vitnp.clustering.kmeans import KMeans, Mapper
from vitnp.method.texture import smaller_cluster


@dataclasses.dataclass(frozen=True)
class CollectionLevelConfig:
    """Constants of the data set level, or of the category level.

    Attributes
    ----------
    clusters : tuple of int
        Numbers of clusters K to average over.
    starts, max_iterations, tolerance : int, int, float
        Settings of k-means, see :class:`vitnp.clustering.kmeans.KMeans`.
    temperature : float
        Temperature of the softmax of cosines.
    sample : int
        Maximum number of patches to fit on; more of them change only the third digit of centroids.
    """

    clusters: tuple[int, ...]
    starts: int
    max_iterations: int
    tolerance: float = 1e-4
    temperature: float = 0.05
    sample: int = 60_000


DATASET = CollectionLevelConfig(clusters=(2, 5), starts=3, max_iterations=30)
# Images of a category are similar: fewer patches describe them, and three clusters are the minimum that separates their
# objects from two kinds of background.
CATEGORY = CollectionLevelConfig(clusters=(3, 5), starts=2, max_iterations=25, sample=20_000)


@dataclasses.dataclass(frozen=True, eq=False)
class FittedLevel:
    """Clusters of the patches of many images, and the share of foreground of each cluster.

    Attributes
    ----------
    centroids : tuple of (K, D) float32
        Unit rows; one array for each number of clusters.
    shares : tuple of (K,) float32
        r_j, the mean of the image level's hard answer over the patches of a cluster, 0 to 1.
    temperature : float
        Temperature of the softmax of cosines.
    """

    centroids: tuple[np.ndarray, ...]
    shares: tuple[np.ndarray, ...]
    temperature: float

    def soft_foreground(self, keys: np.ndarray) -> np.ndarray:
        """Return the soft foreground of patches: mean over K of sum_j softmax(cosine / temperature)_j * r_j.

        Parameters
        ----------
        keys : (N, D) float
            Keys normalized to unit length.

        Returns
        -------
        (N,) float32
            On the device of the keys.
        """
        k, device = kernels.for_array(keys), kernels.device_of(keys)
        total = kernels.array_module(keys).zeros(len(keys), np.float32)
        for level in zip(self.centroids, self.shares):
            centroids, shares = (kernels.to_device(part, device) for part in level)
            total += k.softmax(keys @ centroids.T / np.float32(self.temperature)) @ shares
        return total / np.float32(len(self.centroids))

    def hard_foreground(self, keys: np.ndarray) -> np.ndarray:
        """Return 1 for patches of the cluster with the largest share of foreground at the first K, and 0 for others.

        Parameters
        ----------
        keys : (N, D) float
            Keys normalized to unit length.

        Returns
        -------
        (N,) float32
            On the device of the keys.
        """
        centroids = kernels.to_device(self.centroids[0], kernels.device_of(keys))
        labels, _ = kernels.for_array(keys).kmeans_assign(keys, centroids)
        return (labels == int(self.shares[0].argmax())).astype(np.float32)


def fit_level(
    keys: Any,
    hard: np.ndarray,
    seed: tuple[int, ...],
    config: CollectionLevelConfig,
    *,
    mapper: Mapper | None = None,
    n_threads: int | None = None,
    device: str = "cpu",
    domain: str = "photo",
) -> FittedLevel:
    """Cluster the patches of many images and measure the share of foreground of each cluster.

    Parameters
    ----------
    keys : (M, D) array, or blocks of rows
        Keys of patches, of any length; see :meth:`vitnp.clustering.kmeans.KMeans.fit`.
    hard : (M,) float
        Hard answer of the image level for the same patches.
    seed : tuple of int
        Seed of k-means.
    config : CollectionLevelConfig
    mapper : callable, optional
        Runs the passes over the keys, see :meth:`vitnp.clustering.kmeans.KMeans.fit`.
    n_threads : int, optional
        Number of chunks of keys that are processed at the same time.
    device : {"cpu", "cuda"}
        Device of k-means.
    domain : {"photo", "texture", "lines"}
        With another than "photo" the smallest cluster alone is foreground, whatever the hard answers.

    Returns
    -------
    FittedLevel
        With at most as many clusters as patches.

    Examples
    --------
    >>> keys = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], np.float32)
    >>> config = CollectionLevelConfig(clusters=(2,), starts=1, max_iterations=5)
    >>> level = fit_level(keys, np.array([1.0, 0.5, 0.0]), (0,), config)
    >>> sorted(level.shares[0].tolist())
    [0.0, 0.75]
    """
    centroids, shares = [], []
    for n_clusters in config.clusters:
        n_clusters = min(n_clusters, len(hard))
        kmeans = KMeans(
            n_clusters,
            n_init=config.starts,
            max_iter=config.max_iterations,
            tol=config.tolerance,
            random_state=(*seed, n_clusters),
            n_jobs=n_threads,
            device=device,
        ).fit(keys, mapper=mapper)
        centroids.append(kmeans.cluster_centers_)
        if domain != "photo":
            shares.append(smaller_cluster(kmeans.counts_))
            continue
        foreground = np.bincount(kmeans.labels_, weights=hard, minlength=n_clusters)
        shares.append((foreground / np.maximum(kmeans.counts_, 1)).astype(np.float32))
    return FittedLevel(tuple(centroids), tuple(shares), config.temperature)


def default_categories(n_images: int) -> int:
    """Return the default number of categories of a collection: one per 20 images, between 1 and 20.

    Examples
    --------
    >>> default_categories(160), default_categories(5), default_categories(10_000)
    (8, 1, 20)
    """
    return min(max(round(n_images / 20), 1), 20)
