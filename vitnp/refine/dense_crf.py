"""The fully connected conditional random field of Krähenbühl and Koltun (NIPS 2011)."""

from __future__ import annotations

import math

import numpy as np

from vitnp import kernels
from vitnp.io.resample import check_photograph

# A probability of 0 would be an infinite energy, which no neighbor could outweigh.
_MIN_PROBABILITY = 1e-6


def dense_crf(
    probability: np.ndarray,
    rgb: np.ndarray,
    *,
    steps: int = 5,
    bilateral_weight: float = 5.0,
    bilateral_xy: float | None = None,
    bilateral_rgb: float = 5.0,
    gaussian_weight: float = 0.0,
    gaussian_xy: float = 3.0,
) -> np.ndarray:
    r"""Make labels agree between pixels of similar color and position, or simply of similar position.

    It computes the mean-field approximation of the marginals (algorithm 1 of the paper) of a Gibbs distribution with
    the energy (equations 1 to 3)

    .. math::
        E(x) = -\sum_i \log p_i(x_i) + \sum_{i<j} [x_i \ne x_j] \Big(
        w_1 \exp\Big(-\frac{|s_i - s_j|^2}{2 \theta_\alpha^2} - \frac{|I_i - I_j|^2}{2 \theta_\beta^2}\Big)
        + w_2 \exp\Big(-\frac{|s_i - s_j|^2}{2 \theta_\gamma^2}\Big) \Big)

    over all pairs of pixels, with positions s and colors I. Both kernels are normalized symmetrically: K becomes
    :math:`D^{-1/2} K D^{-1/2}`, where D holds the sums of its rows, as in the authors' program. Sums over all pairs are
    computed on the permutohedral lattice (Adams et al. 2010).

    Parameters
    ----------
    probability : array, shape (H, W, C), values in 0..1
        Probability of each class; or with shape (H, W), of the second of two classes. They need not sum to 1. Values
        below 1e-6 are raised to 1e-6.
    rgb : uint8 array, shape (H, W, 3)
        Photograph.
    steps : int
        Number of mean-field iterations; 0 only normalizes the probabilities.
    bilateral_weight, gaussian_weight : float
        Weights w1 and w2, at least 0; a kernel of weight 0 is not computed.
    bilateral_xy, gaussian_xy : float
        theta_alpha and theta_gamma, in pixels; by default theta_alpha is an eighth of the long side, and at least 1.
    bilateral_rgb : float
        theta_beta, in 8-bit levels of color.

    Returns
    -------
    array, shape (H, W, C), float32
        Marginals of each class, which sum to 1; C = 2 for a map. They are the same to the bit for any number of
        threads.

    Raises
    ------
    ValueError
        If shapes differ, values are not finite or outside 0..1, or a parameter is out of its range.

    References
    ----------
    P. Krähenbühl and V. Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials", NIPS 2011.
    A. Adams, J. Baek and M. A. Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice", Computer
    Graphics Forum 29(2), 2010.

    Examples
    --------
    >>> rgb = np.zeros((4, 6, 3), np.uint8)
    >>> rgb[:, 3:] = 255
    >>> probability = np.tile(np.float32([0.1, 0.2, 0.6, 0.4, 0.8, 0.9]), (4, 1))
    >>> dense_crf(probability, rgb)[0, :, 1].astype(float).round(2).tolist()
    [0.0, 0.0, 0.02, 0.98, 1.0, 1.0]
    """
    rgb = check_photograph(rgb)
    probability = _check_probability(probability, rgb.shape[:2])
    if bilateral_xy is None:
        bilateral_xy = max(1.0, max(rgb.shape[:2]) / 8)
    for name, value in (("bilateral_xy", bilateral_xy), ("bilateral_rgb", bilateral_rgb), ("gaussian_xy", gaussian_xy)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")
    for name, value in (("bilateral_weight", bilateral_weight), ("gaussian_weight", gaussian_weight)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be at least 0 and finite, got {value}")
    if steps != int(steps) or steps < 0:
        raise ValueError(f"steps must be a whole number of at least 0, got {steps}")

    k = kernels.for_array(rgb)
    lattices, weights = [], []
    if gaussian_weight and steps:
        lattices.append(k.normalize_lattice(k.permutohedral_lattice(_features(rgb, gaussian_xy))))
        weights.append(gaussian_weight)
    if bilateral_weight and steps:
        lattices.append(k.normalize_lattice(k.permutohedral_lattice(_features(rgb, bilateral_xy, bilateral_rgb))))
        weights.append(bilateral_weight)
    unary = _unary(probability)
    marginals = k.mean_field(unary, lattices, weights, int(steps))
    return marginals.reshape(*rgb.shape[:2], unary.shape[1])


def _check_probability(probability: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    probability = kernels.array_module(probability).asarray(probability)
    if probability.ndim not in (2, 3) or probability.shape[:2] != shape or probability.size == 0:
        raise ValueError(
            f"probability must have the photograph's height and width {shape}, and optionally classes, "
            f"got {probability.shape}"
        )
    # NaN compares as false.
    if not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError("probability must be finite and between 0 and 1")
    return probability


def _unary(probability: np.ndarray) -> np.ndarray:
    """Return the unary energies -log p, (H W, C) float32."""
    xp = kernels.array_module(probability)
    if probability.ndim == 2:
        # In the input precision: in float32, 1 - p would be mostly rounding error where p is near 1.
        probability = xp.stack((1 - probability, probability), axis=-1)
    unary = probability.reshape(-1, probability.shape[-1]).astype(np.float32)
    xp.maximum(unary, np.float32(_MIN_PROBABILITY), out=unary)
    xp.log(unary, out=unary)
    return xp.negative(unary, out=unary)


def _features(rgb: np.ndarray, sigma_xy: float, sigma_rgb: float | None = None) -> np.ndarray:
    """Return positions, and colors if `sigma_rgb` is given, in units of the bandwidths: (2 or 5, H W) float32."""
    xp, (height, width) = kernels.array_module(rgb), rgb.shape[:2]
    features = xp.empty((2 if sigma_rgb is None else 5, height, width), np.float32)
    features[0] = xp.arange(width, dtype=np.float32) / np.float32(sigma_xy)
    features[1] = (xp.arange(height, dtype=np.float32) / np.float32(sigma_xy))[:, None]
    if sigma_rgb is not None:
        xp.divide(xp.moveaxis(rgb, 2, 0), np.float32(sigma_rgb), out=features[2:])
    return features.reshape(len(features), -1)
