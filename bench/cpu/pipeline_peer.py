"""What vitnp does to a photograph, assembled from onnxruntime, scikit-learn, SciPy and pydensecrf2.

Step for step the same: decoding, the network's size, keys and CLS of the last block, clusters of the photograph's own
patches, the collection's levels, cleaning, a CRF, a mask and an overlay written. It imports nothing of vitnp and runs
as a command of its own, so that a cold start can be timed too; it reads a folder that :func:`write_bundle` has filled.

    python -m bench.pipeline_peer PHOTOGRAPH BUNDLE OUT THREADS
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image

# The method's constants, as vitnp has them.
CLUSTERS, STARTS, ITERATIONS = (2, 3, 4, 6), 2, 15
THRESHOLD, TEMPERATURE, PERCENTILE = 0.4, 0.05, 95.0
SMALL, TINY, CAP = 0.2, 0.01, 0.25
XY, RGB, WEIGHT, STEPS, LEAST = 50.0, 5.0, 5.0, 5, 1e-6


class Pipeline:
    """The pipeline, warm: network and collection are in memory.

    Parameters
    ----------
    bundle : path
        Folder with ``network.onnx`` and ``collection.npz``.
    threads : int
    """

    def __init__(self, bundle: str | os.PathLike[str], threads: int):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        network = str(Path(bundle) / "network.onnx")
        self._session = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
        self._pixels = tuple(self._session.get_inputs()[0].shape[2:])  # height, width
        with np.load(Path(bundle) / "collection.npz") as arrays:
            self._collection = dict(arrays)

    def __call__(self, photograph: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
        """The photograph (height, width, 3) uint8 and its mask, bool."""
        with Image.open(photograph) as picture:
            rgb = np.asarray(picture.convert("RGB"))
        keys, attention, cls = self._features(rgb)
        keys /= np.linalg.norm(keys, axis=1, keepdims=True)
        grid = self._grid
        levels = [image_level(keys, attention, grid), self._level(keys, "dataset")]
        category = int((self._collection["centres"] @ cls).argmax())
        levels.append(self._level(keys, f"category.{category}"))
        score = clean(np.mean(levels, axis=0).reshape(grid))
        return rgb, refine(score, rgb)

    @property
    def _grid(self) -> tuple[int, int]:
        patch = int(self._collection["patch"])
        return self._pixels[0] // patch, self._pixels[1] // patch

    def _features(self, rgb: np.ndarray) -> list[np.ndarray]:
        """Keys (N, D), CLS attention (N,) and CLS (D,)."""
        height, width = self._pixels
        small = np.asarray(Image.fromarray(rgb).resize((width, height), Image.Resampling.BICUBIC), np.float32)
        images = (small / np.float32(255) - self._collection["mean"]) / self._collection["std"]
        found = self._session.run(None, {"images": np.ascontiguousarray(images.transpose(2, 0, 1)[None])})
        return [array[0] for array in found]

    def _level(self, keys: np.ndarray, name: str) -> np.ndarray:
        """What a fitted level says of the patches, (N,)."""
        from scipy.special import softmax

        answers, stored = [], self._collection
        for index in range(sum(key.startswith(f"{name}.") and key.endswith(".shares") for key in stored)):
            cosine = keys @ stored[f"{name}.{index}.centroids"].T
            answers.append(softmax(cosine / stored[f"{name}.temperature"], axis=1) @ stored[f"{name}.{index}.shares"])
        return np.mean(answers, axis=0)


def image_level(keys: np.ndarray, attention: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Soft foreground by the photograph's own patches, (N,): clusters of unit keys, by attention and border."""
    from scipy.special import expit
    from sklearn.cluster import KMeans

    attention = np.minimum(attention, np.percentile(attention, PERCENTILE))
    border = np.ones(grid, bool)
    border[1:-1, 1:-1] = False
    answers = []
    for clusters in CLUSTERS:
        model = KMeans(clusters, n_init=STARTS, max_iter=ITERATIONS, tol=0, random_state=0).fit(keys)
        size = np.bincount(model.labels_, minlength=clusters)
        attended = np.bincount(model.labels_, attention, clusters) / size / attention.mean()
        bordering = np.bincount(model.labels_, border.ravel(), clusters) / size / border.mean()
        score = np.log(attended + 1e-3) - np.log(bordering + 0.1)
        foreground = score > THRESHOLD
        if not foreground.any():
            foreground[score.argmax()] = True
        elif foreground.all():
            foreground[score.argmin()] = False
        centers = model.cluster_centers_ / np.linalg.norm(model.cluster_centers_, axis=1, keepdims=True)
        cosine = keys @ centers.T
        margin = cosine[:, foreground].max(axis=1) - cosine[:, ~foreground].max(axis=1)
        answers.append(expit(margin / TEMPERATURE))
    return np.mean(answers, axis=0)


def clean(score: np.ndarray) -> np.ndarray:
    """Small islands of foreground capped below a half, (rows, columns)."""
    from scipy import ndimage

    labels, count = ndimage.label(score > 0.5, np.ones((3, 3)))
    if count < 2:
        return score
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    small = sizes < max(SMALL * sizes.max(), TINY * score.size)
    small[0] = False
    return np.where(small[labels], np.minimum(score, CAP), score)


def refine(score: np.ndarray, rgb: np.ndarray) -> np.ndarray:
    """The mask at full size, bool: a CRF of two classes at half the photograph's size, enlarged bilinearly.

    That's a step less than vitnp takes, whose map follows the photograph's edges on the way up.
    """
    from pydensecrf.densecrf import DenseCRF2D

    full = rgb.shape[1], rgb.shape[0]
    width, height = (max(1, round(side / 2)) for side in full)
    small = np.array(Image.fromarray(rgb).resize((width, height), Image.Resampling.BICUBIC))  # it wants to write there
    soft = Image.fromarray(score.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    foreground = np.clip(np.asarray(soft), 0, 1)
    unary = -np.log(np.maximum(np.stack([1 - foreground, foreground]), LEAST)).reshape(2, -1)
    model = DenseCRF2D(width, height, 2)
    model.setUnaryEnergy(unary)
    model.addPairwiseBilateral(sxy=XY, srgb=RGB, rgbim=small, compat=WEIGHT)
    found = np.array(model.inference(STEPS))[1].reshape(height, width)
    return np.asarray(Image.fromarray(found).resize(full, Image.Resampling.BILINEAR)) >= 0.5


def overlay(rgb: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The photograph with everything but the mask dimmed, and an outline around it."""
    from scipy import ndimage

    shown = np.where(mask[:, :, None], rgb, rgb // 2)
    shown[ndimage.binary_dilation(mask, iterations=2) & ~mask] = 255, 200, 0
    return shown


def write_bundle(folder: Path, vit, collection, photograph: Path) -> None:
    """Fill a folder with the network and the collection of vitnp, in the peers' own formats.

    Parameters
    ----------
    folder : path
    vit : vitnp.vit.model.ViT
    collection : vitnp.method.collection.Collection
    photograph : path
        The network is made for the size of this one.
    """
    from bench.cpu.vit_peers import onnx_model
    from vitnp.io import decode, preprocess
    from vitnp.vit.pos_embed import resample_abs_pos_embed

    config, rgb = vit.config, decode.read_image(photograph)
    (height, width), _ = preprocess.network_size(*rgb.shape[:2], patch=config.patch)
    grid = height // config.patch, width // config.patch
    table = vit.weights["pos_embed"][0]
    patches = resample_abs_pos_embed(table[1:].reshape(*config.grid, -1), grid, config.pos_embed)
    weights = {**vit.weights, "pos_embed": np.concatenate([table[:1], patches])[None]}
    (folder / "network.onnx").write_bytes(onnx_model(config, weights, grid, 1, features=True))

    fitted = {"dataset": collection.dataset}
    fitted |= {f"category.{index}": level for index, level in enumerate(collection.categories)}
    arrays = {"patch": config.patch, "centres": collection.centers}
    arrays |= {name: np.array(getattr(config, name), np.float32) for name in ("mean", "std")}
    for name, level in fitted.items():
        arrays[f"{name}.temperature"] = np.float32(level.temperature)
        for index, (centroids, shares) in enumerate(zip(level.centroids, level.shares)):
            arrays[f"{name}.{index}.centroids"], arrays[f"{name}.{index}.shares"] = centroids, shares
    np.savez(folder / "collection.npz", **arrays)


def main(photograph: str, bundle: str, out: str, threads: str) -> None:
    """Write the photograph's mask and overlay, as ``python -m vitnp.segment`` does."""
    rgb, mask = Pipeline(bundle, int(threads))(photograph)
    stem = Path(out) / Path(photograph).stem
    Image.fromarray(mask.view(np.uint8) * np.uint8(255)).save(f"{stem}_mask.png", compress_level=6)
    Image.fromarray(overlay(rgb, mask)).save(f"{stem}_overlay.png", compress_level=3)


if __name__ == "__main__":
    main(*sys.argv[1:])
