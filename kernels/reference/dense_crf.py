"""Inference in a fully connected CRF over the pixels of a photograph: features, energies, lattices, mean field."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import TypeAlias

import numpy as np
from vitnp.kernels.reference import lattice

# A probability of 0 would be an infinite energy, which no neighbor could outweigh.
MIN_PROBABILITY = 1e-6

# Weight of a Gaussian kernel, and its standard deviations: of position in pixels, of color in 8-bit levels, or None
# for a kernel of position alone.
Gaussian: TypeAlias = "tuple[float, float, float | None]"


def dense_crf(probability: np.ndarray, rgb: np.ndarray, *, gaussians: Sequence[Gaussian], steps: int) -> np.ndarray:
    """Approximate the marginals of a fully connected CRF by mean field on permutohedral lattices.

    See :func:`vitnp.refine.dense_crf.dense_crf`, which checks the parameters.

    Parameters
    ----------
    probability : array, shape (h, w) or (h, w, classes), values in 0..1
    rgb : uint8 array, shape (h, w, 3)
    gaussians : sequence of (float, float, float or None)
        Weight of each kernel, and its standard deviations of position and color.
    steps : int

    Returns
    -------
    (h, w, classes) float32

    Examples
    --------
    >>> probability = np.array([[0.9, 0.9, 0.4]])
    >>> rgb = np.zeros((1, 3, 3), np.uint8)
    >>> dense_crf(probability, rgb, gaussians=[(4.0, 9.0, 5.0)], steps=5)[0, :, 1].astype(float).round(2).tolist()
    [1.0, 1.0, 0.97]
    """
    return dense_crf_by(lattice, probability, rgb, gaussians, steps)


def dense_crf_by(
    operations: ModuleType,
    probability: np.ndarray,
    rgb: np.ndarray,
    gaussians: Sequence[Gaussian],
    steps: int,
    xp: ModuleType = np,
) -> np.ndarray:
    """Do so by the lattices and the mean field of a module, for arrays of `xp`."""
    lattices = [
        operations.normalize_lattice(operations.permutohedral_lattice(pixel_features(rgb, xy, color, xp)))
        for _, xy, color in gaussians
    ]
    unary = unary_energies(probability, rgb.shape, xp)
    marginals = operations.mean_field(unary, lattices, [weight for weight, _, _ in gaussians], steps)
    return marginals.reshape(*rgb.shape[:-1], unary.shape[1])


def unary_energies(probability: np.ndarray, shape: tuple[int, ...], xp: ModuleType = np) -> np.ndarray:
    """Return the energies -log p of the pixels of photographs of this shape (..., h, w, 3), (pixels, classes) float32.

    A probability without classes is that of the second of two classes.
    """
    if probability.ndim < len(shape):
        unary = xp.empty((*probability.shape, 2), np.float32)
        # In the input precision: in float32, 1 - p would be mostly rounding error where p is near 1.
        unary[..., 0], unary[..., 1] = 1 - probability, probability
        unary = unary.reshape(-1, 2)
    else:
        unary = probability.reshape(-1, probability.shape[-1]).astype(np.float32)
    xp.maximum(unary, np.float32(MIN_PROBABILITY), out=unary)
    xp.log(unary, out=unary)
    return xp.negative(unary, out=unary)


def pixel_features(rgb: np.ndarray, sigma_xy: float, sigma_rgb: float | None = None, xp: ModuleType = np) -> np.ndarray:
    """Return positions, and colors if `sigma_rgb` is given, in units of the bandwidths: (2 or 5, pixels) float32.

    The pixels of several photographs (photographs, h, w, 3) follow each other.
    """
    height, width = rgb.shape[-3:-1]
    features = xp.empty((2 if sigma_rgb is None else 5, *rgb.shape[:-1]), np.float32)
    features[0] = xp.arange(width, dtype=np.float32) / np.float32(sigma_xy)
    features[1] = (xp.arange(height, dtype=np.float32) / np.float32(sigma_xy))[:, None]
    if sigma_rgb is not None:
        xp.divide(xp.moveaxis(rgb, -1, 0), np.float32(sigma_rgb), out=features[2:])
    return features.reshape(len(features), -1)


def feature_ranges(shape: tuple[int, int], sigma_xy: float, sigma_rgb: float | None = None) -> np.ndarray:
    """Return the smallest and the largest value of each feature that photographs of this height and width may have.

    Examples
    --------
    >>> feature_ranges((3, 5), 2.0)
    array([[0., 2.],
           [0., 1.]], dtype=float32)
    """
    height, width = shape
    ends = [(width - 1, sigma_xy), (height - 1, sigma_xy)]
    ends += [] if sigma_rgb is None else [(255, sigma_rgb)] * 3
    return np.array([[0, np.float32(most) / np.float32(sigma)] for most, sigma in ends], np.float32)
