"""vitnp on the CPU against what one could install instead: forward passes, k-means, the CRF, whole photographs.

Contenders take turns while an eye is kept on what else the machine does; every figure is a ratio within one such run.
They get the same number of threads, and have to agree before anything is timed.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from vitnp.kernels.threads import pool

from bench import record, table
from bench.cpu import crf_peers, kmeans_peers, peak, pipeline_peer, vit_peers
from bench.cpu.comparison import Bar, WrongAnswer, compare, geometric_mean, versions
from bench.cpu.interleave import Plan
from bench.scale.photograph import usual_photograph
from vitnp import __version__, kernels
from vitnp.cli import shared
from vitnp.cli.arguments import positive

SECTIONS = ("vit", "kmeans", "crf", "photograph")
ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("numba", "llvmlite", "torch", "onnxruntime", "openvino", "onnx", "scikit-learn", "faiss-cpu", "pydensecrf2")

FULL = Plan(rounds=9, least=0.3, budget=45.0)
QUICK = Plan(rounds=5, least=0.2, budget=5.0)
PEAK_PLAN = Plan(rounds=7, least=0.1)

OURS, KEYS, BF16 = "vitnp", "vitnp, keys only", "vitnp, bf16"
TORCH, ONNXRUNTIME, OPENVINO, OPENVINO_BF16 = "torch, eager", "onnxruntime", "OpenVINO", "OpenVINO, bf16"
SCIKIT_LEARN, FAISS, PYDENSECRF, ASSEMBLED = "scikit-learn", "faiss", "pydensecrf2", "assembled"
SOLVER = "vitnp, solver"

VIT_CASES = [
    *(vit_peers.Case("S", patch, side, batch) for patch in (16, 8) for side in (224, 480) for batch in (1, 8)),
    *(vit_peers.Case("B", 16, 480, batch) for batch in (1, 8)),
]
QUICK_VIT_CASES = [vit_peers.Case("S", 16, 224, 1), vit_peers.Case("S", 16, 480, 1), vit_peers.Case("S", 8, 224, 1)]
KMEANS_CASES = [
    *(kmeans_peers.Case(rows, 384, clusters) for rows in (3_600, 100_000, 1_000_000) for clusters in (2, 8, 27, 64)),
    *(kmeans_peers.Case(100_000, width, clusters) for width in (192, 768) for clusters in (2, 8, 27, 64)),
]
QUICK_KMEANS_CASES = [kmeans_peers.Case(rows, 384, 8) for rows in (3_600, 100_000)]
CRF_CASES = [crf_peers.Case(classes) for classes in (2, 21)]

VIT_BARS = [
    Bar(OURS, TORCH, 2.0),
    Bar(OURS, ONNXRUNTIME, 1.15),
    Bar(OURS, OPENVINO, 0.95),
    Bar(KEYS, OURS, 1.07),
    Bar(BF16, OPENVINO_BF16),
]
VIT_MEANS = {
    "against OpenVINO, geometric mean": Bar(OURS, OPENVINO, 1.0, stretch=1.1),
    "in bf16 against OpenVINO in bf16, geometric mean": Bar(BF16, OPENVINO_BF16, 1.0),
}
PEAK_STRETCH = 0.85
CRF_BARS = {2: (1.5, 2.0), 21: (1.2, 1.5)}
PHOTOGRAPH_BAR = 1.5
# Masks that are refined from other random starts of k-means don't agree to the pixel.
LEAST_IOU = 0.9


def kmeans_bars(case: kmeans_peers.Case) -> list[Bar]:
    """What an iteration is to reach, by rows and clusters.

    Examples
    --------
    >>> kmeans_bars(kmeans_peers.Case(100_000, 384, 64))[0]
    Bar(ours='vitnp', theirs='scikit-learn', least=1.25, stretch=1.4)
    """
    if case.rows < 100_000:
        least, stretch = 1.1, None
    else:
        least, stretch = {2: (1.7, None), 8: (1.8, None), 27: (1.8, None), 64: (1.25, 1.4)}[case.clusters]
    return [Bar(OURS, SCIKIT_LEARN, least, stretch), Bar(OURS, FAISS, 3.5)]


def main(argv: list[str] | None = None) -> int:
    """Print a table and keep each section's figures in bench/results/cpu_SECTION.json."""
    made = argparse.ArgumentParser(prog="python -m bench cpu", description=__doc__)
    made.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)} (all)")
    made.add_argument(
        "--quick", action="store_true", help="few cases, in less than three minutes; kept in cpu_quick.json"
    )
    made.add_argument("--threads", type=positive, metavar="N", help="of every contender (all cores)")
    made.add_argument("--anyway", action="store_true", help="keep figures that other programs have disturbed")
    made.add_argument(
        "--seconds", type=positive, metavar="S", help="of rounds for each case, three rounds at least (45)"
    )
    made.add_argument(
        "--largest", type=positive, metavar="N", help="leave out k-means of more rows, networks of more tokens"
    )
    args = made.parse_args(argv)
    unknown = [name for name in args.sections if name not in SECTIONS]
    if unknown:
        made.error(f"there is no section {unknown[0]!r}; choose among {', '.join(SECTIONS)}")
    count = pool.resolve_n_threads(args.threads)
    set_environment(count)
    plan = dataclasses.replace(QUICK if args.quick else FULL, anyway=args.anyway, largest=args.largest)
    if args.seconds:
        plan = dataclasses.replace(plan, budget=float(args.seconds))
    limits = dataclasses.asdict(peak.measure(count, dataclasses.replace(PEAK_PLAN, anyway=args.anyway)))
    print(table.heading(record.machine(), count, limits), flush=True)

    found = {}
    for name in args.sections or SECTIONS:
        # A process of its own for each, so that no library finds another's threads, settings or leftovers.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            found[name] = process.submit(measure, name, args.quick, plan, count, limits).result()
        if not args.quick:
            print(f"written to {keep(f'cpu_{name}', {'section': name, **found[name]}, count, limits)}", flush=True)
    if args.quick:
        print(f"written to {keep('cpu_quick', {'sections': found}, count, limits)}")
    records = [case for section in found.values() for case in section["cases"]]
    print(table.ending(records))
    return shared.EXIT_SOME_FAILED if any("unmeasured" in case for case in records) else shared.EXIT_OK


def set_environment(count: int) -> None:
    """The same threads for everybody, no setting that slows one of them down; for processes started from here."""
    # Some machines come with a variable that makes OpenBLAS, hence NumPy, leave the wide registers alone.
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY"):
        os.environ.pop(name, None)
    os.environ["OMP_NUM_THREADS"] = os.environ["VITNP_NUM_THREADS"] = str(count)


def keep(name: str, content: Mapping[str, object], count: int, limits: Mapping[str, object]) -> Path:
    """Write a result file; its path."""
    compiled = kernels.for_device().__name__.rpartition(".")[2] != "reference"
    facts = {
        "vitnp": __version__,
        "kernels": "compiled" if compiled else "reference",
        "threads": count,
        "limits": limits,
    }
    content = {**facts, "versions": versions(PACKAGES), **content}
    return record.write(name, content)


def measure(name: str, quick: bool, plan: Plan, count: int, limits: Mapping[str, float | None]) -> dict[str, object]:
    """One section: its cases as they come, each printed at once, and the bars that concern several of them."""
    sections: dict[str, Callable[..., Iterator[dict[str, object]]]] = {
        "vit": vit, "kmeans": kmeans, "crf": crf, "photograph": photograph,
    }  # fmt: skip
    cases = []
    for case in sections[name](quick, plan, count, limits):
        cases.append(case)
        print("\n".join(table.lines(case)), flush=True)
        if not quick:  # whoever has to stop the run keeps what there is
            keep(f"cpu_{name}", {"section": name, "unfinished": True, "cases": cases}, count, limits)
    content: dict[str, object] = {"cases": cases}
    if name == "vit":
        content["means"] = [geometric_mean(cases, bar, what) for what, bar in VIT_MEANS.items()]
        content["peak_stretch"] = PEAK_STRETCH
        print("\n".join(table.mean_lines(content["means"])), flush=True)
    return content


# --- The sections: each yields the records of its cases
# ------------------------------------------------------------------


def vit(quick: bool, plan: Plan, count: int, limits: Mapping[str, float | None]) -> Iterator[dict[str, object]]:
    """Forward passes of vision transformers with random weights."""
    for case in QUICK_VIT_CASES if quick else VIT_CASES:
        if plan.largest and case.batch * case.tokens > plan.largest:
            continue
        weights, images = vit_peers.random_weights(case.config), case.images()
        model = functools.cache(
            functools.partial(vit_peers.onnx_model, case.config, weights, case.config.grid, case.batch)
        )

        def forward(build: Callable[..., Callable], *args, **options) -> Callable[[], Callable[[], object]]:
            return lambda: functools.partial(build(*args, **options), images)

        def by_graph(build: Callable[..., Callable], **options) -> Callable[[], Callable[[], object]]:
            def built() -> Callable[[], object]:
                run = build(model(), count, **options)
                return lambda: run(images)[0]

            return built

        builders = {
            TORCH: forward(vit_peers.torch_eager, case.config, weights, count),
            ONNXRUNTIME: by_graph(vit_peers.onnxruntime),
            OPENVINO: by_graph(vit_peers.openvino),
            OURS: forward(vit_peers.ours, case.config, weights),
            KEYS: forward(vit_peers.ours, case.config, weights, features="key"),
            BF16: forward(vit_peers.ours, case.config, weights, "bf16"),
            OPENVINO_BF16: by_graph(vit_peers.openvino, precision="bf16"),
        }
        expected: list[np.ndarray] = []

        def check(name: str, tokens: np.ndarray) -> None:
            if name == KEYS:
                return
            patches = tokens[:, -(case.tokens - 1) :]
            expected.append(patches)
            vit_peers.check_tokens(
                name, patches, expected[0], precision="bf16" if name in (BF16, OPENVINO_BF16) else "fp32"
            )

        work = {
            name: {"flops": case.flops, "peak": limits["bf16_flops" if name in (BF16, OPENVINO_BF16) else "fp32_flops"]}
            for name in builders
            if name != KEYS
        }
        facts = {
            "model": f"ViT-{case.size}/{case.patch}",
            "side": case.side,
            "batch": case.batch,
            "tokens": case.tokens,
        }
        yield compare(case.label, facts, builders, VIT_BARS, plan, check=check, work=work)


def kmeans(quick: bool, plan: Plan, count: int, limits: Mapping[str, float | None]) -> Iterator[dict[str, object]]:
    """Iterations of Lloyd's algorithm: first all cases against one peer, then against the other, which once it is loaded slows
    the first down.
    """
    builders = {SCIKIT_LEARN: kmeans_peers.scikit_learn, FAISS: functools.partial(kmeans_peers.faiss, n_threads=count)}
    for peer, build in builders.items():
        for case in QUICK_KMEANS_CASES if quick else KMEANS_CASES:
            if plan.largest and case.rows > plan.largest:
                continue
            rows = kmeans_peers.rows_of(case.rows, case.width)
            start = rows[kmeans_peers.chosen_rows(case.rows, case.clusters)]

            def fit(build: Callable[..., kmeans_peers.Run]) -> Callable[[], Callable[[], np.ndarray]]:
                return lambda: functools.partial(build(rows, start), kmeans_peers.MOVES)

            facts = {"rows": case.rows, "width": case.width, "clusters": case.clusters}
            yield compare(
                case.label, facts, {peer: fit(build), OURS: fit(functools.partial(kmeans_peers.ours, n_threads=count))},
                [bar for bar in kmeans_bars(case) if bar.theirs == peer], plan,
                check=kmeans_peers.checker(rows), steps=kmeans_peers.MOVES,
            )  # fmt: skip


def crf(quick: bool, plan: Plan, count: int, limits: Mapping[str, float | None]) -> Iterator[dict[str, object]]:
    """Fully connected CRFs on a photograph."""
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
        yield compare(case.label, facts, builders, bars, plan, check=crf_peers.checker())


def photograph(quick: bool, plan: Plan, count: int, limits: Mapping[str, float | None]) -> Iterator[dict[str, object]]:
    """A photograph from start to end, in a warm process and as a command."""
    from vitnp.pipeline import default_collection, default_vit, segment_image

    with usual_photograph() as path, tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder)

        def assembled() -> pipeline_peer.Pipeline:
            for name in ("onnxruntime", "sklearn", "pydensecrf"):
                __import__(name)
            pipeline_peer.write_bundle(bundle, default_vit(), default_collection(), path)
            return pipeline_peer.Pipeline(bundle, count)

        def command(*arguments: str) -> Callable[[], np.ndarray]:
            def run() -> np.ndarray:
                done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, stdout=subprocess.DEVNULL)
                if done.returncode:
                    raise WrongAnswer(f"the command python -m {' '.join(arguments)} failed, see above")
                return mask_of(bundle / f"{path.stem}_mask.png")

            return run

        def warm_peer() -> Callable[[], np.ndarray]:
            pipeline = assembled()
            return lambda: pipeline(path)[1]

        def cold_peer() -> Callable[[], np.ndarray]:
            assembled()
            return command("bench.pipeline_peer", str(path), str(bundle), str(bundle), str(count))

        def ours(refine: str) -> Callable[[], Callable[[], np.ndarray]]:
            return lambda: lambda: segment_image(path, refine=refine).mask

        def cold(refine: str) -> Callable[[], Callable[[], np.ndarray]]:
            options = ["--out", str(bundle), "--refine", refine, "--overwrite", "--quiet"]
            return lambda: command("vitnp.segment", str(path), *options)

        bars = [Bar(OURS, ASSEMBLED, PHOTOGRAPH_BAR), Bar(SOLVER, ASSEMBLED)]
        for process, builders in {
            "warm": {OURS: ours("crf"), ASSEMBLED: warm_peer, SOLVER: ours("solver")},
            "cold": {OURS: cold("crf"), ASSEMBLED: cold_peer, SOLVER: cold("solver")},
        }.items():
            yield compare(
                f"500 x 375 photograph, {process}", {"process": process}, builders, bars, plan, check=mask_checker()
            )


def mask_of(path: Path) -> np.ndarray:
    """A mask as it was written, bool."""
    from PIL import Image

    with Image.open(path) as picture:
        return np.asarray(picture) > 0


def mask_checker() -> Callable[[str, np.ndarray], None]:
    """A check that everybody finds the first one's object.

    Raises
    ------
    WrongAnswer
        From the check.
    """
    from vitnp.evaluate.metrics.saliency import iou

    first: list[np.ndarray] = []

    def check(name: str, mask: np.ndarray) -> None:
        first.append(mask)
        found = iou(mask, first[0])
        if not found >= LEAST_IOU:
            raise WrongAnswer(f"{name} finds another object: an IoU of {found:.2f} with the first mask")

    return check
