"""Print the seconds of the network alone on a folder of photographs, by the clock and of the processor.

Photographs are decoded and scaled before; as in the command, each goes through the network in one thread::

    python -m bench.scale.folders_network FOLDER THREADS
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from vitnp.kernels.threads import blas, pool

from vitnp import load_vit, read_image
from vitnp.features.extract import NetworkInput, default_spec, extract_batch, prepare
from vitnp.options import Settings

# Photographs that are repeated: few, so that they stay in memory whatever the folder.
DISTINCT = 16


def main(folder: str, n_threads: str) -> None:
    """Print both numbers."""
    vit = load_vit("auto")
    spec = default_spec(vit, Settings())
    paths = sorted(Path(folder).iterdir())
    inputs = [prepare(read_image(path), vit, spec) for path in paths[:DISTINCT]]

    def extract(photograph: NetworkInput) -> None:
        extract_batch([photograph], vit, spec, with_cls=True)

    extract(inputs[0])
    began, used = time.perf_counter(), time.process_time()
    with blas.one_blas_thread():
        for _ in pool.map_ordered(extract, (inputs[i % len(inputs)] for i in range(len(paths))), int(n_threads)):
            pass
    print(time.perf_counter() - began, time.process_time() - used)


if __name__ == "__main__":
    main(*sys.argv[1:])
