"""Measure spectral clustering of CLS tokens: time, peak memory, and agreement with planted clusters."""

from __future__ import annotations

import argparse
import resource
import sys
import time
from typing import Any

import numpy as np

from bench import record
from bench.process import run_isolated
from vitnp.cli import arguments, shared
from vitnp.clustering.spectral import spectral_clusters

# Memory in bytes that the method may take as a whole: a constant, and more per image.
ALLOWED, ALLOWED_PER_IMAGE = 2e9, 4e3


def main(argv: list[str] | None = None) -> int:
    """Print the figures, and write them to bench/results/spectral.json."""
    parser = argparse.ArgumentParser(prog="python -m bench spectral", description=__doc__)
    parser.add_argument(
        "--images", type=arguments.number(1), action="append", metavar="N",
        help="number of images; can be repeated (1000, 20000, 100000)",
    )  # fmt: skip
    parser.add_argument("--width", type=arguments.number(1), default=192, help="width of a CLS token (192)")
    parser.add_argument("--clusters", type=arguments.number(1), default=20, help="number of planted clusters (20)")
    parser.add_argument(
        "--noise", type=float, default=2.5, help="noise of the tokens, in standard deviations of the centers (2.5)"
    )
    parser.add_argument("--threads", type=arguments.number(1), help="number of threads (all cores)")
    args = parser.parse_args(argv)

    runs = []
    for images in args.images or [1_000, 20_000, 100_000]:
        run = run_isolated(_measure, images, args.width, args.clusters, args.noise, args.threads)
        runs.append(run)
        line = "{images:>7} images of {width}: {seconds} s, peak memory {peak_mib} MiB of {allowed_mib} allowed, "
        print(line.format(**run) + f"agreement {run['agreement']:.4f}")
    parameters = {"clusters": args.clusters, "noise": args.noise, "threads": args.threads}
    print(f"written to {record.write('spectral', {**parameters, 'runs': runs})}")
    return shared.EXIT_OK


def _measure(images: int, width: int, clusters: int, noise: float, n_threads: int | None) -> dict[str, Any]:
    """Draw tokens around random centers, cluster them, and return time, peak memory and agreement."""
    rng = np.random.default_rng(0)
    truth = rng.integers(clusters, size=images)
    # In float32 and in place, so that the peak is that of the clustering.
    tokens = rng.standard_normal((images, width), np.float32)
    tokens *= noise
    tokens += rng.standard_normal((clusters, width), np.float32)[truth]
    begin = time.perf_counter()
    labels = spectral_clusters(tokens, clusters, n_threads=n_threads)
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "images": images,
        "width": width,
        "seconds": round(seconds, 2),
        "peak_mib": round(peak / 2**20),
        "allowed_mib": round((ALLOWED + ALLOWED_PER_IMAGE * images) / 2**20),
        "agreement": round(_agreement(labels, truth, clusters), 4),
    }


def _agreement(labels: np.ndarray, truth: np.ndarray, clusters: int) -> float:
    """Return the share of images that agree after matching the clusters one to one."""
    from scipy.optimize import linear_sum_assignment

    table = np.bincount(labels * clusters + truth, minlength=clusters**2).reshape(clusters, clusters)
    return float(table[linear_sum_assignment(table, maximize=True)].sum() / len(truth))
