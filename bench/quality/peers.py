"""Compare vitnp with published methods on the same features: LOST, TokenCut, deep spectral methods and FOUND.

Each method finds the object of a photograph in the last block of a ViT, and is re-implemented here in a few lines after
its paper. All methods get the features of :func:`vitnp.features.extract.extract` and the same refinement, so that only
the methods differ. The resulting numbers are not those of the papers.
"""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from vitnp.kernels.threads import pool

from bench import record
from vitnp import __version__
from vitnp.cli import arguments, shared
from vitnp.errors import ImageError, UsageError
from vitnp.evaluate.data.pairs import Pair, match_pairs, read_truth
from vitnp.evaluate.metrics.saliency import iou
from vitnp.evaluate.protocol import score_one_by_one
from vitnp.features.extract import extract
from vitnp.features.record import FeatureRecord
from vitnp.io import decode, preprocess, resample
from vitnp.method import image_level
from vitnp.method.cleaning import clean
from vitnp.refine import refine as refinement
from vitnp.result import HALF
from vitnp.segmenter import Segmenter
from vitnp.vit.model import ViT

# The published threshold comes first. It was chosen for DINO's keys, and similarities between keys of other checkpoints
# have other ranges. So the threshold that scores best is reported too, although finding it requires the true masks.
TOKENCUT_THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6)
FOUND_THRESHOLDS = (0.3, 0.4, 0.5, 0.6)

THREE_LEVELS = "vitnp, three levels"


# --- The methods. Each takes the keys (N, D) of the patches, row by row of the grid, and returns a bool mask (rows,
# columns).


def lost(keys: np.ndarray, grid: tuple[int, int], *, expand: int = 100) -> np.ndarray:
    """Segment by LOST.

    The seed is the patch with the fewest positive correlations. Of the `expand` patches with the fewest, those that
    correlate with the seed vote for all patches that correlate with them. The object is the component around the seed.

    Siméoni et al., "Localizing objects with self-supervised transformers and no labels", BMVC 2021, section 3.
    """
    correlation = keys @ keys.T
    by_degree = np.argsort((correlation > 0).sum(axis=1), kind="stable")
    seed, candidates = by_degree[0], by_degree[:expand]
    similar = candidates[correlation[seed, candidates] > 0]
    return component_around(seed, (correlation[similar].sum(axis=0) > 0).reshape(grid))


def tokencut(keys: np.ndarray, grid: tuple[int, int], *, threshold: float = 0.2) -> np.ndarray:
    """Segment by TokenCut.

    The normalized cut of a graph whose edges are 1 where the cosine exceeds `threshold`, and 1e-5 elsewhere. The
    eigenvector is cut at its mean; the object is the component around its most extreme patch, on that patch's side.

    Wang et al., "Self-supervised transformers for unsupervised object discovery using normalized cut", CVPR 2022,
    section 3.
    """
    unit = _unit(keys)
    cut = second_eigenvector(np.where(unit @ unit.T > threshold, 1.0, 1e-5))
    seed = int(np.abs(cut).argmax())
    side = cut > cut.mean()
    return component_around(seed, (side if side[seed] else ~side).reshape(grid))


def deep_spectral(keys: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Segment by deep spectral methods.

    The normalized cut of a graph whose edges are the positive cosines, cut at zero; the object is the smaller side.

    Melas-Kyriazi et al., "Deep spectral methods", CVPR 2022, section 3.3, without the color affinity, which needs more
    than the features.
    """
    unit = _unit(keys)
    side = second_eigenvector(np.maximum(unit @ unit.T, 0.0)) > 0
    return (~side if 0.5 < side.mean() < 1 else side).reshape(grid)


def found(keys: np.ndarray, attention: np.ndarray, grid: tuple[int, int], *, threshold: float = 0.3) -> np.ndarray:
    """Segment by the coarse step of FOUND.

    The background consists of the patches that are similar to the one that CLS attends to least. Heads that attend to
    few patches get a larger weight. `attention` is (H, N).

    Siméoni et al., "Unsupervised object localization: observing the background to discover objects", CVPR 2023,
    section 3.
    """
    spread = (attention > attention.mean()).mean(axis=1) + 1e-10
    weight = np.log(spread.sum() / spread) if len(spread) > 1 else np.ones(1)  # (H,)
    unit = _unit((keys.reshape(len(keys), len(weight), -1) * weight[:, None]).reshape(len(keys), -1))
    seed = int((weight @ attention).argmin())
    return (unit @ unit[seed] <= threshold).reshape(grid)


def second_eigenvector(affinity: np.ndarray) -> np.ndarray:
    """Solve (D - W) y = lambda D y for the second smallest eigenvalue; returns y, (N,), zero for a single patch.

    Shi and Malik, "Normalized cuts and image segmentation", 2000, equation 6.
    """
    from scipy.linalg import eigh

    if len(affinity) < 2:
        return np.zeros(len(affinity))
    degree = np.maximum(affinity.sum(axis=1, dtype=np.float64), 1e-12)
    # The smallest eigenvalues of I - S are the largest of S = D^-1/2 W D^-1/2. The first eigenvector of S is known. It
    # is moved to the other end of the spectrum, where it can't mix with the second one if the graph is disconnected.
    first = np.sqrt(degree / degree.sum())
    deflated = affinity / np.sqrt(degree[:, None] * degree) - 2 * first[:, None] * first
    _, vectors = eigh(deflated, subset_by_index=[len(degree) - 1] * 2)
    return vectors[:, 0] / np.sqrt(degree)


def repair_outliers(keys: np.ndarray, grid: tuple[int, int], *, deviations: float = 3.5) -> np.ndarray:
    """Replace outlier keys by the mean of their neighbors that are none.

    With many checkpoints a few patches have keys near zero, in random directions. Methods that start from the patch
    least similar to others start from one of them and fail; vitnp doesn't need the repair. Outliers have a norm that is
    more than `deviations` median absolute deviations below the median.
    """
    norm = np.linalg.norm(keys, axis=1)
    median = np.median(norm)
    valid = norm >= median - deviations * np.median(np.abs(norm - median))
    if valid.all():
        return keys
    columns = grid[1]
    repaired = keys.copy()
    for patch in np.flatnonzero(~valid):
        row, column = divmod(patch, columns)
        neighbors = np.zeros(grid, bool)
        neighbors[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = True
        neighbors = neighbors.ravel() & valid
        repaired[patch] = keys[neighbors if neighbors.any() else valid].mean(axis=0)
    return repaired


def component_around(seed: int, mask: np.ndarray) -> np.ndarray:
    """Return the 4-connected component of a mask that contains the seed; empty if the seed is outside."""
    from scipy import ndimage

    labels, _ = ndimage.label(mask)
    own = labels.flat[seed]
    return (labels == own) & (own > 0)


def _unit(keys: np.ndarray) -> np.ndarray:
    return keys / np.maximum(np.linalg.norm(keys, axis=1, keepdims=True), 1e-12)


# --- The comparison


def scores_of(
    features: FeatureRecord, attention: np.ndarray, *, seed: int = 0, repair: bool = True
) -> dict[str, np.ndarray]:
    """Return each method's foreground scores of a photograph by name, (rows, columns) float32 in 0..1.

    Parameters
    ----------
    features : FeatureRecord
    attention : (H, N) float
        CLS attention to the patches, per head.
    seed : int
        Seed of vitnp's image level; the other methods are deterministic.
    repair : bool
        Repair outlier keys for the other methods, see :func:`repair_outliers`.
    """
    grid = features.grid
    keys = repair_outliers(features.keys, grid) if repair else features.keys
    masks = {"LOST": lost(keys, grid), "deep spectral": deep_spectral(keys, grid)}
    for threshold in FOUND_THRESHOLDS:
        masks[f"FOUND coarse, {threshold}"] = found(keys, attention, grid, threshold=threshold)
    for threshold in TOKENCUT_THRESHOLDS:
        masks[f"TokenCut, {threshold}"] = tokencut(keys, grid, threshold=threshold)
    soft, _ = image_level.image_level(features.unit, features.attention, grid, (seed, features.digest))
    ours = {"vitnp, image level": clean(soft.reshape(grid))}
    return {name: mask.astype(np.float32) for name, mask in masks.items()} | ours


def compare_pair(
    pair: Pair, vit: ViT, *, short_side: int | None = None, seed: int = 0, refine: str = "solver", repair: bool = True
) -> dict[str, float]:
    """Compute the IoU of each method on one photograph.

    Raises
    ------
    ImageError
        When the photograph or its mask can't be read, or their sizes differ.
    """
    rgb = decode.read_image(pair.image)
    truth = read_truth(pair.mask, rgb.shape[:2])
    features = extract(rgb, vit, short_side=short_side)
    # `features` contains attention averaged over heads, but FOUND needs it per head.
    batch = preprocess.normalize(resample.downscale(rgb, features.pixels), vit.config.mean, vit.config.std)[None]
    attention = vit(batch, ("attention",))["attention"][0]
    scores = scores_of(features, attention, seed=seed, repair=repair)
    return {name: iou(refinement.refine(score, rgb, method=refine) >= HALF, truth) for name, score in scores.items()}


def compare(
    pairs: Sequence[Pair], vit: ViT, *, n_threads: int = 1, **options: Any
) -> Generator[dict[str, float] | ImageError, None, None]:
    """Yield the result of :func:`compare_pair`, or its ImageError, for each pair in order."""
    yield from score_one_by_one(lambda pair: compare_pair(pair, vit, **options), pairs, n_threads)


def three_levels(pairs: Sequence[Pair], vit: ViT, *, n_threads: int = 1, **options: Any) -> float:
    """Compute the mean IoU of the whole method, fitted on all photographs."""
    segmenter = Segmenter(vit, n_threads=n_threads, **options).fit([pair.image for pair in pairs])
    scores = [iou(mask, read_truth(pair.mask, mask.shape)) for pair, mask in zip(pairs, segmenter.masks)]
    return math.fsum(scores) / len(scores)


def table(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Compute the mean IoU of each method, sorted from the lowest to the highest.

    Of a method's thresholds, only the published one and the best one are kept.
    """
    means = {name: math.fsum(row[name] for row in rows) / len(rows) for name in rows[0]}
    for method, thresholds in (("FOUND coarse", FOUND_THRESHOLDS), ("TokenCut", TOKENCUT_THRESHOLDS)):
        by_threshold = {threshold: means.pop(f"{method}, {threshold}") for threshold in thresholds}
        best = max(by_threshold, key=by_threshold.get)
        means[f"{method}, threshold {thresholds[0]} as published"] = by_threshold[thresholds[0]]
        if best != thresholds[0]:
            means[f"{method}, threshold {best}, best of {len(thresholds)} here"] = by_threshold[best]
    return dict(sorted(means.items(), key=lambda item: item[1]))


def main(argv: list[str] | None = None) -> int:
    """Print the table, and write it to bench/results/peers-NAME.json."""
    args = _parse(argv)
    pairs, _ = match_pairs(args.images, args.masks)
    vit = arguments.load_model(args)
    options = {"short_side": args.short_side, "seed": args.seed, "refine": args.refine or "solver"}
    n_threads = pool.resolve_n_threads(args.n_threads)
    outcomes = compare(pairs, vit, n_threads=n_threads, repair=not args.no_repair, **options)
    rows, scored, failures = [], [], []
    with contextlib.closing(outcomes):
        for pair, outcome in zip(pairs, shared.progress(outcomes, len(pairs), quiet=args.quiet)):
            if isinstance(outcome, ImageError):
                failures.append(outcome)
            else:
                rows.append(outcome)
                scored.append(pair)
    if failures:
        shared.list_failures(failures, len(pairs))
    if not rows:
        raise UsageError(f"none of the {len(pairs)} photographs could be scored; see the reasons above")
    means = table(rows)
    means[THREE_LEVELS] = three_levels(scored, vit, n_threads=n_threads, **options)
    name = args.name or args.images.resolve().parent.name
    measured = {
        "images": len(rows),
        "model": vit.name,
        "sha256": vit.sha256,
        "repair": not args.no_repair,
        **options,
        "iou": means,
    }
    path = record.write(f"peers-{name}", {"vitnp": __version__, **measured})
    if args.json:
        shared.print_json(measured)
    else:
        print(f"{len(rows)} photographs, {vit.name}, refinement: {options['refine']}\n\n{'':<46}mean IoU")
        for title, mean in means.items():
            print(f"{title:<46}{mean:8.3f}")
        shared.say(f"written to {path}", quiet=args.quiet)
    return shared.EXIT_SOME_FAILED if failures else shared.EXIT_OK


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = shared.parser(
        "python -m bench peers",
        "Compare LOST, TokenCut, deep spectral methods, FOUND and vitnp on the same features: mean IoU over "
        "photographs with true masks.",
    )
    parser.add_argument("images", type=Path, metavar="IMAGES", help="folder of photographs")
    parser.add_argument("masks", type=Path, metavar="MASKS", help="folder of their masks")
    arguments.add_options(parser, "network", *arguments.NETWORK)
    arguments.add_options(parser, "method", "short_side", "refine", "seed")
    arguments.add_options(parser, "run", "n_threads", "quiet", "json")
    parser.add_argument("--no-repair", action="store_true", help="don't repair outlier keys for the other methods")
    parser.add_argument("--name", help="name of the data set in the result file (the folder's)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    shared.run(main)
