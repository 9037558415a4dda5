"""Measure the processor time that a photograph of a folder takes beside the GPU: ``python -m bench.gpu.host``.

Stages run one after the other in one thread; the median and its standard error over rounds are printed in milliseconds.
"""

from __future__ import annotations

import argparse
import functools
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from vitnp.kernels.stopwatch import Stopwatch
from vitnp.kernels.threads import blas

from bench.gpu.folder import make_photographs
from vitnp import load_vit
from vitnp.clustering.kmeans_plusplus import draw_numbers
from vitnp.features.record import FeatureRecord
from vitnp.from_features import segment_patches
from vitnp.io import headers, source
from vitnp.io.decode import DecodedImage, decode_image
from vitnp.method.image_level import ImageLevelConfig
from vitnp.method.patch_scores import PatchScores, score_patches
from vitnp.options import Settings
from vitnp.outputs import write_outputs
from vitnp.pipeline import ImagePipeline

PHOTOGRAPHS, ROUNDS = 32, 15
RESULTS = 8  # of these photographs, which are written in turn


def main(argv: list[str] | None = None) -> int:
    """Print a line for each stage."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.host", description=__doc__.partition(":")[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help=f"rounds of all stages ({ROUNDS})")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name, blas.one_blas_thread():
        stages = _stages(Path(name))
        times: dict[str, list[float]] = {stage: [] for stage in stages}
        for _ in range(args.rounds):
            for stage, call in stages.items():
                times[stage].append(_milliseconds(call) / PHOTOGRAPHS)
    for stage, found in times.items():
        # The standard error of a median of normally distributed times.
        error = 1.2533 * np.std(found, ddof=1) / len(found) ** 0.5
        print(f"{stage:<32}{np.median(found):7.3f} ms +- {error:.3f}")
    return 0


def _stages(folder: Path) -> dict[str, Callable[[], object]]:
    """Return what is measured, for all photographs."""
    make_photographs(folder / "in", PHOTOGRAPHS, None)
    paths = sorted((folder / "in").glob("*.jpg"))
    contents = [headers.read_content(path) for path in paths]
    pipeline = ImagePipeline.create(load_vit("auto"), Settings(), None)
    judged = [_judged(pipeline, content) for content in contents[:RESULTS]]
    _, features, _ = judged[0]
    pixels = np.zeros((*features.pixels, 3), np.uint8)
    results = [segment_patches(*one, pipeline.parameters, Stopwatch(), pipeline.vit) for one in judged]

    def make() -> None:
        for index in range(PHOTOGRAPHS):
            one, soft = judged[index % RESULTS], results[index % RESULTS].soft
            segment_patches(*one, pipeline.parameters, Stopwatch(), pipeline.vit, refined=soft)

    def write(*which: str) -> None:
        for index in range(PHOTOGRAPHS):
            write_outputs(results[index % RESULTS], folder / str(index), which)

    def each(call: Callable[[], object]) -> Callable[[], object]:
        return lambda: [call() for _ in range(PHOTOGRAPHS)]

    return {
        "read and hash the file": lambda: [headers.file_hash(headers.read_content(path)) for path in paths],
        "decode": lambda: [decode_image(content) for content in contents],
        "hash the network's input": each(lambda: source.content_hash(pixels)),
        "random numbers of the image level": each(functools.partial(_draw, features.patches)),
        "make the result": make,
        "write the mask": lambda: write("mask"),
        "write mask and overlay": lambda: write("mask", "overlay"),
    }


def _judged(pipeline: ImagePipeline, content: headers.FileContent) -> tuple[DecodedImage, FeatureRecord, PatchScores]:
    """Return a photograph with its features and the scores of its patches."""
    image = pipeline.decode(content)
    (features,) = pipeline.extract([pipeline.preprocess(image, "")])
    (answer,) = pipeline.judge([features])
    return image, features, score_patches(features, answer, pipeline.vit.device)


def _draw(patches: int) -> None:
    """Draw the random numbers of a photograph as :mod:`vitnp.method.image_batch` does."""
    config = ImageLevelConfig()
    for n_clusters in config.clusters:
        rng = np.random.default_rng((0, 0, n_clusters))
        for _ in range(config.starts):
            draw_numbers(rng, patches, n_clusters)


def _milliseconds(call: Callable[[], object]) -> float:
    before = resource.getrusage(resource.RUSAGE_SELF)
    call()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return 1e3 * (after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)


if __name__ == "__main__":
    raise SystemExit(main())
