"""The fast bilateral solver: a sparse linear system on the bilateral grid, solved by conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from vitnp.kernels.reference.bilateral_grid import BilateralGrid

# Keeps quotients finite: a vertex without confidence starts from the unweighted mean of its pixels.
TINY = 1e-12


def bilateral_solver(
    target: np.ndarray,
    rgb: np.ndarray,
    *,
    sigma_xy: float,
    sigma_luma: float = 12.0,
    sigma_chroma: float = 6.0,
    smoothness: float = 128.0,
    confidence: float | np.ndarray = 0.999,
    max_iterations: int = 25,
    tolerance: float = 1e-5,
) -> np.ndarray:
    """Smooth a map so that it stays near its values yet changes only where the photograph does.

    See :func:`vitnp.refine.bilateral_solver.bilateral_solver`, which checks the parameters.

    Parameters
    ----------
    target : array, shape (h, w), values in 0..1
    rgb : uint8 array, shape (h, w, 3)
    sigma_xy, sigma_luma, sigma_chroma, smoothness : float
    confidence : float or array, shape (h, w)
    max_iterations : int
    tolerance : float

    Returns
    -------
    array, shape (h, w), float32
        Clipped to 0..1.

    Raises
    ------
    ValueError
        If the grid is too fine.

    Examples
    --------
    >>> rgb = np.zeros((1, 6, 3), np.uint8)
    >>> rgb[:, 3:] = 255
    >>> bilateral_solver(np.float32([[0, 0, 0.3, 0.7, 1, 1]]), rgb, sigma_xy=8).astype(float).round(2).tolist()
    [[0.1, 0.1, 0.1, 0.9, 0.9, 0.9]]
    """
    grid = BilateralGrid(rgb, sigma_xy, sigma_luma, sigma_chroma)
    n = grid.bistochastize()
    data, b, start = right_hand_side(grid.splat, grid.mass, target, confidence)
    neighbor_sum = grid.neighbors @ n

    # A vertex contributes to its own blur, in D_m and in D_n B D_n alike, and both contributions cancel. They are
    # omitted here: computed and subtracted they would leave a rounding error, and a vertex with neither neighbors nor
    # confidence would consist of nothing else.
    def system(y: np.ndarray) -> np.ndarray:
        return smoothness * n * (neighbor_sum * y - grid.neighbors @ (n * y)) + data * y

    diagonal = smoothness * n * neighbor_sum + data
    y = conjugate_gradients(system, b, start, np.maximum(diagonal, TINY), max_iterations, tolerance)
    return grid.slice(y).clip(0, 1).astype(np.float32)


def right_hand_side(
    splat: Callable[[np.ndarray], np.ndarray], mass: np.ndarray, target: np.ndarray, confidence: float | np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute S c, b = S (c t), and the mean of the target at each vertex, weighted by confidence; (count,) float64."""
    t = target.ravel().astype(float)
    if np.ndim(confidence) == 0:
        data, b = confidence * mass, confidence * splat(t)
        return data, b, b / data
    c = np.asarray(confidence, float).ravel()
    return splat(c), splat(c * t), splat((c + TINY) * t) / splat(c + TINY)


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
