"""Measure vision transformers in half precision, compared with torch with the same random weights."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from types import ModuleType

import numpy as np
from vitnp.kernels.cuda.loader import require_cupy

from bench.cpu.vit_peers import Case, random_weights
from bench.gpu import torch_twin
from bench.gpu.differences import mismatch
from bench.gpu.measure import Timer, free, gather, gist, out_of_memory
from bench.gpu.report import Report
from vitnp.vit.model import ViT

# Cases that have a target (bench/gpu/bars.py) come first, so that they are measured even if time runs out.
BAR = Case("S", 8, 480, 16)
# One small image, whose time is that of the host unless a CUDA graph launches the kernels; it has a target too.
SMALL = Case("S", 16, 224, 1)
CASES = [BAR, SMALL] + [
    case
    for case in (Case("S", patch, side, batch) for patch in (8, 16) for side in (480, 224) for batch in (16, 64, 1))
    if case not in (BAR, SMALL)
]
# What is compared with torch.compile, and the seconds that one of them takes.
COMPILED, COMPILING = [(BAR, "key"), (Case("S", 16, 224, 64), "token")], 35.0
OURS, SINGLY, TORCH, COMPILE = "vitnp", "vitnp, without graph", "torch, eager", "torch, compiled"
# Relative difference of our features from torch's, both rounded to half precision in every layer.
TOLERANCE = 8e-3


def run(report: Report, options: argparse.Namespace) -> None:
    """Check and measure the keys of the last block, which vitnp needs, and the whole forward pass."""
    cupy = require_cupy()
    timer = Timer(cupy)
    cases = CASES[:2] if options.quick else CASES
    for index, case in enumerate(cases):
        if not report.has_time(case.label, 3):
            continue
        try:
            left = len(cases) - index
            _measure(report, timer, cupy, case, min(1.5, report.left / left / 4))
        except Exception as error:
            if not out_of_memory(error):
                raise
            report.skip(case.label, gist(error))
        free(cupy)


def compiled(report: Report, options: argparse.Namespace) -> None:
    """Compare with torch.compile, which takes half a minute per shape: the last step, and only on request."""
    cupy = require_cupy()
    timer = Timer(cupy)
    for case, want in COMPILED[:1] if options.quick else COMPILED:
        if report.has_time(f"{case.label}, {want}, compiled", COMPILING):
            _measure_compiled(report, timer, cupy, case, want)
            free(cupy)


def _facts(case: Case, want: str) -> dict[str, object]:
    return {
        "model": f"ViT-{case.size}/{case.patch}", "side": case.side, "batch": case.batch, "tokens": case.tokens,
        "dtype": "fp16", "want": want,
    }  # fmt: skip


def _images(cupy: ModuleType, case: Case) -> object:
    return cupy.asarray(case.images().astype(np.float16))


def _measure(report: Report, timer: Timer, cupy: ModuleType, case: Case, seconds: float) -> None:
    weights = random_weights(case.config)
    vit = ViT(case.config, weights).to(device="cuda", precision="fp16")
    images = _images(cupy, case)
    for want in ("key", "token"):
        calls, missing = gather(
            {
                OURS: lambda want=want: lambda: vit(images, (want,))[want],
                SINGLY: lambda want=want: lambda: _without_graph(vit, images, want),
                TORCH: lambda want=want: torch_call(case, weights, images, want),
            }
        )
        facts = _facts(case, want)
        single = cupy.asnumpy(calls[SINGLY]())
        repeated = [cupy.asnumpy(calls[OURS]()) for _ in range(3)]  # kernel by kernel, recorded, launched as a graph
        same = all(np.array_equal(one, single) for one in repeated)
        report.check(f"{case.label}, {want}: a graph gives the bits of single launches", same)
        found = repeated[-1][:1].astype(np.float64)
        expected = _torch_features(cupy, calls, missing)
        if expected is not None:
            error = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
            allowed = TOLERANCE * float(np.abs(expected).max())
            where = functools.partial(mismatch, found, expected, allowed)
            report.near(f"{case.label}, {want}: against torch", error, TOLERANCE, where)
        else:
            report.check(f"{case.label}, {want}: finite", bool(np.isfinite(found).all()))
        # Not primed: the time in which the host launches kernels is part of a forward pass.
        timings, failed = timer.medians(calls, seconds, primed=False)
        for name, timing in timings.items():
            report.time(facts, name, timing, rate=case.batch / timing.seconds)
        for name, why in {**missing, **failed}.items():
            report.missing(facts, name, why)
        del calls
        free(cupy)


def _without_graph(vit: ViT, images: object, want: str) -> object:
    from vitnp.kernels.cuda.graphs import launched_singly

    with launched_singly():
        return vit(images, (want,))[want]


def _torch_features(cupy: ModuleType, calls: dict[str, Callable], missing: dict[str, str]) -> np.ndarray | None:
    """Return torch's features of the first image; if it fails, remove it from the calls and return None."""
    if TORCH not in calls:
        return None
    try:
        return calls[TORCH]()[:1].double().cpu().numpy()
    except Exception as error:
        missing[TORCH] = gist(error)
        del calls[TORCH]
        free(cupy)
        return None


def _measure_compiled(report: Report, timer: Timer, cupy: ModuleType, case: Case, want: str) -> None:
    """Measure compiled torch, and vitnp once more in turns with it: only then are their conditions the same."""
    weights, images = random_weights(case.config), _images(cupy, case)
    vit = ViT(case.config, weights).to(device="cuda", precision="fp16")
    calls, missing = gather(
        {
            OURS: lambda: lambda: vit(images, (want,))[want],
            COMPILE: lambda: torch_call(case, weights, images, want, True),
        }
    )
    timings, failed = timer.medians(calls, 1.5, primed=False)
    if COMPILE in timings and OURS in timings:
        report.time(_facts(case, want), COMPILE, timings[COMPILE], ours=timings[OURS].seconds)
    for name, why in {**missing, **failed}.items():
        report.missing(_facts(case, want), name, why)


def torch_call(case: Case, weights: dict, images: object, want: str, compiled: bool = False) -> Callable[[], object]:
    """Return a call of the network in torch, on the same images in the same memory."""
    import torch

    network, tensor = torch_twin.forward(case.config, weights, want), torch.from_dlpack(images)
    network = torch.compile(network, dynamic=False) if compiled else network
    return lambda: network(tensor)
