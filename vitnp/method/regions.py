"""Classes without labels: regions of the foreground, and groups of regions whose CLS tokens are alike.

A region's CLS token is the last block run for the CLS row alone, its attention restricted to CLS and the region's patches
(:meth:`vitnp.vit.model.ViT.region_cls`). The tokens of a collection are clustered spectrally; a new region joins the class that most of
its nearest relatives belong to.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator

import numpy as np

from vitnp import kernels, options
from vitnp.clustering.spherical import spherical_kmeans
from vitnp.kernels.threads import blas

# Masks of more pixels than this are parted at a whole fraction of their size: on a hundred megapixels the tables of components
# and distances would take gigabytes, and parts a few pixels away from each other are hardly two objects there.
PARTED_PIXELS = 4_000_000


@dataclasses.dataclass(frozen=True)
class RegionRule:
    """Constants of how a mask is parted into regions.

    Attributes
    ----------
    how : {"image", "components", "split"}
        The whole mask is one region; or each connected component is one; or components that turn out to hold two classes side
        by side are parted between them.
    smallest : float
        A component of less than this share of the mask belongs to the nearest larger one.
    position : float
        Weight of a patch's place (0..1 along the long side) beside its unit key when a component is tried for two halves.
    half : float
        Least share of a component's patches in each half.
    certainty : float
        Least share of the votes that each half's class must have for the split to stand.
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
    """The regions of one photograph's mask, and their classes.

    Attributes
    ----------
    classes : (G,) int64
        From 0.
    scores : (G,) float32
        The photograph's confidence times the mean score of the region's patches, 0..1.
    typical : (G,) float32
        Cosine of the region's CLS token to the mean of its class.
    sizes : (G,) int64
        Patches.
    splits : tuple of (int, (ceil(N / 8),) uint8)
        Regions (from 1) that were parted, in the order in which that was done; a new region, numbered after all others, took the
        patches whose bits are set.
    """

    classes: np.ndarray
    scores: np.ndarray
    typical: np.ndarray
    sizes: np.ndarray
    splits: tuple[tuple[int, np.ndarray], ...] = ()


def label_regions(mask: np.ndarray, rule: RegionRule = RegionRule()) -> np.ndarray:
    """Number the regions of a mask, before any of them is split.

    Parameters
    ----------
    mask : (height, width) bool
    rule : RegionRule

    Returns
    -------
    (height, width) uint16
        0 on the background, regions from 1 on, the largest first.

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
        small = np.logical_or.reduceat(mask, np.arange(0, mask.shape[0], step), axis=0)
        small = np.logical_or.reduceat(small, np.arange(0, mask.shape[1], step), axis=1)
        found = (
            label_regions(small, rule).repeat(step, axis=0)[: mask.shape[0]].repeat(step, axis=1)[:, : mask.shape[1]]
        )
        return found * mask
    from scipy import ndimage

    parts, count = ndimage.label(mask, structure=np.ones((3, 3)))
    if count < 2:
        return parts.astype(np.uint16)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    sizes[0] = 0
    large = np.flatnonzero(sizes >= max(1, rule.smallest * sizes.sum()))
    if not len(large):
        large = sizes.argmax(keepdims=True)
    large = large[np.lexsort((large, -sizes[large]))][:65_535]
    numbers = np.zeros(count + 1, np.uint16)
    numbers[large] = np.arange(1, len(large) + 1)
    found = numbers[parts]
    specks = np.flatnonzero(mask & (found == 0))
    if len(specks):
        distance, (rows, columns) = ndimage.distance_transform_edt(found == 0, return_indices=True)
        # The pixel of a speck that is nearest to a large component decides for the whole of it.
        specks = specks[np.argsort(distance.ravel()[specks], kind="stable")]
        _, first, member = np.unique(parts.ravel()[specks], return_index=True, return_inverse=True)
        nearest = specks[first]
        found.ravel()[specks] = found[rows.ravel()[nearest], columns.ravel()[nearest]][member]
    return found


def region_patches(regions: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The patches that each region covers by half or more; the one it covers most where there is none.

    Parameters
    ----------
    regions : (height, width) uint16
        Regions from 1 to G.
    grid : (int, int)
        Rows and columns of patches, N in all.

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
    inside = np.zeros((count + 1, *grid), np.int64)
    # One row of patches at a time: tables as large as the picture would be far larger than the picture.
    for row, (top, bottom) in enumerate(itertools.pairwise(np.searchsorted(rows, np.arange(grid[0] + 1)))):
        under = regions[top:bottom].astype(np.int64) * grid[1] + columns
        inside[:, row] = np.bincount(under.ravel(), minlength=(count + 1) * grid[1]).reshape(count + 1, grid[1])
    inside = inside.reshape(count + 1, -1)
    cover = inside[1:] / np.maximum(inside.sum(axis=0), 1)
    covered = cover >= 0.5
    for region in np.flatnonzero(~covered.any(axis=1)):
        covered[region, cover[region].argmax()] = True
    return covered


def patch_cells(size: tuple[int, int], grid: tuple[int, int]) -> Iterator[np.ndarray]:
    """The patches' row over each row of pixels, and column over each column; on pictures smaller than the grid that at the
    pixel's center.
    """
    return (((np.arange(side) + 0.5) * n / side).astype(np.int64) for side, n in zip(size, grid))


def bisect_region(
    keys: np.ndarray, patches: np.ndarray, grid: tuple[int, int], seed: tuple[int, ...], rule: RegionRule
) -> np.ndarray | None:
    """Part a region in two by its patches' keys and places.

    Parameters
    ----------
    keys : (N, D) float
        Unit rows.
    patches : (N,) bool
        The region.
    grid : (int, int)
    seed : tuple of int
    rule : RegionRule

    Returns
    -------
    (2, N) bool, or None
        None when one half would be too small to be an object of its own.
    """
    members = np.flatnonzero(patches)
    if len(members) < 2 or len(members) * rule.half < 1:
        return None
    place = np.stack(np.divmod(members, grid[1]), axis=1) / max(grid)
    joint = np.concatenate([keys[members], rule.position * (place - place.mean(axis=0))], axis=1).astype(np.float32)
    with blas.one_blas_thread():
        unit = kernels.for_device().normalize_rows(joint)
        found = spherical_kmeans(unit, 2, np.random.default_rng(seed), starts=3)
    if found.counts.min() < rule.half * len(members):
        return None
    halves = np.zeros((2, patches.size), bool)
    halves[found.labels, members] = True
    return halves
