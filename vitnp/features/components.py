"""Principal components from moments, and the coordinates of rows along them."""

from __future__ import annotations

import numpy as np

from vitnp.features.moments import Moments


def leading_components(found: Moments, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the eigenvectors (K, D) and eigenvalues (K,) of the covariance, the largest first, with fixed signs."""
    values, vectors = np.linalg.eigh(found.covariance)
    components = vectors.T[::-1][:count]
    largest = np.abs(components).argmax(axis=1)
    signs = np.where(components[np.arange(len(components)), largest] < 0, -1.0, 1.0)
    return np.ascontiguousarray(components * signs[:, None]), values[::-1][:count].clip(0)


def project(rows: np.ndarray, mean: np.ndarray, components: np.ndarray) -> np.ndarray:
    """Return the coordinates of rows (n, D) along components (K, D), (n, K) float64; each row by itself."""
    return np.einsum("nd,kd->nk", np.asarray(rows, np.float64) - mean, components)


def to_bytes(values: np.ndarray) -> np.ndarray:
    """Return values from 0 to 1 as uint8, rounded; what lies beyond is clipped."""
    return (values.clip(0, 1) * 255 + 0.5).astype(np.uint8)
