"""Measure memory and time of large collections, classes included, with synthetic features of realistic size.

The network is replaced by one that draws features at random: a few hundred patches per photograph, of an object and a
background, from several kinds of each. All the rest is what ``python -m vitnp.segment FOLDER --classes 20`` does.
"""

from __future__ import annotations

import argparse
import hashlib
import resource
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench import record
from bench.process import run_isolated
from vitnp import ViT, load_vit
from vitnp.cli import arguments, shared
from vitnp.segmenter import Segmenter

# Allowed memory in bytes: a constant, and more per photograph and per patch that the fit samples.
FIXED, PER_IMAGE, PER_PATCH, SAMPLED_PATCHES = 2 << 30, 4 << 10, 2 << 10, 60_000

# Kinds of objects, and of backgrounds.
N_KINDS = 20


class SyntheticViT(ViT):
    """A network that draws its features at random, seeded by the image, with the sizes of the built-in checkpoint."""

    def __init__(self) -> None:
        vit = load_vit("auto")
        super().__init__(vit.config, vit.weights, name="synthetic", sha256="0" * 64)
        rng = np.random.default_rng(0)
        self._objects, self._backgrounds = (
            rng.standard_normal((N_KINDS, vit.config.width)).astype(np.float32) for _ in range(2)
        )

    def __call__(
        self,
        images: np.ndarray,
        features: str | Iterable[str] = ("key",),
        *,
        layer: int = -1,
        stride: int | None = None,
    ) -> dict[str, np.ndarray]:
        """Return the features of images, as :meth:`vitnp.ViT.__call__` does."""
        names = (features,) if isinstance(features, str) else tuple(features)
        drawn = [self._draw(image, stride) for image in images]
        return {name: np.stack([of_image[name] for of_image in drawn]) for name in names}

    def _draw(self, image: np.ndarray, stride: int | None) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(list(hashlib.blake2b(image.tobytes(), digest_size=16).digest()))
        rows, columns = self.grid(*image.shape[1:], stride)
        kind, background = rng.integers(N_KINDS, size=2)
        y, x = np.mgrid[:rows, :columns]
        inside = (np.hypot(y - rows / 2, x - columns / 2) < 0.3 * min(rows, columns)).ravel()
        noise = rng.standard_normal((rows * columns, self.config.width), np.float32)
        key = np.where(inside[:, None], self._objects[kind], self._backgrounds[background]) + 0.7 * noise
        cls = self._objects[kind] + 0.5 * noise[0]
        # Only the ratio of attention inside and outside matters.
        attention = np.repeat((1 + 3 * inside.astype(np.float32))[None], self.config.heads, 0) / 4000
        state = np.stack([cls, cls, cls, cls])  # input of the last block, query, key, value
        return {"key": key, "value": key, "cls": cls, "attention": attention, "cls_state": state}


def main(argv: list[str] | None = None) -> int:
    """Print memory and time, compare memory with the allowed one, and write bench/results/collection.json."""
    parser = argparse.ArgumentParser(prog="python -m bench collection", description=__doc__.partition("\n\n")[0])
    parser.add_argument(
        "--images", type=arguments.number(1), nargs="+", default=[1000, 20_000], metavar="N",
        help="numbers of photographs (1000 20000)",
    )  # fmt: skip
    parser.add_argument("--classes", type=arguments.number(1), default=20, metavar="N", help="number of classes (20)")
    args = parser.parse_args(argv)

    rows = []
    for images in args.images:
        with tempfile.TemporaryDirectory(prefix="vitnp-bench-") as folder:
            write_photographs(Path(folder), images)
            row = {"images": images, **run_isolated(_measure, Path(folder), args.classes)}
        row["allowed_mib"] = round((FIXED + PER_IMAGE * images + PER_PATCH * SAMPLED_PATCHES) / 2**20)
        rows.append(row)
        line = "{images:>7} photographs: peak {peak_mib} MiB (at most {allowed_mib}), {seconds:.0f} s {stages}"
        print(line.format(**row), flush=True)
    measured: dict[str, Any] = {"classes": args.classes, "rows": rows}
    if len(rows) > 1:
        growth = (rows[-1]["peak_mib"] - rows[0]["peak_mib"]) * 1024 / (rows[-1]["images"] - rows[0]["images"])
        measured["growth_kib_per_image"] = round(growth, 2)
        print(f"growth: {growth:.2f} KiB per photograph")
    print(f"written to {record.write('collection', measured)}")
    return shared.EXIT_OK if all(row["peak_mib"] <= row["allowed_mib"] for row in rows) else 1


def write_photographs(folder: Path, count: int) -> None:
    """Write tiny pictures, all different: only their number matters here."""
    rng = np.random.default_rng(1)
    for index in range(count):
        picture = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize((64, 48))
        picture.save(folder / f"{index:06}.jpg", quality=80)


def _measure(folder: Path, classes: int) -> dict[str, Any]:
    began = time.perf_counter()
    segmenter = Segmenter(SyntheticViT(), classes).fit(sorted(folder.iterdir()))
    return {
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "seconds": round(time.perf_counter() - began, 1),
        "stages": {stage: round(seconds, 1) for stage, seconds in segmenter.seconds.items()},
        "classes_found": int(segmenter.collection.prototypes.classes.max()) + 1,
    }
