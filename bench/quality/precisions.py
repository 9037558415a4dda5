"""Compare other precisions of the CPU with float32: cosine of the keys, and mean IoU of the masks.

Every photograph is segmented by itself, as by ``vitnp.segment_image``, in each precision.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench import record
from bench.quality.alone import standard_error
from bench.quality.foreground import PATHS, Photograph, name_of, read_photographs
from vitnp import load_vit, segment_image
from vitnp.cli import shared
from vitnp.errors import UsageError
from vitnp.features.extract import extract
from vitnp.io.decode import read_image
from vitnp.vit.model import ViT

EXACT = "fp32"


def main(argv: list[str] | None = None) -> int:
    """Print a line per data set, network and precision; write them to bench/results/NAME.json."""
    args = _parse(argv)
    networks = {model: load_vit(model) for model in args.model}
    vits = {
        model: {precision: vit.to(precision=precision) for precision in (EXACT, *args.precision)}
        for model, vit in networks.items()
    }
    rows = []
    for paths in args.set:
        photographs = read_photographs(paths)[:: args.every]
        for model, by_precision in vits.items():
            found = [_measure(photograph, by_precision, args.seeds) for photograph in photographs]
            for precision in args.precision:
                row = {"set": name_of(paths), "images": len(found), "seeds": args.seeds}
                row |= _summary(found, precision)
                rows.append({**row, "model": networks[model].name, "sha256": networks[model].sha256})
                print(_line(rows[-1]), flush=True)
    print(f"written to {record.write(args.name, {'rows': rows})}")
    return shared.EXIT_OK


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench precisions", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--set", type=Path, nargs="+", action="append", metavar="PATH", help=PATHS + "; repeatable")
    parser.add_argument("--model", nargs="+", default=["auto"], help="one or more checkpoints (the built-in one)")
    parser.add_argument("--precision", nargs="+", default=["int8"], help="one or more precisions (int8)")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds of k-means, from 0 (1)")
    parser.add_argument("--every", type=int, default=1, help="only every Nth photograph (1)")
    parser.add_argument("--name", default="int8", help="name of the result file (int8)")
    args = parser.parse_args(argv)
    if not args.set:
        raise UsageError(f"name a data set with --set: {PATHS}")
    return args


def _measure(photograph: Photograph, vits: Mapping[str, ViT], n_seeds: int) -> dict[str, tuple[float, float]]:
    """Return the mean cosine of the keys to those of float32, and the mean IoU of the masks, by precision."""
    rgb = read_image(photograph.image)
    keys = {precision: extract(rgb, vit).keys.astype(np.float64) for precision, vit in vits.items()}
    unit = {precision: rows / np.linalg.norm(rows, axis=1, keepdims=True) for precision, rows in keys.items()}
    return {
        precision: (
            float((unit[precision] * unit[EXACT]).sum(axis=1).mean()),
            statistics.mean(
                photograph.iou(segment_image(photograph.image, vit, seed=seed).mask) for seed in range(n_seeds)
            ),
        )
        for precision, vit in vits.items()
    }


def _summary(found: list[dict[str, tuple[float, float]]], precision: str) -> dict[str, Any]:
    cosine, scores = np.array([row[precision] for row in found]).T
    exact = np.array([row[EXACT][1] for row in found])
    return {
        "precision": precision, "cosine": float(cosine.mean()), "least_cosine": float(cosine.min()),
        "iou": float(scores.mean()), "iou_fp32": float(exact.mean()), "difference": float((scores - exact).mean()),
        "standard_error": standard_error(scores - exact),
    }  # fmt: skip


def _line(row: Mapping[str, Any]) -> str:
    return (
        f"{row['set']}, {row['images']} photographs, {row['model']}, {row['precision']}: cosine {row['cosine']:.5f}, "
        f"IoU {row['iou']:.4f} (fp32 {row['iou_fp32']:.4f}, {row['difference']:+.4f} ± {row['standard_error']:.4f})"
    )


if __name__ == "__main__":
    shared.run(main)
