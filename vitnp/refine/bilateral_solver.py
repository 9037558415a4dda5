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
    """The simplified bilateral grid: every pixel belongs to the one vertex nearest to it in (y, x, luma, U, V).

    Attributes
    ----------
    vertex : int array, shape (h * w,)
        The vertex of each pixel: the splatting matrix S of the paper, which has a single 1 in each column.
    count : int
        Number of occupied vertices.
    neighbors : scipy.sparse.csr_array, shape (count, count)
        1 where two vertices are one bin apart along one of the five axes.

    Parameters
    ----------
    rgb : uint8 array, shape (h, w, 3)
    sigma_xy, sigma_luma, sigma_chroma : float
        Sides of a bin, in pixels and in 8-bit gray levels.

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
        occupied, self.vertex = np.unique(keys.ravel(), return_inverse=True)
        self.count = len(occupied)
        self.neighbors = _adjacency(occupied, strides)

    def splat(self, pixels: np.ndarray) -> np.ndarray:
        """S x: sum the pixels (h * w,) of each vertex."""
        return np.bincount(self.vertex, weights=pixels, minlength=self.count)

    def slice(self, vertices: np.ndarray) -> np.ndarray:
        """S^T y: give each pixel the value of its vertex."""
        return vertices[self.vertex].reshape(self.shape)

    def blur(self, vertices: np.ndarray) -> np.ndarray:
        """B y: the sum of the filters [1 2 1] along each of the five axes."""
        return 2 * self.dimensions * vertices + self.neighbors @ vertices

    def bistochastize(self) -> tuple[np.ndarray, np.ndarray]:
        """Diagonals n, m (count,) for which diag(n) B diag(n) has the row sums m, close to the pixel counts.

        Algorithm 1 of the paper's supplement, a symmetric Sinkhorn iteration. m is taken from n at the end, so that
        the row sums agree exactly however far the iteration went: a constant map then costs nothing.
        """
        mass = np.bincount(self.vertex, minlength=self.count).astype(float)
        n = np.ones(self.count)
        for _ in range(BISTOCHASTIC_STEPS):
            n = np.sqrt(n * mass / self.blur(n))
        return n, n * self.blur(n)


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
    r"""Smooth a map so that it stays near its values yet changes only where the photograph does.

    Minimizes, over maps x (equation 1 of the paper),

    .. math:: \frac{\lambda}{2} \sum_{i,j} \hat W_{ij} (x_i - x_j)^2 + \sum_i c_i (x_i - t_i)^2

    with :math:`\hat W` the bistochastic bilateral affinity of the photograph in position and YUV color. On the
    bilateral grid, x = S^T y, this is the sparse linear system A y = b,

    .. math:: A = \lambda (D_m - D_n B D_n) + \mathrm{diag}(S c), \qquad b = S (c \circ t)

    solved by conjugate gradients under Jacobi's preconditioner diag(A), from the confident mean of each vertex.

    Parameters
    ----------
    target : array, shape (h, w), values in 0..1
        The map t to refine.
    rgb : uint8 array, shape (h, w, 3)
        The photograph.
    sigma_xy : float, optional
        Spatial side of a grid bin in pixels; 3 % of the long side, and at least 1, unless given. A fixed number of
        pixels would lose accuracy as photographs grow.
    sigma_luma, sigma_chroma : float
        Sides of a grid bin in 8-bit levels of luma and of either chroma channel.
    smoothness : float
        The weight lambda of the smoothness term.
    confidence : float or array, shape (h, w)
        The weights c >= 0 of the target's pixels, positive somewhere.
    max_iterations : int
        At most so many steps of conjugate gradients.
    tolerance : float
        Stop earlier once the residual's norm falls below this fraction of the norm of b.

    Returns
    -------
    array, shape (h, w), float32
        The refined map, clipped to 0..1. The same bits on every run, whatever the number of threads.

    Raises
    ------
    ValueError
        If shapes disagree, values aren't finite, or a parameter is out of its range.

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
            raise ValueError(f"{name} must be positive, not {value}")
    if not 0 <= smoothness < math.inf:
        raise ValueError(f"smoothness must not be negative, but is {smoothness}")
    if on_gpu:
        return kernels.for_array(target).bilateral_solver(
            target, rgb, sigma_xy=sigma_xy, sigma_luma=sigma_luma, sigma_chroma=sigma_chroma, smoothness=smoothness,
            confidence=confidence, max_iterations=max_iterations, tolerance=tolerance,
        )  # fmt: skip
    confidence = _check_confidence(confidence, target.shape)

    grid = BilateralGrid(rgb, sigma_xy, sigma_luma, sigma_chroma)
    n, _ = grid.bistochastize()
    c = confidence.ravel()
    t = target.ravel().astype(float)
    data = grid.splat(c)
    b = grid.splat(c * t)

    around = grid.neighbors @ n

    # D_m is n times the blur of n, in which a vertex's own share is as large as in the blur of n y: left out of both, nothing
    # is left of it. Subtracted, rounding would be, and a vertex without neighbors and confidence would have nothing else.
    def system(y: np.ndarray) -> np.ndarray:
        return smoothness * n * (around * y - grid.neighbors @ (n * y)) + data * y

    diagonal = smoothness * n * around + data
    # Keeps the quotients finite: a vertex without any confidence starts from the plain mean of its pixels.
    tiny = 1e-12
    start = grid.splat((c + tiny) * t) / grid.splat(c + tiny)
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
    """Solve A y = b for a positive definite A given as a function, preconditioned by its diagonal.

    Inner products are sums of elementwise products on purpose: BLAS splits its dot products among threads, and the
    bits of the result would then depend on how many there are.

    References
    ----------
    Y. Saad, "Iterative Methods for Sparse Linear Systems", 2nd edition, algorithm 9.1.
    """
    y = start
    residual = b - system(y)
    z = residual / diagonal
    direction = z
    rho = (residual * z).sum()
    goal = (tolerance * tolerance) * (b * b).sum()
    for _ in range(max_iterations):
        if (residual * residual).sum() <= goal:
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
        raise ValueError(f"the confidence must be a number or have the map's shape {shape}, not {confidence.shape}")
    if not (np.isfinite(confidence).all() and (confidence >= 0).all() and (confidence > 0).any()):
        raise ValueError("the confidence must be finite, nowhere negative and somewhere positive")
    return np.broadcast_to(confidence, shape)


def _position_bins(length: int, sigma: float) -> np.ndarray:
    """Bins counted from the picture's center; rint rounds symmetrically, so a flipped picture has flipped bins."""
    return np.rint((np.arange(length) - (length - 1) / 2) / sigma).astype(np.int64)


def _color_bins(rgb: np.ndarray, weights: tuple[float, float, float], sigma: float) -> np.ndarray:
    red, green, blue = (
        np.multiply(rgb[..., channel], weight / sigma, dtype=np.float32) for channel, weight in enumerate(weights)
    )
    return np.rint(red + green + blue).astype(np.int64)


def _hash(bins: tuple[np.ndarray, ...]) -> tuple[np.ndarray, list[int]]:
    """Five bin numbers as one integer in mixed radix, and the integer's step for one bin along each axis.

    Each axis is widened by an empty bin, so that one step never leads into another row of bins.
    """
    extents = [int(axis.max()) - int(axis.min()) + 2 for axis in bins]
    if math.prod(extents) >= 2**63:
        raise ValueError("the bilateral grid is too fine: raise sigma_xy, sigma_luma or sigma_chroma")
    keys = np.int64(0)
    for axis, extent in zip(bins, extents):
        keys = keys * extent + (axis - axis.min())
    return keys, [math.prod(extents[d + 1 :]) for d in range(len(extents))]


def _adjacency(occupied: np.ndarray, strides: list[int]) -> csr_array:
    """Sparse symmetric 0/1 matrix of the sorted keys that lie one stride apart."""
    from scipy.sparse import coo_array

    lower, upper = [], []
    for stride in strides:
        place = np.searchsorted(occupied, occupied + stride).clip(max=len(occupied) - 1)
        found = np.flatnonzero(occupied[place] == occupied + stride)
        lower.append(found)
        upper.append(place[found])
    i, j = np.concatenate(lower), np.concatenate(upper)
    row, column = np.concatenate((i, j)), np.concatenate((j, i))
    return coo_array((np.ones(len(row)), (row, column)), shape=(len(occupied),) * 2).tocsr()
