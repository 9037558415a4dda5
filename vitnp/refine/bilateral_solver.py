"""The fast bilateral solver of Barron and Poole (ECCV 2016) on the simplified bilateral grid."""

from __future__ import annotations

import functools
import math

import numpy as np

from vitnp import kernels
from vitnp.io.resample import check_map, check_photograph


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
        Map t to refine; or the maps of several photographs of a size, (N, h, w).
    rgb : uint8 array, shape (h, w, 3)
        Photograph; or several, (N, h, w, 3).
    sigma_xy : float, optional
        Spatial side of a grid bin in pixels; by default 3 % of the long side, and at least 1. A fixed number of pixels
        would be less accurate on larger photographs.
    sigma_luma, sigma_chroma : float
        Sides of a grid bin in 8-bit levels of luma and of each chroma channel.
    smoothness : float
        Weight lambda of the smoothness term.
    confidence : float or array with the shape of the map
        Weights c >= 0 of the target's pixels, positive for at least one.
    max_iterations : int
        Largest number of conjugate gradient steps.
    tolerance : float
        Stop when the norm of the residual falls below this fraction of the norm of b.

    Returns
    -------
    array with the shape of the map, float32
        Refined map, clipped to 0..1; the same to the bit for any number of threads or photographs.

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
        rgb = check_photograph(rgb, several=True)
        target = check_map(target, rgb.shape[:-1], several=True)
    if sigma_xy is None:
        sigma_xy = max(1.0, 0.03 * max(rgb.shape[-3:-1]))
    for name, value in (("sigma_xy", sigma_xy), ("sigma_luma", sigma_luma), ("sigma_chroma", sigma_chroma)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")
    if not 0 <= smoothness < math.inf:
        raise ValueError(f"smoothness must be at least 0 and finite, got {smoothness}")
    if not on_gpu:
        confidence = _check_confidence(confidence, target.shape)
    solve = functools.partial(
        kernels.for_array(target).bilateral_solver, sigma_xy=sigma_xy, sigma_luma=sigma_luma, sigma_chroma=sigma_chroma,
        smoothness=smoothness, max_iterations=max_iterations, tolerance=tolerance,
    )  # fmt: skip
    if on_gpu or target.ndim == 2:
        return solve(target, rgb, confidence=confidence)
    each = list(confidence) if isinstance(confidence, np.ndarray) and confidence.ndim else [confidence] * len(target)
    return np.stack([solve(one, photograph, confidence=c) for one, photograph, c in zip(target, rgb, each)])


def _check_confidence(confidence: float | np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    confidence = np.asarray(confidence, float)
    if confidence.shape not in ((), shape):
        raise ValueError(f"confidence must be a number or have the shape of the map {shape}, got {confidence.shape}")
    if not (np.isfinite(confidence).all() and (confidence >= 0).all() and (confidence > 0).any()):
        raise ValueError("confidence must be finite, at least 0 everywhere and positive somewhere")
    return confidence
