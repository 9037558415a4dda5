"""The method by hand: keys, image level, dataset level, combination, cleaning, refinement.

Run it from the checkout, after ``python -m pip install .``::

    python examples/expert.py
    python examples/expert.py PHOTOS/*.jpg --out OUT/

This is what ``vitnp.segment_image`` and ``vitnp.Segmenter`` do, without batching, caching and error handling.
Copy it to try a step of your own: another foreground rule, another way to combine the levels, another refinement.
The functions used here are those of ``vitnp/method/`` and ``vitnp/refine/``; docs/method.md explains the steps.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import vitnp
from vitnp.clustering.spherical import spherical_kmeans
from vitnp.features.extract import extract
from vitnp.features.record import FeatureRecord
from vitnp.method.agreement import combine_levels
from vitnp.method.cleaning import clean
from vitnp.method.collection_level import DATASET, fit_level
from vitnp.method.foreground import border_patches, foreground_clusters
from vitnp.method.image_level import image_level
from vitnp.refine.refine import refine

PHOTOGRAPHS = Path(__file__).resolve().parent.parent / "tests" / "photographs"
HALF = 32768  # 0.5 on the 16-bit scale of a refined map


def main() -> None:
    """Run each step on a few photographs and check the image level against ``segment_image``."""
    parser = argparse.ArgumentParser(description="Run the steps of the method one by one.")
    parser.add_argument("photographs", nargs="*", type=Path, default=sorted(PHOTOGRAPHS.glob("*.jpg"))[:3])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder to write to (a temporary one)")
    args = parser.parse_args()
    out = args.out or Path(tempfile.mkdtemp(prefix="vitnp-expert-"))
    out.mkdir(parents=True, exist_ok=True)

    # 1. Features: the keys of the last block and the attention of CLS to each patch. N = rows x columns patches.
    vit = vitnp.load_vit("auto")
    rgb = [vitnp.read_image(photograph) for photograph in args.photographs]
    features = [extract(image, vit) for image in rgb]

    # 2. Image level: cluster the patches of each photograph for several numbers of clusters, and average over them. The
    #    seed includes a digest of the pixels, so that the result does not depend on the order of the files.
    levels = [image_level(f.unit, f.attention, f.grid, (args.seed, f.digest)) for f in features]

    # 3. Dataset level: cluster the patches of all photographs together. A cluster's share of foreground is the mean of
    #    the image level over its patches. (The category level does the same for photographs with similar CLS tokens.)
    all_keys = np.concatenate([f.unit for f in features])
    all_hard = np.concatenate([hard for _, hard in levels])
    dataset = fit_level(all_keys, all_hard, (args.seed, 1), DATASET)

    for photograph, image, f, (soft, _) in zip(args.photographs, rgb, features, levels):
        # 4. Combine the levels, remove small islands, and 5. refine to the edges of the photograph.
        score = combine_levels([soft, dataset.soft_foreground(f.unit)])
        mask = finish(score, f.grid, image)
        Image.fromarray(mask).save(out / f"{photograph.stem}_mask.png")

        # The image level alone is exactly what segment_image does without a fitted collection.
        alone = vitnp.segment_image(photograph, vit, seed=args.seed, collection=None)
        assert np.array_equal(finish(soft, f.grid, image), alone.mask)

        picture = show_clusters(f, n_clusters=4, seed=args.seed)
        Image.fromarray(picture).resize(image.shape[1::-1], Image.Resampling.NEAREST).save(
            out / f"{photograph.stem}_clusters.png"
        )
        print(f"{photograph.name}: image level {alone.mask.mean():.0%}, two levels {mask.mean():.0%} foreground")
    print(f"masks and pictures of the clusters are in {out}")


def finish(score: np.ndarray, grid: tuple[int, int], rgb: np.ndarray) -> np.ndarray:
    """Turn patch scores (N,) in 0..1 into a mask of the photograph's size, (height, width) bool."""
    return refine(clean(score.reshape(grid)), rgb) >= HALF


def show_clusters(features: FeatureRecord, n_clusters: int, seed: int) -> np.ndarray:
    """Return a gray picture (rows, columns) of one clustering: background dark, each foreground cluster brighter.

    The image level has two halves: how patches are clustered, and which clusters are foreground. A foreground rule of
    your own is a function from the clusters of an image to one bool for each.
    """
    clusters = spherical_kmeans(features.unit, n_clusters, np.random.default_rng(seed))
    attention = np.minimum(features.attention, np.percentile(features.attention, 95))
    foreground = foreground_clusters(clusters, attention, border_patches(features.grid), 0.4)
    shades = np.where(foreground, np.linspace(160, 255, n_clusters), np.linspace(0, 60, n_clusters)).astype(np.uint8)
    return shades[clusters.labels].reshape(features.grid)


if __name__ == "__main__":
    main()
