"""Other programs that look for faults on the device: pytest with the real CuPy, and compute-sanitizer's tools."""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from bench.gpu.report import Report

ROOT = Path(__file__).parent.parent.parent
# Tests that run side by side where pytest can do that: most of their time is the compiler's.
WORKERS = 8

SANITIZER = "compute-sanitizer"
FOUND = 86
TOOLS = {
    "memcheck": ("--tool", "memcheck"),
    "racecheck": ("--tool", "racecheck", "--racecheck-report", "analysis"),
    "initcheck": ("--tool", "initcheck"),
}
# What a sanitizer says of a device that it can't look into.
UNABLE = re.compile(
    r"[Dd]evice not supported|Unable to|insufficient permission|Internal Sanitizer Error|error 999|not permitted"
)


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
    """``pytest -m gpu``: each failed test becomes a failed check."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.xml"
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", "-W", "default"]
        if importlib.util.find_spec("xdist"):
            command += ["-n", str(min(WORKERS, os.cpu_count() or 1))]
        files = sorted(str(path) for path in (ROOT / "tests" / "kernels").glob("test_cuda_*.py"))
        command += ["--tb=short", f"--junitxml={results}", *files]
        try:
            done = subprocess.run(command, cwd=ROOT, timeout=max(1.0, report.left - 3))
        except subprocess.TimeoutExpired:
            report.check("pytest -m gpu", False, "out of time")
            return
        if not results.is_file():
            report.check("pytest -m gpu", False, f"exit status {done.returncode}, see the log")
            return
        judge(report, results.read_text(encoding="utf-8"), done.returncode)


def judge(report: Report, results: str, status: int) -> None:
    """The checks that pytest's results amount to."""
    cases = list(ElementTree.fromstring(results).iter("testcase"))
    failed = {case: case.find("failure") if case.find("failure") is not None else case.find("error") for case in cases}
    failed = {case: why for case, why in failed.items() if why is not None}
    skipped = {case for case in cases if case.find("skipped") is not None}
    for case, why in failed.items():
        message = " ".join((why.get("message") or why.text or "").split())
        report.check(f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}", False, message[:300])
    ran = len(cases) - len(skipped)
    detail = f"{ran - len(failed)} of {ran} passed" + (f", {len(skipped)} skipped" if skipped else "")
    report.check("pytest -m gpu", status == 0 and ran > 0 and not failed, detail)


def memcheck(report: Report, options: argparse.Namespace) -> None:
    """Accesses out of bounds."""
    _sanitize(report, "memcheck")


def racecheck(report: Report, options: argparse.Namespace) -> None:
    """Races in shared memory."""
    _sanitize(report, "racecheck")


def initcheck(report: Report, options: argparse.Namespace) -> None:
    """Reads of device memory that nobody has written."""
    _sanitize(report, "initcheck")


def _sanitize(report: Report, tool: str) -> None:
    program = find_sanitizer()
    if program is None:
        report.skip(f"{SANITIZER} {tool}", f"{SANITIZER} isn't installed")
        return
    command = [program, *TOOLS[tool], "--error-exitcode", str(FOUND), "--print-limit", "20"]
    command += [sys.executable, "-m", "bench.gpu.small"]
    judge_sanitizer(report, tool, *_watched(command, report.left - 3))


def _watched(command: Sequence[str], seconds: float) -> tuple[int | None, str]:
    """A program's exit status, None where it was stopped, and what it printed, which goes to the log too."""
    try:
        done = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=max(1.0, seconds),
            text=True, errors="replace",
        )  # fmt: skip
        status, text = done.returncode, done.stdout
    except subprocess.TimeoutExpired as stopped:
        heard = stopped.stdout or b""
        status, text = None, heard.decode(errors="replace") if isinstance(heard, bytes) else heard
    print(text[-20_000:], flush=True)
    return status, text


def judge_sanitizer(report: Report, tool: str, status: int | None, text: str) -> None:
    """Whether a sanitizer found nothing, found something, or couldn't look."""
    name = f"{SANITIZER} {tool}"
    summary = re.search(r"(?:ERROR|RACECHECK) SUMMARY: .*", text)
    said = summary[0].strip() if summary else ""
    kernels = sorted(set(re.findall(r" at (\w+)[^\n]*\+0x", text)))
    if status == FOUND:
        report.check(
            name, False, f"{said or 'errors'}{', in ' + ', '.join(kernels[:8]) if kernels else ''}, see the log"
        )
    elif status == 0:
        report.check(name, True, said)
    elif status is None:
        # What it has seen by then counts.
        found = re.search(r"={9} (Invalid|Race|Error|Uninitialized|Hazard).*", text)
        if found:
            report.check(name, False, f"{found[0].strip('= ')}, see the log")
        else:
            report.skip(name, "out of time, nothing found until then")
    elif UNABLE.search(text):
        report.skip(name, f"it can't look into this device ({UNABLE.search(text)[0]})")
    else:
        lines = [line for line in text.splitlines() if line.strip()]
        report.check(name, False, f"exit status {status}: {lines[-1][:200] if lines else 'no output'}")


def find_sanitizer() -> str | None:
    """compute-sanitizer on the PATH, or where CUDA's toolkit puts it."""
    found = shutil.which(SANITIZER)
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    places = [Path(home) / part / SANITIZER for home in homes if home for part in ("bin", "compute-sanitizer")]
    return found or next((str(place) for place in places if place.is_file()), None)
