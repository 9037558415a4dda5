"""Foreground from clustered keys, at three levels that are made to agree.

The levels follow arXiv 2311.18628: keys of patches are clustered by cosine within one image, within a category of similar
images, and within the whole data set; at the latter two the foreground is what the image level's masks cover. What the paper
leaves open (the numbers of clusters, the rule that tells foreground, how the levels agree) is decided here, each constant a
named parameter.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from vitnp import kernels
from vitnp.clustering.spherical import spherical_kmeans
from vitnp.kernels.threads import blas
from vitnp.method.foreground import border_patches, foreground_clusters


@dataclasses.dataclass(frozen=True)
class ImageLevelConfig:
    """Constants of the image level.

    Attributes
    ----------
    clusters : tuple of int
        Numbers of clusters to try; the answers are averaged, because no single number suits every picture.
    starts, max_iterations : int
        Of k-means. An image has a few hundred patches; more changes nothing.
    threshold : float
        A cluster is foreground when its score (see :func:`foreground_clusters`) is above this.
    temperature : float
        Of the sigmoid that turns a margin between cosines into a soft answer.
    attention_percentile : float
        CLS attention is clipped here: single corner and register-like patches draw up to 22 times the mean.
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
    """Soft and hard foreground of one image from its own patches.

    For every K the keys are clustered, clusters are told foreground from background, and each patch gets
    sigmoid(margin / temperature), the margin being its cosine to the best foreground centroid minus that to the best
    background centroid.

    Parameters
    ----------
    keys : (N, D) float
        Unit rows, row by row of the grid. Where they live is where all is computed.
    attention : (N,) float
        CLS attention of the patches, mean over heads; there or in the host's memory.
    grid : (int, int)
        Rows and columns of patches; N is their product.
    seed : tuple of int
        Seeds k-means.
    constants : ImageLevelConfig

    Returns
    -------
    soft : (N,) float32
        Mean over K of the soft answers, 0..1.
    hard : (N,) float32
        Mean over K of the hard answers, each 0 or 1.

    Examples
    --------
    >>> keys = np.repeat([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], 3, axis=0)
    >>> soft, hard = image_level(keys, np.repeat([1.0, 4.0, 1.0], 3), (3, 3), seed=(0,), config=ImageLevelConfig(clusters=(2,)))
    >>> hard.reshape(3, 3)[1]
    array([1., 1., 1.], dtype=float32)
    """
    patches, xp, device = len(keys), kernels.array_module(keys), kernels.device_of(keys)
    attention = kernels.to_device(attention, device)
    attention = xp.minimum(attention, xp.percentile(attention, config.attention_percentile))
    border = kernels.to_device(border_patches(grid), device)
    soft, hard = xp.zeros(patches), xp.zeros(patches)
    # An image with fewer patches than clusters has no use for that many; one patch alone stands out from nothing.
    tried = [clusters for clusters in config.clusters if clusters < patches]
    with blas.one_blas_thread():
        for clusters in tried:
            rng = np.random.default_rng((*seed, clusters))
            found = spherical_kmeans(keys, clusters, rng, starts=config.starts, max_iterations=config.max_iterations)
            foreground = foreground_clusters(found, attention, border, config.threshold)
            hard += kernels.to_device(foreground, device)[found.labels]
            soft += _sigmoid(_margin(keys, found.centroids, foreground) / config.temperature)
    share = 1 / max(len(tried), 1)
    return (soft * share).astype(np.float32), (hard * share).astype(np.float32)


def _margin(keys: np.ndarray, centroids: np.ndarray, foreground: np.ndarray) -> np.ndarray:
    """Cosine to the best foreground centroid minus cosine to the best background centroid, (N,) float64."""
    device = kernels.device_of(keys)
    cosine = (keys @ kernels.to_device(centroids, device).T).astype(np.float64)
    if foreground.all():
        return cosine.max(axis=1)
    # Numbers of columns: a GPU would have to count what is true before it knew the result's shape.
    chosen, others = (kernels.to_device(np.flatnonzero(part), device) for part in (foreground, ~foreground))
    return cosine[:, chosen].max(axis=1) - cosine[:, others].max(axis=1)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * kernels.array_module(x).tanh(0.5 * x)
