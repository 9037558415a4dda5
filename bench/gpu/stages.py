"""Seconds of one photograph from its file to its mask, by stage, on the GPU and on the CPU; and each kernel's share of them."""

from __future__ import annotations

import argparse
import statistics

from vitnp.kernels.cuda.loader import require_cupy

from bench.gpu import launches
from bench.gpu.agreement import SAMPLES, has_baseline
from bench.gpu.measure import summary
from bench.gpu.report import Report

RUNS, QUICK_RUNS = 9, 3
QUICK_PHOTOGRAPHS = 2
PLACES = (("cuda", "fp16"), ("cuda", "fp32"), ("cpu", "fp32"))


def run(report: Report, options: argparse.Namespace) -> None:
    """Segment the sample photographs one by one, warm."""
    from vitnp import load_vit, segment_image

    cupy = require_cupy()
    vit = load_vit("auto")
    photographs = sorted(SAMPLES.glob("*.jpg"))[: QUICK_PHOTOGRAPHS if options.quick else None]
    for device, precision in PLACES:
        if device == "cpu" and not has_baseline(report):
            return
        there = vit.to(device=device, precision=precision)
        for index, photograph in enumerate(photographs):
            if not report.has_time(f"{photograph.name}, {device} {precision}", 2):
                return
            height, width = segment_image(photograph, there).mask.shape  # compiles
            found = [segment_image(photograph, there).seconds for _ in range(QUICK_RUNS if options.quick else RUNS)]
            stages = {stage: statistics.median(seconds[stage] for seconds in found) for stage in found[0]}
            timing = summary([sum(seconds.values()) for seconds in found])
            case = {"photograph": photograph.name, "size": [width, height], "device": device, "precision": precision}
            report.time(case, "vitnp", timing, rate=1 / timing.seconds, stages=stages)
            if device == "cuda" and index == 0:
                with launches.recorded(cupy) as launched:
                    segment_image(photograph, there)
                launches.tell(report, cupy, f"{photograph.name}, {precision}", launched)
