"""Spectral clustering of CLS tokens: time, peak memory, and agreement with planted clusters, by number of images."""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from bench import record
from vitnp.cli import arguments, shared
from vitnp.clustering.spectral import spectral_clusters

# What the whole method may use, in bytes: so much, and so much more an image.
ALLOWED, ALLOWED_PER_IMAGE = 2e9, 4e3


def main(argv: list[str] | None = None) -> int:
    """Print the figures and keep them in bench/results/spectral.json."""
    made = argparse.ArgumentParser(prog="python -m bench spectral", description=__doc__)
    made.add_argument(
        "--images", type=arguments.positive, action="append", metavar="N", help="repeatable (1000, 20000, 100000)"
    )
    made.add_argument("--width", type=arguments.positive, default=192, help="numbers of a CLS token (192)")
    made.add_argument("--clusters", type=arguments.positive, default=20, help="(20)")
    made.add_argument(
        "--noise", type=float, default=2.5, help="of the tokens, in standard deviations of the clusters (2.5)"
    )
    made.add_argument("--threads", type=arguments.positive, default=None, help="(all cores)")
    args = made.parse_args(argv)

    runs = []
    for images in args.images or [1_000, 20_000, 100_000]:
        # A process of its own for each, or the peak of one would hide that of the next.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            run = process.submit(_measure, images, args.width, args.clusters, args.noise, args.threads).result()
        runs.append(run)
        line = "{images:>7} images of {width}: {seconds} s, peak memory {peak_mib} MiB of {allowed_mib} allowed, agreement {agreement:.4f}"
        print(line.format(**run))
    parameters = {"clusters": args.clusters, "noise": args.noise, "threads": args.threads}
    print(f"written to {record.write('spectral', {**parameters, 'runs': runs})}")
    return shared.EXIT_OK


def _measure(images: int, width: int, clusters: int, noise: float, threads: int | None) -> dict[str, object]:
    """One run on Gaussian clusters, made in float32 so that making them needs no more memory than they do."""
    rng = np.random.default_rng(0)
    truth = rng.integers(clusters, size=images)
    tokens = rng.standard_normal((images, width), np.float32)
    tokens *= noise
    tokens += rng.standard_normal((clusters, width), np.float32)[truth]
    begin = time.perf_counter()
    labels = spectral_clusters(tokens, clusters, n_threads=threads)
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
    """Share of images in the planted cluster that is matched one to one with theirs."""
    from scipy.optimize import linear_sum_assignment

    table = np.bincount(labels * clusters + truth, minlength=clusters**2).reshape(clusters, clusters)
    return float(table[linear_sum_assignment(table, maximize=True)].sum() / len(truth))
