"""Inference in a fully connected CRF by the compiled lattices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from vitnp.kernels.cpu import lattice
from vitnp.kernels.reference.dense_crf import Gaussian, dense_crf_by


def dense_crf(probability: np.ndarray, rgb: np.ndarray, *, gaussians: Sequence[Gaussian], steps: int) -> np.ndarray:
    return dense_crf_by(lattice, probability, rgb, gaussians, steps)
