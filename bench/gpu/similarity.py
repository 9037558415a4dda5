"""Cosine similarity of rows: the whole matrix, and the most similar ones without it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from types import ModuleType

import numpy as np
from vitnp.kernels.cuda.loader import require_cupy

from bench.gpu.differences import mismatch
from bench.gpu.kmeans import rows_on_device
from bench.gpu.measure import Timer, free, gather
from bench.gpu.report import Report

WIDTH = 384
# Rows, others, how many of the most similar (0: the whole matrix), type.
CASES = [
    (100_000, 1_000, 0, "fp16"),
    (100_000, 1_000, 0, "fp32"),
    (32_000, 32_000, 1, "fp16"),
    (32_000, 32_000, 10, "fp16"),
    (32_000, 32_000, 10, "fp32"),
    (1_000_000, 27, 1, "fp16"),
]
OURS, CUPY, TORCH = "vitnp", "cupy", "torch"


def run(report: Report, options: argparse.Namespace) -> None:
    """Each form against a product of normalized rows, followed by what finds the largest."""
    cupy = require_cupy()
    from vitnp.kernels.cuda import dispatch

    timer = Timer(cupy)
    for rows, others, count, dtype in CASES[3:4] if options.quick else CASES:
        form = f"top {count}" if count else "matrix"
        case = {"rows": rows, "others": others, "form": form, "width": WIDTH, "dtype": dtype}
        label = f"similarity, {rows:,} x {others:,}, {form}, {dtype}"
        if not report.has_time(label, 2):
            continue
        x = rows_on_device(cupy, rows, WIDTH, dtype)
        y = cupy.ascontiguousarray(x[:others][::-1])

        def ours(x=x, y=y, count=count) -> object:
            return dispatch.similarity_top(x, y, count) if count else dispatch.similarity(x, y)

        _check(report, cupy, label, x, y, count, ours())
        builders = {
            OURS: lambda: ours,
            CUPY: lambda x=x, y=y, count=count: cupy_call(cupy, x, y, count),
            TORCH: lambda x=x, y=y, count=count: torch_call(x, y, count),
        }
        # CuPy sorts whole rows to find the first ten: nobody would take that route.
        calls, missing = gather(builders if count <= 1 else {name: builders[name] for name in (OURS, TORCH)})
        timings, failed = timer.medians(calls, min(2.0, report.left / 8))
        for name, timing in timings.items():
            report.time(case, name, timing, rate=2 * rows * others * WIDTH / timing.seconds)
        for name, why in {**missing, **failed}.items():
            report.missing(case, name, why)
        del x, y, calls
        free(cupy)


def cupy_call(cupy: ModuleType, x: object, y: object, count: int) -> Callable[[], object]:
    """What one writes in CuPy."""

    def unit(rows: object) -> object:
        return rows / cupy.sqrt((rows.astype(np.float32) ** 2).sum(axis=1, keepdims=True)).astype(rows.dtype)

    def call() -> object:
        product = unit(x) @ unit(y).T
        return (product.max(axis=1), product.argmax(axis=1)) if count else product

    return call


def torch_call(x: object, y: object, count: int) -> Callable[[], object]:
    """The same in torch."""
    import torch
    from torch.nn.functional import normalize

    torch.backends.cuda.matmul.allow_tf32 = False
    one, other = torch.from_dlpack(x), torch.from_dlpack(y)

    def call() -> object:
        product = normalize(one) @ normalize(other).T
        return product.topk(count) if count else product

    return call


def _check(report: Report, cupy: ModuleType, label: str, x, y, count: int, found) -> None:
    """Some rows against float64; of the most similar the values, and that the indices have them."""
    places = np.unique(np.linspace(0, len(x) - 1, 65).astype(np.int64))
    one, other = (cupy.asnumpy(rows).astype(np.float64) for rows in (x[cupy.asarray(places)], y))
    one, other = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (one, other))
    expected = one @ other.T
    if not count:
        got = cupy.asnumpy(found[cupy.asarray(places)])
        report.near(label, float(np.abs(got - expected).max()), 1e-5, lambda: mismatch(got, expected, 1e-5))
        return
    values, indices = (cupy.asnumpy(part[cupy.asarray(places)]) for part in found)
    largest = -np.sort(-expected, axis=1)[:, :count]
    report.near(
        f"{label}: values", float(np.abs(values - largest).max()), 1e-5, lambda: mismatch(values, largest, 1e-5)
    )
    inside = (indices >= 0) & (indices < len(y))
    there = np.take_along_axis(expected, indices.clip(0, len(y) - 1), axis=1)
    distinct = all(len(set(row)) == count for row in indices.tolist())
    worst = float(np.abs(there - largest).max()) if inside.all() and distinct else np.inf
    report.near(f"{label}: indices", worst, 1e-5, lambda: mismatch(there, largest, 1e-5))
