"""Compare vitnp on the CPU with alternatives: forward passes, k-means, the CRF, whole photographs.

Contenders have the same number of threads, must agree before anything is timed, and take turns. All figures are ratios
within one run; samples that other programs on the machine have disturbed are repeated.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitnp.kernels.threads import pool

from bench import record, table
from bench.cpu import peak
from bench.cpu.comparison import geometric_mean, versions
from bench.cpu.interleave import Plan
from bench.cpu.sections import PEAK_STRETCH, SECTIONS, VIT_MEANS, RunSettings
from bench.process import run_isolated
from vitnp import __version__, kernels
from vitnp.cli import shared
from vitnp.cli.arguments import number

PACKAGES = ("numba", "llvmlite", "torch", "onnxruntime", "openvino", "onnx", "scikit-learn", "faiss-cpu", "pydensecrf2")

FULL = Plan(rounds=9, min_seconds=0.3, budget=45.0)
QUICK = Plan(rounds=5, min_seconds=0.2, budget=5.0)
PEAK_PLAN = Plan(rounds=7, min_seconds=0.1)


def main(argv: list[str] | None = None) -> int:
    """Print a table, and write each section's figures to bench/results/cpu_SECTION.json."""
    args = _parse(argv)
    n_threads = pool.resolve_n_threads(args.threads)
    set_environment(n_threads)
    plan = dataclasses.replace(QUICK if args.quick else FULL, keep_disturbed=args.anyway, largest=args.largest)
    if args.seconds:
        plan = dataclasses.replace(plan, budget=float(args.seconds))
    limits = dataclasses.asdict(peak.measure(n_threads, dataclasses.replace(PEAK_PLAN, keep_disturbed=args.anyway)))
    settings = RunSettings(args.quick, plan, n_threads, limits)
    print(table.heading(record.machine(), n_threads, limits), flush=True)

    results = {}
    for name in args.sections or SECTIONS:
        results[name] = run_isolated(measure, name, settings)
        if not args.quick:
            print(f"written to {write(f'cpu_{name}', {'section': name, **results[name]}, settings)}", flush=True)
    if args.quick:
        print(f"written to {write('cpu_quick', {'sections': results}, settings)}")
    cases = [case for result in results.values() for case in result["cases"]]
    print(table.ending(cases))
    return shared.EXIT_SOME_FAILED if any("unmeasured" in case for case in cases) else shared.EXIT_OK


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench cpu", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"{', '.join(SECTIONS)} (all)")
    parser.add_argument(
        "--quick", action="store_true", help="few cases, in less than three minutes; written to cpu_quick.json"
    )
    parser.add_argument("--threads", type=number(1), metavar="N", help="threads of every contender (all cores)")
    parser.add_argument("--anyway", action="store_true", help="keep samples that other programs have disturbed")
    parser.add_argument(
        "--seconds", type=number(1), metavar="S", help="time for the rounds of each case, at least three rounds (45)"
    )
    parser.add_argument(
        "--largest", type=number(1), metavar="N", help="skip k-means with more rows and networks with more tokens"
    )
    args = parser.parse_args(argv)
    for name in args.sections:
        if name not in SECTIONS:
            parser.error(f"SECTION must be one of {', '.join(SECTIONS)}, got {name!r}")
    return args


def set_environment(n_threads: int) -> None:
    """Set the same number of threads for all contenders, and remove settings that slow one of them down.

    The variables are read by processes started from here.
    """
    # OPENBLAS_CORETYPE, which some machines set, can keep OpenBLAS, hence NumPy, from using the widest registers.
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY"):
        os.environ.pop(name, None)
    os.environ["OMP_NUM_THREADS"] = os.environ["VITNP_NUM_THREADS"] = str(n_threads)


def measure(name: str, settings: RunSettings) -> dict[str, Any]:
    """Measure one section: print each case when it is done, and return the cases with their means."""
    cases = []
    for case in SECTIONS[name](settings):
        cases.append(case)
        print("\n".join(table.lines(case)), flush=True)
        if not settings.quick:  # an interrupted run keeps the cases that are done
            write(f"cpu_{name}", {"section": name, "unfinished": True, "cases": cases}, settings)
    content: dict[str, Any] = {"cases": cases}
    if name == "vit":
        content["means"] = [geometric_mean(cases, bar, what) for what, bar in VIT_MEANS.items()]
        content["peak_stretch"] = PEAK_STRETCH
        print("\n".join(table.mean_lines(content["means"])), flush=True)
    return content


def write(name: str, content: Mapping[str, Any], settings: RunSettings) -> Path:
    """Write a result file with all versions and settings, and return its path."""
    compiled = kernels.for_device().__name__.rpartition(".")[2] != "reference"
    facts = {
        "vitnp": __version__,
        "kernels": "compiled" if compiled else "reference",
        "threads": settings.n_threads,
        "limits": settings.limits,
    }
    return record.write(name, {**facts, "versions": versions(PACKAGES), **content})
