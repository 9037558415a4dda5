"""Class prototypes: label new regions by the mean CLS token of each class."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from vitnp import kernels
from vitnp.clustering.agglomerative import center_directions, cluster_means
from vitnp.kernels.threads import blas
from vitnp.method.regions import RegionRule, Regions, bisect_region, patch_cells

# Number of training regions that vote on the class of a new one, in collections that were fitted with such votes.
VOTERS = 10
# Temperature of the softmax over the cosines to the class means: the certainty that a region is split by.
TEMPERATURE = 0.1


@dataclasses.dataclass(frozen=True, eq=False)
class Prototypes:
    """CLS tokens by which classes are recognized in new photographs.

    Attributes
    ----------
    cls : (S, D) float
        CLS tokens normalized to unit length: the mean of each class, seen from `mean`; without `mean`, training regions
        that vote, as in collections that were fitted before classes had means.
    classes : (S,) int64
        Class of each of them, from 0.
    mean : (D,) float32, optional
        Mean of the unit CLS tokens of all training regions.
    """

    cls: np.ndarray
    classes: np.ndarray
    mean: np.ndarray | None = None

    def classify(self, cls: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the classes of new regions: those with the nearest mean, or with most votes if there are no means.

        Of training regions the :data:`VOTERS` most similar vote. Of classes with equal votes the one with the higher
        sum of cosines wins, then the lower class.

        Parameters
        ----------
        cls : (G, D) float
            CLS tokens of any length.

        Returns
        -------
        classes : (G,) int64
        certainty : (G,) float64
            0 to 1: softmax of the cosines at the temperature :data:`TEMPERATURE`, or the share of the votes.

        Examples
        --------
        >>> known = fit_prototypes(np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), np.array([0, 0, 1]))
        >>> known.classify(np.array([[0.1, 2.0]]))[0]
        array([1])
        """
        return self._nearest_mean(cls) if self.mean is not None else self._vote(cls)

    def evidence(self, cls: np.ndarray) -> np.ndarray:
        """Return what speaks for each class: (G, K) float64; its largest entry is the class of :meth:`classify`.

        It is the cosine to the mean of the class, or its votes if there are no means. K is the largest class plus 1; a
        class without a mean has -1.

        Parameters
        ----------
        cls : (G, D) float
            CLS tokens of any length.
        """
        if self.mean is None:
            return self._votes(cls)[0]
        evidence = np.full((len(cls), int(self.classes.max()) + 1), -1.0)
        evidence[:, self.classes] = self._cosines(cls)
        return evidence

    def _cosines(self, cls: np.ndarray) -> np.ndarray:
        unit, _ = center_directions(cls, self.mean)
        with blas.one_blas_thread():
            return unit @ self.cls.astype(np.float64).T  # (G, S)

    def _nearest_mean(self, cls: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        cosine = self._cosines(cls)
        share = np.exp((cosine - cosine.max(axis=1, keepdims=True)) / TEMPERATURE)
        return self.classes[cosine.argmax(axis=1)], share.max(axis=1) / share.sum(axis=1)

    def _vote(self, cls: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        evidence, voters = self._votes(cls)
        classes = evidence.argmax(axis=1)
        # Cosines add less than 1 / 2 on either side.
        return classes, np.rint(np.take_along_axis(evidence, classes[:, None], axis=1)[:, 0]) / voters

    def _votes(self, cls: np.ndarray) -> tuple[np.ndarray, int]:
        """Return the votes for each class (G, K) with the cosines that decide between equal ones, and the voters."""
        with blas.one_blas_thread():
            unit = kernels.for_device().normalize_rows(np.asarray(cls, np.float32))
            cosine = unit @ self.cls.astype(np.float32).T  # (G, S)
        voters = min(VOTERS, len(self.classes), max(1, np.bincount(self.classes).max()))
        nearest = np.argsort(-cosine, axis=1, kind="stable")[:, :voters]
        count = int(self.classes.max()) + 1
        votes, similar = np.zeros((len(cls), count)), np.zeros((len(cls), count))
        for row, members in enumerate(nearest):
            np.add.at(votes[row], self.classes[members], 1)
            np.add.at(similar[row], self.classes[members], cosine[row, members])
        # A vote counts 1, and the cosines of a region add up to less than 1 / 2: they decide between equal votes only.
        return votes + similar / (2 * voters + 2), voters


def fit_prototypes(cls: np.ndarray, classes: np.ndarray) -> Prototypes:
    """Compute the mean of each class.

    Votes would favor large classes: of ten neighbors a class of three regions has three at most. A mean is one row,
    however many regions it is the mean of.

    Parameters
    ----------
    cls : (G, D) float
        CLS tokens of all regions, of any length.
    classes : (G,) int
        Class of each region, from 0.

    Returns
    -------
    Prototypes
    """
    unit, mean = center_directions(cls)
    present, labels = np.unique(classes, return_inverse=True)
    means = cluster_means(unit, labels, len(present))
    return Prototypes(means.astype(np.float32), present.astype(np.int64), mean.astype(np.float32))


def split_by_class(
    whole: Regions,
    patches: np.ndarray,
    keys: np.ndarray,
    grid: tuple[int, int],
    region_cls: Callable[[np.ndarray], np.ndarray],
    prototypes: Prototypes,
    seed: tuple[int, ...],
    rule: RegionRule,
) -> Regions:
    """Split the regions whose two halves clearly belong to two classes.

    Parameters
    ----------
    whole : Regions
        Regions before the split, with their classes.
    patches : (G, N) bool
        Patches of each region.
    keys : (N, D) float
        Keys normalized to unit length.
    grid : (int, int)
        Rows and columns of patches; N is their product.
    region_cls : callable
        Returns the CLS tokens (G, D) of regions (G, N) bool.
    prototypes : Prototypes
        They classify the halves.
    seed : tuple of int
        Seed of k-means.
    rule : RegionRule

    Returns
    -------
    Regions
        The halves of a region that was split have a class each; the first keeps the number of the region.
    """
    parents, second_halves, splits = [], [], []
    classes, sizes = whole.classes.copy(), whole.sizes.copy()
    for region in range(len(whole.classes)):
        halves = bisect_region(keys, patches[region], grid, (*seed, region), rule)
        if halves is None:
            continue
        voted, certainty = prototypes.classify(region_cls(halves))
        if voted[0] == voted[1] or certainty.min() < rule.certainty:
            continue
        parents.append(region)
        classes[region], sizes[region] = voted[0], halves[0].sum()
        second_halves.append((voted[1], halves[1].sum()))
        splits.append((region + 1, np.packbits(_nearer_to_second(halves, grid))))
    if not splits:
        return whole
    added = np.array(second_halves, np.int64)  # (splits, 2)
    order = [*range(len(whole.classes)), *parents]
    return Regions(
        np.append(classes, added[:, 0]),
        whole.scores[order],
        whole.typical[order],
        np.append(sizes, added[:, 1]),
        tuple(splits),
    )


def _nearer_to_second(halves: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Return the patches in the second of two halves (2, N), or in neither and nearer to the second: (N,) bool."""
    from scipy import ndimage

    nearest = ndimage.distance_transform_edt(
        ~halves.any(axis=0).reshape(grid), return_distances=False, return_indices=True
    )
    return halves[1].reshape(grid)[tuple(nearest)].ravel()


def split_pixels(regions: np.ndarray, split: Regions, grid: tuple[int, int]) -> np.ndarray:
    """Apply the splits of regions to pixels; each pixel joins the half with the nearest patch.

    Parameters
    ----------
    regions : (height, width) uint16
        Regions before the split, see :func:`vitnp.method.regions.label_regions`.
    split : Regions
        Result of :func:`split_by_class`.
    grid : (int, int)
        Rows and columns of patches.

    Returns
    -------
    (height, width) uint16
        Regions from 1, numbered as in `split`.
    """
    if not split.splits:
        return regions
    regions, (rows, columns) = regions.copy(), patch_cells(regions.shape, grid)
    first = len(split.classes) - len(split.splits) + 1
    for number, (region, bits) in enumerate(split.splits, first):
        second = np.unpackbits(bits, count=grid[0] * grid[1]).view(bool).reshape(grid)
        regions[(regions == region) & second[rows[:, None], columns]] = number
    return regions


def label_map(regions: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return the classes of pixels: 0 on the background, elsewhere the class of the region plus 1.

    Parameters
    ----------
    regions : (height, width) uint16
        Regions from 1 to G.
    classes : (G,) int
        Class of each region, from 0.

    Returns
    -------
    (height, width) uint8, or uint16 if there are more than 255 classes

    Examples
    --------
    >>> label_map(np.array([[0, 1, 2]], np.uint16), np.array([4, 0]))
    array([[0, 5, 1]], dtype=uint8)
    """
    numbers = np.concatenate([[0], np.asarray(classes) + 1])
    return numbers.astype(np.uint8 if numbers.max() <= 255 else np.uint16)[regions]
