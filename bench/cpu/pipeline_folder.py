"""Segment a folder with :mod:`bench.cpu.pipeline_peer`, a process for each thread; print the seconds.

By the clock and of the processor, without the start. Like its module, this imports nothing of vitnp::

    python -m bench.cpu.pipeline_folder FOLDER BUNDLE OUT THREADS
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
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


def timed(
    folder: str, out: str, n_threads: int, start: Callable[..., None], arguments: tuple, segment: Callable[..., None]
) -> tuple[float, float]:
    """Segment the photographs of a folder in processes that have been started and warmed up; return both numbers."""
    Path(out).mkdir(exist_ok=True)
    paths = [str(path) for path in sorted(Path(folder).iterdir())]
    with multiprocessing.get_context("spawn").Pool(n_threads, start, arguments) as workers:
        workers.starmap(segment, [(paths[0], out)] * 2 * n_threads, chunksize=1)
        used = sum(workers.starmap(_processor_seconds, [()] * n_threads, chunksize=1))
        began = time.perf_counter()
        workers.starmap(segment, [(path, out) for path in paths], chunksize=1)
        wall = time.perf_counter() - began
        workers.close()
        workers.join()
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, usage.ru_utime + usage.ru_stime - used


def _processor_seconds() -> float:
    """Return what this process has used; a moment later, so that each process is asked once."""
    time.sleep(0.2)
    return time.process_time()


def main(folder: str, bundle: str, out: str, n_threads: str) -> None:
    """Print both numbers."""
    print(*timed(folder, out, int(n_threads), _start, (bundle,), _segment))


if __name__ == "__main__":
    main(*sys.argv[1:])
