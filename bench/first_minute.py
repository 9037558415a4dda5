"""Time the first commands on a machine: seconds to a mask with an empty and a full cache of kernels, and to all kernels.

Each command is a process of its own, ``python -m vitnp.segment PHOTO --quiet``, with a temporary VITNP_CACHE.
The bars are those that vitnp is held to: a first mask within 4 s of the time with a full cache, which should be half a
second, and all kernels within 12 s.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import record
from vitnp.cli import shared

ROOT = Path(__file__).resolve().parent.parent
PHOTOGRAPH = ROOT / "tests" / "photographs" / "chelsea.jpg"

# Seconds.
MAX_COMPILING, MAX_ALL_KERNELS, WARM_AIM = 4.0, 12.0, 0.5

ALL_KERNELS = """
from vitnp.kernels.cpu.codegen import ahead
ahead.compile_all(int(__import__("sys").argv[1]))
"""


def main(argv: list[str] | None = None) -> int:
    """Print the figures, and write them to bench/results/first_minute.json."""
    parser = argparse.ArgumentParser(prog="python -m bench first", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="times each command is measured (3)")
    rounds = parser.parse_args(argv).rounds
    times: dict[str, list[float]] = {"empty": [], "full": [], "all": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            times["empty"].append(_segment(cache))
            time.sleep(1)  # until other processes have ended
            times["full"] += [_segment(cache) for _ in range(3)]
        with tempfile.TemporaryDirectory() as cache:
            times["all"].append(_seconds([sys.executable, "-c", ALL_KERNELS, str(os.cpu_count() or 1)], cache))
    seconds = {name: statistics.median(values) for name, values in times.items()}
    bars = {
        "first mask on an empty cache, beyond that on a full one": (seconds["empty"] - seconds["full"], MAX_COMPILING),
        "all kernels": (seconds["all"], MAX_ALL_KERNELS),
        "mask on a full cache": (seconds["full"], WARM_AIM),
    }
    machine = record.machine()
    print(f"{machine['processor']}, {machine['cores']} cores; medians of {rounds} rounds, in seconds")
    for name, (value, bar) in bars.items():
        print(f"{name:<58}{value:6.2f}  {'within' if value <= bar else 'above'} {bar:g}")
    measured = {
        "seconds": seconds,
        "samples": times,
        "bars": {name: {"seconds": value, "at_most": bar, "held": value <= bar} for name, (value, bar) in bars.items()},
    }
    print(f"written to {record.write('first_minute', measured)}")
    return shared.EXIT_OK


def _segment(cache: str) -> float:
    return _seconds(
        [sys.executable, "-m", "vitnp.segment", str(PHOTOGRAPH), "--quiet", "--overwrite", "--out", f"{cache}/out"],
        cache,
    )


def _seconds(command: list[str], cache: str) -> float:
    """Return the seconds that a command takes with a folder as cache."""
    start = time.perf_counter()
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "VITNP_CACHE": cache}, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start
