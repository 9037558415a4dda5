"""The fully connected conditional random field of Krähenbühl and Koltun (NIPS 2011)."""

from __future__ import annotations

import functools
import math

import numpy as np

from vitnp import kernels
from vitnp.io.resample import check_photograph


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
        Photograph; or several of a size, (N, H, W, 3), with their probabilities (N, H, W, C) or (N, H, W).
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
    array, shape (H, W, C) or (N, H, W, C), float32
        Marginals of each class, which sum to 1; C = 2 for a map. They are the same to the bit for any number of
        threads or photographs.

    Raises
    ------
    ValueError
        If shapes differ, values are not finite or outside 0..1 (which is not checked on a GPU), or a parameter is out
        of its range.

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
    rgb = check_photograph(rgb, several=True)
    probability = _check_probability(probability, rgb.shape[:-1])
    if bilateral_xy is None:
        bilateral_xy = max(1.0, max(rgb.shape[-3:-1]) / 8)
    for name, value in (("bilateral_xy", bilateral_xy), ("bilateral_rgb", bilateral_rgb), ("gaussian_xy", gaussian_xy)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")
    for name, value in (("bilateral_weight", bilateral_weight), ("gaussian_weight", gaussian_weight)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be at least 0 and finite, got {value}")
    if steps != int(steps) or steps < 0:
        raise ValueError(f"steps must be a whole number of at least 0, got {steps}")

    kinds = ((gaussian_weight, gaussian_xy, None), (bilateral_weight, bilateral_xy, bilateral_rgb))
    infer = functools.partial(
        kernels.for_array(rgb).dense_crf, gaussians=[kind for kind in kinds if kind[0] and steps], steps=int(steps)
    )
    if rgb.ndim == 3 or kernels.device_of(rgb) == "cuda":
        return infer(probability, rgb)
    return np.stack([infer(one, photograph) for one, photograph in zip(probability, rgb)])


def _check_probability(probability: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the probabilities as an array; ValueError unless they have this shape, or classes too, and are in 0..1.

    Those on a GPU are not checked for values beyond 0..1, because this would have to wait for the GPU.
    """
    probability = kernels.array_module(probability).asarray(probability)
    dimensions = probability.ndim - len(shape)
    if dimensions not in (0, 1) or probability.shape[: len(shape)] != shape or probability.size == 0:
        raise ValueError(
            f"probability must have the photograph's height and width {shape}, and optionally classes, "
            f"got {probability.shape}"
        )
    # NaN compares as false.
    if kernels.device_of(probability) == "cpu" and not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError("probability must be finite and between 0 and 1")
    return probability
