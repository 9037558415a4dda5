"""Separate the objects of a mask: connected components, and components parted where keys and colors say so.

Patches of a component are nodes of a graph whose edges are strong between near patches with similar keys. Its
normalized cut (Shi and Malik, "Normalized cuts and image segmentation", 2000) divides the component where that is
cheapest. The component is parted there if the cut costs little and both parts are large enough to be objects; the same
is then tried with each part. Objects are ranked by confidence, which falls with size and with distance from the center.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from scipy import ndimage

from vitnp import kernels, options
from vitnp.clustering.spectral import spectral_embedding
from vitnp.kernels.threads import blas
from vitnp.method.regions import PARTED_PIXELS, patch_cells, region_patches

# The mask is where the soft map reaches half of its 16-bit scale.
_HALF = 32768

# Pairs of patches whose keys are compared at a time, to keep temporary arrays small.
_PAIRS = 1 << 15


@dataclasses.dataclass(frozen=True)
class InstanceConfig:
    """Constants of the separation of objects.

    Attributes
    ----------
    smallest : float
        Share of the photograph below which a component or a part is no object, unless it is the largest.
    reach : float
        Standard deviation of the Gaussian over the distance of two patches, as a share of the square root of the number
        of patches of the photograph.
    temperature : float
        Edges are exp((cosine of the keys - 1) / temperature), times that Gaussian.
    cost : float
        Highest normalized cut at which a component is parted, 0 to 2.
    half : float
        Minimum share of a component's patches in each part.
    patches : int
        Minimum number of patches in each part.
    most : int
        Maximum number of objects of a photograph.
    """

    smallest: float = 1e-3
    reach: float = 0.08
    temperature: float = 0.1
    cost: float = 0.07
    half: float = 0.1
    patches: int = 4
    most: int = options.MAX_OBJECTS


@dataclasses.dataclass(frozen=True, eq=False)
class Instances:
    """The objects of one photograph, ranked.

    Attributes
    ----------
    labels : (height, width) uint8
        0 outside of objects, then the objects from 1, the most confident first.
    confidences : (G,) float64
        Confidence of each object, 0 to 1, falling.
    """

    labels: np.ndarray
    confidences: np.ndarray


def find_instances(
    soft: np.ndarray,
    keys: np.ndarray,
    confidence: float,
    *,
    n_objects: int | None = None,
    config: InstanceConfig = InstanceConfig(),
) -> Instances:
    """Separate the objects of a photograph and rank them.

    Parameters
    ----------
    soft : (height, width) uint16
        Refined foreground map; the mask is where it is at least 32768.
    keys : (rows, columns, D) float
        Keys of the patches, of any length.
    confidence : float
        Confidence of the photograph, 0 to 1.
    n_objects : int, optional
        Number of objects to keep; by default all, at most `config.most`.
    config : InstanceConfig

    Returns
    -------
    Instances

    Examples
    --------
    >>> soft = np.zeros((4, 12), np.uint16); soft[1:3, 1:3] = soft[:, 5:11] = 65535
    >>> find_instances(soft, np.ones((4, 12, 2)), 0.5).labels[1]
    array([0, 2, 2, 0, 0, 1, 1, 1, 1, 1, 1, 0], dtype=uint8)
    """
    mask = soft >= _HALF
    step = 1 + math.isqrt(max(mask.size - 1, 0) // PARTED_PIXELS)
    parts = _part_components(_components(_downscaled(mask, step), config), keys, config)
    labels = parts if step == 1 else _enlarged(parts, step, mask)
    return _rank(labels, soft, confidence, config.most if n_objects is None else min(n_objects, config.most), config)


def keep_objects(soft: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Remove what belongs to no object from a soft map.

    Parameters
    ----------
    soft : (height, width) uint16
    labels : (height, width) uint8
        Objects from 1, 0 elsewhere.

    Returns
    -------
    (height, width) uint16
        The mask of this map is where `labels` has objects. Soft edges of objects stay: outside of the mask every pixel
        goes with the nearest pixel of the mask.

    Examples
    --------
    >>> soft = np.array([[65535, 9, 0, 0, 9, 65535]], np.uint16)
    >>> keep_objects(soft, np.array([[1, 0, 0, 0, 0, 0]], np.uint8))
    array([[65535,     9,     0,     0,     0,     0]], dtype=uint16)
    """
    mask = soft >= _HALF
    dropped = mask & (labels == 0)
    if not dropped.any():
        return soft
    step = 1 + math.isqrt(max(mask.size - 1, 0) // PARTED_PIXELS)
    small, kept = _downscaled(mask, step), _downscaled(labels > 0, step)
    nearest = ndimage.distance_transform_edt(~small, return_distances=False, return_indices=True)
    near_kept = kept[tuple(nearest)].repeat(step, axis=0)[: mask.shape[0]].repeat(step, axis=1)[:, : mask.shape[1]]
    return np.where((near_kept & ~dropped) | (labels > 0), soft, 0).astype(np.uint16)


def _downscaled(mask: np.ndarray, step: int) -> np.ndarray:
    """Reduce a mask to 1 / step of its size: true where any of its pixels is."""
    if step == 1:
        return mask
    small = np.logical_or.reduceat(mask, np.arange(0, mask.shape[0], step), axis=0)
    return np.logical_or.reduceat(small, np.arange(0, mask.shape[1], step), axis=1)


def _enlarged(labels: np.ndarray, step: int, mask: np.ndarray) -> np.ndarray:
    """Enlarge labels of a mask that was reduced to 1 / step of its size."""
    enlarged = labels.repeat(step, axis=0)[: mask.shape[0]].repeat(step, axis=1)
    return enlarged[:, : mask.shape[1]] * mask


def _components(mask: np.ndarray, config: InstanceConfig) -> np.ndarray:
    """Label the 8-connected components of a mask that are large enough, the largest first: (height, width) int."""
    components, count = ndimage.label(mask, structure=np.ones((3, 3)))
    sizes = np.bincount(components.ravel(), minlength=count + 1)
    sizes[0] = 0
    order = np.argsort(-sizes, kind="stable")[:count]
    kept = order[sizes[order] >= min(config.smallest * mask.size, sizes.max())][: config.most]
    numbers = np.zeros(count + 1, np.int64)
    numbers[kept] = np.arange(1, len(kept) + 1)
    return numbers[components]


def _part_components(labels: np.ndarray, keys: np.ndarray, config: InstanceConfig) -> np.ndarray:
    """Part the components of a mask: their labels, (height, width) int, with numbers for new parts added."""
    grid = (keys.shape[0], keys.shape[1])
    unit = kernels.for_device().normalize_rows(np.asarray(keys, np.float32).reshape(grid[0] * grid[1], -1))
    rows, columns = patch_cells(labels.shape, grid)
    count = int(labels.max(initial=0))
    result = labels
    for number, patches in enumerate(region_patches(labels, grid), 1):
        parts = _part(unit, np.flatnonzero(patches), grid, config)
        if len(parts) == 1:
            continue
        numbers = np.zeros(grid[0] * grid[1], np.int64)
        for part, members in enumerate(parts):
            numbers[members] = count + part if part else number
        count += len(parts) - 1
        # Patches that the component covers by less than half go with the nearest part.
        nearest = ndimage.distance_transform_edt(
            numbers.reshape(grid) == 0, return_distances=False, return_indices=True
        )
        by_pixel = numbers.reshape(grid)[tuple(nearest)][rows[:, None], columns]
        result = np.where(labels == number, by_pixel, result)
    return result


def _part(unit: np.ndarray, members: np.ndarray, grid: tuple[int, int], config: InstanceConfig) -> list[np.ndarray]:
    """Part a component by normalized cuts.

    Parameters
    ----------
    unit : (N, D) float32
        Keys normalized to unit length.
    members : (n,) int
        Patches of the component.
    grid : (int, int)
    config : InstanceConfig

    Returns
    -------
    list of (m,) int
        Patches of each part.
    """
    if len(members) < 2 * config.patches:
        return [members]
    graph = _graph(unit[members], np.stack(np.divmod(members, grid[1]), axis=1), math.sqrt(grid[0] * grid[1]), config)
    waiting, done = [np.arange(len(members))], []
    while waiting:
        part = waiting.pop()
        halves = _cheapest_cut(graph[part][:, part], config)
        if halves is None:
            done.append(members[part])
        else:
            waiting += [part[halves], part[~halves]]
    return sorted(done, key=lambda part: (-len(part), part[0]))


def _graph(unit: np.ndarray, positions: np.ndarray, side: float, config: InstanceConfig):  # noqa: ANN202
    """Return the graph of patches, (n, n) sparse float64; `side` is the root of the number of patches of the grid."""
    from scipy.sparse import csr_matrix
    from scipy.spatial import cKDTree

    spread = max(config.reach * side, 0.5)
    pairs = cKDTree(positions).query_pairs(max(3 * spread, 1.5), output_type="ndarray")
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    a, b = pairs[:, 0], pairs[:, 1]
    cosine = np.empty(len(pairs))
    for start in range(0, len(pairs), _PAIRS):
        part = slice(start, start + _PAIRS)
        cosine[part] = (unit[a[part]] * unit[b[part]]).sum(axis=1)
    squares = np.square(positions[a] - positions[b]).sum(axis=1)
    weight = np.exp((cosine - 1) / config.temperature - squares / (2 * spread**2))
    n = len(unit)
    own = np.arange(n)
    return csr_matrix(
        (np.concatenate([weight, weight, np.ones(n)]), (np.concatenate([a, b, own]), np.concatenate([b, a, own]))),
        shape=(n, n),
    )


def _cheapest_cut(graph, config: InstanceConfig) -> np.ndarray | None:  # noqa: ANN001
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


def _rank(labels: np.ndarray, soft: np.ndarray, confidence: float, most: int, config: InstanceConfig) -> Instances:
    """Number the objects by falling confidence."""
    flat = labels.ravel()
    count = int(labels.max(initial=0)) + 1
    sizes = np.bincount(flat, minlength=count)[1:]
    if not sizes.any():
        return Instances(np.zeros(labels.shape, np.uint8), np.zeros(0))
    height, width = labels.shape
    pixels = np.maximum(sizes, 1)
    mean = np.bincount(flat, weights=soft.ravel(), minlength=count)[1:] / pixels / 65535
    by_row = np.stack([np.bincount(row, minlength=count)[1:] for row in labels])  # (height, G)
    by_column = np.stack([np.bincount(column, minlength=count)[1:] for column in labels.T])
    y = (np.arange(height) + 0.5) @ by_row / pixels / height - 0.5
    x = (np.arange(width) + 0.5) @ by_column / pixels / width - 0.5
    centrality = 1 - np.hypot(x, y)
    confidences = confidence * mean * centrality * np.sqrt(sizes / sizes.max())
    order = np.lexsort((np.arange(len(sizes)), -sizes, -confidences))
    large = sizes >= min(config.smallest * labels.size, sizes.max())
    kept = order[large[order]][:most]
    numbers = np.zeros(count, np.uint8)
    numbers[kept + 1] = np.arange(1, len(kept) + 1)
    return Instances(numbers[labels], confidences[kept])
