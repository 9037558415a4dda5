"""Measure the seconds from one photograph to its mask: warm, by stage, and with the command from a cold start.

With another checkout, both take turns in processes of their own, each with its own built-in network.
"""

from __future__ import annotations

import argparse
import contextlib
import json
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

# Allowed time of the command from a cold start, on two cores and a photograph of this size.
MAX_SECONDS = 3.0
USUAL_SIZE = 500, 375

# Prints the median seconds of the network and of the whole photograph, in a process of either checkout.
_WARM = """
import json, statistics, sys, time
sys.path.insert(0, sys.argv[1])
import vitnp
for _ in range(3):
    vitnp.segment_image(sys.argv[2])
rows = []
for _ in range(int(sys.argv[3])):
    began = time.perf_counter()
    seconds = vitnp.segment_image(sys.argv[2]).seconds
    rows.append((seconds["network"], time.perf_counter() - began))
print(json.dumps([statistics.median(column) for column in zip(*rows)]))
"""
ROOT = Path(__file__).parent.parent.parent
ROUNDS = 7

SAMPLE = ROOT / "tests" / "photographs" / "coffee.jpg"


def main(argv: list[str] | None = None) -> int:
    """Print medians over several runs, and write them to bench/results/photograph.json."""
    parser = argparse.ArgumentParser(prog="python -m bench photograph", description=__doc__)
    parser.add_argument("photograph", nargs="?", type=Path, help="by default the sample photograph at 500 x 375")
    parser.add_argument("--model", default="auto", help="checkpoint (the built-in one)")
    parser.add_argument("--runs", type=arguments.number(1), default=7, metavar="N", help="number of runs (7)")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another checkout of vitnp to compare with")
    args = parser.parse_args(argv)
    with contextlib.nullcontext(args.photograph) if args.photograph else usual_photograph() as photograph:
        return _measure(photograph, args.model, args.runs, args.against)


@contextlib.contextmanager
def usual_photograph() -> Iterator[Path]:
    """Provide the sample photograph at 500 x 375 as a temporary JPEG file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / SAMPLE.name
        with Image.open(SAMPLE) as picture:
            ImageOps.fit(picture.convert("RGB"), USUAL_SIZE).save(path, quality=92)
        yield path


def _measure(photograph: Path, model: str, n_runs: int, against: Path | None) -> int:
    vit = load_vit(model)
    segment_image(photograph, vit)
    runs = [segment_image(photograph, vit) for _ in range(n_runs)]
    stages = {stage: statistics.median(run.seconds[stage] for run in runs) for stage in runs[0].seconds}
    warm = statistics.median(sum(run.seconds.values()) for run in runs)
    cold = statistics.median(_time_command(photograph, model) for _ in range(max(3, n_runs // 2)))

    height, width = runs[0].mask.shape
    print(f"{photograph.name}, {width} x {height}, {vit}")
    for stage, seconds in stages.items():
        print(f"  {stage:<10}{seconds:8.3f} s")
    print(f"  {'warm':<10}{warm:8.3f} s")
    print(f"  {'cold':<10}{cold:8.3f} s, the command, both pictures written (at most {MAX_SECONDS:g} on 2 cores)")
    print(f"  levels: {'image only' if runs[0].levels is None else 'image and built-in collection'}")
    ratios = None if against is None else _compare(photograph, against, n_runs)
    for part, ratio in (ratios or {}).items():
        print(f"  {part:<10}{ratio:8.2f} x the time of {against}")
    path = record.write(
        "photograph",
        {"photograph": photograph.name, "size": [width, height], "model": vit.name, "runs": n_runs,
         "collection": runs[0].parameters.get("collection"),
         "seconds_by_stage": stages, "seconds_warm": warm, "seconds_cold_command": cold,
         "times_other_checkout": ratios},
    )  # fmt: skip
    print(f"written to {path}")
    return shared.EXIT_OK


def _compare(photograph: Path, other: Path, n_runs: int) -> dict[str, float]:
    """Return how many times as long as another checkout this one takes: medians of rounds in which both take turns."""
    rounds = []
    for _ in range(ROUNDS):
        ours, theirs = (_warm_seconds(checkout.resolve(), photograph, n_runs) for checkout in (ROOT, other))
        rest = [total - network for network, total in (ours, theirs)]
        rounds.append((ours[0] / theirs[0], rest[0] / rest[1], ours[1] / theirs[1]))
    return dict(zip(("network", "all else", "in all"), map(statistics.median, zip(*rounds))))


def _warm_seconds(checkout: Path, photograph: Path, n_runs: int) -> tuple[float, float]:
    """Return the median seconds of the network, and of the whole photograph with decoding, in a new process."""
    with tempfile.TemporaryDirectory() as folder:  # not the folder of a checkout, which would be imported from
        command = [sys.executable, "-c", _WARM, str(checkout), str(photograph), str(n_runs)]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=folder).stdout
    network, total = json.loads(printed)
    return network, total


def _time_command(photograph: Path, model: str) -> float:
    """Run the command in a new process, and return its seconds."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        command = [sys.executable, "-m", "vitnp.segment", str(photograph), "--model", model, "--out", folder, "--quiet"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - began
