"""Separate the objects of a mask: connected components, and components parted where their keys and colors say so.

Touching objects are parted by normalized cuts (:mod:`vitnp.method.normalized_cut`). Objects are ranked by a confidence
that grows with the confidence of the photograph, with the certainty of the mask and with the size of the object, and
falls with its distance from the center.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from vitnp import kernels, options
from vitnp.io.resample import downscale
from vitnp.method.normalized_cut import CutConfig, part
from vitnp.method.regions import PARTED_PIXELS, patch_cells, region_patches

# The mask is where the soft map reaches half of its 16-bit scale.
_HALF = 32768


@dataclasses.dataclass(frozen=True)
class InstanceConfig:
    """Constants of the separation of objects.

    Attributes
    ----------
    smallest : float
        Share of the photograph below which a component or a part is no object, unless it is the largest.
    most : int
        Maximum number of objects of a photograph.
    cut : CutConfig
        Constants of the parting of components.
    """

    smallest: float = 1e-3
    most: int = options.MAX_OBJECTS
    cut: CutConfig = dataclasses.field(default_factory=CutConfig)


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
    rgb: np.ndarray,
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
    rgb : (height, width, 3) uint8
        The photograph.
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
    >>> find_instances(soft, np.ones((4, 12, 2)), np.zeros((4, 12, 3), np.uint8), 0.5).labels[1]
    array([0, 2, 2, 0, 0, 1, 1, 1, 1, 1, 1, 0], dtype=uint8)
    """
    mask = soft >= _HALF
    step = 1 + math.isqrt(max(mask.size - 1, 0) // PARTED_PIXELS)
    parts = _part_components(_components(_downscaled(mask, step), config), keys, rgb, config)
    labels = parts if step == 1 else _enlarged(parts, step, mask)
    return rank(labels, soft, confidence, config.most if n_objects is None else min(n_objects, config.most), config)


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
    from scipy import ndimage

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
    from scipy import ndimage

    components, count = ndimage.label(mask, structure=np.ones((3, 3)))
    sizes = np.bincount(components.ravel(), minlength=count + 1)
    sizes[0] = 0
    order = np.argsort(-sizes, kind="stable")[:count]
    kept = order[sizes[order] >= min(config.smallest * mask.size, sizes.max())][: config.most]
    numbers = np.zeros(count + 1, np.int64)
    numbers[kept] = np.arange(1, len(kept) + 1)
    return numbers[components]


def _part_components(labels: np.ndarray, keys: np.ndarray, rgb: np.ndarray, config: InstanceConfig) -> np.ndarray:
    """Part the components of a mask: their labels, (height, width) int, with numbers for new parts added."""
    from scipy import ndimage

    grid = (keys.shape[0], keys.shape[1])
    unit = kernels.for_device().normalize_rows(np.asarray(keys, np.float32).reshape(grid[0] * grid[1], -1))
    colors = downscale(rgb, grid).reshape(-1, 3) / np.float64(255)
    rows, columns = patch_cells(labels.shape, grid)
    count = int(labels.max(initial=0))
    result = labels
    for number, patches in enumerate(region_patches(labels, grid), 1):
        parts = part(unit, colors, np.flatnonzero(patches), grid, config.cut)
        if len(parts) == 1:
            continue
        numbers = np.zeros(grid[0] * grid[1], np.int64)
        for index, members in enumerate(parts):
            numbers[members] = count + index if index else number
        count += len(parts) - 1
        # Patches that the component covers by less than half go with the nearest part.
        nearest = ndimage.distance_transform_edt(
            numbers.reshape(grid) == 0, return_distances=False, return_indices=True
        )
        by_pixel = numbers.reshape(grid)[tuple(nearest)][rows[:, None], columns]
        result = np.where(labels == number, by_pixel, result)
    return result


def rank(
    labels: np.ndarray, soft: np.ndarray, confidence: float, most: int, config: InstanceConfig = InstanceConfig()
) -> Instances:
    """Rank objects by confidence, and drop those that are too small.

    The confidence of an object is that of the photograph, times the mean of the soft map on the object, times 1 minus
    the distance of its centroid from the center (in units of the photograph's sides), times the square root of its size
    relative to the largest object.

    Parameters
    ----------
    labels : (height, width) int
        Objects from 1, in any order.
    soft : (height, width) uint16
        Refined foreground map.
    confidence : float
        Confidence of the photograph, 0 to 1.
    most : int
        Maximum number of objects to keep.
    config : InstanceConfig

    Returns
    -------
    Instances
    """
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
