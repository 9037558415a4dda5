"""The foreground rule: which clusters of an image show objects.

To try another rule, change :func:`foreground_clusters`: on the CPU no other code knows how the decision is made. For a
GPU :mod:`vitnp.kernels.reference.image_level` defines the rule, and ``image_level.cu`` applies it. Constants of a rule
belong in :class:`vitnp.method.image_level.ImageLevelConfig`, as `threshold` does.
"""

from __future__ import annotations

import numpy as np

from vitnp.clustering.spherical import Clustering


def foreground_clusters(
    clusters: Clustering, attention: np.ndarray, border: np.ndarray, threshold: float
) -> np.ndarray:
    """Return the foreground clusters: those that CLS attends to and that keep away from the image border.

    The score of a cluster is log(a + 0.001) - log(b + 0.1), where

    - a is the mean attention of its patches, divided by that of the image;
    - b is the share of its patches on the border, divided by that of the image.

    A cluster is foreground if its score exceeds the threshold. If none does, the cluster with the highest score is
    foreground; if all do, the one with the lowest score is background. Empty clusters are background.

    Parameters
    ----------
    clusters : Clustering
        The N patches of an image in K clusters.
    attention : (N,) float
        CLS attention.
    border : (N,) bool
        See :func:`border_patches`.
    threshold : float

    Returns
    -------
    (K,) bool
    """
    n_clusters = len(clusters.counts)
    occupied = np.flatnonzero(clusters.counts)
    size = clusters.counts[occupied]
    # Sums are float64 whatever the type of the attention. Attention of zero everywhere favors no cluster.
    mean_attention = _sum_by_cluster(attention, clusters.labels, n_clusters)[occupied] / size
    a = mean_attention / max(float(attention.mean(dtype=np.float64)), np.finfo(np.float64).tiny)
    b = _sum_by_cluster(border, clusters.labels, n_clusters)[occupied] / size / float(border.mean())
    score = np.log(a + 1e-3) - np.log(b + 0.1)
    above = score > threshold
    if not above.any():
        above[score.argmax()] = True
    elif above.all() and len(occupied) > 1:
        above[score.argmin()] = False
    foreground = np.zeros(n_clusters, bool)
    foreground[occupied[above]] = True
    return foreground


def border_patches(grid: tuple[int, int]) -> np.ndarray:
    """Return which patches touch the image border.

    Parameters
    ----------
    grid : (int, int)
        Rows and columns of patches; N is their product.

    Returns
    -------
    (N,) bool
        In row-major order.

    Examples
    --------
    >>> border_patches((3, 3)).reshape(3, 3)[1]
    array([ True, False,  True])
    """
    border = np.ones(grid, bool)
    border[1:-1, 1:-1] = False
    return border.ravel()


def _sum_by_cluster(values: np.ndarray, labels: np.ndarray, n_clusters: int) -> np.ndarray:
    """Return the sum of the values of each cluster, (K,) float64."""
    return np.bincount(labels, weights=values, minlength=n_clusters)
