"""Run the tools of compute-sanitizer on all kernels: accesses out of bounds, races, reads of uninitialized memory.

Findings in kernels of CuPy, CUB and cuBLAS, some of which are known false positives, are counted but do not fail the
check. memcheck and racecheck are limited to our kernels. initcheck has to see the writes of other kernels too, or it
would report their results as uninitialized.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from bench.gpu import processes
from bench.gpu.report import Report

KERNELS = processes.ROOT / "kernels" / "cuda" / "src"
SANITIZER = "compute-sanitizer"
FOUND = 86
TOOLS = {
    "memcheck": ("--tool", "memcheck", "--report-api-errors", "no"),
    "racecheck": ("--tool", "racecheck", "--racecheck-report", "analysis"),
    "initcheck": ("--tool", "initcheck", "--report-api-errors", "no"),
}
FILTERED = ("memcheck", "racecheck")
MOST_PRINTED = 2000
# Last output of bench.gpu.small.
COMPLETE = "every kernel ran"
# Messages of a sanitizer that does not support the device.
UNABLE = re.compile(
    r"[Dd]evice not supported|Unable to|insufficient permission|Internal Sanitizer Error|error 999|not permitted"
)
# Its message about an option that it does not know.
UNKNOWN = re.compile(r"(?i)option[^\n]*kernel-name|kernel-name[^\n]*option")
_HEAD = re.compile(
    r"^=+ (?:Error: |WARN(?:ING)?: )?((?:Invalid|Race|Potential|Hazard|Uninitialized|Misaligned|Barrier)\b.*)"
)
# Location of a finding: "at name(arguments)+0x10 in file.cu:3", "at 0x10 in file.cu:3:name(arguments)".
_PLACE = re.compile(r"(?:\bat |Device Frame:)(.*)")
_ELSEWHERE = re.compile(r"Host Frame|backtrace|allocation")
_KERNEL = re.compile(r'extern "C" __global__ void\s+(?:\w+(?:\((?:[^()]|\([^()]*\))*\))?\s+)?(\w+)\s*\(')


def memcheck(report: Report, options: argparse.Namespace) -> None:
    """Look for accesses out of bounds."""
    _sanitize(report, "memcheck")


def racecheck(report: Report, options: argparse.Namespace) -> None:
    """Look for races in shared memory."""
    _sanitize(report, "racecheck")


def initcheck(report: Report, options: argparse.Namespace) -> None:
    """Look for reads of uninitialized device memory."""
    _sanitize(report, "initcheck")


def kernel_names() -> list[str]:
    """Return the names of all our kernels."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(KERNELS.glob("*.cu*"))]
    return sorted({name for text in texts for name in _KERNEL.findall(text)})


def command(program: str, tool: str, *, filtered: bool = True) -> list[str]:
    """Return the command of a tool; with `filtered`, memcheck and racecheck are limited to our kernels."""
    filtered = filtered and tool in FILTERED
    filters = [part for name in kernel_names() for part in ("--kernel-name", f"kne={name}")] if filtered else []
    line = [program, *TOOLS[tool], *filters, "--error-exitcode", str(FOUND), "--print-limit", str(MOST_PRINTED)]
    return [*line, sys.executable, "-m", "bench.gpu.small"]


def _sanitize(report: Report, tool: str) -> None:
    program = find_sanitizer()
    if program is None:
        report.skip(f"{SANITIZER} {tool}", f"{SANITIZER} isn't installed")
        return
    status, text = _run(command(program, tool), report.left - 3)
    if COMPLETE not in text and UNKNOWN.search(text):  # an older version; findings are still separated by kernel
        status, text = _run(command(program, tool, filtered=False), report.left - 3)
    judge(report, tool, status, text)


def _run(line: list[str], seconds: float) -> tuple[int | None, str]:
    """Run a program; return its exit status, None if it was stopped, and its output. The end of it is logged too."""
    with tempfile.TemporaryFile() as file:
        status = processes.run(line, seconds, file)
        file.seek(0)
        text = file.read().decode(errors="replace")
    print(text[-20_000:], flush=True)
    return status, text


def findings(text: str) -> tuple[list[str], int]:
    """Return the findings in our kernels, one line each, and the number of findings in others.

    A finding without a location counts as ours.
    """
    known, files = set(kernel_names()), {path.name for path in KERNELS.glob("*.cu*")}
    mine, others = [], 0
    for block in _blocks(text):
        here = [line for line in block if not _ELSEWHERE.search(line)]
        places = " ".join(found[1] for line in here if (found := _PLACE.search(line)))
        words = set(re.findall(r"\w+(?:\.cuh?)?", places))
        if not places or words & known or words & files:
            mine.append("; ".join(filter(None, (line.strip("= ") for line in here[:4]))))
        else:
            others += 1
    return mine, others


def _blocks(text: str) -> list[list[str]]:
    """Split the output of a tool into the lines of each finding."""
    blocks: list[list[str]] = []
    inside = False
    for line in text.splitlines():
        if _HEAD.match(line):
            blocks.append([line])
            inside = True
        elif not line.startswith("=") or not line.strip("= ") or "SUMMARY" in line or "Program hit" in line:
            inside = False
        elif inside:
            blocks[-1].append(line)
    return blocks


def judge(report: Report, tool: str, status: int | None, text: str) -> None:
    """Report whether a tool found nothing in our kernels, found something, or could not run.

    Parameters
    ----------
    report : Report
    tool : {"memcheck", "racecheck", "initcheck"}
    status : int or None
        Exit status of the tool; None if it was stopped.
    text : str
        Output of the tool.
    """
    name = f"{SANITIZER} {tool}"
    mine, others = findings(text)
    also = f"{others} found in kernels that aren't ours" if others else ""
    if mine:
        report.check(name, False, f"{len(mine)} found: {' | '.join(mine[:3])}"[:900])
    elif status is None:
        report.skip(name, "out of time, nothing found in our kernels until then")
    elif COMPLETE not in text and UNABLE.search(text):
        report.skip(name, f"it can't look into this device ({UNABLE.search(text)[0]})")
    elif COMPLETE not in text or status not in (0, FOUND):
        lines = [line for line in text.splitlines() if line.strip()]
        report.check(name, False, f"exit status {status}: {lines[-1][:200] if lines else 'no output'}")
    elif "were not printed" in text:
        report.skip(name, f"more than {MOST_PRINTED} findings, none of those printed in our kernels")
    else:
        report.check(name, True, also or "nothing found")


def find_sanitizer() -> str | None:
    """Find compute-sanitizer on the PATH or in the CUDA toolkit; return None if it is not installed."""
    found = shutil.which(SANITIZER)
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    places = [Path(home) / part / SANITIZER for home in homes if home for part in ("bin", "compute-sanitizer")]
    return found or next((str(place) for place in places if place.is_file()), None)
