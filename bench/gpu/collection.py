"""Measure the clustering of ``--levels all`` from stored features of 20,000 photographs: GPU against two CPU cores."""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Sequence

import numpy as np
from vitnp.kernels.threads import blas, pool

from bench.cpu.kmeans_peers import rows_of
from bench.gpu import image_level
from bench.gpu.agreement import has_baseline
from bench.gpu.measure import Timing
from bench.gpu.report import Report
from vitnp import kernels
from vitnp.features.batching import GPU_BATCH
from vitnp.features.record import FeatureRecord

PHOTOGRAPHS, CATEGORIES = 20_000, 20
THREADS = 2  # of the CPU
# Photographs whose image level is measured; that of all photographs takes as many times longer as there are more.
TIMED = {"cuda": 2048, "cpu": 128}
QUICK_TIMED = {"cuda": 512, "cpu": 64}
OURS, CPU = "vitnp", "vitnp on 2 cores"


def run(report: Report, options: argparse.Namespace) -> None:
    """Measure image level, categories and levels on both devices, and compare the levels.

    Features are in host memory, as those of a store. Reading them, and making masks after them, is not included.
    """
    if not has_baseline(report):
        return
    records = image_level.photographs()
    case = {
        "collection": PHOTOGRAPHS,
        "patches": max(one.patches for one in records),
        "width": records[0].keys.shape[1],
    }
    categories = _seconds(functools.partial(_categories, records[0].keys.shape[1]))  # on the CPU in either case
    found = {}
    for name, device in ((OURS, "cuda"), (CPU, "cpu")):
        if not report.has_time(f"collection, {device}", 3):
            return
        stages, found[device] = _stages(records, device, (QUICK_TIMED if options.quick else TIMED)[device])
        stages["categories"] = categories
        seconds = sum(stages.values())
        report.time(case, name, Timing(seconds, seconds, seconds, 1), rate=PHOTOGRAPHS / seconds, stages=stages)
    apart = max(float(np.abs(one - other).max()) for one, other in zip(found["cuda"], found["cpu"]))
    report.near("collection: shares of foreground of the clusters of a level", apart, 1e-3)


def _stages(
    records: Sequence[FeatureRecord], device: str, count: int
) -> tuple[dict[str, float], tuple[np.ndarray, ...]]:
    """Return the seconds of the stages that depend on the device, and the shares of the data set level."""
    from vitnp.method.collection_level import CATEGORY, DATASET, fit_level

    size = GPU_BATCH if device == "cuda" else 1
    batches = [[records[(first + i) % len(records)] for i in range(size)] for first in range(0, count, size)]
    keys = rows_of(DATASET.sample, records[0].keys.shape[1])
    hard = np.random.default_rng(0).integers(0, 2, len(keys)).astype(np.float32)
    threads = THREADS if device == "cpu" else None

    def level(config: object, rows: int) -> object:
        return fit_level(keys[:rows], hard[:rows], (0,), config, n_threads=threads, device=device)

    with blas.one_blas_thread():
        _answer(batches[:2], device)  # compiles
        level(CATEGORY, CATEGORY.sample)
        each = _seconds(functools.partial(_answer, batches, device)) / count
        category = _seconds(functools.partial(level, CATEGORY, CATEGORY.sample))
        dataset = _seconds(functools.partial(level, DATASET, DATASET.sample))
        shares = level(DATASET, DATASET.sample).shares
    return {"image level": PHOTOGRAPHS * each, "levels": dataset + CATEGORIES * category}, tuple(shares)


def _answer(batches: Sequence[Sequence[FeatureRecord]], device: str) -> None:
    """Compute the image level of batches, and copy the answers to host memory."""
    from vitnp.method.patch_scores import judge_images

    def work(batch: Sequence[FeatureRecord]) -> list[tuple[np.ndarray, np.ndarray, float]]:
        answers = judge_images(batch, device, 0)
        return [(kernels.to_host(one.soft), kernels.to_host(one.hard), one.confidence) for one in answers]

    for _ in pool.map_ordered(work, batches, 1 if device == "cuda" else THREADS):
        pass


def _categories(width: int) -> None:
    """Cluster CLS tokens of all photographs."""
    from vitnp.clustering.spectral import spectral_clusters

    spectral_clusters(rows_of(PHOTOGRAPHS, width), CATEGORIES, seed=0, n_threads=THREADS)


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
