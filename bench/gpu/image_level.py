"""Check and measure the image level of a batch of photographs: one upload, two launches, no copy before the masks."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import time

import numpy as np
from vitnp.kernels.cuda.loader import require_cupy

from bench.gpu import launches
from bench.gpu.agreement import SAMPLES, has_baseline
from bench.gpu.differences import mismatch
from bench.gpu.measure import Timer, Timing
from bench.gpu.report import Report
from vitnp.features.record import FeatureRecord

BATCH = 32
SHORT_SIDE = 320
OURS, CPU = "vitnp", "vitnp on the CPU"
# Share of patches whose answer may differ, which are ties; soft answers and confidences of all others.
MOST_TIES, TOLERANCE = 1e-3, 1e-4


def run(report: Report, options: argparse.Namespace) -> None:
    """Compare with the CPU, count launches and copies, and measure; the time includes the work of the host."""
    from vitnp.method.patch_scores import ImageAnswer, judge_images

    cupy = require_cupy()
    if not has_baseline(report):
        return
    here = photographs()
    there = [_on_device(cupy, features) for features in here]
    judge = functools.partial(judge_images, there, "cuda", 0)
    judge()
    with launches.counted(cupy) as traffic:
        found = judge()
        counts = dataclasses.astuple(traffic)
    report.check("image level: 2 launches, 1 upload, no copy back", counts == (2, 1, 0), str(traffic))
    began = time.perf_counter()
    expected = judge_images(here, "cpu", 0)
    took = time.perf_counter() - began
    _compare(report, cupy, found, expected)

    def whole() -> list[ImageAnswer]:
        answers = judge()
        answers[0].confidence  # noqa: B018  (waits until the device has finished)
        return answers

    patches, width = max(one.patches for one in here), here[0].keys.shape[1]
    case = {"stage": "image level", "batch": BATCH, "patches": patches, "width": width}
    timings, missing = Timer(cupy).medians({OURS: whole}, max(report.left / 4, 1.0), primed=False)
    timings[CPU] = Timing(took, took, took, 1)
    for name, timing in timings.items():
        report.time(case, name, timing, rate=BATCH / timing.seconds)
    for name, why in missing.items():
        report.missing(case, name, why)
    with launches.recorded(cupy) as launched:
        judge()
    launches.tell(report, cupy, f"image level of {BATCH} photographs", launched)


def photographs() -> list[FeatureRecord]:
    """Return features of the sample photographs by the built-in network, each several times with different seeds."""
    from PIL import Image

    from vitnp import load_vit
    from vitnp.features.extract import extract

    vit = load_vit("auto")
    found = []
    for path in sorted(SAMPLES.glob("*.jpg")):
        with Image.open(path) as picture:
            found.append(extract(np.asarray(picture.convert("RGB")), vit, short_side=SHORT_SIDE))
    repeated = itertools.islice(itertools.cycle(found), BATCH)
    return [dataclasses.replace(features, digest=features.digest + turn) for turn, features in enumerate(repeated)]


def _on_device(cupy: object, features: FeatureRecord) -> FeatureRecord:
    arrays = {"keys": cupy.asarray(features.keys), "attention": cupy.asarray(features.attention)}
    return dataclasses.replace(features, arrays=lambda: arrays)


def _compare(report: Report, cupy: object, found: list, expected: list) -> None:
    """Check the answers of all photographs."""
    hard, wanted = (np.concatenate([cupy.asnumpy(one.hard) for one in each]) for each in (found, expected))
    differ = hard != wanted
    report.near("image level: share of patches whose hard answer differs", float(differ.mean()), MOST_TIES)
    soft, wanted = (np.concatenate([cupy.asnumpy(one.soft) for one in each])[~differ] for each in (found, expected))
    apart = float(np.abs(soft - wanted).max())
    report.near("image level: soft answers", apart, TOLERANCE, lambda: mismatch(soft, wanted, TOLERANCE))
    apart = max(abs(one.confidence - other.confidence) for one, other in zip(found, expected))
    report.near("image level: confidences", apart, TOLERANCE)
