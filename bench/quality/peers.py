"""``python -m bench peers IMAGES MASKS``: what others make of the very same features.

Four published ways to find the object of a photograph in a ViT's last block, each in a few lines after its paper,
beside ours. All of them read what `vitnp.features.extract` gives, and all of them get the same refinement, so that the
table compares ways to read features and nothing else. They are re-implementations: no number here is a paper's.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from vitnp.kernels.threads import blas, pool

from bench import record
from vitnp import __version__
from vitnp.cli import arguments, shared
from vitnp.errors import ImageError, UsageError
from vitnp.evaluate.data.pairs import Pair, match_pairs, read_truth
from vitnp.evaluate.metrics.saliency import iou
from vitnp.features.extract import Features, extract
from vitnp.io import decode, preprocess, resample
from vitnp.method import image_level
from vitnp.method.cleaning import clean
from vitnp.refine import refine as refinement
from vitnp.result import HALF
from vitnp.vit.model import ViT

# The published threshold first. It suits DINO's keys, and keys of other checkpoints are alike in other degrees: so the
# one that scores best on the data at hand is reported too, though nobody who lacks the truth could choose it.
TOKENCUT_THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6)
FOUND_THRESHOLDS = (0.3, 0.4, 0.5, 0.6)

THREE_LEVELS = "vitnp, three levels"


# --- The peers: keys (N, D) of the patches, row by row of the grid -> mask (rows, columns) bool ----------------------


def lost(keys: np.ndarray, grid: tuple[int, int], *, expand: int = 100) -> np.ndarray:
    """LOST: the patch with the fewest positive correlations is the seed; patches like it, found among the `expand`
    least connected ones, vote for all that correlates with them; the seed's connected part is the object.

    Siméoni et al., "Localizing objects with self-supervised transformers and no labels", BMVC 2021, section 3.
    """
    correlation = keys @ keys.T
    by_degree = np.argsort((correlation > 0).sum(axis=1), kind="stable")
    seed, candidates = by_degree[0], by_degree[:expand]
    similar = candidates[correlation[seed, candidates] > 0]
    return _part_around(seed, (correlation[similar].sum(axis=0) > 0).reshape(grid))


def tokencut(keys: np.ndarray, grid: tuple[int, int], *, threshold: float = 0.2) -> np.ndarray:
    """TokenCut: the normalized cut of a graph whose edges are 1 where the cosine exceeds `threshold` and 1e-5
    elsewhere; cut at the mean, the side of the most extreme patch, its connected part.

    Wang et al., "Self-supervised transformers for unsupervised object discovery using normalized cut", CVPR 2022,
    section 3.
    """
    unit = _unit(keys)
    cut = second_eigenvector(np.where(unit @ unit.T > threshold, 1.0, 1e-5))
    seed = int(np.abs(cut).argmax())
    side = cut > cut.mean()
    return _part_around(seed, (side if side[seed] else ~side).reshape(grid))


def deep_spectral(keys: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Deep spectral methods: the same cut with the positive cosines themselves as edges, cut at zero; the smaller side.

    Melas-Kyriazi et al., "Deep spectral methods", CVPR 2022, section 3.3, without the affinity of colors, which isn't
    in the features.
    """
    unit = _unit(keys)
    side = second_eigenvector(np.maximum(unit @ unit.T, 0.0)) > 0
    return (~side if 0.5 < side.mean() < 1 else side).reshape(grid)


def found(keys: np.ndarray, attention: np.ndarray, grid: tuple[int, int], *, threshold: float = 0.3) -> np.ndarray:
    """FOUND's coarse step: all but the background, which is what resembles the patch that CLS attends to least. A head
    counts the more, the fewer patches it attends to; `attention` is (H, N), head by head.

    Siméoni et al., "Unsupervised object localization: observing the background to discover objects", CVPR 2023,
    section 3.
    """
    busy = (attention > attention.mean()).mean(axis=1) + 1e-10
    weight = np.log(busy.sum() / busy) if len(busy) > 1 else np.ones(1)  # (H,)
    unit = _unit((keys.reshape(len(keys), len(weight), -1) * weight[:, None]).reshape(len(keys), -1))
    seed = int((weight @ attention).argmin())
    return (unit @ unit[seed] <= threshold).reshape(grid)


def second_eigenvector(affinity: np.ndarray) -> np.ndarray:
    """The eigenvector of (D - W) y = lambda D y with the second smallest eigenvalue, (N,); zero for a single patch.

    Shi and Malik, "Normalized cuts and image segmentation", 2000, equation 6.
    """
    from scipy.linalg import eigh

    if len(affinity) < 2:
        return np.zeros(len(affinity))
    degree = np.maximum(affinity.sum(axis=1, dtype=np.float64), 1e-12)
    # The smallest eigenvalues of I - S are the largest of S = D^-1/2 W D^-1/2. Its first eigenvector is known; sent to
    # the other end of the spectrum it can't mix with the second, as it would where the graph has several parts.
    first = np.sqrt(degree / degree.sum())
    rest = affinity / np.sqrt(degree[:, None] * degree) - 2 * first[:, None] * first
    _, vectors = eigh(rest, subset_by_index=[len(degree) - 1] * 2)
    return vectors[:, 0] / np.sqrt(degree)


def repair_outliers(keys: np.ndarray, grid: tuple[int, int], *, deviations: float = 3.5) -> np.ndarray:
    """Replace keys of a far too small norm by the mean of their sound neighbors.

    A few patches have keys near zero that point anywhere. Whatever starts from the patch least like the others starts
    from one of them, so without this the peers fail on many checkpoints; ours doesn't need it. Far too small is below
    the median by `deviations` median absolute deviations.
    """
    norm = np.linalg.norm(keys, axis=1)
    median = np.median(norm)
    sound = norm >= median - deviations * np.median(np.abs(norm - median))
    if sound.all():
        return keys
    columns = grid[1]
    repaired = keys.copy()
    for patch in np.flatnonzero(~sound):
        row, column = divmod(patch, columns)
        near = np.zeros(grid, bool)
        near[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = True
        near = near.ravel() & sound
        repaired[patch] = keys[near if near.any() else sound].mean(axis=0)
    return repaired


def _part_around(seed: int, mask: np.ndarray) -> np.ndarray:
    """The 4-connected part of a mask that holds the seed; nothing when the seed is outside."""
    from scipy import ndimage

    labels, _ = ndimage.label(mask)
    own = labels.flat[seed]
    return (labels == own) & (own > 0)


def _unit(keys: np.ndarray) -> np.ndarray:
    return keys / np.maximum(np.linalg.norm(keys, axis=1, keepdims=True), 1e-12)


# --- The comparison --------------------------------------------------------------------------------------------------


def scores_of(
    features: Features, attention: np.ndarray, *, seed: int = 0, repair: bool = True
) -> dict[str, np.ndarray]:
    """What each contender makes of a photograph: foreground scores by name, (rows, columns) float32 in 0..1.

    Parameters
    ----------
    features : Features
    attention : (H, N) float
        CLS attention to the patches, head by head.
    seed : int
        Of the image level; the peers leave nothing to chance.
    repair : bool
        Whether the peers get keys without outliers, see :func:`repair_outliers`.
    """
    grid = features.grid
    keys = repair_outliers(features.facet, grid) if repair else features.facet
    masks = {"LOST": lost(keys, grid), "deep spectral": deep_spectral(keys, grid)}
    for threshold in FOUND_THRESHOLDS:
        masks[f"FOUND coarse, {threshold}"] = found(keys, attention, grid, threshold=threshold)
    for threshold in TOKENCUT_THRESHOLDS:
        masks[f"TokenCut, {threshold}"] = tokencut(keys, grid, threshold=threshold)
    soft, _ = image_level.image_level(features.unit, features.attention, grid, (seed, features.digest))
    ours = {"vitnp, image level": clean(soft.reshape(grid))}
    return {name: mask.astype(np.float32) for name, mask in masks.items()} | ours


def compare_pair(
    pair: Pair, vit: ViT, *, size: int | None = None, seed: int = 0, refine: str = "solver", repair: bool = True
) -> dict[str, float]:
    """IoU of each contender on one photograph.

    Raises
    ------
    ImageError
        When the photograph or its mask can't be read, or their sizes differ.
    """
    rgb = decode.read_image(pair.image)
    truth = read_truth(pair.mask, rgb.shape[:2])
    features = extract(rgb, vit, short_side=size)
    # The features hold the mean over heads; FOUND weighs the heads.
    batch = preprocess.normalize(resample.downscale(rgb, features.pixels), vit.config.mean, vit.config.std)[None]
    attention = vit(batch, ("attention",))["attention"][0]
    scores = scores_of(features, attention, seed=seed, repair=repair)
    return {name: iou(refinement.refine(score, rgb, method=refine) >= HALF, truth) for name, score in scores.items()}


def compare(pairs: Sequence[Pair], vit: ViT, *, count: int = 1, **options) -> Iterator[dict[str, float] | ImageError]:
    """`compare_pair` for many, several at a time, in their order; a photograph that fails gives its error."""

    def attempt(pair: Pair) -> dict[str, float] | ImageError:
        try:
            return compare_pair(pair, vit, **options)
        except ImageError as error:
            return error

    with blas.one_blas_thread():
        yield from pool.map_ordered(attempt, pairs, count)


def three_levels(pairs: Sequence[Pair], vit: ViT, *, count: int = 1, **options) -> float | None:
    """Mean IoU of the whole method, fitted on all the photographs; None where this vitnp doesn't have it."""
    try:
        from vitnp.segmenter import Segmenter
    except ModuleNotFoundError as error:
        if error.name != "vitnp.segmenter":
            raise
        return None
    fitted = Segmenter(vit, n_threads=count, **options).fit([pair.image for pair in pairs])
    scores = [iou(mask, read_truth(pair.mask, mask.shape)) for pair, mask in zip(pairs, fitted.masks)]
    return math.fsum(scores) / len(scores)


def table(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean IoU of each contender, from the least to the best; of a method's thresholds only the published one and,
    where that is another, the best.
    """
    means = {name: math.fsum(row[name] for row in rows) / len(rows) for name in rows[0]}
    for method, thresholds in (("FOUND coarse", FOUND_THRESHOLDS), ("TokenCut", TOKENCUT_THRESHOLDS)):
        tried = {threshold: means.pop(f"{method}, {threshold}") for threshold in thresholds}
        best = max(tried, key=tried.get)
        means[f"{method}, threshold {thresholds[0]} as published"] = tried[thresholds[0]]
        if best != thresholds[0]:
            means[f"{method}, threshold {best}, best of {len(thresholds)} here"] = tried[best]
    return dict(sorted(means.items(), key=lambda item: item[1]))


def main(argv: list[str] | None = None) -> int:
    """Print the table and keep it in bench/results/peers-NAME.json.

    Parameters
    ----------
    argv : list of str, optional
        Arguments; by default the process's own.

    Returns
    -------
    int
        Exit status.
    """
    made = shared.parser(
        "python -m bench peers",
        "Compare LOST, TokenCut, deep spectral methods, FOUND and vitnp on the same features: mean IoU over "
        "photographs with true masks.",
    )
    made.add_argument("images", type=Path, metavar="IMAGES", help="folder of photographs")
    made.add_argument("masks", type=Path, metavar="MASKS", help="folder of their masks")
    arguments.add_model_options(made)
    group = made.add_argument_group("method")
    group.add_argument("--size", type=arguments.positive, metavar="PX", help="short side the network sees (320)")
    group.add_argument("--refine", choices=("solver", "none"), default="solver", help="the same for everybody (solver)")
    group.add_argument("--no-repair", action="store_true", help="leave the peers' outlier keys as they are")
    group.add_argument(
        "--seed", type=arguments.natural, default=0, metavar="N", help="of ours; the peers need none (0)"
    )
    run = arguments.add_run_options(made)
    run.add_argument("--name", help="of the data set, for the record (the folder's own)")
    args = made.parse_args(argv)

    pairs, _ = match_pairs(args.images, args.masks)
    vit = arguments.load_model(args)
    options = {"size": args.size, "seed": args.seed, "refine": args.refine}
    count = pool.resolve_n_threads(args.threads)
    outcomes = compare(pairs, vit, count=count, repair=not args.no_repair, **options)
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
    means: dict[str, float | None] = table(rows)
    means[THREE_LEVELS] = three_levels(scored, vit, count=count, **options)
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
        print(f"{len(rows)} photographs, {vit.name}, refinement: {args.refine}\n\n{'':<46}mean IoU")
        for title, mean in means.items():
            print(f"{title:<46}{'not available' if mean is None else f'{mean:8.3f}'}")
        shared.say(f"written to {path}", quiet=args.quiet)
    return shared.EXIT_SOME_FAILED if failures else shared.EXIT_OK


if __name__ == "__main__":
    shared.run(main)
