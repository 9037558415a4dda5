"""Measure photographs per second of whole folders, in turn with another checkout, the network alone, and a peer.

Three folders are segmented by the command, masks and overlays written, in two threads: photographs of 500 x 375 one by
one, the same as a collection with classes, and photographs of 12 megapixels. Every contender runs in processes of its
own, in rounds, so that a machine whose speed changes changes it for all. The time of a command includes its start.
Processor seconds are given too, because other programs do not change them as much.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageOps

from bench import record
from bench.cpu.pipeline_bundle import write_bundle
from vitnp import find_photographs, load_vit
from vitnp.cli import arguments, shared
from vitnp.method.defaults import resolve_collection
from vitnp.options import Settings

ROOT = Path(__file__).parent.parent.parent
USUAL_SIZE, LARGE_SIZE = (500, 375), (4000, 3000)
# How many times as many photographs a second as another checkout, and how much longer than the network alone.
MIN_SPEEDUP, MAX_SHARE = 1.5, 1.2


class Case(NamedTuple):
    """One folder and how it is segmented."""

    size: tuple[int, int]
    count: int
    options: tuple[str, ...]


class Sample(NamedTuple):
    """Seconds of one run: by the clock, and of the processor in all threads."""

    wall: float
    processor: float


def main(argv: list[str] | None = None) -> int:
    """Print medians over rounds, and write them to bench/results/folders.json."""
    parser = argparse.ArgumentParser(prog="python -m bench folders", description=__doc__)
    parser.add_argument("photographs", nargs="+", type=Path, help="files or folders; they are scaled to two sizes")
    parser.add_argument("--count", type=arguments.number(2), default=400, metavar="N", help="of 500 x 375 (400)")
    parser.add_argument("--large", type=arguments.number(2), default=24, metavar="N", help="of 12 megapixels (24)")
    parser.add_argument("--rounds", type=arguments.number(1), default=5, metavar="N", help="number of rounds (5)")
    parser.add_argument("--threads", type=arguments.number(1), default=2, metavar="N", help="threads (2)")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another checkout of vitnp to compare with")
    parser.add_argument(
        "--peer", type=Path, metavar="PYTHON", help="an interpreter that has onnxruntime, scikit-learn and pydensecrf2"
    )
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        return _measure(args, Path(folder))


def _measure(args: argparse.Namespace, folder: Path) -> int:
    cases = {
        "one by one": Case(USUAL_SIZE, args.count, ("--levels", "single")),
        "collection": Case(USUAL_SIZE, args.count, ("--levels", "all", "--classes", "10")),
        "12 megapixels": Case(LARGE_SIZE, args.large, ("--levels", "single")),
    }
    sources = [photograph.path for photograph in find_photographs(args.photographs)]
    results: dict[str, Any] = {}
    for name, case in cases.items():
        photographs = _scaled(sources, case, folder / name.replace(" ", "-"))
        contenders = _contenders(args, case, photographs, folder)
        samples: dict[str, list[Sample]] = {contender: [] for contender in contenders}
        for _ in range(args.rounds):
            for contender, run in contenders.items():
                samples[contender].append(run())
        results[name] = {contender: _summary(case, runs, samples["vitnp"]) for contender, runs in samples.items()}
        results[name]["same masks"] = _same_masks(folder) if args.against else None
        _print(name, case, results[name])
    path = record.write(
        "folders",
        {"threads": args.threads, "rounds": args.rounds, "photographs": {name: c.count for name, c in cases.items()},
         "min_speedup": MIN_SPEEDUP, "max_times_the_network": MAX_SHARE, "cases": results},
    )  # fmt: skip
    print(f"written to {path}")
    return shared.EXIT_OK


def _contenders(
    args: argparse.Namespace, case: Case, photographs: Path, folder: Path
) -> dict[str, Callable[[], Sample]]:
    """Return what is timed, by name."""
    threads = str(args.threads)

    def command(checkout: Path, out: str) -> Callable[[], Sample]:
        options = ("--threads", threads, "--quiet", "--device", "cpu", "--overwrite", *case.options)
        return lambda: _time(checkout, "vitnp.segment", photographs, "--out", folder / out, *options)

    found: dict[str, Callable[[], Sample]] = {"vitnp": command(ROOT, "vitnp")}
    if args.against:
        found["against"] = command(args.against.resolve(), "against")
    found["network"] = lambda: _time(ROOT, "bench.scale.folders_network", photographs, threads, report=True)
    if args.peer and "single" in case.options:
        bundle = folder / "bundle"
        bundle.mkdir(exist_ok=True)
        vit = load_vit("auto")
        collection, _ = resolve_collection("auto", vit, Settings())
        assert collection is not None
        write_bundle(bundle, vit, collection, min(photographs.iterdir()))
        module = ("bench.cpu.pipeline_folder", photographs, bundle, folder / "peer", threads)
        found["peer"] = lambda: _time(ROOT, *module, report=True, python=str(args.peer))
    return found


def _time(
    checkout: Path, module: str, *arguments: object, report: bool = False, python: str = sys.executable
) -> Sample:
    """Run a module of a checkout in a process; a `report` prints the seconds itself, without its start."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [python, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, check=True, cwd=checkout, stdout=subprocess.PIPE, text=True, env=_environment())
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if report:
        return Sample(*map(float, done.stdout.split()))
    return Sample(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VITNP_NUM_THREADS")}


def _scaled(sources: Sequence[Path], case: Case, folder: Path) -> Path:
    """Fill a folder with so many photographs of one size; sources are repeated, each time mirrored or cut otherwise."""
    folder.mkdir(exist_ok=True)
    for index in range(case.count):
        target = folder / f"{index:04d}.jpg"
        if not target.exists():
            turn, part = divmod(index, len(sources))
            with Image.open(sources[part]) as picture:
                rgb = ImageOps.exif_transpose(picture).convert("RGB")
            center = (0.5, 0.5) if turn < 2 else ((turn % 5) / 4, (turn % 3) / 2)
            rgb = ImageOps.fit(ImageOps.mirror(rgb) if turn % 2 else rgb, case.size, centering=center)
            rgb.save(target, quality=90)
    return folder


def _same_masks(folder: Path) -> bool:
    """Tell whether both checkouts wrote masks of equal pixels."""

    def digests(out: Path) -> dict[str, str]:
        return {path.name: _pixels(path) for path in sorted(out.rglob("*_mask.png"))}

    same = digests(folder / "vitnp") == digests(folder / "against")
    for name in ("vitnp", "against"):
        shutil.rmtree(folder / name, ignore_errors=True)
    return same


def _pixels(path: Path) -> str:
    with Image.open(path) as mask:
        return hashlib.blake2b(mask.convert("L").tobytes()).hexdigest()


def _summary(case: Case, runs: Sequence[Sample], own: Sequence[Sample]) -> dict[str, float]:
    """Return medians: photographs a second, processor seconds of one, and how many times the seconds of vitnp."""

    def ratio(pairs: Iterable[tuple[float, float]]) -> float:
        return round(statistics.median(each / mine for each, mine in pairs), 3)

    return {
        "photographs_per_second": round(case.count / statistics.median(run.wall for run in runs), 2),
        "processor_seconds": round(statistics.median(run.processor for run in runs) / case.count, 4),
        "times_vitnp": ratio((run.wall, mine.wall) for run, mine in zip(runs, own)),
        "times_vitnp_processor": ratio((run.processor, mine.processor) for run, mine in zip(runs, own)),
    }


def _print(name: str, case: Case, result: dict[str, Any]) -> None:
    print(f"{name}, {case.count} photographs of {case.size[0]} x {case.size[1]}")
    for contender, summary in result.items():
        if isinstance(summary, dict):
            print(
                f"  {contender:<10}{summary['photographs_per_second']:8.2f} a second, "
                f"{summary['processor_seconds']:.3f} s of the processor each, "
                f"{summary['times_vitnp']:.2f} x the time of vitnp ({summary['times_vitnp_processor']:.2f} x processor)"
            )
        elif summary is not None:
            print(f"  {contender}: {summary}")
