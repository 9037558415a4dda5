"""Measure memory and time of search and of near duplicates over many photographs, with synthetic features.

The network is replaced by one that draws its features at random (:mod:`bench.scale.collection`); every hundredth file
is a copy of the one before it. All the rest is what ``vitnp similar`` and ``vitnp duplicates`` do. Each step runs in a
process of its own: filling a feature store and an index, searching by the store, by the index, and grouping.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import vitnp
from bench import record
from bench.process import run_isolated
from bench.scale.collection import SyntheticViT, write_photographs
from vitnp.cli import arguments, shared

# Allowed memory.
ALLOWED_MIB = 1024

# Short side of the network's input: 4 x 5 patches. What is held in memory does not depend on their number.
SHORT_SIDE = 64

QUERIES = 10


def main(argv: list[str] | None = None) -> int:
    """Print memory and time, compare memory with the allowed one, and write bench/results/similar.json."""
    parser = argparse.ArgumentParser(prog="python -m bench similar", description=__doc__.partition("\n\n")[0])
    parser.add_argument(
        "--images", type=arguments.number(2), default=100_000, metavar="N", help="number of photographs (100000)"
    )
    parser.add_argument("--threads", type=arguments.number(1), metavar="N", help="threads (all cores)")
    args = parser.parse_args(argv)

    rows = []
    with tempfile.TemporaryDirectory(prefix="vitnp-bench-") as folder:
        photographs, store, index = (Path(folder, name) for name in ("photographs", "store", "photos.index"))
        photographs.mkdir()
        write_photographs(photographs, args.images)
        files = sorted(photographs.iterdir())
        for copy in range(99, args.images, 100):
            files[copy].write_bytes(files[copy - 1].read_bytes())
        steps: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
            "store and index": (search, {"cache": store, "index": index}),
            "search by the store": (search, {"cache": store}),
            "search by the index": (search, {"index": index}),
            "duplicates by the store": (duplicates, {"cache": store, "index": Path(folder, "layout.index")}),
            "duplicates by the index": (duplicates, {"index": Path(folder, "layout.index")}),
        }
        for step, (function, options) in steps.items():
            measured = run_isolated(_measure, function, photographs, {**options, "n_threads": args.threads})
            rows.append({"step": step, **measured})
            print("{step:<24} peak {peak_mib} MiB, {seconds:.0f} s, {found}".format(**rows[-1]), flush=True)
        sizes = {
            "index_mb": round(index.stat().st_size / 1e6, 1),
            "store_mb": round(sum(path.stat().st_size for path in store.rglob("*") if path.is_file()) / 1e6, 1),
        }
    print(f"index {sizes['index_mb']} MB, store {sizes['store_mb']} MB")
    content = {"images": args.images, "allowed_mib": ALLOWED_MIB, "queries": QUERIES, "rows": rows, **sizes}
    print(f"written to {record.write('similar', content)}")
    return shared.EXIT_OK if all(row["peak_mib"] <= ALLOWED_MIB for row in rows) else 1


def search(folder: Path, **options: Any) -> dict[str, int]:
    """Search for the neighbors of a few photographs."""
    queries = sorted(folder.iterdir())[:QUERIES]
    found = vitnp.search_similar(folder, queries, SyntheticViT(), short_side=SHORT_SIDE, **options)
    return {"searched": found.n_searched, "neighbors": sum(len(ranking.neighbors) for ranking in found.rankings)}


def duplicates(folder: Path, **options: Any) -> dict[str, int]:
    """Group near duplicates."""
    found = vitnp.find_duplicates(folder, SyntheticViT(), short_side=SHORT_SIDE, **options)
    return {"compared": found.n_compared, "groups": len(found.groups)}


def _measure(function: Callable[..., dict[str, int]], folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    began = time.perf_counter()
    found = function(folder, **options)
    return {
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "seconds": round(time.perf_counter() - began, 1),
        "found": found,
    }
