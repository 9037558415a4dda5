"""The image level: foreground of one image from its own patches.

The method has three levels, after "A Lightweight Clustering Framework for Unsupervised Semantic Segmentation"
(arXiv 2311.18628). Each clusters the keys of patches by cosine: within one image (this module), within a category of
similar images, and within the whole data set (both in :mod:`vitnp.method.collection_level`). A fourth level, of our
own, is fitted to the masks of the three (:mod:`vitnp.method.readout`).

One image is segmented in four steps, for several numbers of clusters K:

1. Cluster its patches by spherical k-means (:mod:`vitnp.clustering.spherical`).
2. Decide which clusters are foreground, from the CLS attention and the image border (:mod:`vitnp.method.foreground`).
3. Compute the margin of each patch: its cosine to the nearest foreground centroid minus that to the nearest background
   centroid. The soft answer is sigmoid(margin / temperature); the hard answer is 1 in foreground clusters, else 0.
4. Average the answers over K.

On a GPU one launch does this for all photographs of a batch (:mod:`vitnp.method.image_batch`).

The paper leaves open the numbers of clusters, the foreground rule and the soft answer. These are choices of vitnp, with
each constant in :class:`ImageLevelConfig`.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from vitnp import kernels
from vitnp.clustering.spherical import spherical_kmeans
from vitnp.kernels.threads import blas
from vitnp.method import image_batch
from vitnp.method.foreground import border_patches, foreground_clusters


@dataclasses.dataclass(frozen=True)
class ImageLevelConfig:
    """Constants of the image level.

    Attributes
    ----------
    clusters : tuple of int
        Numbers of clusters K to average over, because no single number suits every image.
    starts, max_iterations : int
        Number of k-means starts and of iterations per start. An image has a few hundred patches; higher numbers change
        nothing.
    threshold : float
        Score above which a cluster is foreground, see :func:`vitnp.method.foreground.foreground_clusters`.
    temperature : float
        Temperature of the sigmoid that turns a margin between cosines into a soft answer.
    attention_percentile : float
        Percentile at which the CLS attention is clipped: single patches, in corners for instance, get up to 22 times
        the mean.
    """

    clusters: tuple[int, ...] = (2, 3, 4, 6)
    starts: int = 2
    max_iterations: int = 15
    threshold: float = 0.4
    temperature: float = 0.05
    attention_percentile: float = 95.0


def image_level(
    keys: np.ndarray,
    attention: np.ndarray,
    grid: tuple[int, int],
    seed: tuple[int, ...],
    config: ImageLevelConfig = ImageLevelConfig(),
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the soft and the hard foreground of an image from its own patches.

    Parameters
    ----------
    keys : (N, D) float
        Keys of the patches in row-major order of the grid, normalized to unit length. Everything is computed on their
        device.
    attention : (N,) float
        CLS attention of the patches, mean over heads; on the device of the keys or in host memory.
    grid : (int, int)
        Rows and columns of patches; N is their product.
    seed : tuple of int
        Seed of k-means.
    config : ImageLevelConfig

    Returns
    -------
    soft : (N,) float32
        Mean over K of sigmoid(margin / temperature), 0 to 1.
    hard : (N,) float32
        Mean over K of 1 for patches of foreground clusters and 0 for others.

    Examples
    --------
    >>> keys = np.repeat([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], 3, axis=0)
    >>> attention = np.repeat([1.0, 4.0, 1.0], 3)
    >>> soft, hard = image_level(keys, attention, (3, 3), seed=(0,), config=ImageLevelConfig(clusters=(2,)))
    >>> hard.reshape(3, 3)[1]
    array([1., 1., 1.], dtype=float32)
    """
    if kernels.device_of(keys) == "cuda":
        answers = image_batch.image_levels([keys], [attention], [grid], [seed], config)
        answers.check_finite()
        return answers.soft[0], answers.hard[0]
    n_patches = len(keys)
    attention = kernels.to_host(attention)
    attention = np.minimum(attention, np.percentile(attention, config.attention_percentile))
    border = border_patches(grid)

    soft, hard = np.zeros(n_patches), np.zeros(n_patches)
    # A very small image may have fewer patches than clusters. If none of the numbers fits, all patches are background.
    cluster_numbers = [n_clusters for n_clusters in config.clusters if n_clusters < n_patches]
    with blas.one_blas_thread():
        for n_clusters in cluster_numbers:
            rng = np.random.default_rng((*seed, n_clusters))
            clusters = spherical_kmeans(
                keys, n_clusters, rng, starts=config.starts, max_iterations=config.max_iterations
            )
            foreground = foreground_clusters(clusters, attention, border, config.threshold)  # (K,) bool
            hard += foreground[clusters.labels]
            soft += _sigmoid(_margin(keys, clusters.centroids, foreground) / config.temperature)
    weight = 1 / max(len(cluster_numbers), 1)
    return (soft * weight).astype(np.float32), (hard * weight).astype(np.float32)


def _margin(keys: np.ndarray, centroids: np.ndarray, foreground: np.ndarray) -> np.ndarray:
    """Return the cosine to the nearest foreground centroid minus that to the nearest background centroid.

    If no cluster is background, which happens for K = 1 only, the cosine to the foreground is returned as it is.

    Parameters
    ----------
    keys : (N, D) float
    centroids : (K, D) float
    foreground : (K,) bool
        At least one is true.

    Returns
    -------
    (N,) float64
    """
    cosine = (keys @ centroids.T).astype(np.float64)  # (N, K)
    if foreground.all():
        return cosine.max(axis=1)
    return cosine[:, foreground].max(axis=1) - cosine[:, ~foreground].max(axis=1)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(0.5 * x)
