"""Features of a ViT as NumPy arrays: PCA pictures of the keys, and a patch found again in other photographs.

Run it from the checkout, after ``python -m pip install .``::

    python examples/features.py
    python examples/features.py left.jpg right.jpg --model dino_vits8 --out OUT/

The built-in checkpoint is the default; ``--model`` takes any name or file that ``vitnp.load_vit`` takes. Nothing here
needs the segmentation: a ViT is a function from an array of pixels to a dictionary of arrays.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import vitnp

PHOTOGRAPHS = Path(__file__).resolve().parent.parent / "tests" / "photographs"


def main() -> None:
    """Compute the keys of all photographs, color them by PCA, and look for a patch of the first in the others."""
    parser = argparse.ArgumentParser(description="Compute, show and compare the keys of photographs.")
    parser.add_argument(
        "photographs", nargs="*", type=Path, default=[PHOTOGRAPHS / "astronaut.jpg", PHOTOGRAPHS / "camera.jpg"]
    )
    parser.add_argument("--model", default="auto", help="name or file of a checkpoint (the built-in one)")
    parser.add_argument("--out", type=Path, help="folder to write to (a temporary one)")
    args = parser.parse_args()
    out = args.out or Path(tempfile.mkdtemp(prefix="vitnp-features-"))
    out.mkdir(parents=True, exist_ok=True)

    vit = vitnp.load_vit(args.model)
    keys = [compute_keys(vit, photograph) for photograph in args.photographs]
    for photograph, array, colors in zip(args.photographs, keys, pca_colors(keys)):
        np.save(out / f"{photograph.stem}_keys.npy", array)
        picture = Image.fromarray(colors).resize((colors.shape[1] * 16, colors.shape[0] * 16), Image.Resampling.NEAREST)
        picture.save(out / f"{photograph.stem}_pca.png")
        print(f"{photograph.name}: keys {array.shape} {array.dtype}")
    rows, columns, _ = keys[0].shape
    query = (rows // 4, columns // 2)
    print(f"patches most similar to patch {query} of {args.photographs[0].name}:")
    for photograph, array in zip(args.photographs[1:], keys[1:]):
        for (row, column), cosine in nearest_patches(keys[0][query], array, count=3):
            print(f"  {photograph.name}: patch ({row}, {column}), cosine {cosine:.3f}")
    print(f"keys (.npy) and their PCA pictures are in {out}")


def compute_keys(vit: vitnp.ViT, photograph: Path, short_side: int = 320) -> np.ndarray:
    """Return the keys of the last block, (rows, columns, D) float32."""
    rgb = vitnp.read_image(photograph)  # (height, width, 3) uint8, turned upright
    patch, scale = vit.config.patch, short_side / min(rgb.shape[:2])
    height, width = (max(1, round(side * scale / patch)) * patch for side in rgb.shape[:2])
    resized = np.asarray(Image.fromarray(rgb).resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255
    normalized = (resized - np.float32(vit.config.mean)) / np.float32(vit.config.std)
    images = normalized.transpose(2, 0, 1)[None]  # (1, 3, height, width), as in torch
    features = vit(images, features=("key", "cls"))  # also: query, value, token, attention, register
    return features["key"][0].reshape(*vit.grid(height, width), -1)


def pca_colors(keys: list[np.ndarray]) -> list[np.ndarray]:
    """Map the three leading principal components to red, green and blue, with the same colors in all pictures."""
    rows = [array.reshape(-1, array.shape[-1]) for array in keys]
    pca = vitnp.PatchPCA().fit(rows)
    return [pca.colors(each).reshape(*array.shape[:2], 3) for each, array in zip(rows, keys)]


def nearest_patches(query: np.ndarray, keys: np.ndarray, count: int) -> list[tuple[tuple[int, int], float]]:
    """Return the patches of keys (rows, columns, D) that are most similar to a key (D,), with their cosines."""
    unit = keys / np.linalg.norm(keys, axis=-1, keepdims=True)
    cosine = (unit @ (query / np.linalg.norm(query))).ravel()
    nearest = np.argsort(-cosine, kind="stable")[:count]
    return [(divmod(int(patch), keys.shape[1]), float(cosine[patch])) for patch in nearest]


if __name__ == "__main__":
    main()
