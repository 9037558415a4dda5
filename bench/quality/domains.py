"""Score pictures of other kinds than photographs of objects: nuclei, seedlings, cracks and the like.

Each folder below DATA is a domain, with ``images`` and ``masks``. The pictures of a domain are segmented alone and
as a set, with each ``--domain`` (``photo`` with one seed), and with a collection saved from the other half of them.
Simple answers stand beside: everything, the pixels brighter than Otsu's threshold, and the smaller side of it. Scored
are the IoU, that of the better of mask and complement, and the F-measure of pixels within 2 pixels of each other, for
the thinner side of the truth.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from bench import record
from bench.quality.domains_table import write_table
from vitnp import load_vit
from vitnp.cli import arguments, shared
from vitnp.errors import UsageError
from vitnp.evaluate.data.pairs import Pair, match_pairs, read_truth
from vitnp.evaluate.metrics.saliency import iou
from vitnp.io.decode import decode_image
from vitnp.method.defaults import resolve_collection
from vitnp.options import Settings
from vitnp.pipeline import ImagePipeline
from vitnp.refine.color_direction import otsu_threshold
from vitnp.segmenter import Segmenter
from vitnp.vit.model import ViT

# What is varied one at a time, for a whole set of textures.
VARIATIONS: tuple[dict[str, Any], ...] = (
    {"facet": "query"}, {"facet": "value"}, {"facet": "token"}, {"layer": -1},
    {"short_side": 448}, {"short_side": 640}, {"stride": 8},
    {"refine": "solver"}, {"refine": "crf"}, {"refine": "none"},
)  # fmt: skip

# Pixels between a line and its true place.
TOLERANCE = 2.0

Masks = list[np.ndarray]


def main(argv: list[str] | None = None) -> int:
    """Print the IoU by domain and method, and write bench/results/domains-MODEL.json."""
    args = _parse(argv)
    vit = load_vit(args.model)
    domains: dict[str, Any] = {}
    for folder in _folders(args):
        pairs, _ = match_pairs(folder / "images", folder / "masks")
        with tempfile.TemporaryDirectory() as scratch:
            rows = _domain(pairs, vit, args, args.cache or Path(scratch))
        domains[folder.name] = {"pictures": len(pairs), "methods": rows}
        path = record.write(
            args.name or f"domains-{vit.name}",
            {"model": vit.name, "sha256": vit.sha256, "seeds": args.seeds, "domains": domains},
        )
        print(f"{folder.name}, {len(pairs)} pictures, {vit.name}", flush=True)
        for name, row in rows.items():
            print(
                f"  {name:<36}{row['iou']:.3f} ± {row['error']:.3f}   best side {row['best']:.3f} ± "
                f"{row['best_error']:.3f}   F {row['f']:.3f} ± {row['f_error']:.3f}",
                flush=True,
            )
    print(f"written to {path}")
    if args.docs is not None:
        write_table(args.docs, domains)
    return shared.EXIT_OK


def _folders(args: argparse.Namespace) -> list[Path]:
    """Return the folders of the domains.

    Raises
    ------
    UsageError
        If there are none.
    """
    folders = sorted(path for path in args.data.glob("*") if (path / "images").is_dir())
    if not folders:
        raise UsageError(f"{args.data} has no folders with images/ and masks/ in them; name the folder above them")
    return folders


def _domain(pairs: Sequence[Pair], vit: ViT, args: argparse.Namespace, cache: Path) -> dict[str, dict[str, float]]:
    """Return the scores of one domain by method."""
    images = [pair.image for pair in pairs]
    rgb = [decode_image(image).rgb for image in images]
    truths = [read_truth(pair.mask, one.shape[:2]) for pair, one in zip(pairs, rgb)]

    def scores(masks_of: Callable[[int], Masks], seeds: int = 1) -> dict[str, float]:
        return _scores([masks_of(seed) for seed in range(seeds)], truths)

    rows = {
        "everything": scores(lambda seed: [np.ones_like(truth) for truth in truths]),
        "Otsu's threshold": scores(lambda seed: [_otsu(one) for one in rgb]),
        "Otsu, smaller side": scores(lambda seed: [_smaller_side(_otsu(one)) for one in rgb]),
    }
    for domain, seeds in (("photo", 1), ("texture", args.seeds), ("lines", 1)):  # lines have no seed
        collection, _ = resolve_collection("auto", vit, Settings(domain=domain))
        name = f"{domain}, alone" + (", built-in collection" if collection else "")
        rows[name] = scores(lambda seed, kind=domain: _alone(images, vit, kind, seed), seeds)
        rows[f"{domain}, whole set"] = scores(
            lambda seed, kind=domain: _whole_set(images, vit, cache, domain=kind, seed=seed), seeds
        )
        if domain != "photo":
            rows[f"{domain}, saved collection"] = scores(
                lambda seed, kind=domain: _other_half(images, vit, cache, domain=kind, seed=seed)
            )
    for options in VARIATIONS if args.vary else ():
        (change,) = options.items()
        rows["texture, {} {}".format(*change)] = scores(
            lambda seed, more=options: _whole_set(images, vit, cache, domain="texture", seed=seed, **more)
        )
    return rows


def _alone(images: Sequence[Path], vit: ViT, domain: str, seed: int) -> Masks:
    pipeline = ImagePipeline.create(vit, Settings(domain=domain, seed=seed), "auto")
    return [pipeline(image).mask for image in images]


def _whole_set(images: Sequence[Path], vit: ViT, cache: Path, **settings: Any) -> Masks:
    return list(Segmenter(vit, cache=cache, n_threads=1, **settings).fit(images).masks)


def _other_half(images: Sequence[Path], vit: ViT, cache: Path, **settings: Any) -> Masks:
    """Segment each picture with a collection that was fitted on every second picture, without this one."""
    halves = [Segmenter(vit, cache=cache, n_threads=1, **settings).fit(images[start::2]) for start in (1, 0)]
    return [halves[index % 2].predict(image).mask for index, image in enumerate(images)]


def _otsu(rgb: np.ndarray) -> np.ndarray:
    """Return the pixels brighter than Otsu's threshold."""
    gray = rgb.astype(np.float64).mean(axis=2)
    return gray >= otsu_threshold(gray)


def _smaller_side(mask: np.ndarray) -> np.ndarray:
    return ~mask if mask.mean() > 0.5 else mask


def _line_f(mask: np.ndarray, truth: np.ndarray) -> float:
    """Return the F-measure of pixels within :data:`TOLERANCE` of each other; 0 if there are none."""
    if not (mask.any() and truth.any()):
        return 0.0
    near_truth, near_mask = (ndimage.distance_transform_edt(~one) <= TOLERANCE for one in (truth, mask))
    precision, recall = near_truth[mask].mean(), near_mask[truth].mean()
    return float(2 * precision * recall / max(precision + recall, 1e-12))


def _scores(by_seed: Sequence[Masks], truths: Masks) -> dict[str, float]:
    """Return the mean scores over pictures and their standard errors."""
    # Whether cells or the membranes between them are foreground is a matter of words: lines are the thinner side.
    thin = truths if np.mean([truth.mean() for truth in truths]) <= 0.5 else [~truth for truth in truths]
    f = np.array(
        [[max(_line_f(mask, line), _line_f(~mask, line)) for mask, line in zip(masks, thin)] for masks in by_seed]
    )
    plain = np.array([[iou(mask, truth) for mask, truth in zip(masks, truths)] for masks in by_seed])
    flipped = np.array([[iou(~mask, truth) for mask, truth in zip(masks, truths)] for masks in by_seed])
    ground = np.array([[iou(~mask, ~truth) for mask, truth in zip(masks, truths)] for masks in by_seed])
    best = np.maximum(plain, flipped)
    return {
        "iou": float(plain.mean()),
        "error": _standard_error(plain),
        "seeds": float(plain.mean(axis=1).std()),
        "best": float(best.mean()),
        "best_error": _standard_error(best),
        "both": float((plain + ground).mean() / 2),
        "f": float(f.mean()),
        "f_error": _standard_error(f),
    }


def _standard_error(scores: np.ndarray) -> float:
    """Return the standard error of the mean of (seeds, pictures) scores over pictures."""
    by_picture = scores.mean(axis=0)
    return float(by_picture.std(ddof=1) / len(by_picture) ** 0.5)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench domains", description=__doc__.partition("\n\n")[0])
    parser.add_argument("data", type=Path, help="folder of domains, each with images/ and masks/")
    parser.add_argument("--model", default="auto", help="checkpoint (the built-in one)")
    parser.add_argument("--seeds", type=arguments.number(1), default=3, help="number of seeds, from 0 (3)")
    parser.add_argument("--vary", action="store_true", help="also facets, layer, sizes, stride and refinements")
    parser.add_argument("--docs", type=Path, help="page whose table to write anew, as docs/domains.md")
    parser.add_argument("--name", help="name of the result file (domains-MODEL)")
    parser.add_argument("--cache", type=Path, help="folder that keeps features for the next run")
    return parser.parse_args(argv)


if __name__ == "__main__":
    shared.run(main)
