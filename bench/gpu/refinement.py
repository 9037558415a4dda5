"""Measure bilateral solver, CRF, guided filter and resizing, on the GPU compared with the CPU's compiled kernels."""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from types import ModuleType

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
TOGETHER = 8  # photographs of the smaller size that are refined at once
# Largest difference from the CPU: of maps in 0..1, of resizing in 8-bit levels.
TOLERANCE = {"solver": 1e-5, "crf": 1e-3, "guided": 1e-5, "resize": 0}
TOGETHER_WHATS = ("solver", "crf")


def run(report: Report, options: argparse.Namespace) -> None:
    """Check and measure each refinement at a usual and a large size; the time includes the work of the host."""
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
            report.near(label, apart, most, functools.partial(mismatch, found, expected, most))
            timings, missing = timer.medians({OURS: there[what]}, min(1.0, report.left / 8), primed=False)
            timings[CPU] = _clocked(here[what])
            for name, timing in timings.items():
                report.time(case, name, timing, rate=1 / timing.seconds)
            for name, why in missing.items():
                report.missing(case, name, why)
            free(cupy)
        if size == SIZES[0]:
            _together(report, cupy, timer, rgb)


def _together(report: Report, cupy: ModuleType, timer: Timer, rgb: np.ndarray) -> None:
    """Check that photographs refined together get the bits that they get alone, and measure them."""
    shifted = cupy.asarray(np.stack([np.roll(rgb, 40 * turn, axis=1) for turn in range(TOGETHER)]))
    there, last = calls(shifted), calls(shifted[-1])
    for what in TOGETHER_WHATS:
        label = f"{what}, {TOGETHER} photographs together"
        if not report.has_time(label, 2):
            return
        found, alone = cupy.asnumpy(there[what]())[-1], cupy.asnumpy(last[what]())
        same = np.array_equal(found, alone)
        report.check(f"{label}: the bits of one alone", same, "" if same else mismatch(found, alone, 0))
        case = {"refinement": f"{what}, {TOGETHER} together", "size": [rgb.shape[1], rgb.shape[0]]}
        timings, missing = timer.medians({OURS: there[what]}, min(1.0, report.left / 8), primed=False)
        for name, timing in timings.items():
            report.time(case, name, timing, rate=TOGETHER / timing.seconds)
        for name, why in missing.items():
            report.missing(case, name, why)
        free(cupy)


def calls(rgb: object) -> dict[str, Callable[[], object]]:
    """Return the refinements of an enlarged random map for a photograph, or several, on the photograph's device."""
    from vitnp import kernels
    from vitnp.io import resample
    from vitnp.io.resample import bilinear
    from vitnp.refine.bilateral_solver import bilateral_solver
    from vitnp.refine.dense_crf import dense_crf
    from vitnp.refine.guided_filter import guided_filter

    height, width = rgb.shape[-3:-1]
    score = np.random.default_rng(0).random((height // 16, width // 16), np.float32)
    if rgb.ndim == 4:
        score = np.stack([score] * len(rgb))
    soft = bilinear(kernels.to_device(score, kernels.device_of(rgb)), (height, width)).clip(0, 1)
    return {
        "solver": lambda: bilateral_solver(soft, rgb),
        "crf": lambda: dense_crf(soft, rgb)[..., 1],
        "guided": lambda: guided_filter(soft, rgb, radius=max(1, round(0.08 * width)), eps=1e-4),
        "resize": lambda: resample.downscale(rgb, (height // 2, width // 2)),
    }


def _clocked(call: Callable[[], object]) -> Timing:
    """Measure a warm call on the CPU by the clock of the host."""
    found = []
    for _ in range(CPU_RUNS):
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return summary(found)
