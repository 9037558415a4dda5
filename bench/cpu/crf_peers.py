"""The fully connected CRF of pydensecrf2 and of vitnp, on the same photograph, unary energies and kernels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from bench.cpu.comparison import WrongAnswer
from vitnp.io.resample import bilinear

# Smallest share of pixels with equal labels.
AGREEMENT = 0.999

# Smoothness kernel, then appearance kernel: standard deviations in pixels and in gray levels (0..255), and weights.
SMOOTH_XY, SMOOTH_WEIGHT = 3.0, 3.0
XY, RGB, WEIGHT = 50.0, 5.0, 5.0
STEPS = 10
# Smaller probabilities would have an energy too large for neighbors to outweigh.
MIN_PROBABILITY = np.float32(1e-6)


@dataclasses.dataclass(frozen=True)
class Case:
    """Number of classes, on a photograph of 500 x 375 pixels."""

    classes: int

    @property
    def label(self) -> str:
        """Description for tables."""
        return f"CRF, 500 x 375, {self.classes} classes"


def probabilities(classes: int, height: int, width: int) -> np.ndarray:
    """Return probabilities as of a coarse classifier, smooth and ambiguous, (height, width, classes) float32."""
    coarse = 1.5 * np.random.default_rng(0).standard_normal((classes, 21, 28))
    scores = np.stack([bilinear(score, (height, width)) for score in coarse], axis=-1)
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return scores / scores.sum(axis=-1, keepdims=True)


def pydensecrf(probability: np.ndarray, rgb: np.ndarray) -> Callable[[], np.ndarray]:
    """Return the CRF of pydensecrf2, on its single thread; its result is probabilities (classes, height, width)."""
    from pydensecrf.densecrf import DenseCRF2D

    height, width, classes = probability.shape
    # It takes the classes first, and a writable photograph.
    flat, rgb = np.ascontiguousarray(probability.reshape(-1, classes).T), rgb.copy()

    def run() -> np.ndarray:
        model = DenseCRF2D(width, height, classes)
        model.setUnaryEnergy(-np.log(np.maximum(flat, MIN_PROBABILITY)))
        model.addPairwiseGaussian(sxy=SMOOTH_XY, compat=SMOOTH_WEIGHT)
        model.addPairwiseBilateral(sxy=XY, srgb=RGB, rgbim=rgb, compat=WEIGHT)
        return np.array(model.inference(STEPS)).reshape(classes, height, width)

    return run


def ours(probability: np.ndarray, rgb: np.ndarray) -> Callable[[], np.ndarray]:
    """Return vitnp's CRF with the same kernels; its result is probabilities (classes, height, width)."""
    from vitnp.refine.dense_crf import dense_crf

    kernels = {
        "bilateral_weight": WEIGHT, "bilateral_xy": XY, "bilateral_rgb": RGB,
        "gaussian_weight": SMOOTH_WEIGHT, "gaussian_xy": SMOOTH_XY,
    }  # fmt: skip
    return lambda: np.moveaxis(dense_crf(probability, rgb, steps=STEPS, **kernels), -1, 0)


def checker() -> Callable[[str, np.ndarray], None]:
    """Return a check that labels agree with those of the first contender; it raises WrongAnswer."""
    first: list[np.ndarray] = []

    def check(name: str, found: np.ndarray) -> None:
        labels = found.argmax(axis=0)
        first.append(labels)
        agreement = float((labels == first[0]).mean())
        if not agreement >= AGREEMENT:
            raise WrongAnswer(f"{name} labels {1 - agreement:.2%} of the pixels differently")

    return check
