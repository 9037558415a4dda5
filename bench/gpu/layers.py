"""Measure LayerNorm and GELU at the sizes of a ViT-S, compared with CuPy expressions and torch."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from types import ModuleType

import numpy as np
from vitnp.kernels.cuda.loader import require_cupy

from bench.gpu.differences import mismatch
from bench.gpu.measure import Timer, free, gather
from bench.gpu.report import Report

# Tokens of 16 images of 480 x 480 pixels: 60 x 60 patches of 8 pixels, and CLS.
ROWS = 16 * 3601
# Layer, width, dtype.
CASES = [
    ("layernorm", 384, "fp16"),
    ("gelu", 1536, "fp16"),
    ("layernorm", 384, "fp32"),
    ("gelu", 1536, "fp32"),
    ("layernorm", 2048, "fp32"),
]
EPS = 1e-6
OURS, CUPY, TORCH = "vitnp", "cupy", "torch"
# Largest error, relative to the largest number of the right result.
TOLERANCE = {"fp16": 2e-3, "fp32": 2e-6}
# Number of rows that are checked.
SAMPLE = 40


def run(report: Report, options: argparse.Namespace) -> None:
    """Measure times and bytes per second, counting each number as read once and written once."""
    from vitnp.kernels.cuda import dispatch

    cupy = require_cupy()
    timer = Timer(cupy)
    for what, width, dtype in CASES[:2] if options.quick else CASES:
        label = f"{what}, {ROWS:,} x {width}, {dtype}"
        if not report.has_time(label, 2):
            continue
        case = {"layer": what, "rows": ROWS, "width": width, "dtype": dtype}
        kind = np.float16 if dtype == "fp16" else np.float32
        rng = np.random.default_rng(0)
        # Rows are drawn for one image and repeated, because the host draws slowly.
        drawn = cupy.asarray(rng.standard_normal((max(1, ROWS // 16), width), np.float32).astype(kind))
        x = cupy.concatenate([drawn] * -(-ROWS // len(drawn)))[:ROWS]
        weight, bias = (cupy.asarray(rng.standard_normal(width, np.float32).astype(kind)) for _ in range(2))

        def ours(x=x, weight=weight, bias=bias, what=what) -> object:
            return dispatch.gelu(x) if what == "gelu" else dispatch.layernorm(x, weight, bias, EPS)

        _check(report, cupy, label, what, dtype, x, weight, bias, ours())
        builders = {
            OURS: lambda: ours,
            CUPY: lambda x=x, w=weight, b=bias, what=what: cupy_call(cupy, what, x, w, b),
            TORCH: lambda x=x, w=weight, b=bias, what=what: torch_call(what, x, w, b),
        }
        calls, missing = gather(builders)
        timings, failed = timer.medians(calls, min(1.5, report.left / 8))
        for name, timing in timings.items():
            report.time(case, name, timing, rate=2 * x.nbytes / timing.seconds)
        for name, why in {**missing, **failed}.items():
            report.missing(case, name, why)
        del x, drawn, calls
        free(cupy)


def cupy_call(cupy: ModuleType, what: str, x: object, weight: object, bias: object) -> Callable[[], object]:
    """Return a call of the layer written as CuPy expressions; LayerNorm sums in float32."""
    if what == "gelu":
        from cupyx.scipy.special import erf

        return lambda: 0.5 * x * (1 + erf(x * x.dtype.type(math.sqrt(0.5))))

    def call() -> object:
        wide = x.astype(np.float32)
        centered = wide - wide.mean(axis=1, keepdims=True)
        scaled = centered / cupy.sqrt((centered * centered).mean(axis=1, keepdims=True) + np.float32(EPS))
        return (scaled * weight + bias).astype(x.dtype)

    return call


def torch_call(what: str, x: object, weight: object, bias: object) -> Callable[[], object]:
    """Return a call of the layer in torch."""
    import torch
    from torch.nn import functional as F

    rows, w, b = (torch.from_dlpack(array) for array in (x, weight, bias))
    return lambda: F.gelu(rows) if what == "gelu" else F.layer_norm(rows, (rows.shape[1],), w, b, EPS)


def _check(report: Report, cupy: ModuleType, label: str, what: str, dtype: str, x, weight, bias, found) -> None:
    """Compare some rows of the result with the same layer in float64."""
    places = np.unique(np.linspace(0, len(x) - 1, SAMPLE).astype(np.int64))
    rows, got = (cupy.asnumpy(array[cupy.asarray(places)]).astype(np.float64) for array in (x, found))
    if what == "gelu":
        expected = rows * 0.5 * (1 + np.vectorize(math.erf)(rows * math.sqrt(0.5)))
    else:
        centered = rows - rows.mean(axis=1, keepdims=True)
        unit = centered / np.sqrt((centered**2).mean(axis=1, keepdims=True) + EPS)
        expected = unit * cupy.asnumpy(weight).astype(np.float64) + cupy.asnumpy(bias).astype(np.float64)
    largest = float(np.abs(expected).max())
    error = float(np.abs(got - expected).max()) / largest
    report.near(label, error, TOLERANCE[dtype], lambda: mismatch(got, expected, TOLERANCE[dtype] * largest))
