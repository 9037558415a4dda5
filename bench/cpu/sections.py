"""The sections of ``python -m bench cpu``: forward passes, rotary positions, k-means, the CRF, and whole photographs.

Each section is a function that yields the record of each of its cases, see :func:`bench.cpu.comparison.compare`.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench.cpu import crf_peers, kmeans_peers, pipeline_bundle, pipeline_peer, vit_onnx, vit_peers
from bench.cpu.comparison import Bar, Call, WrongAnswer, compare
from bench.cpu.interleave import Plan
from bench.cpu.rotary import rotary
from bench.scale.photograph import usual_photograph

ROOT = Path(__file__).parent.parent.parent

# Names of the contenders.
OURS, KEYS, BF16, INT8 = "vitnp", "vitnp, keys only", "vitnp, bf16", "vitnp, int8"
TORCH, ONNXRUNTIME, OPENVINO, OPENVINO_BF16 = "torch, eager", "onnxruntime", "OpenVINO", "OpenVINO, bf16"
OPENVINO_INT8 = "OpenVINO, int8"
SCIKIT_LEARN, FAISS, PYDENSECRF, ASSEMBLED = "scikit-learn", "faiss", "pydensecrf2", "assembled"
SOLVER, NO_BOUNDS = "vitnp, solver", "vitnp, no bounds"

VIT_CASES = [
    *(vit_peers.Case("S", patch, side, batch) for patch in (16, 8) for side in (224, 480) for batch in (1, 8)),
    *(vit_peers.Case("B", 16, 480, batch) for batch in (1, 8)),
]
QUICK_VIT_CASES = [vit_peers.Case("S", 16, 224, 1), vit_peers.Case("S", 16, 480, 1), vit_peers.Case("S", 8, 224, 1)]
KMEANS_CASES = [
    *(kmeans_peers.Case(rows, 384, clusters) for rows in (3_600, 100_000, 1_000_000) for clusters in (2, 8, 27, 64)),
    *(kmeans_peers.Case(100_000, width, clusters) for width in (192, 768) for clusters in (2, 8, 27, 64)),
]
WHOLE_FIT_CASES = [
    *(kmeans_peers.Case(3_600, 384, clusters) for clusters in (8, 27, 64)),
    *(kmeans_peers.Case(100_000, 384, clusters) for clusters in (16, 64)),
]
QUICK_KMEANS_CASES = [kmeans_peers.Case(rows, 384, 8) for rows in (3_600, 100_000)]
CRF_CASES = [crf_peers.Case(classes) for classes in (2, 21)]

VIT_BARS = [
    Bar(OURS, TORCH, 2.0),
    Bar(OURS, ONNXRUNTIME, 1.15),
    Bar(OURS, OPENVINO, 0.97),
    Bar(KEYS, OURS, 1.07),
    Bar(BF16, OPENVINO_BF16, 1.0),
    Bar(INT8, OPENVINO_INT8),
    Bar(INT8, OURS),
]
VIT_MEANS = {
    "against eager torch, geometric mean": Bar(OURS, TORCH),
    "against onnxruntime, geometric mean": Bar(OURS, ONNXRUNTIME),
    "against OpenVINO, geometric mean": Bar(OURS, OPENVINO, 1.0, stretch=1.1),
    "in bf16 against OpenVINO in bf16, geometric mean": Bar(BF16, OPENVINO_BF16, 1.0),
    "in int8 against OpenVINO in int8 and bf16, geometric mean": Bar(INT8, OPENVINO_INT8, 1.0),
    "in int8 against float32, geometric mean": Bar(INT8, OURS, 2.4),
}
PEAK_STRETCH = 0.85
CRF_BARS = {2: (1.5, 2.0), 21: (1.2, 1.5)}
PHOTOGRAPH_BAR = 1.5
# Masks refined from other random starts of k-means differ by more than rounding.
MIN_IOU = 0.9


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """What all cases of a run share.

    Attributes
    ----------
    quick : bool
        Measure fewer cases.
    plan : Plan
        How much to measure.
    n_threads : int
        Threads of every contender.
    limits : mapping of str to (float or None)
        Fields of :class:`bench.cpu.peak.Limits`.
    """

    quick: bool
    plan: Plan
    n_threads: int
    limits: Mapping[str, float | None]

    def includes(self, size: int) -> bool:
        """Return whether a case of so many tokens or rows is within ``--largest``."""
        return not self.plan.largest or size <= self.plan.largest


def vit(settings: RunSettings) -> Iterator[dict[str, Any]]:
    """Time forward passes of vision transformers with random weights."""
    for case in QUICK_VIT_CASES if settings.quick else VIT_CASES:
        if settings.includes(case.batch * case.tokens):
            yield _vit_case(case, settings)


def _vit_case(case: vit_peers.Case, settings: RunSettings) -> dict[str, Any]:
    config, weights, images = case.config, vit_peers.random_weights(case.config), case.images()
    precisions = {BF16: "bf16", OPENVINO_BF16: "bf16", INT8: "int8", OPENVINO_INT8: "int8"}

    @functools.cache
    def onnx_model() -> bytes:
        return vit_onnx.onnx_model(config, weights, config.grid, case.batch)

    def on_arrays(build: Callable[..., vit_peers.Forward], *args: Any, **options: Any) -> Callable[[], Call]:
        return lambda: functools.partial(build(config, weights, *args, **options), images)

    def on_onnx(build: Callable[..., Callable[[np.ndarray], list[np.ndarray]]], **options: Any) -> Callable[[], Call]:
        def builder() -> Call:
            run = build(onnx_model(), settings.n_threads, **options)
            return lambda: run(images)[0]

        return builder

    builders = {
        TORCH: on_arrays(vit_peers.torch_eager, settings.n_threads),
        ONNXRUNTIME: on_onnx(vit_peers.onnxruntime),
        OPENVINO: on_onnx(vit_peers.openvino),
        OURS: on_arrays(vit_peers.ours),
        KEYS: on_arrays(vit_peers.ours, feature="key"),
        BF16: on_arrays(vit_peers.ours, "bf16"),
        OPENVINO_BF16: on_onnx(vit_peers.openvino, precision="bf16"),
        INT8: on_arrays(vit_peers.ours, "int8"),
        OPENVINO_INT8: on_onnx(vit_peers.openvino_int8, images=images),
    }
    expected: list[np.ndarray] = []

    def check(name: str, tokens: np.ndarray) -> None:
        if name != KEYS:
            patches = tokens[:, -(case.tokens - 1) :]
            expected.append(patches)
            vit_peers.check_tokens(name, patches, expected[0], precision=precisions.get(name, "fp32"))

    work = {
        name: {"flops": case.flops, "peak": settings.limits[f"{precisions.get(name, 'fp32')}_flops"]}
        for name in builders
        if name != KEYS and precisions.get(name) != "int8"
    }
    facts = {
        "model": f"ViT-{case.size}/{case.patch}", "side": case.side, "batch": case.batch, "tokens": case.tokens,
    }  # fmt: skip
    return compare(case.label, facts, builders, VIT_BARS, settings.plan, check=check, work=work)


def kmeans(settings: RunSettings) -> Iterator[dict[str, Any]]:
    """Time iterations of Lloyd's algorithm, and whole fits with bounds of distances against those without.

    All cases against scikit-learn come before those against faiss: faiss, once loaded, slows scikit-learn down.
    """
    builders = {
        SCIKIT_LEARN: kmeans_peers.scikit_learn,
        FAISS: functools.partial(kmeans_peers.faiss, n_threads=settings.n_threads),
    }
    for peer, build in builders.items():
        for case in QUICK_KMEANS_CASES if settings.quick else KMEANS_CASES:
            if settings.includes(case.rows):
                yield _kmeans_case(case, peer, build, settings)
    for case in WHOLE_FIT_CASES[:1] if settings.quick else WHOLE_FIT_CASES:
        if settings.includes(case.rows):
            yield _whole_fit_case(case, settings)


def _kmeans_case(
    case: kmeans_peers.Case, peer: str, build_peer: Callable[..., kmeans_peers.Run], settings: RunSettings
) -> dict[str, Any]:
    rows = kmeans_peers.rows_of(case.rows, case.width)
    start = rows[kmeans_peers.chosen_rows(case.rows, case.clusters)]

    def fit(build: Callable[..., kmeans_peers.Run]) -> Callable[[], Call]:
        return lambda: functools.partial(build(rows, start), kmeans_peers.ITERATIONS)

    builders = {
        peer: fit(build_peer),
        OURS: fit(functools.partial(kmeans_peers.ours, n_threads=settings.n_threads)),
    }
    bars = [bar for bar in kmeans_bars(case) if bar.theirs == peer]
    facts = {"rows": case.rows, "width": case.width, "clusters": case.clusters}
    return compare(
        case.label, facts, builders, bars, settings.plan,
        check=kmeans_peers.checker(rows), steps=kmeans_peers.ITERATIONS,
    )  # fmt: skip


def _whole_fit_case(case: kmeans_peers.Case, settings: RunSettings) -> dict[str, Any]:
    rows = kmeans_peers.rows_of(case.rows, case.width)
    start = rows[kmeans_peers.chosen_rows(case.rows, case.clusters)]
    builders = {
        name: functools.partial(kmeans_peers.whole_fit, rows, start, settings.n_threads, bounds)
        for name, bounds in ((NO_BOUNDS, False), (OURS, True))
    }
    facts = {"rows": case.rows, "width": case.width, "clusters": case.clusters, "whole_fit": True}
    label = f"{case.label}, whole fit"
    return compare(label, facts, builders, [Bar(OURS, NO_BOUNDS, 1.0)], settings.plan, check=kmeans_peers.same_bits())


def kmeans_bars(case: kmeans_peers.Case) -> list[Bar]:
    """Return the bars of an iteration, by rows and clusters.

    Examples
    --------
    >>> kmeans_bars(kmeans_peers.Case(100_000, 384, 64))[0]
    Bar(ours='vitnp', theirs='scikit-learn', least=1.25, stretch=1.4)
    """
    if case.rows < 100_000:
        least, stretch, faiss = (1.5 if case.clusters == 8 else 1.1), None, 2.0
    else:
        least, stretch = {2: (1.7, None), 8: (2.0, None), 27: (1.8, None), 64: (1.25, 1.4)}[case.clusters]
        faiss = 3.5
    return [Bar(OURS, SCIKIT_LEARN, least, stretch), Bar(OURS, FAISS, faiss)]


def crf(settings: RunSettings) -> Iterator[dict[str, Any]]:
    """Time fully connected CRFs on a photograph."""
    from vitnp.io.decode import read_image

    with usual_photograph() as path:
        rgb = read_image(path)
    for case in CRF_CASES:
        probability = crf_peers.probabilities(case.classes, *rgb.shape[:2])
        builders = {
            PYDENSECRF: functools.partial(crf_peers.pydensecrf, probability, rgb),
            OURS: functools.partial(crf_peers.ours, probability, rgb),
        }
        least, stretch = CRF_BARS[case.classes]
        bars = [Bar(OURS, PYDENSECRF, least, stretch)]
        facts = {"classes": case.classes, "size": [500, 375], "steps": crf_peers.STEPS}
        yield compare(case.label, facts, builders, bars, settings.plan, check=crf_peers.checker())


def photograph(settings: RunSettings) -> Iterator[dict[str, Any]]:
    """Time a photograph from file to mask, in a warm process and as a command."""
    with usual_photograph() as path, tempfile.TemporaryDirectory() as folder:
        warm, cold = _photograph_builders(path, Path(folder), settings.n_threads)
        bars = [Bar(OURS, ASSEMBLED, PHOTOGRAPH_BAR), Bar(SOLVER, ASSEMBLED)]
        for process, builders in (("warm", warm), ("cold", cold)):
            label, facts = f"500 x 375 photograph, {process}", {"process": process}
            yield compare(label, facts, builders, bars, settings.plan, check=mask_checker())


def _photograph_builders(
    path: Path, folder: Path, n_threads: int
) -> tuple[dict[str, Callable[[], Call]], dict[str, Callable[[], Call]]]:
    """Return the contenders in a warm process and as commands; each call returns a mask."""
    from vitnp.method.defaults import default_collection, default_vit
    from vitnp.pipeline import segment_image

    def assemble() -> pipeline_peer.Pipeline:
        for name in ("onnxruntime", "sklearn", "pydensecrf"):
            importlib.import_module(name)
        pipeline_bundle.write_bundle(folder, default_vit(), default_collection(), path)
        return pipeline_peer.Pipeline(folder, n_threads)

    def assembled_warm() -> Call:
        pipeline = assemble()
        return lambda: pipeline(path)[1]

    def assembled_cold() -> Call:
        assemble()
        return command("bench.cpu.pipeline_peer", str(path), str(folder), str(folder), str(n_threads))

    def command(*arguments: str) -> Call:
        def run() -> np.ndarray:
            done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, stdout=subprocess.DEVNULL)
            if done.returncode:
                raise WrongAnswer(f"the command python -m {' '.join(arguments)} failed, see above")
            return read_mask(folder / f"{path.stem}_mask.png")

        return run

    def ours_warm(refine: str) -> Callable[[], Call]:
        return lambda: lambda: segment_image(path, refine=refine).mask

    def ours_cold(refine: str) -> Callable[[], Call]:
        options = ["--out", str(folder), "--refine", refine, "--overwrite", "--quiet"]
        return lambda: command("vitnp.segment", str(path), *options)

    warm = {OURS: ours_warm("crf"), ASSEMBLED: assembled_warm, SOLVER: ours_warm("solver")}
    cold = {OURS: ours_cold("crf"), ASSEMBLED: assembled_cold, SOLVER: ours_cold("solver")}
    return warm, cold


def read_mask(path: Path) -> np.ndarray:
    """Read a mask that one of the contenders has written, bool (height, width)."""
    from PIL import Image

    with Image.open(path) as picture:
        return np.asarray(picture) > 0


def mask_checker() -> Callable[[str, np.ndarray], None]:
    """Return a check that each mask shows the object of the first one; it raises WrongAnswer."""
    from vitnp.evaluate.metrics.saliency import iou

    first: list[np.ndarray] = []

    def check(name: str, mask: np.ndarray) -> None:
        first.append(mask)
        agreement = iou(mask, first[0])
        if not agreement >= MIN_IOU:
            raise WrongAnswer(f"masks must have an IoU of {MIN_IOU} with the first one, {name} has {agreement:.2f}")

    return check


SECTIONS: dict[str, Callable[[RunSettings], Iterator[dict[str, Any]]]] = {
    "vit": vit,
    "rotary": rotary,
    "kmeans": kmeans,
    "crf": crf,
    "photograph": photograph,
}
