"""An iteration of Lloyd's algorithm on the device: labels, sums and counts of the clusters from rows and centroids."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from types import ModuleType

import numpy as np
from vitnp.kernels.cuda.loader import require_cupy

from bench.cpu.kmeans_peers import chosen_rows, rows_of
from bench.gpu.differences import mismatch
from bench.gpu.measure import Missing, Timer, free, gather, gist, marginal, out_of_memory
from bench.gpu.report import Report

WIDTH = 384
# The bars are about a million rows and more: those first.
ROWS, CLUSTERS = (1_000_000, 10_000_000, 100_000), (2, 8, 27, 64, 256)
QUICK_ROWS, QUICK_CLUSTERS = (1_000_000,), (8, 27)
BASE = 100_000

OURS, CUPY, TORCH, CUML, FLASH = "vitnp", "cupy", "torch", "cuML", "flash-kmeans"
# Rows that are looked at in float64, and by how much the loss at our label may exceed the least one.
SAMPLE, TOLERANCE = 6_000, {"fp32": 1e-5, "fp16": 1e-5}


def run(report: Report, options: argparse.Namespace) -> None:
    """Every case against whoever is there; each is checked first."""
    cupy = require_cupy()
    timer = Timer(cupy)
    rows, clusters = (QUICK_ROWS, QUICK_CLUSTERS) if options.quick else (ROWS, CLUSTERS)
    total = len(rows) * 2 * len(clusters)
    done = 0
    for count, dtype in itertools.product(rows, ("fp32", "fp16")):
        x = None
        try:
            x = rows_on_device(cupy, count, WIDTH, dtype)
            for k in clusters:
                case = {"rows": count, "width": WIDTH, "clusters": k, "dtype": dtype}
                label = f"k-means, {count:,} x {WIDTH}, K = {k}, {dtype}"
                if report.has_time(label, 3):
                    _measure(report, timer, cupy, case, label, x, min(3.0, report.left / (total - done) / 2))
                done += 1
                free(cupy)
        except Exception as error:
            if not out_of_memory(error):
                raise
            report.skip(f"k-means, {count:,} x {WIDTH}, {dtype}", gist(error))
        del x
        free(cupy)


def rows_on_device(cupy: ModuleType, count: int, width: int, dtype: str) -> object:
    """Rows (count, width) that are nowhere equal, made from a hundred thousand."""
    x = cupy.empty((count, width), np.float16 if dtype == "fp16" else np.float32)
    base = cupy.asarray(rows_of(min(BASE, count), width))
    for index, first in enumerate(range(0, count, len(base))):
        part = x[first : first + len(base)]
        part[...] = base[: len(part)] * np.float32(1 + index / 1000)
    return x


def _measure(
    report: Report, timer: Timer, cupy: ModuleType, case: dict[str, object], label: str, x: object, seconds: float
) -> None:
    from vitnp.kernels.cuda import dispatch

    chosen = chosen_rows(min(BASE, len(x)), case["clusters"])
    shift = x[:BASE].astype(np.float32).mean(axis=0)
    centroids = x[cupy.asarray(np.sort(chosen))].astype(np.float32) - shift

    def ours() -> object:
        return dispatch.kmeans_step(x, centroids, metric="euclidean", shift=shift)

    _check(report, cupy, label, case, x, centroids, shift, ours())
    plain = centroids + shift
    builders = {
        OURS: lambda: ours,
        CUPY: lambda: cupy_step(cupy, x, plain),
        TORCH: lambda: torch_step(x, plain),
    }
    calls, missing = gather(builders)
    timings, failed = timer.medians(calls, seconds)
    free(cupy)
    for name, build in ((CUML, cuml_run), (FLASH, flash_run)):
        try:
            timings[name] = marginal(cupy, build(cupy, x, plain), 2, 12)
        except Exception as error:
            missing[name] = gist(error)
    for name, timing in timings.items():
        report.time(case, name, timing, rate=x.nbytes / timing.seconds)
    for name, why in {**missing, **failed}.items():
        report.missing(case, name, why)


# --- Contenders, each a call without arguments -----------------------------------------------------------------------


def cupy_step(cupy: ModuleType, x: object, centroids: object) -> Callable[[], object]:
    """What one writes in CuPy: a product, the least of each row, another product with the labels as ones in columns."""
    c = centroids.astype(x.dtype)
    numbers = cupy.arange(len(c))

    def step() -> object:
        distances = (c * c).sum(axis=1) - 2 * (x @ c.T)
        labels = distances.argmin(axis=1)
        chosen = (labels[:, None] == numbers).astype(x.dtype)
        return labels, chosen.T @ x, chosen.sum(axis=0, dtype=np.float32)

    return step


def torch_step(x: object, centroids: object) -> Callable[[], object]:
    """The same in torch, with the sum and the product in one."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    rows, c = torch.from_dlpack(x), torch.from_dlpack(centroids.astype(x.dtype))
    numbers = torch.arange(len(c), device=rows.device)

    def step() -> object:
        distances = torch.addmm((c * c).sum(1), rows, c.T, alpha=-2)
        labels = distances.argmin(1)
        chosen = (labels[:, None] == numbers).to(rows.dtype)
        return labels, chosen.T @ rows, chosen.sum(0, dtype=torch.float32)

    return step


def cuml_run(cupy: ModuleType, x: object, centroids: object) -> Callable[[int], object]:
    """CuML from these centroids, so many iterations."""
    from cuml.cluster import KMeans

    if x.dtype != np.float32:
        raise Missing("it takes no float16")

    def run(steps: int) -> object:
        return KMeans(len(centroids), init=centroids, n_init=1, max_iter=steps, tol=1e-30).fit(x)

    return run


def flash_run(cupy: ModuleType, x: object, centroids: object) -> Callable[[int], object]:
    """flash-kmeans from these centroids, so many iterations."""
    import torch
    from flash_kmeans import batch_kmeans_Euclid

    rows, start = torch.from_dlpack(x)[None], torch.from_dlpack(centroids.astype(x.dtype))[None]

    def run(steps: int) -> object:
        return batch_kmeans_Euclid(rows, len(centroids), max_iters=steps, tol=-1.0, init_centroids=start.clone())

    return run


# --- Whether ours is right --------------------------------------------------------------------------------------------


def _check(report: Report, cupy: ModuleType, label: str, case, x, centroids, shift, step) -> None:
    """Labels against float64 in a sample, sums and counts against all rows."""
    k = case["clusters"]
    places = np.linspace(0, len(x) - 1, SAMPLE).astype(np.int64)
    sample = cupy.asnumpy(x[cupy.asarray(places)]).astype(np.float64) - cupy.asnumpy(shift)
    c = cupy.asnumpy(centroids).astype(np.float64)
    losses = (sample**2).sum(axis=1)[:, None] + (c**2).sum(axis=1) - 2 * sample @ c.T
    labels = cupy.asnumpy(step.labels[cupy.asarray(places)])
    known = ((labels >= 0) & (labels < k)).all()
    chosen = losses[np.arange(SAMPLE), labels.clip(0, k - 1)]
    worst = float(((chosen - losses.min(axis=1)) / losses.min(axis=1).mean()).max()) if known else np.inf
    most, least = TOLERANCE[case["dtype"]], losses.min(axis=1)
    # Which rows of the sample have a label that another cluster is nearer than.
    report.near(f"{label}: labels", worst, most, lambda: mismatch(chosen, least, most * least.mean()))
    counts = cupy.bincount(step.labels, minlength=k)
    same = bool((counts == step.counts).all()) and int(step.counts.sum()) == len(x)
    report.check(f"{label}: counts", same, "" if same else mismatch(cupy.asnumpy(step.counts), cupy.asnumpy(counts), 0))
    inertia = float(step.inertia.sum())
    total = float(step.losses.sum(dtype=np.float64))
    report.near(f"{label}: inertia", abs(inertia - total) / total, 1e-5)
    found = cupy.asnumpy(step.sums.sum(axis=0))
    expected = _sums(cupy, x, shift, step.labels, k)
    largest = float(np.abs(expected).max())
    error = float(np.abs(found - expected).max()) / largest
    report.near(f"{label}: sums", error, 1e-5, lambda: mismatch(found, expected, 1e-5 * largest))


def _sums(cupy: ModuleType, x, shift, labels, k: int) -> np.ndarray:
    """Cluster sums of x - shift, (K, D) float64, by products of a hundred thousand rows at a time."""
    total, numbers = cupy.zeros((k, x.shape[1])), cupy.arange(k)
    for first in range(0, len(x), BASE):
        part = x[first : first + BASE].astype(np.float64) - shift
        total += (labels[first : first + BASE, None] == numbers).astype(np.float64).T @ part
    return cupy.asnumpy(total)
