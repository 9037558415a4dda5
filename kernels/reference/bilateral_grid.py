"""The simplified bilateral grid: the pixels of a photograph in bins of position and color."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from vitnp.kernels.constants import BISTOCHASTIC_STEPS, BLUE_DIFFERENCE, LUMA, RED_DIFFERENCE

if TYPE_CHECKING:
    from scipy.sparse import csr_array


class TooManyBins(ValueError):
    """The sides of the bins are too small."""

    def __init__(self) -> None:
        super().__init__("the bilateral grid has too many bins; increase sigma_xy, sigma_luma or sigma_chroma")


class BilateralGrid:
    """Simplified bilateral grid: each pixel belongs to one vertex, the nearest in (y, x, luma, U, V).

    Parameters
    ----------
    rgb : uint8 array, shape (h, w, 3)
    sigma_xy, sigma_luma, sigma_chroma : float
        Sides of a bin, in pixels and in 8-bit levels.

    Attributes
    ----------
    vertex : int array, shape (h * w,)
        Vertex of each pixel. This is the splatting matrix S of the paper, which has a single 1 in each column. Vertices
        are numbered in the order of (y, x, luma, U, V).
    count : int
        Number of occupied vertices.
    mass : (count,) float64
        Number of pixels of each vertex.
    neighbors : scipy.sparse.csr_array, shape (count, count)
        1 where two vertices are one bin apart along one of the five axes, else 0.

    Raises
    ------
    ValueError
        If the bins are too many for 63-bit numbers.

    References
    ----------
    J. T. Barron and B. Poole, "The Fast Bilateral Solver", ECCV 2016, section 2 and its supplement.
    """

    dimensions = 5

    def __init__(self, rgb: np.ndarray, sigma_xy: float, sigma_luma: float, sigma_chroma: float) -> None:
        self.shape = rgb.shape[:2]
        rows, columns = (position_bins(length, sigma_xy) for length in self.shape)
        keys, strides = _combine((rows[:, None], columns[None, :], *color_bins(rgb, sigma_luma, sigma_chroma)))
        occupied, vertex = np.unique(keys, return_inverse=True)
        self.vertex = vertex.ravel()
        self.count = len(occupied)
        self.mass = np.bincount(self.vertex, minlength=self.count).astype(float)
        self.neighbors = _adjacency(occupied, strides)

    def splat(self, pixels: np.ndarray) -> np.ndarray:
        """Compute S x: sum the pixels (h * w,) of each vertex."""
        return np.bincount(self.vertex, weights=pixels, minlength=self.count)

    def slice(self, vertices: np.ndarray) -> np.ndarray:
        """Compute S^T y: assign to each pixel the value of its vertex, (h, w)."""
        return vertices[self.vertex].reshape(self.shape)

    def blur(self, vertices: np.ndarray) -> np.ndarray:
        """Compute B y: the sum of the filters [1 2 1] along each of the five axes."""
        return 2 * self.dimensions * vertices + self.neighbors @ vertices

    def bistochastize(self) -> np.ndarray:
        """Compute the vector n (count,) for which the row sums of diag(n) B diag(n) are close to the pixel counts.

        This is algorithm 1 of the paper's supplement, a symmetric Sinkhorn iteration. Its second vector m, the row sums
        themselves, is part of the solver's system, so that they are exact even if the iteration has not converged, and
        a constant map has no smoothness cost.
        """
        n = np.ones(self.count)
        for _ in range(BISTOCHASTIC_STEPS):
            n = np.sqrt(n * self.mass / self.blur(n))
        return n


def position_bins(length: int, sigma: float) -> np.ndarray:
    """Return the bin of each row or column, counted from the center of the image; int64, ascending.

    rint rounds symmetrically, so a flipped image has flipped bins.
    """
    return np.rint((np.arange(length) - (length - 1) / 2) / sigma).astype(np.int64)


def color_bins(rgb: np.ndarray, sigma_luma: float, sigma_chroma: float) -> np.ndarray:
    """Return the bins of luma, U and V of each pixel, counted from the lowest of :func:`color_bounds`; (3, h, w) int64.

    Raises
    ------
    ValueError
        If there are too many bins.
    """
    weights, lowest, _ = color_bounds(sigma_luma, sigma_chroma)
    bins = np.empty((3, *rgb.shape[:2]), np.int64)
    for axis, low in enumerate(lowest):
        red, green, blue = (np.multiply(rgb[..., channel], weights[axis, channel]) for channel in range(3))
        bins[axis] = np.rint(red + green + blue).astype(np.int64) - low
    return bins


def color_bounds(sigma_luma: float, sigma_chroma: float) -> tuple[np.ndarray, list[int], list[int]]:
    """Return the weights of red, green and blue in luma, U and V, and what bins there are.

    Returns
    -------
    weights : (3, 3) float32
        Divided by the sides of the bins.
    lowest, extents : three int
        Lowest bin of each axis, and how many there are. The last is always empty, so that the neighbor of the last bin
        of a row is not the first of the next row.

    Raises
    ------
    ValueError
        If there are too many bins.

    Examples
    --------
    >>> color_bounds(12.0, 6.0)[1:]
    ([-1, -22, -22], [25, 46, 46])
    """
    channels = zip((LUMA, BLUE_DIFFERENCE, RED_DIFFERENCE), (sigma_luma, sigma_chroma, sigma_chroma))
    weights = np.array([[weight / sigma for weight in channel] for channel, sigma in channels], np.float32)
    most = weights.astype(float) * 255
    # One more than the lowest and the highest, because float32 may round them to the next bin.
    lowest = [round(low) - 1 for low in most.clip(max=0).sum(axis=1)]
    extents = [round(high) + 3 - low for high, low in zip(most.clip(min=0).sum(axis=1), lowest)]
    if math.prod(extents) >= 2**63 or max(extents) >= 2**24:  # larger float32 numbers are not exact
        raise TooManyBins
    return weights, lowest, extents


def _combine(bins: tuple[np.ndarray, ...]) -> tuple[np.ndarray, list[int]]:
    """Combine bin numbers into one integer in mixed radix; return it with its stride along each axis.

    Each axis is extended by an empty bin, so that a stride never leads to another row of bins.
    """
    extents = [int(axis.max()) - int(axis.min()) + 2 for axis in bins]
    if math.prod(extents) >= 2**63:
        raise TooManyBins
    keys = np.zeros((), np.int64)
    for axis, extent in zip(bins, extents):
        keys = keys * extent + (axis - axis.min())
    return keys, [math.prod(extents[d + 1 :]) for d in range(len(extents))]


def _adjacency(occupied: np.ndarray, strides: list[int]) -> csr_array:
    """Return the sparse symmetric matrix with 1 where two of the sorted keys are one stride apart."""
    from scipy.sparse import csr_array

    lower, upper = [], []
    for stride in strides:
        candidate = np.searchsorted(occupied, occupied + stride).clip(max=len(occupied) - 1)
        matched = np.flatnonzero(occupied[candidate] == occupied + stride)
        lower.append(matched)
        upper.append(candidate[matched])
    i, j = np.concatenate(lower), np.concatenate(upper)
    row, column = np.concatenate((i, j)), np.concatenate((j, i))
    return csr_array((np.ones(len(row)), (row, column)), shape=(len(occupied),) * 2)
