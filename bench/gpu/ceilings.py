"""Measure the ceilings of the device: bytes per second of a copy, operations per second of a large matrix product."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from types import ModuleType

import numpy as np
from vitnp.kernels.cuda.loader import require_cupy

from bench.gpu.measure import Timer, free, gather
from bench.gpu.report import Report

COPIED = 4 << 30
SIDE = 8192


def run(report: Report, options: argparse.Namespace) -> None:
    """Measure a copy within the device, and products of random numbers in each precision: zeros need less power."""
    cupy = require_cupy()
    timer = Timer(cupy)
    _copy(report, timer, cupy)
    free(cupy)
    _products(report, timer, cupy, SIDE // 4 if options.quick else SIDE)


def _copy(report: Report, timer: Timer, cupy: ModuleType) -> None:
    size = min(COPIED, cupy.cuda.Device().mem_info[0] // 4)
    source = cupy.arange(size // 4, dtype=np.float32)
    target = cupy.empty_like(source)
    timings, _ = timer.medians({"copy": lambda: cupy.copyto(target, source)}, 2)
    for name, timing in timings.items():
        report.time(
            {"ceiling": "copy", "bytes": 2 * source.nbytes}, name, timing, rate=2 * source.nbytes / timing.seconds
        )
    report.check("a copy is equal to what was copied", bool((source[-1000:] == target[-1000:]).all()))


def _products(report: Report, timer: Timer, cupy: ModuleType, side: int) -> None:
    block = np.random.default_rng(0).standard_normal((side, side // 8), np.float32)
    a = cupy.concatenate([cupy.asarray(block * np.float32(1 + i / 8)) for i in range(8)], axis=1)
    b = cupy.ascontiguousarray(a.T)
    builders = {"fp32": lambda: lambda: cupy.matmul(a, b)}
    half = a.astype(np.float16) / 16, b.astype(np.float16) / 16
    builders["fp16"] = lambda: lambda: cupy.matmul(*half)
    builders["tf32"] = lambda: _tf32(a, b)
    calls, absent = gather(builders)
    timings, missing = timer.medians(calls, 3)
    for name, timing in timings.items():
        report.time({"ceiling": name, "side": side}, "matrix product", timing, rate=2 * side**3 / timing.seconds)
    for name, why in {**absent, **missing}.items():
        report.missing({"ceiling": name, "side": side}, "matrix product", why)


def _tf32(a: object, b: object) -> object:
    """Return a product by torch, because CuPy has no public setting for tf32."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = True
    one, other = torch.from_dlpack(a), torch.from_dlpack(b)
    return lambda: torch.matmul(one, other)


def rates(records: list[dict[str, object]]) -> dict[str, float]:
    """Return bytes per second of the copy and operations per second of the products, as far as they were measured."""
    return dict(_rates(records))


def _rates(records: list[dict[str, object]]) -> Iterator[tuple[str, float]]:
    for record in records:
        if record["kind"] == "time" and "ceiling" in record["case"]:
            yield record["case"]["ceiling"], record["rate"]
