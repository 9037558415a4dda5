"""The fast bilateral solver of Barron and Poole (ECCV 2016) on the simplified bilateral grid."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from vitnp import kernels
from vitnp.io.resample import check_map, check_photograph
from vitnp.kernels.constants import BISTOCHASTIC_STEPS, BLUE_DIFFERENCE, LUMA, RED_DIFFERENCE

if TYPE_CHECKING:
    from scipy.sparse import csr_array


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
        Vertex of each pixel. This is the splatting matrix S of the paper, which has a single 1 in each column.
    count : int
        Number of occupied vertices.
    mass : (count,) float64
        Number of pixels of each vertex.
    neighbors : scipy.sparse.csr_array, shape (count, count)
        1 where two vertices are one bin apart along one of the five axes, else 0.

    References
    ----------
    J. T. Barron and B. Poole, "The Fast Bilateral Solver", ECCV 2016, section 2 and its supplement.
    """

    dimensions = 5

    def __init__(self, rgb: np.ndarray, sigma_xy: float, sigma_luma: float, sigma_chroma: float) -> None:
        self.shape = rgb.shape[:2]
        bins = (
            _position_bins(self.shape[0], sigma_xy)[:, None],
            _position_bins(self.shape[1], sigma_xy)[None, :],
            _color_bins(rgb, LUMA, sigma_luma),
            _color_bins(rgb, BLUE_DIFFERENCE, sigma_chroma),
            _color_bins(rgb, RED_DIFFERENCE, sigma_chroma),
        )
        keys, strides = _hash(bins)
        occupied, self.vertex = _unique(keys.ravel())
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


def bilateral_solver(
    target: np.ndarray,
    rgb: np.ndarray,
    *,
    sigma_xy: float | None = None,
    sigma_luma: float = 12.0,
    sigma_chroma: float = 6.0,
    smoothness: float = 128.0,
    confidence: float | np.ndarray = 0.999,
    max_iterations: int = 25,
    tolerance: float = 1e-5,
) -> np.ndarray:
    r"""Smooth a map, keeping it near its values and letting it change only where the photograph changes.

    It minimizes, over maps x (equation 1 of the paper),

    .. math:: \frac{\lambda}{2} \sum_{i,j} \hat W_{ij} (x_i - x_j)^2 + \sum_i c_i (x_i - t_i)^2

    where :math:`\hat W` is the bistochastic bilateral affinity of the photograph in position and YUV color. On the
    bilateral grid, with x = S^T y, this is the sparse linear system A y = b,

    .. math:: A = \lambda (D_m - D_n B D_n) + \mathrm{diag}(S c), \qquad b = S (c \circ t)

    which is solved by conjugate gradients with the Jacobi preconditioner diag(A), starting from the mean of the target
    at each vertex, weighted by confidence.

    Parameters
    ----------
    target : array, shape (h, w), values in 0..1
        Map t to refine.
    rgb : uint8 array, shape (h, w, 3)
        Photograph.
    sigma_xy : float, optional
        Spatial side of a grid bin in pixels; by default 3 % of the long side, and at least 1. A fixed number of pixels
        would be less accurate on larger photographs.
    sigma_luma, sigma_chroma : float
        Sides of a grid bin in 8-bit levels of luma and of each chroma channel.
    smoothness : float
        Weight lambda of the smoothness term.
    confidence : float or array, shape (h, w)
        Weights c >= 0 of the target's pixels, positive for at least one.
    max_iterations : int
        Largest number of conjugate gradient steps.
    tolerance : float
        Stop when the norm of the residual falls below this fraction of the norm of b.

    Returns
    -------
    array, shape (h, w), float32
        Refined map, clipped to 0..1; the same to the bit for any number of threads.

    Raises
    ------
    ValueError
        If shapes differ, values are not finite, or a parameter is out of its range.

    References
    ----------
    J. T. Barron and B. Poole, "The Fast Bilateral Solver", ECCV 2016.

    Examples
    --------
    >>> rgb = np.zeros((4, 6, 3), np.uint8)
    >>> rgb[:, 3:] = 255
    >>> target = np.tile(np.float32([0, 0, 0.3, 0.7, 1, 1]), (4, 1))
    >>> bilateral_solver(target, rgb, sigma_xy=8)[0].astype(float).round(2).tolist()
    [0.1, 0.1, 0.1, 0.9, 0.9, 0.9]
    """
    on_gpu = kernels.device_of(target) == "cuda"
    if not on_gpu:
        rgb = check_photograph(rgb)
        target = check_map(target, rgb.shape[:2])
    if sigma_xy is None:
        sigma_xy = max(1.0, 0.03 * max(rgb.shape[:2]))
    for name, value in (("sigma_xy", sigma_xy), ("sigma_luma", sigma_luma), ("sigma_chroma", sigma_chroma)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")
    if not 0 <= smoothness < math.inf:
        raise ValueError(f"smoothness must be at least 0 and finite, got {smoothness}")
    if on_gpu:
        return kernels.for_array(target).bilateral_solver(
            target, rgb, sigma_xy=sigma_xy, sigma_luma=sigma_luma, sigma_chroma=sigma_chroma, smoothness=smoothness,
            confidence=confidence, max_iterations=max_iterations, tolerance=tolerance,
        )  # fmt: skip
    confidence = _check_confidence(confidence, target.shape)

    grid = BilateralGrid(rgb, sigma_xy, sigma_luma, sigma_chroma)
    n = grid.bistochastize()
    t = target.ravel().astype(float)
    # Keep the quotients finite: a vertex without confidence starts from the unweighted mean of its pixels.
    tiny = 1e-12
    if np.ndim(confidence) == 0:
        data, b = confidence * grid.mass, confidence * grid.splat(t)
        start = b / data
    else:
        c = confidence.ravel()
        data, b = grid.splat(c), grid.splat(c * t)
        start = grid.splat((c + tiny) * t) / grid.splat(c + tiny)

    neighbor_sum = grid.neighbors @ n

    # A vertex contributes to its own blur, in D_m and in D_n B D_n alike, and both contributions cancel. They are
    # omitted here: computed and subtracted they would leave a rounding error, and a vertex with neither neighbors nor
    # confidence would consist of nothing else.
    def system(y: np.ndarray) -> np.ndarray:
        return smoothness * n * (neighbor_sum * y - grid.neighbors @ (n * y)) + data * y

    diagonal = smoothness * n * neighbor_sum + data
    y = conjugate_gradients(system, b, start, np.maximum(diagonal, tiny), max_iterations, tolerance)
    return grid.slice(y).clip(0, 1).astype(np.float32)


def conjugate_gradients(
    system: Callable[[np.ndarray], np.ndarray],
    b: np.ndarray,
    start: np.ndarray,
    diagonal: np.ndarray,
    max_iterations: int,
    tolerance: float,
) -> np.ndarray:
    """Solve A y = b for a positive definite A, given as a function, with its diagonal as the preconditioner.

    Inner products are sums of elementwise products on purpose: BLAS splits dot products among threads, so the last bits
    of the result would depend on the number of threads.

    References
    ----------
    Y. Saad, "Iterative Methods for Sparse Linear Systems", 2nd edition, algorithm 9.1.
    """
    y = start
    residual = b - system(y)
    z = residual / diagonal
    direction = z
    rho = (residual * z).sum()
    target = (tolerance * tolerance) * (b * b).sum()
    for _ in range(max_iterations):
        if (residual * residual).sum() <= target:
            break
        image = system(direction)
        alpha = rho / (direction * image).sum()
        y = y + alpha * direction
        residual = residual - alpha * image
        z = residual / diagonal
        previous, rho = rho, (residual * z).sum()
        direction = z + (rho / previous) * direction
    return y


def _check_confidence(confidence: float | np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    confidence = np.asarray(confidence, float)
    if confidence.shape not in ((), shape):
        raise ValueError(f"confidence must be a number or have the shape of the map {shape}, got {confidence.shape}")
    if not (np.isfinite(confidence).all() and (confidence >= 0).all() and (confidence > 0).any()):
        raise ValueError("confidence must be finite, at least 0 everywhere and positive somewhere")
    return confidence


def _position_bins(length: int, sigma: float) -> np.ndarray:
    """Return the bin of each row or column, counted from the center of the image.

    rint rounds symmetrically, so a flipped image has flipped bins.
    """
    return np.rint((np.arange(length) - (length - 1) / 2) / sigma).astype(np.int64)


def _color_bins(rgb: np.ndarray, weights: tuple[float, float, float], sigma: float) -> np.ndarray:
    red, green, blue = (
        np.multiply(rgb[..., channel], weight / sigma, dtype=np.float32) for channel, weight in enumerate(weights)
    )
    return np.rint(red + green + blue).astype(np.int64)


def _hash(bins: tuple[np.ndarray, ...]) -> tuple[np.ndarray, list[int]]:
    """Combine five bin numbers into one integer in mixed radix; return it with its stride along each axis.

    Each axis is extended by an empty bin, so that a stride never leads to another row of bins.
    """
    extents = [int(axis.max()) - int(axis.min()) + 2 for axis in bins]
    if math.prod(extents) >= 2**63:
        raise ValueError("the bilateral grid has too many bins; increase sigma_xy, sigma_luma or sigma_chroma")
    keys = np.zeros((), np.int64)
    for axis, extent in zip(bins, extents):
        keys = keys * extent + (axis - axis.min())
    return keys, [math.prod(extents[d + 1 :]) for d in range(len(extents))]


def _unique(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct keys, ascending, and the position of each key among them, as np.unique does.

    Keys and their positions are sorted together in one integer, where both fit: half the time of an argsort.
    """
    bits = int(keys.size - 1).bit_length()
    if int(keys.max()) >> (63 - bits):
        distinct, place = np.unique(keys, return_inverse=True)
        return distinct, place.ravel()
    packed = (keys << bits) | np.arange(keys.size)
    packed.sort()
    ordered = packed >> bits
    first = np.concatenate(([True], ordered[1:] != ordered[:-1]))
    place = np.empty(keys.size, np.intp)
    place[packed & ((1 << bits) - 1)] = np.cumsum(first) - 1
    return ordered[first], place


def _adjacency(occupied: np.ndarray, strides: list[int]) -> csr_array:
    """Return the sparse symmetric matrix with 1 where two of the sorted keys are one stride apart."""
    from scipy.sparse import csr_array

    indptr, indices = kernels.for_device().grid_neighbors(occupied, strides)
    return csr_array((np.ones(len(indices)), indices, indptr), shape=(len(occupied),) * 2)
