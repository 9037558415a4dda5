"""Bilateral solver, CRF, guided filter and resizing of one photograph, on the GPU against the CPU's compiled kernels."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
from vitnp.kernels.cuda.loader import require_cupy

from bench.gpu.agreement import SAMPLES, has_baseline
from bench.gpu.differences import mismatch
from bench.gpu.measure import Timer, Timing, free, summary
from bench.gpu.report import Report

SAMPLE = SAMPLES / "coffee.jpg"
SIZES = [(500, 375), (2000, 1500)]
OURS, CPU = "vitnp", "vitnp on the CPU"
CPU_RUNS = 3
# By what, the largest difference from the CPU's: of maps in 0..1, of resizing in levels of 255.
TOLERANCE = {"solver": 1e-5, "crf": 1e-3, "guided": 1e-5, "resize": 0}


def run(report: Report, options: argparse.Namespace) -> None:
    """Each refinement of a map of patches, at a usual and a large size; the host's work counts, since there is much of it."""
    from PIL import Image

    cupy = require_cupy()
    if not has_baseline(report):
        return
    timer = Timer(cupy)
    for size in SIZES[:1] if options.quick else SIZES:
        with Image.open(SAMPLE) as picture:
            rgb = np.asarray(picture.convert("RGB").resize(size))
        here = calls(rgb)
        there = calls(cupy.asarray(rgb))
        for what, most in TOLERANCE.items():
            label = f"{what}, {size[0]} x {size[1]}"
            if not report.has_time(label, 2):
                continue
            case = {"refinement": what, "size": list(size)}
            expected = here[what]()
            found = cupy.asnumpy(there[what]())
            apart = float(np.abs(found.astype(np.float64) - expected).max())
            report.near(label, apart, most, lambda: mismatch(found, expected, most))
            timings, missing = timer.medians({OURS: there[what]}, min(1.0, report.left / 8), primed=False)
            timings[CPU] = _clocked(here[what])
            for name, timing in timings.items():
                report.time(case, name, timing, rate=1 / timing.seconds)
            for name, why in missing.items():
                report.missing(case, name, why)
            free(cupy)


def calls(rgb: object) -> dict[str, Callable[[], object]]:
    """The refinements of a map over this photograph, wherever that is; the map is of patches, enlarged."""
    from vitnp import kernels
    from vitnp.io import resample
    from vitnp.io.resample import bilinear
    from vitnp.refine.bilateral_solver import bilateral_solver
    from vitnp.refine.dense_crf import dense_crf
    from vitnp.refine.guided_filter import guided_filter

    height, width = rgb.shape[:2]
    score = np.random.default_rng(0).random((height // 16, width // 16), np.float32)
    soft = bilinear(kernels.to_device(score, kernels.device_of(rgb)), (height, width)).clip(0, 1)
    return {
        "solver": lambda: bilateral_solver(soft, rgb),
        "crf": lambda: dense_crf(soft, rgb)[..., 1],
        "guided": lambda: guided_filter(soft, rgb, radius=max(1, round(0.08 * width)), eps=1e-4),
        "resize": lambda: resample.downscale(rgb, (height // 2, width // 2)),
    }


def _clocked(call: Callable[[], object]) -> Timing:
    """On the CPU, warm, by the host's clock."""
    found = []
    for _ in range(CPU_RUNS):
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return summary(found)
