"""Textures: the foreground of pictures of many small or thin parts on an even ground.

The foreground rule of photographs (:mod:`vitnp.method.foreground`) looks for an object that draws attention and keeps
away from the border. Under a microscope, on a field or on a road neither holds. With ``domain="texture"`` each level
has two clusters instead, and the smaller one is its foreground: parts cover less of such pictures than their ground.
So does the mask: if it covers more than half of a picture, its complement is taken.
"""

from __future__ import annotations

import numpy as np

from vitnp import kernels
from vitnp.clustering.spherical import spherical_kmeans
from vitnp.kernels.threads import blas
from vitnp.method import image_batch
from vitnp.method.cleaning import CleaningConfig
from vitnp.method.image_level import ImageLevelConfig

# Small islands are what such pictures are about: keep all.
CLEANING = CleaningConfig(relative=0.0, absolute=0.0)


_CONFIG = ImageLevelConfig()


def default_cleaning(domain: str) -> CleaningConfig:
    """Return the default constants of the cleaning step for a domain.

    Examples
    --------
    >>> default_cleaning("texture").relative
    0.0
    """
    return CleaningConfig() if domain == "photo" else CLEANING


def smaller_cluster(counts: np.ndarray) -> np.ndarray:
    """Return 1 for the smallest cluster that is not empty, and 0 for the others.

    Parameters
    ----------
    counts : (K,) int
        Number of patches of each cluster. With one cluster only nothing is foreground.

    Returns
    -------
    (K,) float32
        At a tie the first cluster is foreground.

    Examples
    --------
    >>> smaller_cluster(np.array([70, 30]))
    array([0., 1.], dtype=float32)
    """
    foreground = np.zeros(len(counts), np.float32)
    occupied = np.flatnonzero(counts)
    if len(occupied) > 1:
        foreground[occupied[counts[occupied].argmin()]] = 1
    return foreground


def smaller_side(soft: np.ndarray) -> np.ndarray:
    """Return a soft map, or its complement if its mask covers more than half of the picture.

    Parameters
    ----------
    soft : (height, width) uint16
        Map in 16-bit fixed point; the mask is where it is at least 32768.

    Returns
    -------
    (height, width) uint16

    Examples
    --------
    >>> smaller_side(np.array([[65535, 40000, 0]], np.uint16)).tolist()
    [[0, 25535, 65535]]
    """
    return np.uint16(65535) - soft if 2 * np.count_nonzero(soft >= 32768) > soft.size else soft


def texture_image_level(
    keys: np.ndarray, seed: tuple[int, ...], config: ImageLevelConfig = _CONFIG
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the soft and the hard foreground of a texture from its own patches.

    Parameters
    ----------
    keys : (N, D) float
        Keys of the patches, normalized to unit length. Everything is computed on their device.
    seed : tuple of int
        Seed of k-means.
    config : ImageLevelConfig
        Starts, iterations and temperature; there are always two clusters.

    Returns
    -------
    soft : (N,) float32
        Softmax of the cosines to both centroids, divided by the temperature, at the smaller cluster.
    hard : (N,) float32
        1 for patches of the smaller cluster, 0 for others.

    Examples
    --------
    >>> keys = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> texture_image_level(keys, (0,))[1]
    array([0., 0., 1.], dtype=float32)
    """
    if kernels.device_of(keys) == "cuda":
        patches = kernels.array_module(keys).ones(len(keys), np.float32)
        answers = image_batch.image_levels([keys], [patches], [(len(keys), 1)], [seed], config, texture=True)
        answers.check_finite()
        return answers.soft[0], answers.hard[0]
    if len(keys) < 2:
        return np.zeros(len(keys), np.float32), np.zeros(len(keys), np.float32)
    with blas.one_blas_thread():
        clusters = spherical_kmeans(
            keys, 2, np.random.default_rng((*seed, 2)), starts=config.starts, max_iterations=config.max_iterations
        )
        foreground = smaller_cluster(clusters.counts)
        centroids = np.asarray(clusters.centroids, np.float32)
        cosine = np.ascontiguousarray(keys.astype(np.float32, copy=False) @ centroids.T)
        soft = kernels.for_array(keys).softmax(cosine / np.float32(config.temperature)) @ foreground
    return soft, foreground[clusters.labels]
