"""List the benchmarks (``python -m bench``), or run one of them (``python -m bench NAME [options]``)."""

from __future__ import annotations

import importlib
import sys
from typing import NamedTuple

from bench.process import exit_on_sigterm
from vitnp.cli import shared


class Benchmark(NamedTuple):
    """A module with a ``main(argv)``, and what it measures."""

    module: str
    description: str


BENCHMARKS = {
    "photograph": Benchmark("bench.scale.photograph", "seconds per photograph, by stage, warm and from a cold start"),
    "first": Benchmark(
        "bench.first_minute", "seconds of the first commands: with an empty cache of kernels and a full one"
    ),
    "quality": Benchmark("bench.quality.image_level", "mean IoU of the image level over seeds, on your own data"),
    "alone": Benchmark("bench.quality.alone", "mean IoU with the image level, with a fitted collection, and of a set"),
    "precisions": Benchmark("bench.quality.precisions", "keys and masks in int8 and bf16 against those in float32"),
    "confidence": Benchmark("bench.quality.confidence", "calibrate the confidence on photographs with true masks"),
    "domains": Benchmark("bench.quality.domains", "mean IoU on pictures of other kinds, such as cells and cracks"),
    "pictures": Benchmark("bench.pictures", "draw the pictures of the README"),
    "peers": Benchmark("bench.quality.peers", "LOST, TokenCut, DeepSpectral, FOUND and vitnp on the same features"),
    "video": Benchmark("bench.quality.video", "flicker and IoU of masks of clips, before and after smoothing"),
    "video-strip": Benchmark("bench.quality.video_strip", "draw the picture of docs/video.md"),
    "instances": Benchmark("bench.quality.instances", "AP and AR of separated objects on COCO, beside MaskCut"),
    "composites": Benchmark("bench.quality.composites", "make a set of pictures with two categories in each"),
    "unequal": Benchmark("bench.quality.unequal", "classes of unequal sizes, and of photographs that were not fitted"),
    "place": Benchmark(
        "bench.quality.place", "how much of keys is their place, before and after a rotary network turns them"
    ),
    "folders": Benchmark("bench.scale.folders", "photographs per second of folders, the network alone, and a peer"),
    "spectral": Benchmark("bench.scale.spectral", "memory and time of spectral clustering"),
    "collection": Benchmark("bench.scale.collection", "memory and time of large collections, with synthetic features"),
    "similar": Benchmark("bench.scale.similar", "memory and time of similar and duplicates over 100,000 photographs"),
    "copies": Benchmark("bench.quality.copies", "cosines of edited copies and of other photographs"),
    "cutouts": Benchmark("bench.cutouts", "colors at the edge of a cutout against PyMatting: time and error"),
    "large": Benchmark("bench.scale.large", "memory, time and agreement on a photograph of 100 megapixels"),
    "cpu": Benchmark("bench.cpu.run", "ViT, k-means, CRF and photographs against torch, OpenVINO, scikit-learn ..."),
    "gpu": Benchmark("bench.gpu", "correctness and time on a GPU, against CuPy, torch, cuML and flash-kmeans"),
    "plots": Benchmark("bench.cpu.plots", "draw the results of cpu"),
    "journey": Benchmark("bench.journey", "files and functions of the project that one call enters"),
}


def main(argv: list[str] | None = None) -> int:
    """List the benchmarks, or run the one that is named first.

    Returns
    -------
    int
        Exit status.
    """
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in BENCHMARKS:
        with exit_on_sigterm():
            return importlib.import_module(BENCHMARKS[argv[0]].module).main(argv[1:])
    if argv and argv[0] not in ("-h", "--help"):
        shared.say_error(f"NAME must be one of {', '.join(BENCHMARKS)}, got {argv[0]!r}")
        return shared.EXIT_USAGE
    print("usage: python -m bench NAME [options]\n")
    for name, benchmark in BENCHMARKS.items():
        print(f"  {name:<12}{benchmark.description}")
    print("\nEach has --help. Measurements are written to bench/results/.")
    return shared.EXIT_OK


if __name__ == "__main__":
    shared.run(main)
