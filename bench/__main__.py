"""``python -m bench``: which measurements there are; ``python -m bench NAME …`` runs one."""

from __future__ import annotations

import importlib
import sys

from vitnp.cli import shared

# Where each benchmark lives.
MODULES = {
    "photograph": "bench.scale.photograph",
    "quality": "bench.quality.image_level",
    "alone": "bench.quality.alone",
    "pictures": "bench.pictures",
    "peers": "bench.quality.peers",
    "composites": "bench.quality.composites",
    "spectral": "bench.scale.spectral",
    "collection": "bench.scale.collection",
    "large": "bench.scale.large",
    "cpu": "bench.cpu.run",
    "gpu": "bench.gpu",
    "plots": "bench.cpu.plots",
    "journey": "bench.journey",
}
BENCHMARKS = {
    "photograph": "seconds from a photograph to its mask, by stage, warm and from a cold start",
    "quality": "mean IoU of the image level over seeds on photographs with true masks",
    "alone": "mean IoU of photographs each by itself, without and with a fitted collection, beside the whole set's",
    "pictures": "the pictures of the README, made anew",
    "peers": "LOST, TokenCut, DeepSpectral and FOUND on the same features, beside vitnp, on your own data",
    "composites": "side-by-side pictures of two categories, for measuring --regions split",
    "spectral": "memory and time of spectral clustering alone",
    "collection": "memory and time of a collection of thousands, whole, with synthetic features",
    "large": "a photograph enlarged to 100 megapixels: memory, time, and agreement with the original",
    "cpu": "forward passes, k-means, CRF and whole photographs against torch, onnxruntime, OpenVINO, scikit-learn, …",
    "gpu": "vitnp on a GPU: checked, then timed against CuPy's own operations, torch, cuML and flash-kmeans; --out DIR",
    "plots": "a picture of each result of the former",
    "journey": "files and functions of the project that one call enters",
}


def main(argv: list[str] | None = None) -> int:
    """List the benchmarks, or hand over to one of them."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in BENCHMARKS:
        return importlib.import_module(MODULES[argv[0]]).main(argv[1:])
    if argv and argv[0] not in ("-h", "--help"):
        shared.say_error(f"there is no benchmark {argv[0]!r}; choose among {', '.join(BENCHMARKS)}")
        return shared.EXIT_USAGE
    print("usage: python -m bench NAME [options]\n")
    for name, what in BENCHMARKS.items():
        print(f"  {name:<12}{what}")
    print("\nEach takes --help and writes what it measured to bench/results/NAME.json.")
    return shared.EXIT_OK


if __name__ == "__main__":
    shared.run(main)
