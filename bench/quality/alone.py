"""Compare photographs segmented with the image level, with a fitted collection, and as a set: mean IoU of each.

These are the results of ``python -m vitnp.segment`` with ``--levels image``, with ``--collection``, and with ``--levels
all``. Features are computed once.
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
from vitnp.method.defaults import resolve_collection
from vitnp.options import Settings
from vitnp.refine import refine
from vitnp.result import HALF, Segmentation
from vitnp.segmenter import Segmenter
from vitnp.vit.model import ViT

METHODS = ("image level", "with the collection", "whole set")


def main(argv: list[str] | None = None) -> int:
    """Print the means and the collection's share of the whole set's gain; write bench/results/alone-NAME.json."""
    args = _parse(argv)
    pairs, _ = match_pairs(args.images, args.masks)
    vit = load_vit(args.model)
    collection, reason = resolve_collection(args.collection, vit, Settings())
    if collection is None:
        raise UsageError(
            f"a collection is needed, but there is none: {reason or 'none was requested'}; name one with --collection "
            "FILE"
        )
    name = args.name or args.images.resolve().parent.name
    with tempfile.TemporaryDirectory() as folder:
        scores = np.array(
            [_scores(pairs, vit, collection, seed, args.cache or Path(folder)) for seed in range(args.seeds)]
        )
    means = dict(zip(METHODS, scores.mean(axis=(0, 2)).tolist()))
    image, with_collection, whole = means.values()
    share = (with_collection - image) / (whole - image)
    by_seed = dict(zip(METHODS, scores.mean(axis=2).T.tolist()))
    deviations = {method: statistics.stdev(values) if len(values) > 1 else 0.0 for method, values in by_seed.items()}
    print(f"{name}, {len(pairs)} photographs, {vit.name}, {args.seeds} seeds")
    for method, mean in means.items():
        print(f"  {method:<20}{mean:.4f}  (seeds {', '.join(f'{value:.4f}' for value in by_seed[method])})")
    print(f"  the collection has {share:.0%} of the whole set's gain")
    path = record.write(
        f"alone-{name}-{vit.name}",
        {"images": len(pairs), "model": vit.name, "sha256": vit.sha256, "collection": collection.digest,
         "fitted_on": collection.parameters["photographs"], "iou": means, "iou_by_seed": by_seed,
         "share_of_gain": share, "deviation": deviations},
    )  # fmt: skip
    print(f"written to {path}")
    return shared.EXIT_OK


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench alone", description=__doc__.partition("\n\n")[0])
    parser.add_argument("images", type=Path, help="folder of photographs")
    parser.add_argument("masks", type=Path, help="folder of their masks")
    parser.add_argument("--model", default="auto", help="checkpoint (the built-in one)")
    parser.add_argument("--collection", default="auto", help="file of a fitted collection (the built-in one)")
    parser.add_argument("--seeds", type=arguments.number(1), default=3, help="number of seeds, from 0 (3)")
    parser.add_argument("--name", help="name of the data set in the result file (the folder's)")
    parser.add_argument("--cache", type=Path, help="folder that keeps features for the next run")
    return parser.parse_args(argv)


def _scores(pairs: list[Pair], vit: ViT, collection: Collection, seed: int, cache: Path) -> np.ndarray:
    """Return the IoU by method and photograph, (3, n); raise the first error of a photograph."""
    photographs = [pair.image for pair in pairs]
    store = FeatureStore(cache, FeatureSpec.of(vit, regions=False))
    extraction = extract_to_store(photographs, vit, store)
    for error in extraction.failures.values():
        raise error
    scores = np.zeros((len(METHODS), len(pairs)))

    def observe(index: int, whole: Segmentation) -> None:
        entry = store.entry(extraction.hashes[index])
        truth = read_truth(pairs[index].mask, whole.mask.shape)
        own = whole.levels[0]
        score = agreement.combine_levels(collection.levels(entry.unit, (own, own), collection.category_of(entry.cls)))
        masks = [_mask(own, whole, cleaning.CleaningConfig()), _mask(score, whole, collection.cleaning), whole.mask]
        scores[:, index] = [iou(mask, truth) for mask in masks]

    Segmenter(vit, seed=seed, cache=cache).fit(photographs, observe=observe)
    return scores


def _mask(score: np.ndarray, result: Segmentation, config: cleaning.CleaningConfig) -> np.ndarray:
    """Return the mask that :func:`vitnp.segment_image` makes of a patch score."""
    return refine.refine(cleaning.clean(score.reshape(result.score.shape), config), result.image) >= HALF


if __name__ == "__main__":
    shared.run(main)
