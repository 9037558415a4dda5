"""Measure memory and time of the command at 100 megapixels, and the IoU of enlarged photographs."""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench import record
from bench.scale.photograph import SAMPLE
from vitnp import load_vit, segment_image
from vitnp.cli import arguments, shared
from vitnp.evaluate.data.pairs import match_pairs, read_truth
from vitnp.evaluate.metrics.saliency import iou

# Pillow refuses pictures of this size by default.
Image.MAX_IMAGE_PIXELS = None


def main(argv: list[str] | None = None) -> int:
    """Print the figures, and write them to bench/results/large.json."""
    parser = argparse.ArgumentParser(prog="python -m bench large", description=__doc__)
    parser.add_argument("--photograph", type=Path, default=SAMPLE, help="photograph to enlarge (coffee.jpg)")
    parser.add_argument("--megapixels", type=float, default=100.0, help="size to enlarge it to (100)")
    parser.add_argument(
        "--set", nargs=2, type=Path, metavar=("IMAGES", "MASKS"), help="also score a data set at 12 megapixels"
    )
    parser.add_argument("--every", type=arguments.number(1), default=1, help="use every Nth photograph of the set (1)")
    args = parser.parse_args(argv)

    measured = {"command": _measure_command(args.photograph, args.megapixels)}
    line = (
        "{megapixels:.0f} megapixels: {seconds} s, peak memory {peak_mib} MiB, IoU with the small mask {agreement:.4f}"
    )
    print(line.format(**measured["command"]))
    if args.set:
        measured["set"] = _score_set(*args.set, args.every)
        print("{photographs} photographs: IoU {native:.4f}, at 12 megapixels {enlarged:.4f}".format(**measured["set"]))
    print(f"written to {record.write('large', measured)}")
    return shared.EXIT_OK


def _enlarge(picture: Image.Image, megapixels: float) -> Image.Image:
    factor = (megapixels * 1e6 / (picture.width * picture.height)) ** 0.5
    return picture.resize((round(picture.width * factor), round(picture.height * factor)), Image.Resampling.BICUBIC)


def _measure_command(photograph: Path, megapixels: float) -> dict[str, Any]:
    """Run the command on an enlarged JPEG that is rotated by its EXIF orientation, the most expensive to decode."""
    with tempfile.TemporaryDirectory() as folder:
        big = Path(folder) / "big.jpg"
        exif = Image.Exif()
        exif[0x0112] = 6
        picture = Image.open(photograph).convert("RGB")
        _enlarge(picture.transpose(Image.Transpose.ROTATE_90), megapixels).save(big, quality=90, exif=exif)
        command = [sys.executable, "-m", "vitnp.segment", str(big), "--out", folder, "--json", "--quiet"]
        answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        small = Image.open(Path(folder) / "big_mask.png").resize(picture.size, Image.Resampling.BOX)
        agreement = iou(np.asarray(small) >= 128, segment_image(picture).mask)
    return {
        "megapixels": answer["width"] * answer["height"] / 1e6,
        "seconds": round(sum(answer["seconds"].values()), 2),
        "seconds_by_stage": answer["seconds"],
        "peak_mib": round(peak),
        "agreement": agreement,
    }


def _score_set(images: Path, masks: Path, every: int) -> dict[str, Any]:
    vit = load_vit("auto")
    native, enlarged = [], []
    for pair in match_pairs(images, masks)[0][::every]:
        picture = Image.open(pair.image).convert("RGB")
        truth = read_truth(pair.mask, (picture.height, picture.width))
        native.append(iou(segment_image(picture, vit).mask, truth))
        big = _enlarge(picture, 12)
        large_truth = np.asarray(Image.fromarray(truth).resize(big.size, Image.Resampling.NEAREST))
        enlarged.append(iou(segment_image(big, vit).mask, large_truth))
    return {"photographs": len(native), "native": statistics.mean(native), "enlarged": statistics.mean(enlarged)}
