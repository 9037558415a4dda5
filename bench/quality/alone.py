"""Mean IoU of photographs each by itself, without and with a fitted collection, beside that of the whole set fitted together.

The features are computed once and shared; what each photograph gets is what `python -m vitnp.segment` gives it with `--levels image`,
`--levels each` and `--levels all`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np

from bench import record
from vitnp import load_vit
from vitnp.cli import arguments, shared
from vitnp.errors import UsageError
from vitnp.evaluate.data.pairs import Pair, match_pairs, read_truth
from vitnp.evaluate.metrics.saliency import iou
from vitnp.features.spec import FeatureSpec
from vitnp.features.store import FeatureStore
from vitnp.features.stream import extract_to_store
from vitnp.method import agreement, cleaning
from vitnp.method.collection import Collection
from vitnp.pipeline import resolve_collection
from vitnp.refine import refine
from vitnp.result import HALF, Segmentation
from vitnp.segmenter import Segmenter
from vitnp.vit.model import ViT

WAYS = ("image level", "with the collection", "whole set")


def main(argv: list[str] | None = None) -> int:
    """Print the three means and how much of the whole set's gain the collection has; keep them in bench/results/alone-NAME.json."""
    made = argparse.ArgumentParser(prog="python -m bench alone", description=__doc__.splitlines()[0])
    made.add_argument("images", type=Path)
    made.add_argument("masks", type=Path)
    made.add_argument("--model", default="auto")
    made.add_argument("--collection", default="auto", help="a file of --fit-to or of fit_collection (the built-in one)")
    made.add_argument("--seeds", type=arguments.positive, default=3, help="how many, from 0 (3)")
    made.add_argument("--name", help="of the set, for the record (the folder's own)")
    made.add_argument("--cache", type=Path, help="folder that keeps features for the next run")
    args = made.parse_args(argv)

    pairs, _ = match_pairs(args.images, args.masks)
    vit = load_vit(args.model)
    collection, reason = resolve_collection(args.collection, vit)
    if collection is None:
        raise UsageError(
            f"there is no collection to compare: {reason or 'none is asked for'}; name one with --collection FILE"
        )
    name = args.name or args.images.resolve().parent.name
    with tempfile.TemporaryDirectory() as folder:
        scores = np.array(
            [_scores(pairs, vit, collection, seed, args.cache or Path(folder)) for seed in range(args.seeds)]
        )
    means = dict(zip(WAYS, scores.mean(axis=(0, 2)).tolist()))
    image, with_collection, whole = means.values()
    share = (with_collection - image) / (whole - image)
    by_seed = dict(zip(WAYS, scores.mean(axis=2).T.tolist()))
    print(f"{name}, {len(pairs)} photographs, {vit.name}, {args.seeds} seeds")
    for way, mean in means.items():
        print(f"  {way:<20}{mean:.4f}  (seeds {', '.join(f'{value:.4f}' for value in by_seed[way])})")
    print(f"  the collection has {share:.0%} of the whole set's gain")
    path = record.write(
        f"alone-{name}-{vit.name}",
        {"images": len(pairs), "model": vit.name, "sha256": vit.sha256, "collection": collection.digest,
         "fitted_on": collection.parameters["photographs"], "iou": means, "iou_by_seed": by_seed, "share_of_gain": share,
         "deviation": {way: statistics.stdev(values) if len(values) > 1 else 0.0 for way, values in by_seed.items()}},
    )  # fmt: skip
    print(f"written to {path}")
    return shared.EXIT_OK


def _scores(pairs: list[Pair], vit: ViT, collection: Collection, seed: int, cache: Path) -> np.ndarray:
    """IoU by way and photograph, (3, n); a photograph that fails, fails the benchmark."""
    photographs = [pair.image for pair in pairs]
    store = FeatureStore(cache, FeatureSpec.of(vit, regions=False))
    extraction = extract_to_store(photographs, vit, store)
    for error in extraction.failures.values():
        raise error
    found = np.zeros((len(WAYS), len(pairs)))

    def observe(index: int, whole: Segmentation) -> None:
        entry = store.entry(extraction.hashes[index])
        truth = read_truth(pairs[index].mask, whole.mask.shape)
        own = whole.levels[0]
        score = agreement.combine_levels(collection.levels(entry.unit, (own, own), collection.category_of(entry.cls)))
        masks = [_mask(own, whole, cleaning.CleaningConfig()), _mask(score, whole, collection.cleaning), whole.mask]
        found[:, index] = [iou(mask, truth) for mask in masks]

    Segmenter(vit, seed=seed, cache=cache).fit(photographs, observe=observe)
    return found


def _mask(score: np.ndarray, result: Segmentation, rule: cleaning.CleaningConfig) -> np.ndarray:
    """What :func:`vitnp.segment_image` makes of a score of the patches."""
    return refine.refine(cleaning.clean(score.reshape(result.score.shape), rule), result.image) >= HALF


if __name__ == "__main__":
    shared.run(main)
