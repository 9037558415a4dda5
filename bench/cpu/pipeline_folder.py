"""Segment a folder with :mod:`bench.cpu.pipeline_peer`, a process for each thread; print the seconds.

By the clock and of the processor, without the start. Like its module, this imports nothing of vitnp::

    python -m bench.cpu.pipeline_folder FOLDER BUNDLE OUT THREADS
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from pathlib import Path

from PIL import Image

from bench.cpu.pipeline_peer import Pipeline, overlay

_pipeline: list[Pipeline] = []


def _start(bundle: str) -> None:
    _pipeline.append(Pipeline(bundle, 1))


def _segment(path: str, out: str) -> None:
    rgb, mask = _pipeline[0](path)
    stem = Path(out) / Path(path).stem
    Image.fromarray(mask.view("uint8") * 255).save(f"{stem}_mask.png", compress_level=6)
    Image.fromarray(overlay(rgb, mask)).save(f"{stem}_overlay.png", compress_level=3)


def main(folder: str, bundle: str, out: str, n_threads: str) -> None:
    """Print both numbers."""
    Path(out).mkdir(exist_ok=True)
    paths = [str(path) for path in sorted(Path(folder).iterdir())]
    with multiprocessing.get_context("spawn").Pool(int(n_threads), _start, (bundle,)) as workers:
        workers.starmap(_segment, [(paths[0], out)] * 2 * int(n_threads), chunksize=1)
        began = time.perf_counter()
        workers.starmap(_segment, [(path, out) for path in paths], chunksize=1)
        wall = time.perf_counter() - began
        workers.close()
        workers.join()
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(wall, usage.ru_utime + usage.ru_stime)


if __name__ == "__main__":
    main(*sys.argv[1:])
