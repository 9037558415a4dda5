"""Seconds from one photograph to its mask: warm, by stage, and the whole command from a cold start."""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageOps

from bench import record
from vitnp import load_vit, segment_image
from vitnp.cli import arguments, shared

# What the command may take from a cold start, on two cores and a photograph of the usual size.
MOST_SECONDS = 3.0
USUAL_SIZE = 500, 375

SAMPLE = Path(__file__).parent.parent.parent / "tests" / "photographs" / "coffee.jpg"


def main(argv: list[str] | None = None) -> int:
    """Print medians over several runs and keep them in bench/results/photograph.json."""
    made = argparse.ArgumentParser(prog="python -m bench photograph", description=__doc__)
    made.add_argument("photograph", nargs="?", type=Path, help="by default the sample photograph at 500 x 375")
    made.add_argument("--model", default="auto")
    made.add_argument("--runs", type=arguments.positive, default=7)
    args = made.parse_args(argv)
    with contextlib.nullcontext(args.photograph) if args.photograph else usual_photograph() as args.photograph:
        return _measure(args)


@contextlib.contextmanager
def usual_photograph() -> Iterator[Path]:
    """The sample photograph at the usual size, as a JPEG file that lasts as long as the context."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / SAMPLE.name
        with Image.open(SAMPLE) as picture:
            ImageOps.fit(picture.convert("RGB"), USUAL_SIZE).save(path, quality=92)
        yield path


def _measure(args: argparse.Namespace) -> int:
    vit = load_vit(args.model)
    segment_image(args.photograph, vit)
    runs = [segment_image(args.photograph, vit) for _ in range(args.runs)]
    stages = {stage: statistics.median(run.seconds[stage] for run in runs) for stage in runs[0].seconds}
    warm = statistics.median(sum(run.seconds.values()) for run in runs)
    cold = statistics.median(_cold(args.photograph, args.model) for _ in range(max(3, args.runs // 2)))

    height, width = runs[0].mask.shape
    print(f"{args.photograph.name}, {width} x {height}, {vit}")
    for stage, seconds in stages.items():
        print(f"  {stage:<10}{seconds:8.3f} s")
    print(f"  {'warm':<10}{warm:8.3f} s")
    print(
        f"  {'cold':<10}{cold:8.3f} s, the whole command with both pictures written (at most {MOST_SECONDS:g} on 2 cores)"
    )
    print(f"  judged by {'its own patches alone' if runs[0].levels is None else 'the built-in collection too'}")
    path = record.write(
        "photograph",
        {"photograph": args.photograph.name, "size": [width, height], "model": vit.name, "runs": args.runs,
         "collection": runs[0].parameters.get("collection"),
         "seconds_by_stage": stages, "seconds_warm": warm, "seconds_cold_command": cold},
    )  # fmt: skip
    print(f"written to {path}")
    return shared.EXIT_OK


def _cold(photograph: Path, model: str) -> float:
    """Seconds of the whole command in a process of its own; a failure of it fails the benchmark."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        command = [sys.executable, "-m", "vitnp.segment", str(photograph), "--model", model, "--out", folder, "--quiet"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - began
