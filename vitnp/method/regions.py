"""Regions of a mask, and the patches that each of them covers.

A region gets a CLS token of its own: the last block computed for the CLS row alone, with attention restricted to CLS
and the patches of the region (:meth:`vitnp.vit.model.ViT.region_cls`). The tokens of all regions of a collection are
clustered into classes (:mod:`vitnp.clustering.agglomerative`); a new region gets the class with the nearest mean
(:mod:`vitnp.method.prototypes`).
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np

from vitnp import kernels, options
from vitnp.clustering.spherical import spherical_kmeans
from vitnp.kernels.threads import blas

# Masks with more pixels are divided at an integer fraction of their size: for a hundred megapixels the tables of
# components and distances would take gigabytes, and components a few pixels apart are hardly two objects at that size.
PARTED_PIXELS = 4_000_000

# Limit of the regions of one photograph, whose numbers are stored as uint16.
MAX_REGIONS = 65_535


@dataclasses.dataclass(frozen=True)
class RegionRule:
    """Rule that divides a mask into regions.

    Attributes
    ----------
    how : {"image", "components", "split"}
        One region is the whole mask ("image"), or a connected component ("components"); with "split" a component that
        holds two classes side by side is divided between them.
    smallest : float
        Share of the mask below which a component joins the nearest larger one.
    position : float
        Weight of a patch's position (0 to 1 along the long side) relative to its key when a component is bisected.
    half : float
        Minimum share of a component's patches in each half.
    certainty : float
        Minimum certainty of the class of each half for a split, see
        :meth:`vitnp.method.prototypes.Prototypes.classify`.
    """

    how: str = "image"
    smallest: float = 0.05
    position: float = 1.0
    half: float = 0.25
    certainty: float = 0.5

    def __post_init__(self) -> None:
        options.check("regions", self.how)


@dataclasses.dataclass(frozen=True, eq=False)
class Regions:
    """The regions of the mask of one photograph, and their classes.

    Attributes
    ----------
    classes : (G,) int64
        Class of each region, from 0.
    scores : (G,) float32
        Confidence of the photograph times the mean score of the region's patches, 0 to 1.
    typical : (G,) float32
        Cosine of the region's CLS token to the mean of its class.
    sizes : (G,) int64
        Number of patches.
    splits : tuple of (int, (ceil(N / 8),) uint8)
        Regions (from 1) that were split, in this order. Each split adds a region with the next higher number, which
        gets the patches whose bits are set.
    """

    classes: np.ndarray
    scores: np.ndarray
    typical: np.ndarray
    sizes: np.ndarray
    splits: tuple[tuple[int, np.ndarray], ...] = ()


def label_regions(mask: np.ndarray, rule: RegionRule = RegionRule()) -> np.ndarray:
    """Label the regions of a mask by numbers, before any of them is split.

    Parameters
    ----------
    mask : (height, width) bool
    rule : RegionRule

    Returns
    -------
    (height, width) uint16
        0 on the background, regions from 1, the largest first.

    Examples
    --------
    >>> mask = np.array([[1, 1, 0, 1]], bool)
    >>> label_regions(mask, RegionRule("components"))
    array([[1, 1, 0, 2]], dtype=uint16)
    """
    if rule.how == "image":
        return mask.astype(np.uint16)
    step = 1 + math.isqrt(max(mask.size - 1, 0) // PARTED_PIXELS)
    if step > 1:
        return _label_downscaled(mask, rule, step)
    from scipy import ndimage

    components, count = ndimage.label(mask, structure=np.ones((3, 3)))
    if count < 2:
        return components.astype(np.uint16)
    sizes = np.bincount(components.ravel(), minlength=count + 1)
    sizes[0] = 0
    large = np.flatnonzero(sizes >= max(1, rule.smallest * sizes.sum()))
    if not len(large):
        large = np.array([sizes.argmax()])
    large = large[np.lexsort((large, -sizes[large]))][:MAX_REGIONS]
    numbers = np.zeros(count + 1, np.uint16)
    numbers[large] = np.arange(1, len(large) + 1)
    return _assign_small(components, numbers[components])


def _label_downscaled(mask: np.ndarray, rule: RegionRule, step: int) -> np.ndarray:
    """Label the regions of a mask at 1 / step of its size."""
    small = np.logical_or.reduceat(mask, np.arange(0, mask.shape[0], step), axis=0)
    small = np.logical_or.reduceat(small, np.arange(0, mask.shape[1], step), axis=1)
    enlarged = label_regions(small, rule).repeat(step, axis=0)[: mask.shape[0]].repeat(step, axis=1)
    return enlarged[:, : mask.shape[1]] * mask


def _assign_small(components: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Let components that belong to no region join the nearest region.

    Parameters
    ----------
    components : (height, width) int
        Connected components from 1.
    regions : (height, width) uint16
        Numbers of the large ones; 0 elsewhere. Changed in place.

    Returns
    -------
    (height, width) uint16
    """
    from scipy import ndimage

    pixels = np.flatnonzero((components > 0) & (regions == 0))
    if len(pixels):
        distance, (rows, columns) = ndimage.distance_transform_edt(regions == 0, return_indices=True)
        # The pixel of a component that is nearest to a region decides for the whole component.
        pixels = pixels[np.argsort(distance.ravel()[pixels], kind="stable")]
        _, first, member = np.unique(components.ravel()[pixels], return_index=True, return_inverse=True)
        nearest = pixels[first]
        regions.ravel()[pixels] = regions[rows.ravel()[nearest], columns.ravel()[nearest]][member]
    return regions


def region_patches(regions: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Return the patches that each region covers by half or more; if there is none, the one that it covers most.

    Parameters
    ----------
    regions : (height, width) uint16
        Regions from 1 to G.
    grid : (int, int)
        Rows and columns of patches; N is their product.

    Returns
    -------
    (G, N) bool

    Examples
    --------
    >>> region_patches(np.array([[1, 1, 1, 0]], np.uint16), (1, 2))
    array([[ True,  True]])
    """
    count = int(regions.max(initial=0))
    rows, columns = patch_cells(regions.shape, grid)
    pixels = np.zeros((count + 1, *grid), np.int64)
    # One row of patches at a time: for all of them the temporary arrays would be far larger than the image.
    for row, (top, bottom) in enumerate(itertools.pairwise(np.searchsorted(rows, np.arange(grid[0] + 1)))):
        cells = regions[top:bottom].astype(np.int64) * grid[1] + columns
        pixels[:, row] = np.bincount(cells.ravel(), minlength=(count + 1) * grid[1]).reshape(count + 1, grid[1])
    by_region = pixels.reshape(count + 1, -1)
    share = by_region[1:] / np.maximum(by_region.sum(axis=0), 1)
    covered = share >= 0.5
    for region in np.flatnonzero(~covered.any(axis=1)):
        covered[region, share[region].argmax()] = True
    return covered


def patch_cells(size: tuple[int, ...], grid: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the row of patches at each row of pixels, and the column of patches at each column of pixels.

    Parameters
    ----------
    size : (int, int)
        Height and width in pixels. On images smaller than the grid the patch at the center of the pixel counts.
    grid : (int, int)
        Rows and columns of patches.

    Returns
    -------
    rows : (height,) int64
    columns : (width,) int64
    """
    rows, columns = (((np.arange(side) + 0.5) * n / side).astype(np.int64) for side, n in zip(size, grid))
    return rows, columns


def bisect_region(
    keys: np.ndarray, patches: np.ndarray, grid: tuple[int, int], seed: tuple[int, ...], rule: RegionRule
) -> np.ndarray | None:
    """Divide a region in two by the keys and positions of its patches.

    Parameters
    ----------
    keys : (N, D) float
        Keys normalized to unit length.
    patches : (N,) bool
        Patches of the region.
    grid : (int, int)
        Rows and columns of patches; N is their product.
    seed : tuple of int
        Seed of k-means.
    rule : RegionRule

    Returns
    -------
    (2, N) bool, or None
        None if one half would be too small to be an object of its own.
    """
    members = np.flatnonzero(patches)
    if len(members) < 2 or len(members) * rule.half < 1:
        return None
    position = np.stack(np.divmod(members, grid[1]), axis=1) / max(grid)
    centered = rule.position * (position - position.mean(axis=0))
    joint = np.concatenate([keys[members], centered], axis=1).astype(np.float32)
    with blas.one_blas_thread():
        unit = kernels.for_device().normalize_rows(joint)
        clusters = spherical_kmeans(unit, 2, np.random.default_rng(seed), starts=3)
    if clusters.counts.min() < rule.half * len(members):
        return None
    halves = np.zeros((2, patches.size), bool)
    halves[clusters.labels, members] = True
    return halves
