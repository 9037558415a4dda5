"""Part a component of a mask by normalized cuts (Shi and Malik, "Normalized cuts and image segmentation", 2000).

Patches are nodes of a graph whose edges are strong between near patches with similar keys and colors. The component is
parted where the normalized cut is cheapest, if it costs little and both parts are large enough to be objects; the same
is then tried with each part.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

from vitnp.clustering.spectral import spectral_embedding

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

# Pairs of patches whose keys are compared at a time, to keep temporary arrays small.
_PAIRS = 1 << 15


@dataclasses.dataclass(frozen=True)
class CutConfig:
    """Constants of the normalized cuts.

    Attributes
    ----------
    reach : float
        Standard deviation of the Gaussian over the distance of two patches, as a share of the square root of the number
        of patches of the photograph.
    temperature : float
        Edges are exp((cosine of the keys - 1) / temperature), times that Gaussian and the next.
    color : float
        Standard deviation of the Gaussian over the distance of the patches' mean colors; white and black are sqrt(3)
        apart.
    cost : float
        Normalized cut below which a component is parted, 0 to 2.
    half : float
        Minimum share of a component's patches in each part.
    patches : int
        Minimum number of patches in each part.
    """

    reach: float = 0.08
    temperature: float = 0.1
    color: float = 0.3
    cost: float = 0.05
    half: float = 0.1
    patches: int = 4


def part(
    unit: np.ndarray, colors: np.ndarray, members: np.ndarray, grid: tuple[int, int], config: CutConfig = CutConfig()
) -> list[np.ndarray]:
    """Part a component by normalized cuts.

    Parameters
    ----------
    unit : (N, D) float32
        Keys normalized to unit length.
    colors : (N, 3) float
        Mean colors of the patches, 0 to 1.
    members : (n,) int
        Patches of the component.
    grid : (int, int)
        Rows and columns of patches; N is their product.
    config : CutConfig

    Returns
    -------
    list of (m,) int
        Patches of each part, the largest part first.

    Examples
    --------
    >>> keys = np.repeat(np.eye(2, dtype=np.float32), [8, 4], axis=0)  # two rows of four patches, and one
    >>> [len(members) for members in part(keys, np.zeros((12, 3)), np.arange(12), (3, 4))]
    [8, 4]
    """
    if len(members) < 2 * config.patches:
        return [members]
    positions = np.stack(np.divmod(members, grid[1]), axis=1)
    graph = _graph(unit[members], colors[members], positions, math.sqrt(grid[0] * grid[1]), config)
    waiting, done = [np.arange(len(members))], []
    while waiting:
        nodes = waiting.pop()
        first = _cheapest_cut(graph[nodes][:, nodes], config)
        if first is None:
            done.append(members[nodes])
        else:
            waiting += [nodes[first], nodes[~first]]
    return sorted(done, key=lambda patches: (-len(patches), patches[0]))


def _graph(unit: np.ndarray, colors: np.ndarray, positions: np.ndarray, side: float, config: CutConfig) -> csr_matrix:
    """Return the graph of patches, (n, n) sparse float64; `side` is the root of the number of patches of the grid."""
    from scipy.sparse import csr_matrix
    from scipy.spatial import cKDTree

    spread = max(config.reach * side, 0.5)
    pairs = cKDTree(positions).query_pairs(max(3 * spread, 1.5), output_type="ndarray")
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    a, b = pairs[:, 0], pairs[:, 1]
    cosine = np.empty(len(pairs))
    for start in range(0, len(pairs), _PAIRS):
        chunk = slice(start, start + _PAIRS)
        cosine[chunk] = (unit[a[chunk]] * unit[b[chunk]]).sum(axis=1)
    distance = np.square(positions[a] - positions[b]).sum(axis=1) / (2 * spread**2)
    contrast = np.square(colors[a] - colors[b]).sum(axis=1) / (2 * config.color**2)
    weight = np.exp((cosine - 1) / config.temperature - distance - contrast)
    n = len(unit)
    own = np.arange(n)
    return csr_matrix(
        (np.concatenate([weight, weight, np.ones(n)]), (np.concatenate([a, b, own]), np.concatenate([b, a, own]))),
        shape=(n, n),
    )


def _cheapest_cut(graph: csr_matrix, config: CutConfig) -> np.ndarray | None:
    """Return the cheapest normalized cut of a graph, (n,) bool; None if there is none that parts objects."""
    from scipy.sparse.csgraph import connected_components

    n = graph.shape[0]
    fewest = max(config.patches, math.ceil(config.half * n))
    if n < 2 * fewest:
        return None
    n_parts, _ = connected_components(graph, directed=False)
    vector = spectral_embedding(graph, max(2, n_parts))[:, 1]
    degree = np.asarray(graph.sum(axis=1)).ravel()
    order = np.argsort(vector / np.sqrt(degree), kind="stable")
    # Cost of the cut after each prefix of the order: edges within the prefix are those whose later end is in it.
    ordered = graph[order][:, order].tocoo()
    later = np.maximum(ordered.row, ordered.col)
    within = np.cumsum(np.bincount(later, weights=ordered.data, minlength=n))[:-1]
    volume = np.cumsum(degree[order])
    cut = volume[:-1] - within
    cost = cut / volume[:-1] + cut / (volume[-1] - volume[:-1])
    allowed = cost[fewest - 1 : n - fewest]
    best = int(allowed.argmin()) + fewest
    if cost[best - 1] >= config.cost:
        return None
    first = np.zeros(n, bool)
    first[order[:best]] = True
    return first
