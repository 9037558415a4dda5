"""Foreground from clustered keys, at three levels that are made to agree.

The levels follow arXiv 2311.18628: keys of patches are clustered by cosine within one image, within a category of similar
images, and within the whole data set; at the latter two the foreground is what the image level's masks cover. What the paper
leaves open (the numbers of clusters, the rule that tells foreground, how the levels agree) is decided here, each constant a
named parameter.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from vitnp import kernels, threads
from vitnp.errors import UsageError
from vitnp.kmeans import Clustering, KMeans, Mapper, spherical_kmeans


@dataclasses.dataclass(frozen=True)
class ImageLevel:
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


@dataclasses.dataclass(frozen=True)
class CollectionLevel:
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


DATASET = CollectionLevel(clusters=(2, 5), starts=3, max_iterations=30)
# A category is more alike: fewer patches describe it, and three clusters are the least that part its objects from two grounds.
CATEGORY = CollectionLevel(clusters=(3, 5), starts=2, max_iterations=25, sample=20_000)

CONSISTENCY = ("mean", "majority", "intersection")

# On photographs with one object nine in ten have a spread above this; without any object it is far smaller.
SPREAD_OF_AN_OBJECT = 0.25


def image_level(
    keys: np.ndarray,
    attention: np.ndarray,
    grid: tuple[int, int],
    seed: tuple[int, ...],
    constants: ImageLevel = ImageLevel(),
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
    constants : ImageLevel

    Returns
    -------
    soft : (N,) float32
        Mean over K of the soft answers, 0..1.
    hard : (N,) float32
        Mean over K of the hard answers, each 0 or 1.

    Examples
    --------
    >>> keys = np.repeat([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], 3, axis=0)
    >>> soft, hard = image_level(keys, np.repeat([1.0, 4.0, 1.0], 3), (3, 3), seed=(0,), constants=ImageLevel(clusters=(2,)))
    >>> hard.reshape(3, 3)[1]
    array([1., 1., 1.], dtype=float32)
    """
    patches, xp, device = len(keys), kernels.array_module(keys), kernels.device_of(keys)
    attention = kernels.to_device(attention, device)
    attention = xp.minimum(attention, xp.percentile(attention, constants.attention_percentile))
    border = kernels.to_device(border_patches(grid), device)
    soft, hard = xp.zeros(patches), xp.zeros(patches)
    # An image with fewer patches than clusters has no use for that many; one patch alone stands out from nothing.
    tried = [clusters for clusters in constants.clusters if clusters < patches]
    with threads.one_blas_thread():
        for clusters in tried:
            rng = np.random.default_rng((*seed, clusters))
            found = spherical_kmeans(
                keys, clusters, rng, starts=constants.starts, max_iterations=constants.max_iterations
            )
            foreground = foreground_clusters(found, attention, border, constants.threshold)
            hard += kernels.to_device(foreground, device)[found.labels]
            soft += _sigmoid(_margin(keys, found.centroids, foreground) / constants.temperature)
    share = 1 / max(len(tried), 1)
    return (soft * share).astype(np.float32), (hard * share).astype(np.float32)


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

    def score(self, keys: np.ndarray) -> np.ndarray:
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

    def hard(self, keys: np.ndarray) -> np.ndarray:
        """Patches of the one cluster that holds most foreground, at the first K: (N,) float32 of 0 and 1."""
        centroids = kernels.to_device(self.centroids[0], kernels.device_of(keys))
        labels, _ = kernels.for_array(keys).kmeans_assign(keys, centroids)
        return (labels == int(self.shares[0].argmax())).astype(np.float32)


def fit_level(
    keys: Any, hard: np.ndarray, seed: tuple[int, ...], constants: CollectionLevel, *, mapper: Mapper | None = None,
    thread_count: int | None = None, device: str = "cpu",
) -> FittedLevel:  # fmt: skip
    """Cluster patches of many images, and measure how much foreground each cluster holds.

    The soft form of "the foreground cluster is the one that the image-level masks cover".

    Parameters
    ----------
    keys : (M, D) array, or blocks of rows
        Keys of patches, of any length; what :meth:`vitnp.kmeans.KMeans.fit` takes.
    hard : (M,) float
        The image level's hard answer for the same patches.
    seed : tuple of int
        Seeds k-means.
    constants : CollectionLevel
    mapper : callable, optional
        Who does the passes over the keys, see :meth:`vitnp.kmeans.KMeans.fit`.
    thread_count : int, optional
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
    >>> level = fit_level(keys, np.array([1.0, 0.5, 0.0]), (0,), CollectionLevel(clusters=(2,), starts=1, max_iterations=5))
    >>> sorted(level.shares[0].tolist())
    [0.0, 0.75]
    """
    centroids, shares = [], []
    for clusters in constants.clusters:
        clusters = min(clusters, len(hard))
        found = KMeans(
            clusters, n_init=constants.starts, max_iter=constants.max_iterations, tol=constants.tolerance, seed=(*seed, clusters),
            thread_count=thread_count, device=device,
        ).fit(keys, mapper=mapper)
        covered = np.bincount(found.labels_, weights=hard, minlength=clusters)
        centroids.append(found.cluster_centers_)
        shares.append((covered / np.maximum(found.counts_, 1)).astype(np.float32))
    return FittedLevel(tuple(centroids), tuple(shares), constants.temperature)


def default_categories(images: int) -> int:
    """How many categories a collection is parted into: one for 20 images, 1 to 20.

    Examples
    --------
    >>> default_categories(160), default_categories(5), default_categories(10_000)
    (8, 1, 20)
    """
    return min(max(round(images / 20), 1), 20)


def agree(levels: Sequence[np.ndarray], consistency: str = "mean") -> np.ndarray:
    """One score from several levels' answers.

    Parameters
    ----------
    levels : sequence of (N,) float
        Of the same patches: soft answers for "mean", hard ones for the others. All on one device.
    consistency : {"mean", "majority", "intersection"}
        The mean of soft answers; or 1 where more than half, or all, of the hard answers are 1 (the literal reading of the paper).

    Returns
    -------
    (N,) float32

    Examples
    --------
    >>> agree([np.array([1.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.0]), np.array([1.0, 1.0, 0.0])], "majority")
    array([1., 1., 0.], dtype=float32)
    """
    mean = kernels.array_module(levels[0]).stack(levels).mean(axis=0, dtype=np.float64)
    if consistency == "mean":
        return mean.astype(np.float32)
    if consistency not in CONSISTENCY:
        raise UsageError(f"there is no consistency {consistency!r}; choose among {', '.join(CONSISTENCY)}")
    return (mean > 0.5 if consistency == "majority" else mean == 1).astype(np.float32)


def literal(constants: ImageLevel | CollectionLevel) -> ImageLevel | CollectionLevel:
    """The same constants with two clusters alone, as "majority" and "intersection" want them."""
    return dataclasses.replace(constants, clusters=(2,))


def foreground_clusters(
    found: Clustering, attention: np.ndarray, border: np.ndarray, threshold: float
) -> np.ndarray:
    """Which clusters are foreground: those that CLS attends to and that keep away from the border.

    The score of a cluster is log(a + 1e-3) - log(b + 0.1), with a = mean attention of its patches over the image's mean,
    b = share of its patches on the border over the image's share. Without any cluster above the threshold the best one is
    taken; when all are above it, all but the worst. Empty clusters are never foreground.

    Parameters
    ----------
    found : Clustering
        Of the image's N patches into K clusters.
    attention : (N,) float
    border : (N,) bool
    threshold : float

    Returns
    -------
    (K,) bool
    """
    clusters = len(found.counts)
    occupied = np.flatnonzero(found.counts)
    size = found.counts[occupied]
    # The sums run in float64 whatever the attention's type. A flat zero attention favours nobody.
    attended = _sums(attention, found.labels, clusters)[occupied] / size
    a = attended / max(float(attention.mean(dtype=np.float64)), np.finfo(np.float64).tiny)
    b = _sums(border, found.labels, clusters)[occupied] / size / float(border.mean())
    score = np.log(a + 1e-3) - np.log(b + 0.1)
    above = score > threshold
    if not above.any():
        above[score.argmax()] = True
    elif above.all() and len(occupied) > 1:
        above[score.argmin()] = False
    foreground = np.zeros(clusters, bool)
    foreground[occupied[above]] = True
    return foreground


def confidence(soft: np.ndarray, keys: np.ndarray) -> float:
    """How sure one may be that the image holds an object at all, 0..1.

    The contrast of the image level, mean of |2 I - 1|, times min(1, spread / 0.25), the spread being 1 - |mean unit key|:
    pictures of nothing have patches that are all alike, or clusters that blend into each other.

    Parameters
    ----------
    soft : (N,) float
        Soft answer of :func:`image_level`.
    keys : (N, D) float
        Unit rows.

    Returns
    -------
    float

    Examples
    --------
    >>> confidence(np.array([1.0, 0.0]), np.eye(2))
    1.0
    """
    contrast = float(abs(2 * soft.astype(np.float64) - 1).mean())
    spread = 1 - math.sqrt(float((keys.mean(axis=0, dtype=np.float64) ** 2).sum()))
    return float(contrast * min(1.0, max(0.0, spread) / SPREAD_OF_AN_OBJECT))


def border_patches(grid: tuple[int, int]) -> np.ndarray:
    """Patches that touch the image's border: (N,) bool, row by row.

    Examples
    --------
    >>> border_patches((3, 3)).reshape(3, 3)[1]
    array([ True, False,  True])
    """
    border = np.ones(grid, bool)
    border[1:-1, 1:-1] = False
    return border.ravel()


def _margin(keys: np.ndarray, centroids: np.ndarray, foreground: np.ndarray) -> np.ndarray:
    """Cosine to the best foreground centroid minus cosine to the best background centroid, (N,) float64."""
    device = kernels.device_of(keys)
    cosine = (keys @ kernels.to_device(centroids, device).T).astype(np.float64)
    if foreground.all():
        return cosine.max(axis=1)
    # Numbers of columns: a GPU would have to count what is true before it knew the result's shape.
    chosen, others = (kernels.to_device(np.flatnonzero(part), device) for part in (foreground, ~foreground))
    return cosine[:, chosen].max(axis=1) - cosine[:, others].max(axis=1)


def _sums(values: np.ndarray, labels: np.ndarray, clusters: int) -> np.ndarray:
    """Each cluster's sum of values, (K,) float64, in the host's memory."""
    if kernels.device_of(values) == "cpu":
        return np.bincount(labels, weights=values, minlength=clusters)
    # A GPU's bincount adds in the order in which threads come by.
    xp = kernels.array_module(values)
    own = labels == xp.arange(clusters, dtype=labels.dtype)[:, None]
    return kernels.to_host(xp.where(own, values, 0).sum(axis=1, dtype=np.float64))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * kernels.array_module(x).tanh(0.5 * x)
