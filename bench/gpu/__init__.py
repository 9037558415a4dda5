"""Check and measure vitnp on an NVIDIA GPU: first whether results are correct, then how fast it is.

Run one command in the root of the checkout, with a python3 that has vitnp's dependencies and CuPy (cupy-cuda12x or
cupy-cuda13x). torch, cuML, flash-kmeans, pytest-xdist and compute-sanitizer are used if they are installed; vitnp
itself need not be installed::

    python3 -m bench gpu --out DIR --photographs FOLDER

FOLDER contains ``images/`` and ``masks/``; without it the photographs of the checkout are used. ``gpu.json`` in DIR
contains all results, ``gpu.txt`` a table, and ``gpu.log`` the output of the tools. They are rewritten after each step,
so that a run that is stopped, by SIGTERM or Ctrl-C, leaves the results so far. A run takes at most eight minutes. Exit
status: 0 if all results are correct, whatever the times; 1 if a result is wrong or a step crashed; 2 if there is no
usable GPU or something else is missing; 130 and 143 if the run was stopped. RUN.md has two prepared calls for the first
minutes on a borrowed machine.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.gpu import preflight, processes
from bench.gpu.steps import FIRST, STEPS, Step
from vitnp.cli import shared
from vitnp.errors import OutputError, UsageError

EXIT_WRONG = 1
EXITS = {"SIGINT": shared.EXIT_INTERRUPTED, "SIGTERM": 143}
# Time limit of a run: eight minutes, minus some seconds.
MOST_SECONDS = 465.0
# A step is skipped if less time than this is left.
FEWEST_SECONDS = 8.0
# Fraction of a step's time in a quick run, for measurements and for checks.
QUICK, QUICK_CHECK = 0.4, 0.7
# Minimum time of a step in a quick run: a process takes some seconds to load CuPy and cuBLAS.
LEAST_QUICK = 10.0
# Additional time for a step to end.
GRACE = 6.0


def main(argv: list[str] | None = None) -> int:
    """Run every step, print a table, write DIR/gpu.json."""
    parser = argparse.ArgumentParser(prog="python -m bench gpu", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for gpu.json, gpu.txt and gpu.log"
    )
    parser.add_argument(
        "--photographs", type=Path, metavar="DIR", help="holds images/ and masks/ (the checkout's photographs)"
    )
    parser.add_argument("--quick", action="store_true", help="few cases, in about three minutes")
    parser.add_argument(
        "--seconds", type=float, default=MOST_SECONDS, metavar="S", help="the most that all may take (465)"
    )
    parser.add_argument("--only", nargs="+", metavar="STEP", help=f"of {', '.join(step.name for step in STEPS)} (all)")
    parser.add_argument("--compile", action="store_true", help="torch.compile too, last of all: half a minute a shape")
    args = parser.parse_args(argv)
    unknown = [name for name in args.only or () if name not in {step.name for step in STEPS}]
    if unknown:
        parser.error(f"there is no step {unknown[0]!r}")
    trouble = preflight.find_trouble()
    if trouble:
        shared.say_error(trouble)
        return shared.EXIT_USAGE
    if args.photographs and not all((args.photographs / name).is_dir() for name in ("images", "masks")):
        raise UsageError(f"{args.photographs}: there is no images/ and masks/ in it; name the folder that holds both")
    return Run(args).all()


class Run:
    """A run of all steps, and their records so far.

    Parameters
    ----------
    options : argparse.Namespace
    """

    def __init__(self, options: argparse.Namespace):
        import cupy

        from bench.gpu import machine

        self._options, self._began = options, time.monotonic()
        self.records: list[dict[str, object]] = []
        try:
            options.out.mkdir(parents=True, exist_ok=True)
            (options.out / "gpu.log").write_text("")
        except OSError as error:
            raise OutputError(f"{options.out}: can't be written to ({error.strerror}); name another folder") from None
        self._machine = machine.facts(cupy)
        self._undone = [FIRST, *filter(self._is_wanted, STEPS)]

    def _is_wanted(self, step: Step) -> bool:
        only = self._options.only
        return step.name in only if only else not step.extra or self._options.compile

    def all(self) -> int:
        """Run every step; return the exit status."""
        from bench.gpu import table

        stopped = None
        with tempfile.TemporaryDirectory() as folder, processes.stoppable():
            try:
                self._run([FIRST], Path(folder))
                failed = table.wrong(self.records)
                if failed:
                    shared.say_error(failed[0])
                    return shared.EXIT_USAGE
                # Checks mostly wait for compilers and the CPU, so they run in parallel. Measurements run one at a time.
                self._run([step for step in self._undone if not step.timing], Path(folder))
                for step in list(self._undone):
                    self._run([step], Path(folder))
            except processes.Stopped as signal:
                stopped = str(signal)
                self._give_up(stopped)
        print("\n" + table.text(self._machine, self.records), flush=True)
        found = table.wrong(self.records)
        for name in found:
            shared.say_error(f"wrong: {name}")
        print(f"\nwritten to {self._options.out / 'gpu.json'}, {time.monotonic() - self._began:.0f} s", flush=True)
        return EXITS[stopped] if stopped else EXIT_WRONG if found else shared.EXIT_OK

    def _run(self, steps: Sequence[Step], folder: Path) -> None:
        """Run several steps in parallel and wait until all have ended; after a signal, stop them."""
        if not steps:
            return
        with concurrent.futures.ThreadPoolExecutor(len(steps)) as pool:
            jobs = {pool.submit(self._one, step, folder): step for step in steps}
            try:
                for job in concurrent.futures.as_completed(list(jobs)):
                    self._take(jobs.pop(job), job.result())
            finally:
                if jobs:  # a signal
                    processes.stop_all()
                for job, step in jobs.items():
                    self._take(step, job.result())

    def _take(self, step: Step, found: list[dict[str, object]]) -> None:
        self.records += found
        self._undone.remove(step)
        self._write()

    def _give_up(self, signal: str) -> None:
        """Record the steps that a signal has prevented as skipped."""
        self.records += [
            {"step": step.name, "kind": "skipped", "name": step.name, "why": f"stopped by {signal}"}
            for step in self._undone
        ]
        self._undone = []
        self._write()

    def _one(self, step: Step, folder: Path) -> list[dict[str, object]]:
        """Run a step in a process; return its records, with a failed check if it crashes."""
        from bench.gpu.report import Report, read

        left = self._options.seconds - (time.monotonic() - self._began) - GRACE
        seconds = min(seconds_of(step, self._options.quick), left)
        path, log = folder / f"{step.name}.jsonl", folder / f"{step.name}.log"
        report = Report(path, seconds, step.name)
        if seconds < FEWEST_SECONDS:
            report.skip(step.name, "out of time")
            return read(path)
        began = time.monotonic()
        status = _watch(self._command(step, path, seconds), log, seconds + GRACE)
        said = log.read_text(encoding="utf-8", errors="replace")
        with (self._options.out / "gpu.log").open("a", encoding="utf-8") as file:
            file.write(f"=== {step.name}\n{said[-200_000:]}\n")
        if status is None:
            report.skip(f"{step.name}, the rest of it", f"stopped after {time.monotonic() - began:.0f} s")
        elif status:
            lines = [line.strip() for line in said.splitlines() if line.strip()]
            report.check(
                f"{step.name} runs to its end", False, f"exit status {status}: {lines[-1][:300] if lines else 'silent'}"
            )
        found = read(path)
        wrong = sum(record["kind"] == "check" and not record["passed"] for record in found)
        outcome = f"{wrong} wrong" if wrong else "stopped" if status is None else "done"
        print(f"{step.name:<12}{time.monotonic() - began:5.0f} s  {len(found):4} records  {outcome}", flush=True)
        return found

    def _command(self, step: Step, path: Path, seconds: float) -> list[str]:
        command = [
            sys.executable,
            "-m",
            "bench.gpu.steps",
            step.name,
            "--records",
            str(path),
            "--seconds",
            f"{seconds:.0f}",
        ]
        if self._options.photographs:
            command += ["--photographs", str(self._options.photographs.resolve())]
        return command + ["--quick"] * self._options.quick

    def _write(self) -> None:
        """Write the files with the results so far."""
        from bench.gpu import table
        from bench.gpu.bars import bars

        judged = [
            {"what": b.what, "most" if b.at_most else "least": b.least, "measured": b.measured, "met": b.met}
            for b in bars(self.records)
        ]
        content = {**self._machine, "quick": self._options.quick, "bars": judged, "records": self.records}
        _replace(self._options.out / "gpu.json", json.dumps(content, indent=1))
        _replace(self._options.out / "gpu.txt", table.text(self._machine, self.records))


def seconds_of(step: Step, quick: bool) -> float:
    """Return the time limit of a step."""
    if not quick:
        return step.seconds
    return min(step.seconds, max(LEAST_QUICK, step.seconds * (QUICK if step.timing else QUICK_CHECK)))


def _watch(command: Sequence[str], log: Path, seconds: float) -> int | None:
    """Run a step; return its exit status, or None if it had to be stopped."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("CUPY_TF32", "NVIDIA_TF32_OVERRIDE")
    }
    environment["PYTHONUNBUFFERED"] = "1"
    with log.open("wb") as file:
        return processes.run(command, seconds, file, environment)


def _replace(path: Path, text: str) -> None:
    """Replace a file atomically."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)
