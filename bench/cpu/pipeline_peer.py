"""The whole method on one page, assembled from onnxruntime, scikit-learn, SciPy and pydensecrf2.

:meth:`Pipeline.__call__` does to a photograph what ``vitnp.segment_image`` does, step by step, in a dozen lines. This
module imports nothing of vitnp and runs as a command, so that its cold start can be timed too. Network and collection
come from a folder that :func:`bench.cpu.pipeline_bundle.write_bundle` fills::

    python -m bench.cpu.pipeline_peer PHOTOGRAPH BUNDLE OUT THREADS
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

# Image level: numbers of clusters, starts and iterations of k-means; percentile at which attention is clipped;
# threshold of foreground clusters; temperature of the sigmoid.
N_CLUSTERS, STARTS, ITERATIONS = (2, 3, 4, 6), 2, 15
PERCENTILE, THRESHOLD, TEMPERATURE = 95.0, 0.4, 0.05
# Cleaning: components smaller than these shares of the largest one and of the image are capped at a score below 0.5.
MIN_SHARE_OF_LARGEST, MIN_SHARE_OF_IMAGE, CAP = 0.2, 0.01, 0.25
# CRF: standard deviations in pixels and gray levels, weight, steps, smallest probability.
XY, RGB, WEIGHT, STEPS, MIN_PROBABILITY = 50.0, 5.0, 5.0, 5, 1e-6


class FittedLevel(NamedTuple):
    """A level that was fitted on a collection: k-means for several numbers of clusters.

    Attributes
    ----------
    temperature : () float array
        Softness of the assignment to clusters.
    centroids : list of (K, D) float32
        Unit centroids of each k-means.
    shares : list of (K,) float32
        Share of foreground in each cluster.
    """

    temperature: np.ndarray
    centroids: list[np.ndarray]
    shares: list[np.ndarray]


class Pipeline:
    """Hold network and collection in memory, and segment a photograph when called.

    Parameters
    ----------
    bundle : path
        Folder with ``network.onnx`` and ``collection.npz``.
    n_threads : int
        Threads of the network.
    """

    def __init__(self, bundle: str | os.PathLike[str], n_threads: int):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = n_threads
        options.log_severity_level = 3
        network = str(Path(bundle) / "network.onnx")
        self.session = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
        self.height, self.width = self.session.get_inputs()[0].shape[2:]
        with np.load(Path(bundle) / "collection.npz") as arrays:
            stored = dict(arrays)
        self.mean, self.std, self.centers = stored["mean"], stored["std"], stored["centers"]
        self.grid = self.height // int(stored["patch"]), self.width // int(stored["patch"])
        self.dataset = read_level(stored, "dataset")
        self.categories = [read_level(stored, f"category.{index}") for index in range(len(self.centers))]

    def __call__(self, photograph: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
        """Segment a photograph; return its pixels, (height, width, 3) uint8, and its mask, (height, width) bool."""
        with Image.open(photograph) as picture:
            rgb = np.asarray(picture.convert("RGB"))
        keys, attention, cls = self.extract(rgb)
        keys /= np.linalg.norm(keys, axis=1, keepdims=True)
        category = self.categories[int((self.centers @ cls).argmax())]
        levels = [
            image_level(keys, attention, self.grid),
            fitted_level(keys, self.dataset),
            fitted_level(keys, category),
        ]
        score = clean(np.mean(levels, axis=0).reshape(self.grid))
        return rgb, refine(score, rgb)

    def extract(self, rgb: np.ndarray) -> list[np.ndarray]:
        """Run the network; return keys (N, D), CLS attention (N,) and CLS (D,) of the last block."""
        resized = Image.fromarray(rgb).resize((self.width, self.height), Image.Resampling.BICUBIC)
        images = (np.asarray(resized, np.float32) / np.float32(255) - self.mean) / self.std
        outputs = self.session.run(None, {"images": np.ascontiguousarray(images.transpose(2, 0, 1)[None])})
        return [output[0] for output in outputs]


def image_level(keys: np.ndarray, attention: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Score patches by clusters of the photograph's own unit keys, (N,).

    A cluster is foreground if CLS attends to it and it seldom touches the border.
    """
    from scipy.special import expit
    from sklearn.cluster import KMeans

    attention = np.minimum(attention, np.percentile(attention, PERCENTILE))
    border = np.ones(grid, bool)
    border[1:-1, 1:-1] = False
    scores = []
    for n_clusters in N_CLUSTERS:
        model = KMeans(n_clusters, n_init=STARTS, max_iter=ITERATIONS, tol=0, random_state=0).fit(keys)
        size = np.bincount(model.labels_, minlength=n_clusters)
        attended = np.bincount(model.labels_, attention, n_clusters) / size / attention.mean()
        bordering = np.bincount(model.labels_, border.ravel(), n_clusters) / size / border.mean()
        objectness = np.log(attended + 1e-3) - np.log(bordering + 0.1)
        foreground = objectness > THRESHOLD
        if not foreground.any():
            foreground[objectness.argmax()] = True
        elif foreground.all():
            foreground[objectness.argmin()] = False
        centers = model.cluster_centers_ / np.linalg.norm(model.cluster_centers_, axis=1, keepdims=True)
        cosine = keys @ centers.T
        margin = cosine[:, foreground].max(axis=1) - cosine[:, ~foreground].max(axis=1)
        scores.append(expit(margin / TEMPERATURE))
    return np.mean(scores, axis=0)


def fitted_level(keys: np.ndarray, level: FittedLevel) -> np.ndarray:
    """Score patches by the share of foreground in the fitted clusters that they belong to, (N,)."""
    from scipy.special import softmax

    scores = [
        softmax(keys @ centroids.T / level.temperature, axis=1) @ shares
        for centroids, shares in zip(level.centroids, level.shares)
    ]
    return np.mean(scores, axis=0)


def clean(score: np.ndarray) -> np.ndarray:
    """Cap the score of small foreground components below 0.5, (rows, columns)."""
    from scipy import ndimage

    labels, count = ndimage.label(score > 0.5, np.ones((3, 3)))
    if count < 2:
        return score
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    small = sizes < max(MIN_SHARE_OF_LARGEST * sizes.max(), MIN_SHARE_OF_IMAGE * score.size)
    small[0] = False
    return np.where(small[labels], np.minimum(score, CAP), score)


def refine(score: np.ndarray, rgb: np.ndarray) -> np.ndarray:
    """Refine a score with a CRF at half the photograph's size, enlarge the result bilinearly, and return a bool mask.

    vitnp does one step more: it enlarges along the photograph's edges.
    """
    from pydensecrf.densecrf import DenseCRF2D

    full = rgb.shape[1], rgb.shape[0]
    width, height = (max(1, round(side / 2)) for side in full)
    half = np.array(Image.fromarray(rgb).resize((width, height), Image.Resampling.BICUBIC))  # must be writable
    enlarged = Image.fromarray(score.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    foreground = np.clip(np.asarray(enlarged), 0, 1)
    unary = -np.log(np.maximum(np.stack([1 - foreground, foreground]), MIN_PROBABILITY)).reshape(2, -1)
    crf = DenseCRF2D(width, height, 2)
    crf.setUnaryEnergy(unary)
    crf.addPairwiseBilateral(sxy=XY, srgb=RGB, rgbim=half, compat=WEIGHT)
    soft = np.array(crf.inference(STEPS))[1].reshape(height, width)
    return np.asarray(Image.fromarray(soft).resize(full, Image.Resampling.BILINEAR)) >= 0.5


def overlay(rgb: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Dim everything but the mask, and draw an outline around it."""
    from scipy import ndimage

    dimmed = np.where(mask[:, :, None], rgb, rgb // 2)
    dimmed[ndimage.binary_dilation(mask, iterations=2) & ~mask] = 255, 200, 0
    return dimmed


def read_level(stored: dict[str, np.ndarray], name: str) -> FittedLevel:
    """Read a level from the arrays of ``collection.npz``, where its arrays are called ``NAME.INDEX.centroids``."""
    count = sum(key.startswith(f"{name}.") and key.endswith(".shares") for key in stored)
    return FittedLevel(
        stored[f"{name}.temperature"],
        [stored[f"{name}.{index}.centroids"] for index in range(count)],
        [stored[f"{name}.{index}.shares"] for index in range(count)],
    )


def main(photograph: str, bundle: str, out: str, n_threads: str) -> None:
    """Write the photograph's mask and overlay, as ``python -m vitnp.segment`` does."""
    rgb, mask = Pipeline(bundle, int(n_threads))(photograph)
    stem = Path(out) / Path(photograph).stem
    Image.fromarray(mask.view(np.uint8) * np.uint8(255)).save(f"{stem}_mask.png", compress_level=6)
    Image.fromarray(overlay(rgb, mask)).save(f"{stem}_overlay.png", compress_level=3)


if __name__ == "__main__":
    main(*sys.argv[1:])
