"""Evaluate the image level on photographs with true masks: mean IoU over several seeds."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import record
from vitnp import ViT, load_vit
from vitnp.cli import arguments, shared
from vitnp.errors import ImageError
from vitnp.evaluate.data.pairs import Pair, match_pairs
from vitnp.evaluate.metrics.saliency import SaliencyScores
from vitnp.evaluate.saliency import mean_scores, score_pairs


def main(argv: list[str] | None = None) -> int:
    """Print scores by seed, and write them to bench/results/quality-NAME.json."""
    parser = argparse.ArgumentParser(prog="python -m bench quality", description=__doc__)
    parser.add_argument("images", type=Path, help="folder of photographs")
    parser.add_argument("masks", type=Path, help="folder of their masks")
    parser.add_argument("--model", nargs="+", default=["auto"], help="one or more checkpoints")
    parser.add_argument("--seeds", type=arguments.number(1), default=3, help="number of seeds, from 0 (3)")
    parser.add_argument("--refine", nargs="+", default=["solver"], help="one or more of solver, guided, none")
    parser.add_argument("--name", help="name of the data set in the result file (the folder's)")
    args = parser.parse_args(argv)

    pairs, _ = match_pairs(args.images, args.masks)
    name = args.name or args.images.resolve().parent.name
    rows = []
    for model in args.model:
        vit = load_vit(model)
        for refine in args.refine:
            means = [_mean(pairs, vit, seed=seed, refine=refine) for seed in range(args.seeds)]
            by_metric = {field: [getattr(mean, field) for mean in means] for field in SaliencyScores._fields}
            rows.append({"model": vit.name, "sha256": vit.sha256, "refine": refine, **by_metric})
            iou = by_metric["iou"]
            print(
                f"{name}: {vit.name}, {refine}: IoU {statistics.mean(iou):.4f} "
                f"(seeds {', '.join(f'{value:.4f}' for value in iou)})",
                flush=True,
            )
    path = record.write(f"quality-{name}", {"images": len(pairs), "seeds": args.seeds, "rows": rows})
    print(f"written to {path}")
    return shared.EXIT_OK


def _mean(pairs: Sequence[Pair], vit: ViT, **options: Any) -> SaliencyScores:
    """Return the mean scores of a data set; raise the first error of a photograph."""
    scores = []
    for outcome in score_pairs(pairs, vit, **options, collection=None):
        if isinstance(outcome, ImageError):
            raise outcome
        scores.append(outcome)
    return mean_scores(scores)
