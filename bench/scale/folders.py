"""Measure photographs per second of whole folders, in turn with another checkout, the network alone, and peers.

Three folders are segmented by the command, masks and overlays written, in two threads: photographs of 500 x 375 one by
one, the same as a collection with classes, and photographs of 12 megapixels. Every contender runs in processes of its
own, in rounds, so that a machine whose speed changes changes it for all. Kernels are compiled before. The time of a
command includes its start, that of the network and the peers does not; peers get fewer photographs, because they take
longer. Processor seconds are given too, because other programs do not change them as much.

Peers, in another interpreter (--peer): the same pipeline assembled from onnxruntime, scikit-learn and pydensecrf2; and
another method for the same user, U^2-Net-p with random weights in onnxruntime, as rembg runs it.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from bench import record
from bench.cpu.pipeline_bundle import write_bundle
from bench.scale.folders_table import BARS, Contender, Sample, summarize, table, verdicts
from vitnp import find_photographs, load_vit
from vitnp.cli import arguments, shared
from vitnp.method.defaults import resolve_collection
from vitnp.options import Settings

ROOT = Path(__file__).parent.parent.parent
USUAL_SIZE, LARGE_SIZE = (500, 375), (4000, 3000)


class Case(NamedTuple):
    """One folder and how it is segmented."""

    size: tuple[int, int]
    count: int
    options: tuple[str, ...]


def main(argv: list[str] | None = None) -> int:
    """Print medians over rounds, and write them to bench/results/folders.json."""
    parser = argparse.ArgumentParser(prog="python -m bench folders", description=__doc__)
    parser.add_argument("photographs", nargs="+", type=Path, help="files or folders; they are scaled to two sizes")
    parser.add_argument("--count", type=arguments.number(2), default=400, metavar="N", help="of 500 x 375 (400)")
    parser.add_argument("--large", type=arguments.number(2), default=24, metavar="N", help="of 12 megapixels (24)")
    parser.add_argument("--peer-count", type=arguments.number(2), default=16, metavar="N", help="for peers (16)")
    parser.add_argument("--rounds", type=arguments.number(1), default=3, metavar="N", help="most rounds (3)")
    parser.add_argument("--minutes", type=arguments.number(1), default=6, metavar="N", help="most minutes (6)")
    parser.add_argument("--threads", type=arguments.number(1), default=2, metavar="N", help="threads (2)")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another checkout of vitnp to compare with")
    parser.add_argument(
        "--peer", type=Path, metavar="PYTHON", help="an interpreter with onnx, onnxruntime, scikit-learn, pydensecrf2"
    )
    args = parser.parse_args(argv)
    deadline = time.monotonic() + 60 * args.minutes
    with tempfile.TemporaryDirectory() as folder:
        return _measure(args, Path(folder), deadline)


def _measure(args: argparse.Namespace, folder: Path, deadline: float) -> int:
    cases = {
        "one by one": Case(USUAL_SIZE, args.count, ("--levels", "single")),
        "collection": Case(USUAL_SIZE, args.count, ("--levels", "all", "--classes", "10")),
        "12 megapixels": Case(LARGE_SIZE, args.large, ("--levels", "single")),
    }
    sources = [photograph.path for photograph in find_photographs(args.photographs)]
    contenders = {}
    for name, case in cases.items():
        place = folder / name.replace(" ", "-")
        contenders[name] = _contenders(args, case, _scaled(sources, case, place / "all"), place)
    for checkout in (ROOT, *([args.against.resolve()] if args.against else [])):
        _compile(checkout, min((folder / "one-by-one" / "all").iterdir()), folder / "compiling")
    finished = _run_rounds(contenders, args.rounds, deadline)
    results = {name: summarize(found) for name, found in contenders.items()}
    differing = {
        name: _share_of_pixels_that_differ(folder / name.replace(" ", "-")) if "against" in results[name] else None
        for name in cases
    }
    print(table(results))
    lines = verdicts(results, differing)
    for line in lines:
        print(line)
    machine = record.machine()
    print(f"on {machine['processor']}, {args.threads} threads" + ("" if finished else "; UNFINISHED: out of time"))
    path = record.write(
        "folders",
        {"threads": args.threads, "finished": finished, "photographs": {name: c.count for name, c in cases.items()},
         "rounds": {name: len(found["vitnp"].samples) for name, found in contenders.items()},
         "bars": BARS, "cases": results, "share_of_mask_pixels_that_differ": differing, "verdicts": lines},
    )  # fmt: skip
    print(f"written to {path}")
    return shared.EXIT_OK


def _run_rounds(contenders: dict[str, dict[str, Contender]], rounds: int, deadline: float) -> bool:
    """Run all contenders in turn; return whether all rounds were finished before the deadline."""
    for number in range(rounds):
        for case, found in contenders.items():
            for name, contender in found.items():
                if time.monotonic() + contender.seconds > deadline:
                    return False
                began = time.monotonic()
                contender.samples.append(contender.run())
                contender.seconds = time.monotonic() - began
                print(f"round {number + 1}, {case}, {name}: {contender.seconds:.1f} s", file=sys.stderr, flush=True)
    return True


def _contenders(args: argparse.Namespace, case: Case, photographs: Path, folder: Path) -> dict[str, Contender]:
    """Return what is timed, by name."""
    threads = str(args.threads)

    def command(checkout: Path, out: str) -> Callable[[], Sample]:
        options = ("--threads", threads, "--quiet", "--device", "cpu", "--overwrite", *case.options)
        return lambda: _time(checkout, "vitnp.segment", photographs, "--out", folder / out, *options)

    found = {"vitnp": Contender(command(ROOT, "vitnp"), case.count)}
    if args.against:
        found["against"] = Contender(command(args.against.resolve(), "against"), case.count)
    network = ("bench.scale.folders_network", photographs, threads)
    found["network"] = Contender(lambda: _time(ROOT, *network, report=True), case.count)
    if args.peer and "single" in case.options:
        few, python = folder / "few", str(args.peer)
        few.mkdir(exist_ok=True)
        for path in sorted(photographs.iterdir())[: args.peer_count]:
            shutil.copy(path, few)
        count, bundle = len(list(few.iterdir())), folder / "bundle"
        bundle.mkdir(exist_ok=True)
        vit = load_vit("auto")
        collection, _ = resolve_collection("auto", vit, Settings())
        assert collection is not None
        write_bundle(bundle, vit, collection, min(few.iterdir()))
        assembled = ("bench.cpu.pipeline_folder", few, bundle, folder / "assembled", threads)
        found["assembled"] = Contender(lambda: _time(ROOT, *assembled, report=True, python=python), count)
        u2netp = ("bench.scale.u2netp_folder", few, folder / "u2netp", threads)
        found["u2netp"] = Contender(lambda: _time(ROOT, *u2netp, report=True, python=python), count)
    return found


def _compile(checkout: Path, photograph: Path, folder: Path) -> None:
    """Segment copies of a photograph, with classes, so that the kernels of a checkout are on disk."""
    (folder / "photographs").mkdir(parents=True, exist_ok=True)
    for number in range(4):
        shutil.copy(photograph, folder / "photographs" / f"{number}.jpg")
    for options in (("--levels", "single"), ("--levels", "all", "--classes", "2")):
        out = ("--out", folder / "out", "--overwrite", "--quiet", "--device", "cpu")
        _time(checkout, "vitnp.segment", folder / "photographs", *out, *options)


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
    folder.mkdir(parents=True, exist_ok=True)
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


def _share_of_pixels_that_differ(folder: Path) -> float:
    """Return how many pixels of the masks of both checkouts differ, as a share; 1 if one has not written them."""
    masks = sorted((folder / "vitnp").rglob("*_mask.png"))
    different = total = 0
    for path in masks:
        other = folder / "against" / path.relative_to(folder / "vitnp")
        if not other.exists():
            return 1.0
        mine, theirs = (np.asarray(Image.open(each).convert("L")) for each in (path, other))
        different, total = different + int(np.count_nonzero(mine != theirs)), total + mine.size
    return different / total if total else 1.0
