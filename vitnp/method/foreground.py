"""Decide which clusters of an image are foreground."""

from __future__ import annotations

import numpy as np

from vitnp import kernels
from vitnp.clustering.spherical import Clustering


def foreground_clusters(found: Clustering, attention: np.ndarray, border: np.ndarray, threshold: float) -> np.ndarray:
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
    # The sums run in float64 whatever the attention's type. A flat zero attention favors nobody.
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


def _sums(values: np.ndarray, labels: np.ndarray, clusters: int) -> np.ndarray:
    """Each cluster's sum of values, (K,) float64, in the host's memory."""
    if kernels.device_of(values) == "cpu":
        return np.bincount(labels, weights=values, minlength=clusters)
    # A GPU's bincount adds in the order in which threads come by.
    xp = kernels.array_module(values)
    own = labels == xp.arange(clusters, dtype=labels.dtype)[:, None]
    return kernels.to_host(xp.where(own, values, 0).sum(axis=1, dtype=np.float64))
