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
from bench.quality.foreground import Photograph, add_paths, name_of, read_photographs
from vitnp import load_vit
from vitnp.cli import arguments, shared
from vitnp.errors import UsageError
from vitnp.features.spec import FeatureSpec
from vitnp.features.store import FeatureStore
from vitnp.features.stream import extract_to_store
from vitnp.method import cleaning
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
    photographs = read_photographs(args.paths)
    vit = load_vit(args.model)
    collection, reason = resolve_collection(args.collection, vit, Settings())
    if collection is None:
        raise UsageError(
            f"a collection is needed, but there is none: {reason or 'none was requested'}; name one with --collection "
            "FILE"
        )
    name = args.name or name_of(args.paths)
    with tempfile.TemporaryDirectory() as folder:
        scores = np.array(
            [_scores(photographs, vit, collection, seed, args.cache or Path(folder)) for seed in range(args.seeds)]
        )
    means = dict(zip(METHODS, scores.mean(axis=(0, 2)).tolist()))
    image, with_collection, whole = means.values()
    share = (with_collection - image) / (whole - image)
    by_seed = dict(zip(METHODS, scores.mean(axis=2).T.tolist()))
    deviations = {method: statistics.stdev(values) if len(values) > 1 else 0.0 for method, values in by_seed.items()}
    errors = dict(zip(METHODS, map(standard_error, scores.mean(axis=0))))
    gain_error = standard_error((scores[:, 1] - scores[:, 0]).mean(axis=0))
    print(f"{name}, {len(photographs)} photographs, {vit.name}, {args.seeds} seeds")
    for method, mean in means.items():
        seeds = ", ".join(f"{value:.4f}" for value in by_seed[method])
        print(f"  {method:<20}{mean:.4f} ± {errors[method]:.4f}  (seeds {seeds})")
    print(f"  the collection adds {with_collection - image:.4f} ± {gain_error:.4f}")
    print(f"  the collection has {share:.0%} of the whole set's gain")
    path = record.write(
        f"alone-{name}-{vit.name}",
        {"images": len(photographs), "model": vit.name, "sha256": vit.sha256, "collection": collection.digest,
         "fitted_on": collection.parameters["photographs"], "iou": means, "iou_by_seed": by_seed,
         "share_of_gain": share, "deviation": deviations, "standard_error": errors, "gain_error": gain_error},
    )  # fmt: skip
    print(f"written to {path}")
    return shared.EXIT_OK


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench alone", description=__doc__.partition("\n\n")[0])
    add_paths(parser)
    parser.add_argument("--model", default="auto", help="checkpoint (the built-in one)")
    parser.add_argument("--collection", default="auto", help="file of a fitted collection (the built-in one)")
    parser.add_argument("--seeds", type=arguments.number(1), default=3, help="number of seeds, from 0 (3)")
    parser.add_argument("--cache", type=Path, help="folder that keeps features for the next run")
    return parser.parse_args(argv)


def standard_error(values: np.ndarray) -> float:
    """Return the standard error of the mean of independent values (n,), at least two."""
    return float(values.std(ddof=1) / len(values) ** 0.5)


def _scores(photographs: list[Photograph], vit: ViT, collection: Collection, seed: int, cache: Path) -> np.ndarray:
    """Return the IoU by method and photograph, (3, n); raise the first error of a photograph."""
    images = [photograph.image for photograph in photographs]
    store = FeatureStore(cache, FeatureSpec.of(vit, regions=False))
    extraction = extract_to_store(images, vit, store)
    for error in extraction.failures.values():
        raise error
    scores = np.zeros((len(METHODS), len(images)))

    def observe(index: int, whole: Segmentation) -> None:
        entry = store.entry(extraction.hashes[index])
        own = whole.levels[0]
        score = collection.combine(collection.levels(entry.unit, (own, own), collection.category_of(entry.cls)))
        masks = [_mask(own, whole, cleaning.CleaningConfig()), _mask(score, whole, collection.cleaning), whole.mask]
        scores[:, index] = [photographs[index].iou(mask) for mask in masks]

    Segmenter(vit, seed=seed, cache=cache).fit(images, observe=observe)
    return scores


def _mask(score: np.ndarray, result: Segmentation, config: cleaning.CleaningConfig) -> np.ndarray:
    """Return the mask that :func:`vitnp.segment_image` makes of a patch score."""
    return refine.refine(cleaning.clean(score.reshape(result.score.shape), config), result.image) >= HALF


if __name__ == "__main__":
    shared.run(main)
