"""Measure how much of keys is the place of their patch, before and after the rotation by rotary position embeddings.

The weights are random, in the shape of DINOv3's ViT-S/16: the rotation is the same whatever the weights.
"""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path

import numpy as np
from PIL import Image

from bench import record
from bench.cpu import vit_peers
from vitnp.cli import arguments, shared
from vitnp.io.decode import read_image
from vitnp.io.find import find_photographs
from vitnp.io.preprocess import normalize
from vitnp.vit.config import ViTConfig
from vitnp.vit.model import ViT

SIDE = 224
CONFIG = ViTConfig(width=384, depth=12, heads=6, patch=16, grid=(14, 14), eps=1e-5, rotary=True)
FACETS = ("key", "key_rotated")


def main(argv: list[str] | None = None) -> int:
    """Print the figures, and write them to bench/results/place.json."""
    parser = argparse.ArgumentParser(prog="python -m bench place", description=__doc__)
    parser.add_argument("photographs", nargs="+", metavar="PHOTOGRAPHS", help="files and folders")
    parser.add_argument("--seeds", type=arguments.number(2), default=3, metavar="N", help="random networks (3)")
    args = parser.parse_args(argv)

    files = find_photographs(args.photographs)
    images = np.stack([_input(file.path) for file in files])
    shares = [_shares(images, seed) for seed in range(args.seeds)]
    result: dict[str, object] = {"photographs": len(files), "networks": args.seeds}
    for facet in FACETS:
        values = [share[facet] for share in shares]
        error = statistics.stdev(values) / math.sqrt(len(values))
        result[facet] = {"share": round(statistics.fmean(values), 4), "standard_error": round(error, 4)}
        print(f"{facet}: {100 * statistics.fmean(values):.1f} % of the variance is the place, ± {100 * error:.1f}")
    print(f"written to {record.write('place', result)}")
    return shared.EXIT_OK


def _input(path: Path) -> np.ndarray:
    square = Image.fromarray(read_image(path)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return normalize(np.asarray(square), CONFIG.mean, CONFIG.std)


def _shares(images: np.ndarray, seed: int) -> dict[str, float]:
    """Return, for each facet of the last block, the share of the variance of unit keys that lies between places."""
    quarter = CONFIG.width // CONFIG.heads // 4
    periods = 100 ** (np.arange(quarter, dtype=np.float32) / quarter)
    vit = ViT(CONFIG, vit_peers.random_weights(CONFIG, seed) | {"rope_embed.periods": periods})
    features = [vit(image[None], FACETS) for image in images]
    shares = {}
    for facet in FACETS:
        keys = np.concatenate([one[facet] for one in features]).astype(np.float64)  # (photographs, N, D)
        keys /= np.linalg.norm(keys, axis=-1, keepdims=True)
        mean = keys.mean(axis=(0, 1))
        between = np.square(keys.mean(axis=0) - mean).sum(axis=-1).mean()
        shares[facet] = float(between / np.square(keys - mean).sum(axis=-1).mean())
    return shares
