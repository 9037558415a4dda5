"""Makes crf_2.npz, crf_5.npz and crf_21.npz: what pydensecrf2 says about small synthetic photographs.

Run it in an environment of its own that has pydensecrf2 (made with version 1.1):

    python tests/golden/make_crf.py

Photographs and probabilities are sums of a few waves, so that nothing but the answers needs to be kept.
"""

from __future__ import annotations

import pathlib

import numpy as np

# The constants of the kernels: both, and color alone.
BOTH = {
    "bilateral_weight": 5.0, "bilateral_xy": 20.0, "bilateral_rgb": 10.0, "gaussian_weight": 3.0, "gaussian_xy": 3.0,
}  # fmt: skip
COLOR = {"bilateral_weight": 4.0, "bilateral_xy": 12.0, "bilateral_rgb": 7.0, "gaussian_weight": 0.0}

# classes: height, width, steps, constants
CASES = {2: (60, 80, 10, BOTH), 5: (37, 53, 5, COLOR), 21: (60, 80, 10, BOTH)}


def make_case(classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Make a grainy photograph (H, W, 3) uint8, and probabilities (H, W, classes) float32 that fit it badly."""
    height, width, _, _ = CASES[classes]
    y, x = np.mgrid[:height, :width]
    region = (np.sin(0.11 * x + 0.7 * classes) + np.cos(0.13 * y) > 0.3) + 2 * (x + 2 * y > 130)
    grain = (37 * x + 101 * y + 13 * x * y) % 17
    rgb = np.stack([40 + 50 * region + grain, 200 - 45 * region + grain // 2, 90 + 30 * (region % 2) + x // 4], axis=-1)
    c = np.arange(classes)
    logits = 1.5 * np.sin(0.05 * (1 + c % 7) * x[..., None] + 1.7 * c)
    logits += 1.5 * np.cos(0.06 * (1 + c % 5) * y[..., None] + 0.9 * c)
    logits += np.sin(3.1 * x[..., None] + 2.3 * y[..., None] * (c + 1))
    probability = np.exp(logits)
    probability /= probability.sum(axis=-1, keepdims=True)
    return rgb.astype(np.uint8), probability.astype(np.float32)


def main() -> None:
    from pydensecrf.densecrf import DenseCRF2D

    for classes, (height, width, steps, constants) in CASES.items():
        rgb, probability = make_case(classes)
        crf = DenseCRF2D(width, height, classes)
        crf.setUnaryEnergy(np.ascontiguousarray(-np.log(probability).reshape(-1, classes).T))
        if constants["gaussian_weight"]:
            crf.addPairwiseGaussian(sxy=constants["gaussian_xy"], compat=constants["gaussian_weight"])
        xy, color = constants["bilateral_xy"], constants["bilateral_rgb"]
        crf.addPairwiseBilateral(sxy=xy, srgb=color, rgbim=rgb, compat=constants["bilateral_weight"])
        marginals = np.array(crf.inference(steps)).T.reshape(height, width, classes)
        np.savez_compressed(
            pathlib.Path(__file__).with_name(f"crf_{classes}.npz"),
            labels=marginals.argmax(axis=-1).astype(np.uint8),
            certainty=marginals.max(axis=-1).astype(np.float16),
        )


if __name__ == "__main__":
    main()
