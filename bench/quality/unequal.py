"""Measure the classes of a co-segmentation set: as it is, made unequal, and on photographs that were not fitted.

Methods that end in k-means divide large classes and join small ones, which a set with equally many photographs of each
category does not reveal. Here each class keeps another number of photographs, from the smallest to the largest in equal
ratios; which class keeps how many, and which photographs, is drawn anew for each subset. A class with fewer photographs
than its number keeps all. Half of the set and of each subset is also fitted without the other half, which gets its
classes from the collection. Every score is the mean IoU with clusters and classes matched one to one.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench import record
from vitnp import load_vit
from vitnp.cli import arguments, shared
from vitnp.errors import UsageError
from vitnp.evaluate.data.label_images import read_coseg
from vitnp.evaluate.data.labeled import LabeledSet
from vitnp.evaluate.semantic import score_classes, score_labels
from vitnp.options import REGIONS
from vitnp.segmenter import Segmenter
from vitnp.vit.model import ViT


def draw_subset(categories: Sequence[str], smallest: int, largest: int, seed: int) -> list[int]:
    """Draw photographs so that categories have from `smallest` to `largest` of them.

    Parameters
    ----------
    categories : sequence of str
        Category of each photograph.
    smallest, largest : int
        Numbers of photographs of the smallest and of the largest category; the others lie between in equal ratios.
    seed : int

    Returns
    -------
    list of int
        Indices of photographs, in order.

    Examples
    --------
    >>> len(draw_subset(["cat"] * 8 + ["dog"] * 8, 2, 8, seed=0))
    10
    """
    rng = np.random.default_rng(seed)
    names = sorted(set(categories))
    counts = rng.permutation(np.geomspace(smallest, largest, len(names)).round().astype(int))
    chosen: list[int] = []
    for name, count in zip(names, counts):
        members = [index for index, category in enumerate(categories) if category == name]
        chosen += rng.choice(members, min(len(members), count), replace=False).tolist()
    return sorted(chosen)


def main(argv: list[str] | None = None) -> int:
    """Print the scores with their standard errors, and write bench/results/unequal-NAME-MODEL.json."""
    args = _parse(argv)
    if args.smallest > args.largest:
        raise UsageError(f"--smallest must be at most --largest, {args.largest}, got {args.smallest}")
    coseg = read_coseg(args.images, args.masks)
    categories = [sample.name.split("/")[0] for sample in coseg.samples]
    vit = load_vit(args.model)
    name = args.name or args.images.resolve().parent.name
    everything = list(range(len(categories)))
    scores: dict[str, list[float]] = {"equal": [], "equal, not fitted": [], "unequal": [], "unequal, not fitted": []}
    with tempfile.TemporaryDirectory() as folder:
        bench = _Bench(coseg, vit, args.regions, args.cache or Path(folder))
        for seed in shared.progress(range(args.subsets), args.subsets, quiet=args.quiet, unit="subset"):
            for kind, chosen in (
                ("equal", everything),
                ("unequal", draw_subset(categories, args.smallest, args.largest, seed)),
            ):
                scores[kind].append(bench.fitted(chosen, seed))
                scores[f"{kind}, not fitted"].append(bench.not_fitted(chosen, seed))
    means = {kind: statistics.fmean(values) for kind, values in scores.items()}
    errors = {kind: _standard_error(values) for kind, values in scores.items()}
    print(f"{name}, {vit.name}, {args.smallest} to {args.largest} a class, {args.subsets} subsets and seeds")
    for kind, mean in means.items():
        print(f"  {kind:<22}{mean:.3f} ± {errors[kind]:.3f}")
    path = record.write(
        f"unequal-{name}-{vit.name}",
        {"images": len(categories), "model": vit.name, "sha256": vit.sha256, "regions": args.regions,
         "smallest": args.smallest, "largest": args.largest, "subsets": args.subsets,
         "miou": means, "standard_error": errors, "miou_by_subset": scores},
    )  # fmt: skip
    print(f"written to {path}")
    return shared.EXIT_OK


class _Bench:
    """The set, and what it is segmented with."""

    def __init__(self, coseg: LabeledSet, vit: ViT, regions: str, cache: Path) -> None:
        self.coseg, self.vit, self.regions, self.cache = coseg, vit, regions, cache

    def fitted(self, chosen: Sequence[int], seed: int) -> float:
        """Return the mean IoU of photographs that are fitted."""
        return score_classes(self._part(chosen), self._segmenter(seed)).scores["miou"]

    def not_fitted(self, chosen: Sequence[int], seed: int) -> float:
        """Return the mean IoU of a random half of photographs, with the collection fitted on the other half."""
        order = np.random.default_rng((seed, 1)).permutation(chosen).tolist()
        half = len(order) // 2
        segmenter = self._segmenter(seed).fit([sample.image for sample in self._part(order[:half]).samples])
        rest = self._part(order[half:])
        labels = [segmenter.predict(sample.image).labels for sample in rest.samples]
        return score_labels(rest, labels, len(self.coseg.classes) - 1).scores["miou"]

    def _segmenter(self, seed: int) -> Segmenter:
        n_classes = len(self.coseg.classes) - 1
        return Segmenter(self.vit, n_classes, regions=self.regions, seed=seed, cache=self.cache)

    def _part(self, chosen: Sequence[int]) -> LabeledSet:
        return LabeledSet(tuple(self.coseg.samples[index] for index in chosen), self.coseg.classes)


def _standard_error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = shared.parser(
        "python -m bench unequal",
        "Measure the classes of a co-segmentation set, as it is, made unequal, and on photographs not fitted.",
        epilog="IMAGES and MASKS contain one folder per category.",
    )
    parser.add_argument("images", type=Path, metavar="IMAGES", help="photographs, in one folder per category")
    parser.add_argument("masks", type=Path, metavar="MASKS", help="their masks, likewise")
    parser.add_argument("--model", default="auto", help="checkpoint (the built-in one)")
    parser.add_argument("--regions", choices=REGIONS, default="image", help="what gets a class (image)")
    parser.add_argument("--smallest", type=arguments.number(1), default=6, metavar="N", help="smallest class (6)")
    parser.add_argument("--largest", type=arguments.number(1), default=48, metavar="N", help="largest class (48)")
    parser.add_argument("--subsets", type=arguments.number(1), default=5, metavar="N", help="subsets and seeds (5)")
    parser.add_argument("--name", help="name of the data set in the result file (the folder's)")
    parser.add_argument("--cache", type=Path, help="folder that keeps features for the next run")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    return parser.parse_args(argv)


if __name__ == "__main__":
    shared.run(main)
