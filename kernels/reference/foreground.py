"""Sweeps of multi-level foreground estimation over a list of pixels.

Germer et al. 2020, "Fast Multi-Level Foreground Estimation", arXiv 2006.14970: a photograph is ``alpha F + (1 - alpha)
B``, with smooth foreground colors F and background colors B. A sweep solves this for each pixel with the colors of its
neighbors as they are.
"""

from __future__ import annotations

import numpy as np

# Weight of a neighbor of equal alpha; one whose alpha differs by d weighs d more.
SMOOTHNESS = np.float32(1e-5)


def foreground_sweeps(
    colors: np.ndarray,
    alpha: np.ndarray,
    neighbors: np.ndarray,
    n_red: int,
    n_sweeps: int,
    foreground: np.ndarray,
    background: np.ndarray,
) -> None:
    """Improve estimates of foreground and background colors by red-black Gauss-Seidel sweeps, in place.

    The pixels are numbered like the fields of a chessboard, all red ones first: as neighbors have different colors, the
    pixels of one color do not depend on each other, nor the result on the number of threads.

    Parameters
    ----------
    colors : (N, 3) float32
        The photograph's colors, 0 to 1.
    alpha : (N,) float32
        Where it is 1 the foreground is known, where it is 0 the background.
    neighbors : (N, 4) int32
        Numbers of the neighbors; the pixel's own number where there is none.
    n_red : int
        Number of red pixels.
    n_sweeps : int
    foreground, background : (N, 3) float32, IN and OUT
        Estimates, 0 to 1.

    Examples
    --------
    >>> foreground, background = np.array([[[0.9], [0.5], [0.5]], [[0.5], [0.5], [0.1]]], np.float32).repeat(3, axis=2)
    >>> alpha = np.array([1, 0, 0.5], np.float32)  # opaque, transparent; between them one pixel of both
    >>> colors = np.array([[0.9], [0.1], [0.5]], np.float32).repeat(3, axis=1)
    >>> neighbors = np.array([[0, 0, 0, 2], [1, 1, 1, 2], [0, 1, 2, 2]], np.int32)
    >>> foreground_sweeps(colors, alpha, neighbors, 2, 20, foreground, background)
    >>> foreground[2].round(2), background[2].round(2)
    (array([0.9, 0.9, 0.9], dtype=float32), array([0.1, 0.1, 0.1], dtype=float32))
    """
    one = np.float32(1)
    for _ in range(n_sweeps):
        for part in (slice(0, n_red), slice(n_red, len(alpha))):
            a, near, color = alpha[part], neighbors[part], colors[part]
            weights = [SMOOTHNESS + np.abs(a - alpha[near[:, d]]) for d in range(4)]
            total = weights[0] + weights[1] + weights[2] + weights[3]
            means = []
            for estimate in (foreground, background):
                terms = [weight[:, None] * estimate[near[:, d]] for d, weight in enumerate(weights)]
                means.append((terms[0] + terms[1] + terms[2] + terms[3]) / total[:, None])
            b = one - a
            # The least-squares solution near the neighbors' means: the residual, divided between the two.
            scale = (one / (total + a * a + b * b))[:, None]
            f, g = a[:, None], b[:, None]
            residual = (color - f * means[0] - g * means[1]) * scale
            foreground[part] = np.where(f == one, color, (means[0] + f * residual).clip(0, 1))
            background[part] = np.where(f == 0, color, (means[1] + g * residual).clip(0, 1))
