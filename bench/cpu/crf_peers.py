"""A fully connected CRF by pydensecrf2 and by vitnp: the same photograph, the same unary, the same kernels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from bench.cpu.comparison import WrongAnswer
from vitnp.io.resample import bilinear

# Labels that have to agree, as a share of the pixels.
AGREEMENT = 0.999

# Of the two kernels: smoothness, and appearance. Standard deviations in pixels and in gray levels of 255.
SMOOTH_XY, SMOOTH_WEIGHT = 3.0, 3.0
XY, RGB, WEIGHT = 50.0, 5.0, 5.0
STEPS = 10
# Below this a probability has an energy too large for neighbors to outweigh.
LEAST = np.float32(1e-6)


@dataclasses.dataclass(frozen=True)
class Case:
    """So many classes on a photograph of the usual size."""

    classes: int

    @property
    def label(self) -> str:
        """In words."""
        return f"CRF, 500 x 375, {self.classes} classes"


def probabilities(classes: int, height: int, width: int) -> np.ndarray:
    """What a coarse classifier might say, (height, width, classes) float32: smooth, and undecided in places."""
    coarse = 1.5 * np.random.default_rng(0).standard_normal((classes, 21, 28))
    scores = np.stack([bilinear(score, (height, width)) for score in coarse], axis=-1)
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return scores / scores.sum(axis=-1, keepdims=True)


def pydensecrf(probability: np.ndarray, rgb: np.ndarray) -> Callable[[], np.ndarray]:
    """The usual binding, which runs on one thread; gives probabilities (classes, height, width)."""
    from pydensecrf.densecrf import DenseCRF2D

    height, width, classes = probability.shape
    # Class by class is its own order, and it wants a photograph that it could write to.
    flat, rgb = np.ascontiguousarray(probability.reshape(-1, classes).T), rgb.copy()

    def run() -> np.ndarray:
        model = DenseCRF2D(width, height, classes)
        model.setUnaryEnergy(-np.log(np.maximum(flat, LEAST)))
        model.addPairwiseGaussian(sxy=SMOOTH_XY, compat=SMOOTH_WEIGHT)
        model.addPairwiseBilateral(sxy=XY, srgb=RGB, rgbim=rgb, compat=WEIGHT)
        return np.array(model.inference(STEPS)).reshape(classes, height, width)

    return run


def ours(probability: np.ndarray, rgb: np.ndarray) -> Callable[[], np.ndarray]:
    """vitnp's, with the same kernels; gives probabilities (classes, height, width)."""
    from vitnp.refine.dense_crf import dense_crf

    kernels = {
        "bilateral_weight": WEIGHT, "bilateral_xy": XY, "bilateral_rgb": RGB,
        "gaussian_weight": SMOOTH_WEIGHT, "gaussian_xy": SMOOTH_XY,
    }  # fmt: skip
    return lambda: np.moveaxis(dense_crf(probability, rgb, steps=STEPS, **kernels), -1, 0)


def checker() -> Callable[[str, np.ndarray], None]:
    """A check that everybody labels the pixels as the first one does.

    Raises
    ------
    WrongAnswer
        From the check.
    """
    first: list[np.ndarray] = []

    def check(name: str, found: np.ndarray) -> None:
        labels = found.argmax(axis=0)
        first.append(labels)
        agreement = float((labels == first[0]).mean())
        if not agreement >= AGREEMENT:
            raise WrongAnswer(f"{name} labels {1 - agreement:.2%} of the pixels differently")

    return check
