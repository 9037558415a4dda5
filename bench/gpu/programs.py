"""Whether kernels can be compiled at all, and the project's own tests with the real CuPy."""

from __future__ import annotations

import argparse
import collections
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.gpu import outcomes, processes
from bench.gpu.report import Report

# Tests that run side by side where pytest can do that: most of their time is the compiler's.
WORKERS = 8


def device(report: Report, options: argparse.Namespace) -> None:
    """Whether a kernel can be compiled and loaded at all; if not, why."""
    from vitnp.kernels.cuda.device import check

    from vitnp.errors import DeviceError

    try:
        check()
    except DeviceError as error:
        report.check("a kernel can be compiled", False, str(error))
    else:
        report.check("a kernel can be compiled", True)


def tests(report: Report, options: argparse.Namespace) -> None:
    """Run ``pytest -m gpu tests``, kernels and everything above them: each failed test becomes a failed check."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "outcomes.jsonl"
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", "-p", outcomes.__name__]
        if importlib.util.find_spec("xdist"):
            command += ["-n", str(min(WORKERS, os.cpu_count() or 1))]
        command += ["-W", "default", "--tb=short", "--continue-on-collection-errors", "tests"]
        environment = {**os.environ, outcomes.FILE: str(path)}
        # What pytest prints goes to the step's log.
        status = processes.run(command, report.left - 3, environment=environment)
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        judge(report, [json.loads(line) for line in lines], status)


def judge(report: Report, found: Sequence[dict[str, object]], status: int | None) -> None:
    """Report what the outcomes of tests amount to.

    Parameters
    ----------
    report : Report
    found : sequence of dict
        As :mod:`bench.gpu.outcomes` writes them.
    status : int or None
        pytest's exit status; None if it ran out of time.
    """
    by_outcome = {name: [one for one in found if one["outcome"] == name] for name in ("passed", "failed", "skipped")}
    for one in by_outcome["failed"]:
        report.check(str(one["test"]).rpartition("/")[2], False, str(one["text"]))
    failed, passed, skipped = (len(by_outcome[name]) for name in ("failed", "passed", "skipped"))
    detail = f"{passed} of {passed + failed} passed"
    if skipped:
        (why, _), *_ = collections.Counter(
            str(one.get("text", "no reason")) for one in by_outcome["skipped"]
        ).most_common(1)
        detail += f", {skipped} skipped ({why})"
    if status is None:
        report.skip("the rest of pytest -m gpu", "out of time")
        if not passed + failed:
            return
    ended = status == 0 or status is None
    report.check(
        "pytest -m gpu", ended and passed > 0 and not failed, detail + ("" if ended else f", exit status {status}")
    )
