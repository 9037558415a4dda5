"""Class prototypes: label new regions by the CLS tokens of labeled ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from vitnp import kernels
from vitnp.kernels.threads import blas
from vitnp.method.regions import RegionRule, Regions, bisect_region, patch_cells

# Regions that vote on a new one's class; and how many of each class are kept for it.
VOTERS = 10
KEPT_PER_CLASS = 50


@dataclasses.dataclass(frozen=True, eq=False)
class Prototypes:
    """What is kept of the classes to recognize them in new photographs.

    Attributes
    ----------
    cls : (S, D) float16
        Unit CLS tokens of training regions, at most :data:`KEPT_PER_CLASS` of a class.
    classes : (S,) int64
        The class of each, from 0.
    """

    cls: np.ndarray
    classes: np.ndarray

    def vote(self, cls: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Class of new regions by the :data:`VOTERS` most similar training regions; ties go to the more similar ones, then to
        the lower class.

        Parameters
        ----------
        cls : (G, D) float
            CLS tokens of any length.

        Returns
        -------
        classes : (G,) int64
        certainty : (G,) float64
            Share of the votes that the class got.

        Examples
        --------
        >>> known = Prototypes(np.eye(2, dtype=np.float16), np.array([3, 5]))
        >>> known.vote(np.array([[0.1, 2.0]]))[0]
        array([5])
        """
        with blas.one_blas_thread():
            cosine = (
                kernels.for_device().normalize_rows(np.asarray(cls, np.float32)) @ self.cls.astype(np.float32).T
            )  # (G, S)
        voters = min(VOTERS, len(self.classes), max(1, np.bincount(self.classes).max()))
        nearest = np.argsort(-cosine, axis=1, kind="stable")[:, :voters]
        count = int(self.classes.max()) + 1
        votes, similar = np.zeros((len(cls), count)), np.zeros((len(cls), count))
        for row, members in enumerate(nearest):
            np.add.at(votes[row], self.classes[members], 1)
            np.add.at(similar[row], self.classes[members], cosine[row, members])
        # A vote counts one; the cosines, below one voter in all, only part what is equal.
        classes = (votes + similar / (2 * voters + 2)).argmax(axis=1)
        return classes, np.take_along_axis(votes, classes[:, None], axis=1)[:, 0] / voters


def fit_prototypes(cls: np.ndarray, classes: np.ndarray, seed: int) -> Prototypes:
    """A seeded sample of at most :data:`KEPT_PER_CLASS` regions of each class.

    Parameters
    ----------
    cls : (G, D) float
        CLS tokens of all regions.
    classes : (G,) int
    seed : int

    Returns
    -------
    Prototypes
    """
    unit = kernels.for_device().normalize_rows(np.asarray(cls, np.float32))
    rng = np.random.default_rng((seed, 9))
    kept = []
    for label in np.unique(classes):
        members = np.flatnonzero(classes == label)
        kept.append(np.sort(rng.choice(members, min(len(members), KEPT_PER_CLASS), replace=False)))
    kept = np.concatenate(kept) if kept else np.empty(0, np.int64)
    return Prototypes(unit[kept].astype(np.float16), np.asarray(classes)[kept].astype(np.int64))


def split_by_class(
    found: Regions,
    patches: np.ndarray,
    keys: np.ndarray,
    grid: tuple[int, int],
    region_cls: Callable[[np.ndarray], np.ndarray],
    known: Prototypes,
    seed: tuple[int, ...],
    rule: RegionRule,
) -> Regions:
    """Part the regions whose two halves are clearly of two classes.

    Parameters
    ----------
    found : Regions
        With a class each.
    patches : (G, N) bool
        Of each region.
    keys : (N, D) float
        Unit rows.
    grid : (int, int)
    region_cls : callable
        CLS tokens (G, D) of regions (G, N) bool.
    known : Prototypes
        Vote on the halves.
    seed : tuple of int
    rule : RegionRule

    Returns
    -------
    Regions
        Both halves of a region that was split have their own class.
    """
    parents, second_halves, splits = [], [], []
    labels, sizes = found.classes.copy(), found.sizes.copy()
    for region in range(len(found.classes)):
        halves = bisect_region(keys, patches[region], grid, (*seed, region), rule)
        if halves is None:
            continue
        voted, certainty = known.vote(region_cls(halves))
        if voted[0] == voted[1] or certainty.min() < rule.certainty:
            continue
        parents.append(region)
        labels[region], sizes[region] = voted[0], halves[0].sum()
        second_halves.append((voted[1], halves[1].sum()))
        splits.append((region + 1, np.packbits(_nearer_to_second(halves, grid))))
    if not splits:
        return found
    added = np.array(second_halves, np.int64)  # (splits, 2)
    order = [*range(len(found.classes)), *parents]
    return Regions(
        np.append(labels, added[:, 0]),
        found.scores[order],
        found.typical[order],
        np.append(sizes, added[:, 1]),
        tuple(splits),
    )


def _nearer_to_second(halves: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Patches that are in the second of two halves (2, N), or outside both and nearer to it: (N,) bool."""
    from scipy import ndimage

    nearest = ndimage.distance_transform_edt(
        ~halves.any(axis=0).reshape(grid), return_distances=False, return_indices=True
    )
    return halves[1].reshape(grid)[tuple(nearest)].ravel()


def split_pixels(regions: np.ndarray, found: Regions, grid: tuple[int, int]) -> np.ndarray:
    """The same splits on pixels, each of which goes with the nearest patch of either half.

    Parameters
    ----------
    regions : (height, width) uint16
        From :func:`label_regions`.
    found : Regions
    grid : (int, int)

    Returns
    -------
    (height, width) uint16
        Numbered as the regions found.
    """
    if not found.splits:
        return regions
    regions, (rows, columns) = regions.copy(), patch_cells(regions.shape, grid)
    first = len(found.classes) - len(found.splits) + 1
    for number, (region, bits) in enumerate(found.splits, first):
        second = np.unpackbits(bits, count=grid[0] * grid[1]).view(bool).reshape(grid)
        regions[(regions == region) & second[rows[:, None], columns]] = number
    return regions


def label_map(regions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Classes of pixels: 0 on the background, else the region's class plus 1.

    Parameters
    ----------
    regions : (height, width) uint16
        Regions from 1 to G.
    labels : (G,) int
        Classes from 0 on.

    Returns
    -------
    (height, width) uint8, or uint16 when there are more than 255 classes

    Examples
    --------
    >>> label_map(np.array([[0, 1, 2]], np.uint16), np.array([4, 0]))
    array([[0, 5, 1]], dtype=uint8)
    """
    numbers = np.concatenate([[0], np.asarray(labels) + 1])
    return numbers.astype(np.uint8 if numbers.max() <= 255 else np.uint16)[regions]
