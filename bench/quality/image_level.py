"""Mean IoU of the image level's masks over several seeds, on photographs with true masks."""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from bench import record
from vitnp import load_vit
from vitnp.cli import arguments, shared
from vitnp.errors import ImageError
from vitnp.evaluate.data.pairs import match_pairs
from vitnp.evaluate.saliency import mean_scores, score_pairs


def main(argv: list[str] | None = None) -> int:
    """Print scores by seed with mean and deviation, and keep them in bench/results/quality-NAME.json."""
    made = argparse.ArgumentParser(prog="python -m bench quality", description=__doc__)
    made.add_argument("images", type=Path)
    made.add_argument("masks", type=Path)
    made.add_argument("--model", nargs="+", default=["auto"], help="one or more checkpoints")
    made.add_argument("--seeds", type=arguments.positive, default=3, help="how many, from 0 (3)")
    made.add_argument("--refine", nargs="+", default=["solver"], help="one or more of solver, guided, none")
    made.add_argument("--name", help="of the set, for the record (the folder's own)")
    args = made.parse_args(argv)

    pairs, _ = match_pairs(args.images, args.masks)
    name = args.name or args.images.resolve().parent.name
    rows = []
    for model in args.model:
        vit = load_vit(model)
        for refine in args.refine:
            means = [_mean(pairs, vit, seed=seed, refine=refine) for seed in range(args.seeds)]
            by_metric = {field: [getattr(mean, field) for mean in means] for field in means[0]._fields}
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


def _mean(pairs, vit, **options):
    """Mean scores over a set; a photograph that fails, fails the benchmark."""
    outcomes = list(score_pairs(pairs, vit, **options, collection=None))
    for outcome in outcomes:
        if isinstance(outcome, ImageError):
            raise outcome
    return mean_scores(outcomes)
