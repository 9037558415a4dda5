"""Compare the GPU with the CPU: keys of networks, masks of photographs, arrays of more than 2^31 numbers."""

from __future__ import annotations

import argparse
import functools
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from vitnp.kernels.cuda.loader import require_cupy

from bench.cpu.vit_peers import Case, random_weights
from bench.gpu import processes
from bench.gpu.differences import mismatch
from bench.gpu.measure import free
from bench.gpu.preflight import why_not_compiled
from bench.gpu.report import Report

SAMPLES = processes.ROOT / "tests" / "photographs"
MOST_PHOTOGRAPHS = 160
# Tolerances: relative norm of the difference of keys, and difference of mean IoU. In half precision rounding adds up
# over the twelve blocks of the built-in network to 0.0028 in the emulator.
KEYS_WITHIN = {"fp32": 1e-5, "fp16": 4e-3}
MASKS_WITHIN, MASK_PRECISIONS = 0.002, ("fp32", "fp16")
# Numbers that overflow an int; rows beyond this size, and last rows that are also computed separately.
MANY, BEYOND, TAIL = 2**31, 100_000, 150_000
WIDTH = 384
# Sides of the photographs whose keys are compared, in patches; networks with random weights.
PATCHES = 14
CASES = [Case("S", 16, 224, 2), Case("S", 8, 224, 1)]


def keys(report: Report, options: argparse.Namespace) -> None:
    """Compare keys of the built-in network on photographs, and of ViT-S with random weights, in fp32 and fp16."""
    from PIL import Image

    from vitnp import load_vit
    from vitnp.io.preprocess import normalize
    from vitnp.vit.model import ViT

    cupy = require_cupy()
    if not has_baseline(report):
        return
    builtin = load_vit("auto").to(precision="fp32")
    side = PATCHES * builtin.config.patch
    pictures = []
    for path in sorted(SAMPLES.glob("*.jpg")):
        with Image.open(path) as picture:
            rgb = np.asarray(picture.convert("RGB").resize((side, side)))
        pictures.append(normalize(rgb, builtin.config.mean, builtin.config.std))
    networks = {"built-in network, photographs": (builtin, np.stack(pictures))}
    for case in CASES[:1] if options.quick else CASES:
        networks[f"ViT-{case.size}/{case.patch}, random"] = (
            ViT(case.config, random_weights(case.config)),
            case.images(),
        )
    for name, (vit, images) in networks.items():
        expected = vit(images, ("key",))["key"].astype(np.float64)
        for precision, most in KEYS_WITHIN.items():
            found = cupy.asnumpy(
                vit.to(device="cuda", precision=precision)(cupy.asarray(images), ("key",))["key"]
            ).astype(np.float64)
            error = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
            allowed = most * float(np.abs(expected).max())
            where = functools.partial(mismatch, found, expected, allowed)
            report.near(f"keys in {precision}, {name}", error, most, where)


def has_baseline(report: Report) -> bool:
    """Return whether the CPU uses its compiled kernels; record a failed check if not."""
    why = why_not_compiled()
    return why is None or report.check("the CPU computes with its compiled kernels", False, why)


def masks(report: Report, options: argparse.Namespace) -> None:
    """Compare masks of the command line on the CPU and on the GPU, and with true masks if there are any."""
    from vitnp.evaluate.data.pairs import match_pairs, read_truth
    from vitnp.evaluate.metrics.saliency import iou

    if not has_baseline(report):
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        truths: dict[str, Path] = {}
        most = 12 if options.quick else MOST_PHOTOGRAPHS
        if options.photographs:
            pairs, _ = match_pairs(options.photographs / "images", options.photographs / "masks")
            pairs = pairs[:: max(1, len(pairs) // most)][:most]
            sources = [pair.image for pair in pairs]
            truths = {f"{index:04d}": pair.mask for index, pair in enumerate(pairs)}
        else:
            sources = sorted(SAMPLES.glob("*.jpg"))
        (place / "images").mkdir()
        for index, source in enumerate(sources):
            shutil.copyfile(source, place / "images" / f"{index:04d}{source.suffix}")
        found = {}
        for name, device in {
            "cpu": ("--device", "cpu"),
            "fp32": ("--device", "cuda", "--precision", "fp32"),
            "fp16": ("--device", "cuda", "--precision", "fp16"),
        }.items():
            if not report.has_time(f"masks, {name}", 10):
                return
            try:
                found[name] = segmented(place / "images", place / name, *device, seconds=report.left - 2)
            except RuntimeError as error:  # the other precision may work
                report.check(f"masks, {name}", False, str(error))
            except TimeoutError as error:
                report.skip(f"masks, {name}", str(error))
        for name in MASK_PRECISIONS:
            if not {"cpu", name} <= found.keys():
                continue
            each = {key: float(iou(found["cpu"][key], found[name][key])) for key in found["cpu"]}
            alike, worst = float(np.mean(list(each.values()))), sorted(each, key=each.get)[:3]
            title = f"masks in {name}, {len(sources)} photographs"
            names = ", ".join(f"{sources[int(key)].name} {each[key]:.4f}" for key in worst)
            if not truths:
                least = f"the least alike: {names}"
                where = functools.partial(str, least)
                label = f"{title}: 1 - IoU with the CPU's"
                report.near(label, 1 - alike, MASKS_WITHIN, where, masks=name, apart=1 - alike)
                continue
            scores = {
                which: np.mean([iou(mask, read_truth(truths[key], mask.shape)) for key, mask in found[which].items()])
                for which in ("cpu", name)
            }
            detail = f"mean IoU {scores[name]:.4f}, on the CPU {scores['cpu']:.4f}, of the two {alike:.4f}"
            apart = abs(float(scores[name] - scores["cpu"]))
            report.check(title, apart <= MASKS_WITHIN, f"{detail}; the least alike: {names}", masks=name, apart=apart)


def segmented(photographs: Path, out: Path, *options: str, seconds: float) -> dict[str, np.ndarray]:
    """Segment each photograph of a folder with the command line; return masks by the names of the photographs.

    Raises
    ------
    RuntimeError
        If the command fails; its output is in the log.
    TimeoutError
        If it takes longer than `seconds`.
    """
    from PIL import Image

    command = [
        sys.executable,
        "-m",
        "vitnp.segment",
        str(photographs),
        "--out",
        str(out),
        "--levels",
        "single",
        "--quiet",
    ]
    with tempfile.TemporaryFile() as said:
        status = processes.run([*command, *options], max(1.0, seconds), said)
        said.seek(0)
        lines = said.read().decode(errors="replace").splitlines()
    print("\n".join(lines[-30:]), file=sys.stderr)
    if status is None:
        raise TimeoutError(f"vitnp.segment {' '.join(options)} took more than {seconds:.0f} s")
    if status:
        raise RuntimeError(f"vitnp.segment {' '.join(options)} ended with the status {status}: {' '.join(lines[-1:])}")
    found = {}
    for path in sorted(photographs.iterdir()):
        with Image.open(out / f"{path.stem}_mask.png") as picture:
            found[path.stem] = np.asarray(picture.convert("L")) > 127
    return found


def large(report: Report, options: argparse.Namespace) -> None:
    """Check arrays with more numbers than an int can count: the last rows get the same results as by themselves."""
    from vitnp.kernels.cuda import dispatch

    from bench.gpu.kmeans import rows_on_device

    cupy = require_cupy()
    count = MANY // WIDTH + BEYOND
    needed, there = 3 * count * WIDTH * 2, cupy.cuda.Device().mem_info[0]
    if needed > there:
        report.skip("N x D > 2^31", f"it takes {needed >> 30} GiB of memory, {there >> 30} are free")
        return
    x = rows_on_device(cupy, count, WIDTH, "fp16")
    tail = cupy.ascontiguousarray(x[-TAIL:])
    centroids = x[:: count // 8][:8].astype(np.float32)
    for metric in ("euclidean", "cosine"):
        whole = dispatch.kmeans_step(x, centroids, metric=metric)
        part = dispatch.kmeans_step(tail, centroids, metric=metric)
        first = dispatch.kmeans_step(x[: count // 2], centroids, metric=metric)
        second = dispatch.kmeans_step(cupy.ascontiguousarray(x[count // 2 :]), centroids, metric=metric)
        name = f"N x D > 2^31, k-means, {metric}"
        last, longest = slice(count - len(tail), None), float(abs(part.losses).max())

        def where(ours: object, expected: object, most: float) -> Callable[[], str]:
            return lambda: mismatch(cupy.asnumpy(ours), cupy.asnumpy(expected), most)

        differ = float((whole.labels[last] != part.labels).mean())
        labels = whole.labels[last]
        report.near(f"{name}: share of the last labels that differ", differ, 1e-5, where(labels, part.labels, 0.0))
        error = float(abs(whole.losses[last] - part.losses).max()) / longest
        losses = whole.losses[last]
        report.near(f"{name}: last losses", error, 1e-5, where(losses, part.losses, 1e-5 * longest))
        moved = int(abs(whole.counts - first.counts - second.counts).sum())
        report.check(
            f"{name}: counts", int(whole.counts.sum()) == count and moved <= count // 10**5, f"{moved} rows differ"
        )
        halves = first.sums.sum(axis=0) + second.sums.sum(axis=0)
        error = abs(whole.sums.sum(axis=0) - halves).max() / abs(halves).max()
        report.near(f"{name}: sums", float(error), 1e-5)
        labels, _ = dispatch.kmeans_assign(x, centroids, metric=metric)
        report.near(f"{name}: share of labels alone that differ", float((labels != whole.labels).mean()), 1e-5)
        del whole, part, first, second, labels, losses
        free(cupy)
    values, indices = dispatch.similarity_top(x, centroids, 2)
    same = dispatch.similarity_top(tail, centroids, 2)
    report.near("N x D > 2^31, similarity: last rows", float(abs(values[-len(tail) :] - same[0]).max()), 1e-5)
    differ = float((indices[-len(tail) :] != same[1]).mean())
    report.near("N x D > 2^31, similarity: share of the last indices that differ", differ, 1e-5)
