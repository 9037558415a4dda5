"""compute-sanitizer's tools over every kernel of ours: accesses out of bounds, races, reads of what nobody has written.

What they find in kernels of CuPy, CUB and cuBLAS isn't ours to mend, and some of it is known to be none: it's counted, and
judged by nobody. memcheck and racecheck look at our kernels alone. initcheck has to see the others' writes too, or it would
take what they have written for unwritten.
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
# What bench.gpu.small says when it has come to its end.
COMPLETE = "every kernel ran"
# What a sanitizer says of a device that it can't look into.
UNABLE = re.compile(
    r"[Dd]evice not supported|Unable to|insufficient permission|Internal Sanitizer Error|error 999|not permitted"
)
# What it says of an option that it doesn't know.
UNKNOWN = re.compile(r"(?i)option[^\n]*kernel-name|kernel-name[^\n]*option")
_HEAD = re.compile(
    r"^=+ (?:Error: |WARN(?:ING)?: )?((?:Invalid|Race|Potential|Hazard|Uninitialized|Misaligned|Barrier)\b.*)"
)
# Where a finding is: "at name(arguments)+0x10 in file.cu:3", "at 0x10 in file.cu:3:name(arguments)".
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
    """Look for reads of device memory that nobody has written."""
    _sanitize(report, "initcheck")


def kernel_names() -> list[str]:
    """Names of all our kernels, as the machine code has them."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(KERNELS.glob("*.cu*"))]
    return sorted({name for text in texts for name in _KERNEL.findall(text)})


def command(program: str, tool: str, *, filtered: bool = True) -> list[str]:
    """Say how a tool is called; with `filtered` memcheck and racecheck look at our kernels alone."""
    filtered = filtered and tool in FILTERED
    filters = [part for name in kernel_names() for part in ("--kernel-name", f"kne={name}")] if filtered else []
    line = [program, *TOOLS[tool], *filters, "--error-exitcode", str(FOUND), "--print-limit", str(MOST_PRINTED)]
    return [*line, sys.executable, "-m", "bench.gpu.small"]


def _sanitize(report: Report, tool: str) -> None:
    program = find_sanitizer()
    if program is None:
        report.skip(f"{SANITIZER} {tool}", f"{SANITIZER} isn't installed")
        return
    status, text = _heard(command(program, tool), report.left - 3)
    if COMPLETE not in text and UNKNOWN.search(text):  # an older one; findings are judged by kernel all the same
        status, text = _heard(command(program, tool, filtered=False), report.left - 3)
    judge(report, tool, status, text)


def _heard(line: list[str], seconds: float) -> tuple[int | None, str]:
    """A program's exit status, None where it was stopped, and what it printed, the end of which goes to the log too."""
    with tempfile.TemporaryFile() as file:
        status = processes.run(line, seconds, file)
        file.seek(0)
        text = file.read().decode(errors="replace")
    print(text[-20_000:], flush=True)
    return status, text


def findings(text: str) -> tuple[list[str], int]:
    """What a tool has found in our kernels, a sentence each, and how many in others.

    A finding without a place counts as ours: it may be.
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
    """The lines of each finding."""
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
    """Report whether a tool found nothing in our kernels, found something, or couldn't look.

    Parameters
    ----------
    report : Report
    tool : {"memcheck", "racecheck", "initcheck"}
    status : int or None
        Its exit status; None if it was stopped.
    text : str
        What it printed.
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
    """compute-sanitizer on the PATH, or where CUDA's toolkit puts it."""
    found = shutil.which(SANITIZER)
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    places = [Path(home) / part / SANITIZER for home in homes if home for part in ("bin", "compute-sanitizer")]
    return found or next((str(place) for place in places if place.is_file()), None)
