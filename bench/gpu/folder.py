"""Measure photographs per second of the command line, from a short and a long run, so that its start does not count."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

from bench.gpu.agreement import SAMPLES, has_baseline, segmented
from bench.gpu.measure import Missing, Timing
from bench.gpu.report import Report

SIZE = 500, 375
FEW, MANY = 64, 704  # at the target of 500 per second the difference takes more than a second
QUICK_MANY = 320


def run(report: Report, options: argparse.Namespace) -> None:
    """Measure a short and a long run on each device, at 500 x 375 pixels."""
    many = QUICK_MANY if options.quick else MANY
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for count in (FEW, many):
            make_photographs(folder / f"{count}", count, options.photographs)
        for device in ("cuda", "cpu"):
            case = {"photographs": many - FEW, "size": list(SIZE), "device": device, "cores": os.cpu_count()}
            if device == "cpu" and not has_baseline(report):
                return
            if not report.has_time(f"folder, {device}", 8):
                return
            try:
                seconds = {count: _clocked(folder, count, device, report) for count in (FEW, many)}
                each = (seconds[many] - seconds[FEW]) / (many - FEW)
                if not each > 0:
                    raise Missing("its long run took no longer than its short one")
            except Missing as error:
                report.missing(case, "vitnp", str(error))
                continue
            except RuntimeError as error:  # the other device may work
                report.check(f"folder, {device}", False, str(error))
                continue
            except TimeoutError as error:
                report.skip(f"folder, {device}", str(error))
                continue
            report.time(case, "vitnp", Timing(each, each, each, 1), rate=1 / each, whole_command=seconds[many])


def _clocked(folder: Path, count: int, device: str, report: Report) -> float:
    began = time.perf_counter()
    segmented(folder / f"{count}", folder / f"{device}-{count}", "--device", device, seconds=report.left - 1)
    return time.perf_counter() - began


def make_photographs(folder: Path, count: int, given: Path | None) -> None:
    """Write `count` different JPEG files of the same size."""
    from PIL import Image, ImageOps

    from vitnp.io.find import find_photographs

    sources = sorted(photograph.path for photograph in find_photographs([given / "images"])) if given else []
    sources = sources or sorted(SAMPLES.glob("*.jpg"))
    folder.mkdir(parents=True)
    for index in range(count):
        turn, which = divmod(index, len(sources))
        with Image.open(sources[which]) as picture:
            whole = picture.convert("RGB")
        if turn % 2:
            whole = ImageOps.mirror(whole)
        margin = min(3 * turn, min(whole.size) // 4)
        cut = whole.crop((margin, margin // 2, whole.width - margin, whole.height - margin // 2))
        ImageOps.fit(cut, SIZE).save(folder / f"{index:04d}.jpg", quality=92)
