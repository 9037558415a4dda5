"""Measure how similar edited copies of a photograph are to it, and how similar different photographs are.

For each kind of vector (``--of``) and each edit: quantiles of the cosine of a copy to its original, and the share of
copies above the threshold in use. Beside them, the cosine of each photograph to the nearest one among the others of all
sets: what is above the threshold there is wrong, unless the set has duplicates of its own.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from bench import record
from vitnp import find_photographs, load_vit
from vitnp.cli import arguments, shared
from vitnp.options import DESCRIBED, Settings
from vitnp.retrieval.describe import Run, describe
from vitnp.retrieval.descriptor import Describer
from vitnp.retrieval.duplicates import THRESHOLD
from vitnp.retrieval.index import Index
from vitnp.vit.model import ViT

QUANTILES = (0.01, 0.05, 0.5)

Edit = Callable[[Image.Image], Image.Image]


def recompressed(quality: int) -> Edit:
    """Return the edit that saves a photograph as JPEG."""

    def edit(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer).convert("RGB")

    return edit


def resized(scale: float) -> Edit:
    """Return the edit that scales a photograph."""
    return lambda image: image.resize(
        (max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.LANCZOS
    )


def cropped(share: float) -> Edit:
    """Return the edit that cuts a share of width and height from each side."""

    def edit(image: Image.Image) -> Image.Image:
        x, y = round(image.width * share), round(image.height * share)
        return image.crop((x, y, image.width - x, image.height - y))

    return edit


def brighter(factor: float) -> Edit:
    """Return the edit that multiplies values."""
    return lambda image: ImageEnhance.Brightness(image).enhance(factor)


EDITS: dict[str, Edit] = {
    "JPEG, quality 50": recompressed(50),
    "JPEG, quality 20": recompressed(20),
    "75 % of the size": resized(0.75),
    "half the size": resized(0.5),
    "cropped by 2 % a side": cropped(0.02),
    "cropped by 5 % a side": cropped(0.05),
    "cropped by 10 % a side": cropped(0.1),
    "mirrored": ImageOps.mirror,
    "30 % brighter": brighter(1.3),
    "30 % darker": brighter(0.7),
}


def main(argv: list[str] | None = None) -> int:
    """Print a table for each kind of vector, and write bench/results/copies-KIND.json."""
    parser = argparse.ArgumentParser(prog="python -m bench copies", description=__doc__.partition("\n\n")[0])
    parser.add_argument("folders", type=Path, nargs="+", metavar="IMAGES", help="folders of photographs")
    parser.add_argument("--model", default="auto", help="checkpoint (the built-in one)")
    parser.add_argument("--of", nargs="+", choices=DESCRIBED, default=DESCRIBED, help="kinds of vectors (all)")
    parser.add_argument("--every", type=arguments.number(1), default=2, help="edit every Nth photograph (2)")
    parser.add_argument("--threads", type=arguments.number(1), metavar="N", help="threads (all cores)")
    args = parser.parse_args(argv)
    vit = load_vit(args.model)
    images = [_read(photograph.path) for photograph in find_photographs(args.folders)]
    edited = images[:: args.every]
    run = Run(n_threads=args.threads)
    facts = {
        "model": vit.name, "sha256": vit.sha256, "photographs": len(images), "edited": len(edited),
        "sets": [folder.parent.name for folder in args.folders],
    }  # fmt: skip
    for kind in args.of:
        threshold = THRESHOLD[kind]
        originals = vectors(vit, kind, images, run)
        cosines = originals @ originals.T
        np.fill_diagonal(cosines, -1)
        nearest = cosines.max(axis=1)
        others = {**_quantiles(nearest, (0.5, 0.95, 0.99, 1)), "above": int((nearest >= threshold).sum())}
        print(f"{kind}, threshold {threshold}\n  {'nearest other':<24}{others}", flush=True)
        rows: dict[str, Any] = {}
        for name, edit in EDITS.items():
            copies = vectors(vit, kind, [edit(image) for image in edited], run)
            similarity = np.einsum("nd,nd->n", copies, originals[:: args.every])
            rows[name] = {
                **_quantiles(similarity, QUANTILES),
                "found": round(float((similarity >= threshold).mean()), 4),
            }
            print(f"  {name:<24}{rows[name]}", flush=True)
        path = record.write(f"copies-{kind}", {**facts, "threshold": threshold, "others": others, "copies": rows})
        print(f"written to {path}", flush=True)
    return shared.EXIT_OK


def vectors(vit: ViT, kind: str, images: Sequence[Image.Image], run: Run) -> np.ndarray:
    """Return the vectors of photographs, (N, D) float64 of length 1."""
    describer = Describer.create(vit, kind, Settings())
    described = describe(images, describer, Index(describer), run)
    return described.index.vectors[described.rows].astype(np.float64)


def _read(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _quantiles(values: np.ndarray, quantiles: Sequence[float]) -> dict[str, float]:
    return {f"{quantile:g}": round(float(np.quantile(values, quantile)), 4) for quantile in quantiles}
