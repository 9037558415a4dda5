"""Memory and time of a whole collection's run, classes included, on tiny photographs with synthetic features of the usual size.

The network is replaced by one that draws its features: some hundred patches of a photograph, an object's and a ground's, from a few
kinds of each. All the rest is what `python -m vitnp.segment FOLDER --classes 20` does.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from bench import record
from vitnp import ViT, load_vit
from vitnp.cli import arguments, shared
from vitnp.segmenter import Segmenter

# What a run may take: so much for itself, so much more for each photograph and each patch that is fitted on.
FIXED, PER_IMAGE, PER_PATCH, SAMPLED = 2 << 30, 4 << 10, 2 << 10, 60_000

KINDS = 20


class SyntheticViT(ViT):
    """Draws features where a network would compute them; seeded by the photograph, of the built-in network's sizes."""

    def __init__(self) -> None:
        vit = load_vit("auto")
        super().__init__(vit.config, vit.weights, name="synthetic", sha256="0" * 64)
        rng = np.random.default_rng(0)
        self._objects, self._grounds = (
            rng.standard_normal((KINDS, vit.config.width)).astype(np.float32) for _ in range(2)
        )

    def __call__(
        self, images: np.ndarray, want: str | Iterable[str] = ("key",), *, layer: int = -1, stride: int | None = None
    ):
        """As the network's own."""
        parts = [self._one(image, stride) for image in images]
        return {name: np.stack([part[name] for part in parts]) for name in ((want,) if isinstance(want, str) else want)}

    def _one(self, image: np.ndarray, stride: int | None) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(abs(int(image.sum(dtype=np.float64) * 1e3)))
        rows, columns = self.grid(*image.shape[1:], stride)
        kind, ground = rng.integers(KINDS, size=2)
        y, x = np.mgrid[:rows, :columns]
        inside = (np.hypot(y - rows / 2, x - columns / 2) < 0.3 * min(rows, columns)).ravel()
        noise = rng.standard_normal((rows * columns, self.config.width), np.float32)
        key = np.where(inside[:, None], self._objects[kind], self._grounds[ground]) + 0.7 * noise
        cls = self._objects[kind] + 0.5 * noise[0]
        attention = np.repeat((1 + 3 * inside.astype(np.float32))[None], self.config.heads, 0) / 4000
        state = np.stack([cls, cls, cls, cls])
        return {"key": key, "value": key, "cls": cls, "attention": attention, "cls_state": state}


def main(argv: list[str] | None = None) -> int:
    """Print memory and time, compare with what a run may take, and keep them in bench/results/collection.json."""
    made = argparse.ArgumentParser(prog="python -m bench collection", description=__doc__.splitlines()[0])
    made.add_argument("--images", type=arguments.positive, nargs="+", default=[1000, 20_000])
    made.add_argument("--classes", type=arguments.positive, default=20)
    made.add_argument("--alone", type=Path, help=argparse.SUPPRESS)
    args = made.parse_args(argv)
    if args.alone:
        print(json.dumps(_run(args.alone, args.classes)))
        return shared.EXIT_OK

    rows = []
    for images in args.images:
        with tempfile.TemporaryDirectory(prefix="vitnp-bench-") as folder:
            _photographs(Path(folder), images)
            command = [sys.executable, "-m", "bench", "collection", "--alone", folder, "--classes", str(args.classes)]
            answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        row = {"images": images, **json.loads(answer.splitlines()[-1])}
        row["allowed_mib"] = round((FIXED + PER_IMAGE * images + PER_PATCH * SAMPLED) / 2**20)
        rows.append(row)
        print(
            "{images:>7} photographs: peak {peak_mib} MiB (at most {allowed_mib}), {seconds:.0f} s {stages}".format(
                **row
            ),
            flush=True,
        )
    measured: dict[str, object] = {"classes": args.classes, "rows": rows}
    if len(rows) > 1:
        growth = (rows[-1]["peak_mib"] - rows[0]["peak_mib"]) * 1024 / (rows[-1]["images"] - rows[0]["images"])
        measured["growth_kib_per_image"] = round(growth, 2)
        print(f"growth: {growth:.2f} KiB a photograph")
    print(f"written to {record.write('collection', measured)}")
    return shared.EXIT_OK if all(row["peak_mib"] <= row["allowed_mib"] for row in rows) else 1


def _photographs(folder: Path, count: int) -> None:
    """Tiny pictures that differ: the features, not they, are what is measured."""
    rng = np.random.default_rng(1)
    for index in range(count):
        Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize((64, 48)).save(
            folder / f"{index:06}.jpg", quality=80
        )


def _run(folder: Path, classes: int) -> dict[str, object]:
    began = time.perf_counter()
    segmenter = Segmenter(SyntheticViT(), classes).fit(sorted(folder.iterdir()))
    return {
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "seconds": round(time.perf_counter() - began, 1),
        "stages": {stage: round(seconds, 1) for stage, seconds in segmenter.seconds.items()},
        "classes_found": int(segmenter.collection.prototypes.classes.max()) + 1,
    }
