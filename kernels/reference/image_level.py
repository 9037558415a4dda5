"""The image level of a batch of photographs: k-means of the patches of each, the foreground rule, and the soft answer.

:mod:`vitnp.method.image_level` explains the method, and computes it photograph by photograph on the CPU. On a GPU one
launch computes it for a batch, and this module defines what. Random numbers come from the host, drawn for each
photograph by the generator that the CPU uses, so that both choose the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from vitnp.kernels.reference.kmeans import kmeans_closer, kmeans_rows, kmeans_step
from vitnp.kernels.reference.lloyd import kmeans_move


class ImageLevelRule(NamedTuple):
    """Constants of the image level, see :class:`vitnp.method.image_level.ImageLevelConfig`.

    Attributes
    ----------
    clusters : tuple of int
        Numbers of clusters K. A photograph leaves out those that are not smaller than its number of patches; a texture
        those that are larger.
    starts, max_iterations : int
    attention_percentile, threshold, temperature : float
    texture : bool
        Whether the smaller cluster is foreground, instead of those that attention prefers.
    """

    clusters: tuple[int, ...]
    starts: int
    max_iterations: int
    attention_percentile: float
    threshold: float
    temperature: float
    texture: bool = False


class ImageLevels(NamedTuple):
    """Answers of the image level for the patches of B photographs, one photograph after the other.

    Attributes
    ----------
    soft, hard : (T,) float32
        See :func:`vitnp.method.image_level.image_level`; 0 for photographs with values that are not finite.
    facts : (B, 3) float64
        For each photograph the mean of |2 * soft - 1|, the length of the mean of its unit rows, and 1 if its rows are
        finite, else 0.
    """

    soft: np.ndarray
    hard: np.ndarray
    facts: np.ndarray


def n_candidates(n_clusters: int) -> int:
    """Return the number of candidates for each further centroid in greedy k-means++: 2 + ln K, rounded down.

    Examples
    --------
    >>> [n_candidates(n_clusters) for n_clusters in (2, 3, 8)]
    [2, 3, 4]
    """
    return 2 + int(np.log(n_clusters))


def n_draws(n_clusters: int) -> int:
    """Return the random numbers of a start of greedy k-means++: its first row, and one for each candidate.

    Examples
    --------
    >>> n_draws(3)
    7
    """
    return 1 + (n_clusters - 1) * n_candidates(n_clusters)


def image_levels(
    keys: np.ndarray,
    attention: np.ndarray,
    grids: Sequence[tuple[int, int]],
    draws: np.ndarray,
    rule: ImageLevelRule,
) -> ImageLevels:
    """Compute the image level of the photographs of a batch.

    Parameters
    ----------
    keys : (T, D) float32
        Keys of the patches of all photographs, of any length, one photograph after the other.
    attention : (T,) float32
        CLS attention of the patches.
    grids : sequence of (int, int)
        Rows and columns of patches of each photograph.
    draws : (B, Q) float64
        Random numbers of each photograph, in host memory: for each number of clusters K and each start
        :func:`n_draws` of K, the first row and uniform numbers below 1. Those of a K that is left out do not matter.
    rule : ImageLevelRule

    Returns
    -------
    ImageLevels
        On the device of the keys.

    Examples
    --------
    >>> keys = np.repeat(np.array([[1, 0], [0, 1], [1, 0]], np.float32), 3, axis=0)
    >>> attention = np.repeat(np.array([1, 4, 1], np.float32), 3)
    >>> rule = ImageLevelRule((2,), 1, 15, 95.0, 0.4, 0.05)
    >>> image_levels(keys, attention, [(3, 3)], np.array([[0, 0.5, 0.7]]), rule).hard.reshape(3, 3)[:, 0]
    array([0., 1., 0.], dtype=float32)
    """
    answers = []
    first = 0
    for grid, own in zip(grids, draws):
        part = slice(first, first + grid[0] * grid[1])
        answers.append(_image_level(keys[part], attention[part], grid, own, rule))
        first = part.stop
    soft, hard, facts = zip(*answers)
    return ImageLevels(np.concatenate(soft), np.concatenate(hard), np.array(facts))


class _Start(NamedTuple):
    """Result of one start of k-means."""

    centroids: np.ndarray
    labels: np.ndarray
    counts: np.ndarray
    inertia: float


def _image_level(
    keys: np.ndarray, attention: np.ndarray, grid: tuple[int, int], draws: np.ndarray, rule: ImageLevelRule
) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    """Compute the soft and the hard answer and the facts of one photograph."""
    n = len(keys)
    soft, hard, unit = np.zeros(n), np.zeros(n), kmeans_rows(keys)
    if not np.isfinite(unit).all():
        return soft.astype(np.float32), hard.astype(np.float32), (1.0, float("nan"), 0.0)
    clipped = np.minimum(attention.astype(np.float64), np.percentile(attention, rule.attention_percentile))
    border = np.ones(grid, bool)
    border[1:-1, 1:-1] = False
    numbers = 0
    for n_clusters, runs in _runs(draws, rule):
        if n_clusters >= n + rule.texture:
            continue
        numbers += 1
        starts = [_kmeans(unit, n_clusters, run, rule.max_iterations) for run in runs]
        best = min(starts, key=lambda start: start.inertia)
        foreground = _foreground(best, clipped, border.ravel(), rule)
        hard += foreground[best.labels]
        if foreground.any():
            cosine = (unit @ best.centroids.T).astype(np.float64)
            outside = cosine[:, ~foreground].max(axis=1) if not foreground.all() else 0.0
            margin = cosine[:, foreground].max(axis=1) - outside
            soft += 0.5 + 0.5 * np.tanh(0.5 * margin / rule.temperature)
    mean_soft, mean_hard = ((total / max(numbers, 1)).astype(np.float32) for total in (soft, hard))
    contrast = np.abs(2 * mean_soft.astype(np.float64) - 1).mean()
    length = np.linalg.norm(unit.mean(axis=0, dtype=np.float64))
    return mean_soft, mean_hard, (float(contrast), float(length), 1.0)


def _runs(draws: np.ndarray, rule: ImageLevelRule) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each number of clusters with the random numbers of its starts, (starts, draws)."""
    first = 0
    for n_clusters in rule.clusters:
        last = first + rule.starts * n_draws(n_clusters)
        yield n_clusters, draws[first:last].reshape(rule.starts, -1)
        first = last


def _kmeans(unit: np.ndarray, n_clusters: int, draws: np.ndarray, max_iterations: int) -> _Start:
    """Run one start of k-means: greedy k-means++, then Lloyd until no label changes or the inertia does not fall."""
    centroids = _kmeans_plusplus(unit, n_clusters, draws)
    labels, inertia = None, np.inf
    for moves in range(max_iterations + 1):
        step = kmeans_step(unit, centroids)
        total = float(step.inertia[0])
        ended = labels is not None and (total >= inertia or np.array_equal(labels, step.labels))
        labels, inertia = step.labels, total
        if ended or moves == max_iterations:
            break
        sums, counts = _fill_empty(unit, step.sums[0], step.counts, step.labels, step.losses)
        centroids = kmeans_move(sums, counts, centroids)
    return _Start(centroids, step.labels, step.counts, inertia)


def _kmeans_plusplus(unit: np.ndarray, n_clusters: int, draws: np.ndarray) -> np.ndarray:
    """Choose initial centroids; see :func:`vitnp.clustering.kmeans_plusplus.kmeans_plusplus`."""
    chosen = [unit[int(draws[0])]]
    nearest = kmeans_closer(unit, chosen[0][None], None)[:, 0]
    for uniform in draws[1:].reshape(n_clusters - 1, n_candidates(n_clusters)):
        cumulative = nearest.cumsum(dtype=np.float64)
        rows = np.searchsorted(cumulative, uniform * cumulative[-1], side="right").clip(max=len(unit) - 1)
        losses = kmeans_closer(unit, unit[rows], nearest)
        best = losses.sum(axis=0, dtype=np.float64).argmin()
        chosen.append(unit[rows[best]])
        nearest = losses[:, best]
    return np.stack(chosen)


def _fill_empty(
    unit: np.ndarray, sums: np.ndarray, counts: np.ndarray, labels: np.ndarray, losses: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Give each empty cluster the row farthest from its centroid; see :func:`vitnp.clustering.lloyd.move_centroids`."""
    sums, counts = sums.copy(), counts.copy()
    empty = iter(np.flatnonzero(counts == 0))
    candidates = np.flatnonzero(unit.any(axis=1))
    for row in candidates[np.argsort(-losses[candidates], kind="stable")][: len(counts)]:
        if counts[labels[row]] == 1:
            continue
        cluster = next(empty, None)
        if cluster is None:
            break
        sums[labels[row]] -= unit[row]
        counts[labels[row]] -= 1
        sums[cluster], counts[cluster] = unit[row], 1
    return sums, counts


def _foreground(start: _Start, attention: np.ndarray, border: np.ndarray, rule: ImageLevelRule) -> np.ndarray:
    """Return the foreground clusters, (K,) bool, by the rule of vitnp.method.foreground or of vitnp.method.texture."""
    occupied = np.flatnonzero(start.counts)
    size = start.counts[occupied]
    if rule.texture:
        above = np.arange(len(occupied)) == size.argmin() if len(occupied) > 1 else np.zeros(1, bool)
    else:
        shares = []
        for values in (attention, border):
            total = np.bincount(start.labels, weights=values, minlength=len(start.counts))[occupied]
            shares.append(total / size / max(float(values.mean()), np.finfo(np.float64).tiny))
        score = np.log(shares[0] + 1e-3) - np.log(shares[1] + 0.1)
        above = score > rule.threshold
        if not above.any():
            above[score.argmax()] = True
        elif above.all() and len(occupied) > 1:
            above[score.argmin()] = False
    foreground = np.zeros(len(start.counts), bool)
    foreground[occupied[above]] = True
    return foreground
