"""Measure attention at the sizes of a ViT-S, in both of its forms, compared with torch's fused attention."""

from __future__ import annotations

import argparse

import numpy as np
from vitnp.kernels.cuda.loader import require_cupy

from bench.gpu.differences import mismatch
from bench.gpu.measure import Timer, free, gather
from bench.gpu.report import Report

HEADS, SIZE = 6, 64
# Images, tokens, dtype; the one with a target comes first.
CASES = [(16, 3601, "fp16"), (64, 901, "fp16"), (64, 197, "fp16"), (1, 3601, "fp16"), (4, 3601, "fp32")]
OURS, TORCH = "vitnp", "torch"
# The forms of attention in half precision; what a user gets is OURS, whichever it is.
WARP_GROUPS, WARPS = "vitnp, wgmma", "vitnp, mma.sync"
TOLERANCE = {"fp16": 3e-3, "fp32": 1e-5}


def run(report: Report, options: argparse.Namespace) -> None:
    """Check and measure attention, in seconds and operations per second (4 B H N^2 S operations)."""
    cupy = require_cupy()
    from vitnp.kernels.cuda import attention_wgmma, dispatch

    timer = Timer(cupy)
    for images, tokens, dtype in CASES[:1] if options.quick else CASES:
        why_not = attention_wgmma.why_not() if dtype == "fp16" else "it is for 16-bit numbers"
        form = "mma.sync" if why_not and dtype == "fp16" else "float32" if why_not else "wgmma"
        case = {"images": images, "tokens": tokens, "heads": HEADS, "dtype": dtype, "form": form}
        label = f"attention, {images} x {tokens} tokens, {dtype}"
        if not report.has_time(label, 2):
            continue
        rng = np.random.default_rng(0)
        kind = np.float16 if dtype == "fp16" else np.float32
        one = rng.standard_normal((3, 1, tokens, HEADS * SIZE), np.float32)
        scales = cupy.asarray(1 + np.arange(images, dtype=np.float32)[:, None, None] / (2 * images))
        query, key, value = (cupy.ascontiguousarray((cupy.asarray(part) * scales).astype(kind)) for part in one)

        def ours(q=query, k=key, v=value) -> object:
            return dispatch.attention(q, k, v, HEADS)

        def by_warps(ours=ours) -> object:
            with attention_wgmma.switched_off():
                return ours()

        _check(report, cupy, label, dtype, query, key, value, ours())
        contenders = {OURS: lambda: ours, TORCH: lambda q=query, k=key, v=value: torch_call(q, k, v)}
        if form == "wgmma":
            _check(report, cupy, f"{label}, mma.sync", dtype, query, key, value, by_warps())
            contenders[WARPS] = lambda call=by_warps: call
        elif dtype == "fp16":
            report.missing(case, WARP_GROUPS, why_not)
        calls, missing = gather(contenders)
        timings, failed = timer.medians(calls, min(2.0, report.left / 8))
        flops = 4 * images * HEADS * tokens**2 * SIZE
        for name, timing in timings.items():
            report.time(case, name, timing, rate=flops / timing.seconds)
        for name, why in {**missing, **failed}.items():
            report.missing(case, name, why)
        del query, key, value, calls
        free(cupy)


def torch_call(*arrays: object) -> object:
    """Return torch's fused attention on the same memory."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    torch.backends.cuda.matmul.allow_tf32 = False
    parts = [torch.from_dlpack(x).unflatten(2, (HEADS, SIZE)).transpose(1, 2) for x in arrays]
    return lambda: scaled_dot_product_attention(*parts)


def _check(report: Report, cupy: object, label: str, dtype: str, query, key, value, found) -> None:
    """Check some queries of the first and last head of the first and last image against float64."""
    worst, where = 0.0, ""
    rows = np.unique(np.linspace(0, query.shape[1] - 1, 33).astype(int))
    for image in (0, len(query) - 1):
        for head in (0, HEADS - 1):
            part = slice(head * SIZE, (head + 1) * SIZE)
            q, k, v = (cupy.asnumpy(x[image, :, part]).astype(np.float64) for x in (query, key, value))
            scores = q[rows] @ k.T / np.sqrt(SIZE)
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            expected = weights / weights.sum(axis=1, keepdims=True) @ v
            got = cupy.asnumpy(found[image, :, part]).astype(np.float64)[rows]
            error = (
                float(np.linalg.norm(got - expected) / np.linalg.norm(expected)) if np.isfinite(got).all() else np.inf
            )
            if error > worst:
                worst = error
                where = f"image {image}, head {head}, queries {rows[0]} to {rows[-1]}: " + mismatch(
                    got, expected, TOLERANCE[dtype] * np.abs(expected).max()
                )
    report.near(label, worst, TOLERANCE[dtype], lambda: where)
