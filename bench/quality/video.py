"""Measure how much masks of clips flicker, and how good they are, without and with the smoothing along time.

Two kinds of clips, whose true masks are known (:mod:`bench.quality.clips`): an object that moves before a still
background, drawn by code; and a camera that pans and zooms over photographs with true masks. Flicker is the share of
pixels whose mask changes from one frame to the next where the picture does not.

With ``--classes`` the classes of two drawn objects are measured instead: how often they are not those that the objects
have in most frames.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench import record
from bench.quality.clips import Clip, moving_object, moving_pair, moving_view
from vitnp import load_vit, segment_video
from vitnp.cli import arguments, shared
from vitnp.evaluate.data.pairs import match_pairs, read_truth
from vitnp.io.decode import decode_image
from vitnp.video.smoothing import SMOOTHING, SmoothingConfig
from vitnp.vit.model import ViT

# Size of the last view of a photograph as a share of the first: a pan, a slow zoom in, and one out.
_ZOOMS = {"pan": 1.0, "zoom in": 0.85, "zoom out": 1.15}


def main(argv: list[str] | None = None) -> int:
    """Print flicker and IoU before and after, and write bench/results/video.json."""
    args = _parse(argv)
    vit = load_vit(args.model)
    if args.classes is not None:
        return _measure_classes(args, vit)
    groups: dict[str, Any] = {}
    for name, clip in _clips(args):
        scores = _scores(clip, vit, args.collection)
        groups.setdefault(name, []).append(scores)
        print(f"{name:<10}" + "  ".join(f"{key} {value:.4f}" for key, value in scores.items()), flush=True)
    rows = {name: _summary(scores) for name, scores in groups.items()}
    path = record.write(
        args.name,
        {"model": vit.name, "sha256": vit.sha256, "frames": args.frames, "collection": args.collection, "clips": rows},
    )
    for name, row in rows.items():
        print(f"{name}, {row['clips']} clips")
        for key, (mean, error) in row["mean_and_standard_error"].items():
            print(f"  {key:<18}{mean:.4f} ± {error:.4f}")
        print(f"  flicker left      {row['flicker_left']:.2f}")
    print(f"written to {path}")
    return shared.EXIT_OK


def _measure_classes(args: argparse.Namespace, vit: ViT) -> int:
    """Print the share of frames whose object has another class than in most frames, and write it."""
    shares: dict[str, list[float]] = {"before": [], "after": []}
    for seed in range(args.seeds):
        clip = moving_pair(seed, args.frames)
        for when, smoothing in (("before", SmoothingConfig(steps=0)), ("after", SMOOTHING)):
            results = segment_video(
                list(clip.frames), vit, n_classes=args.classes, collection=args.collection, smoothing=smoothing,
                n_threads=1, instances=True,
            )  # fmt: skip
            shares[when].append(clip.switched(np.stack([result.labels for result in results])))
        print(f"seed {seed:<3}" + "  ".join(f"{when} {share[-1]:.3f}" for when, share in shares.items()), flush=True)
    shares["gained"] = [before - after for before, after in zip(shares["before"], shares["after"])]
    rows = {
        when: [round(float(np.mean(share)), 4), round(float(np.std(share, ddof=1) / len(share) ** 0.5), 4)]
        for when, share in shares.items()
    }
    setting = {"model": vit.name, "sha256": vit.sha256, "frames": args.frames, "clips": args.seeds}
    path = record.write(
        f"{args.name}_classes", {**setting, "classes": args.classes, "switched: mean and standard error": rows}
    )
    print(f"{rows}\nwritten to {path}")
    return shared.EXIT_OK


def _clips(args: argparse.Namespace) -> Iterator[tuple[str, Clip]]:
    for seed in range(args.seeds):
        yield "drawn", moving_object(seed, args.frames)
    if args.data is None:
        return
    pairs, _ = match_pairs(args.data / "images", args.data / "masks")
    chosen = np.linspace(0, len(pairs) - 1, min(args.photographs, len(pairs))).astype(int)
    for number, index in enumerate(chosen):
        rgb = decode_image(pairs[index].image).rgb
        truth = read_truth(pairs[index].mask, rgb.shape[:2])
        name = list(_ZOOMS)[number % len(_ZOOMS)]
        yield name, moving_view(rgb, truth, int(index), args.frames, (240, 320), _ZOOMS[name])


def _scores(clip: Clip, vit: ViT, collection: str) -> dict[str, float]:
    """Return flicker and IoU of one clip, without and with smoothing."""
    scores = {}
    for when, smoothing in (("before", SmoothingConfig(steps=0)), ("after", SMOOTHING)):
        results = segment_video(list(clip.frames), vit, collection=collection, smoothing=smoothing, n_threads=1)
        masks = np.stack([result.mask for result in results])
        scores |= {f"flicker {when}": clip.flicker(masks), f"IoU {when}": clip.iou(masks)}
    # What is counted of masks without any fault: outlines fall between pixels when a camera zooms.
    return {
        **scores,
        "flicker of truth": clip.flicker(clip.truths),
        "IoU gained": scores["IoU after"] - scores["IoU before"],
    }


def _summary(scores: list[dict[str, float]]) -> dict[str, Any]:
    columns = {name: np.array([each[name] for each in scores]) for name in scores[0]}
    return {
        "clips": len(scores),
        "flicker_left": round(float(columns["flicker after"].mean() / columns["flicker before"].mean()), 3),
        "mean_and_standard_error": {
            name: [round(float(values.mean()), 5), round(float(values.std(ddof=1) / len(values) ** 0.5), 5)]
            for name, values in columns.items()
        },
    }


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = shared.parser("python -m bench video", "Measure the flicker of masks of clips, and their IoU.")
    parser.add_argument("data", nargs="?", type=Path, metavar="DATA", help="folder with images/ and masks/")
    parser.add_argument("--model", default="auto", metavar="NAME|PATH", help="network (the built-in one)")
    parser.add_argument("--collection", default="auto", metavar="NAME", help="auto, fit or none (auto)")
    parser.add_argument("--seeds", type=arguments.positive, default=12, metavar="N", help="drawn clips (12)")
    parser.add_argument("--photographs", type=arguments.positive, default=45, metavar="N", help="photographs (45)")
    parser.add_argument("--frames", type=arguments.positive, default=24, metavar="N", help="frames per clip (24)")
    parser.add_argument("--classes", type=arguments.positive, metavar="N", help="measure classes, of which there are N")
    parser.add_argument("--name", default="video", help="bench/results/NAME.json (video)")
    return parser.parse_args(argv)
