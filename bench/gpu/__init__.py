"""vitnp on an NVIDIA GPU: right first, then how fast, beside what one could run instead.

One command, from the checkout's root, with a plain python3 that has NumPy, numba and CuPy (cupy-cuda12x or cupy-cuda13x), and
torch, cuML, flash-kmeans, pytest-xdist and compute-sanitizer where they are to take part::

    python3 -m pip install '.[cuda13,test]' && python3 -m bench gpu --out DIR --photographs FOLDER

FOLDER holds ``images/`` and ``masks/``; without it the checkout's own photographs are taken. DIR gets ``gpu.json`` with every
figure, ``gpu.txt`` with the table, and ``gpu.log`` with what the tools said. It takes at most eight minutes. The exit status is 0
when all that was computed is right, whatever the times; 1 when something is wrong or a step crashed, which is named; 2 when there
is no GPU to use.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.gpu.steps import FIRST, STEPS, Step
from vitnp.cli import shared
from vitnp.errors import OutputError, UsageError

ROOT = Path(__file__).parent.parent.parent
EXIT_WRONG = 1
# All in all, with some seconds left of eight minutes.
MOST_SECONDS = 465.0
# A step that has less than this isn't begun.
FEWEST_SECONDS = 8.0
QUICK = 0.4
# Beyond its own time a step gets this to come to an end.
GRACE = 6.0


def main(argv: list[str] | None = None) -> int:
    """Run every step, print a table, write DIR/gpu.json."""
    made = argparse.ArgumentParser(prog="python -m bench gpu", description=__doc__.partition("\n")[0])
    made.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for gpu.json, gpu.txt and gpu.log")
    made.add_argument(
        "--photographs", type=Path, metavar="DIR", help="holds images/ and masks/ (the checkout's photographs)"
    )
    made.add_argument("--quick", action="store_true", help="few cases, in about three minutes")
    made.add_argument(
        "--seconds", type=float, default=MOST_SECONDS, metavar="S", help="the most that all may take (465)"
    )
    made.add_argument("--only", nargs="+", metavar="STEP", help=f"of {', '.join(step.name for step in STEPS)} (all)")
    args = made.parse_args(argv)
    unknown = [name for name in args.only or () if name not in {step.name for step in STEPS}]
    if unknown:
        made.error(f"there is no step {unknown[0]!r}")
    from vitnp.kernels.cuda.loader import find_trouble

    trouble = find_trouble()
    if trouble:
        # On the CPU there is nothing to measure here.
        shared.say_error(trouble.replace("choose --device cpu", "run this on a machine with one"))
        return shared.EXIT_USAGE
    if args.photographs and not all((args.photographs / name).is_dir() for name in ("images", "masks")):
        raise UsageError(f"{args.photographs}: there is no images/ and masks/ in it; name the folder that holds both")
    return Run(args).all()


class Run:
    """The steps in turn, and what they have found by now.

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

    def all(self) -> int:
        """Every step; the exit status."""
        from bench.gpu import table

        wanted = [step for step in STEPS if not self._options.only or step.name in self._options.only]
        with tempfile.TemporaryDirectory() as folder:
            self._run([FIRST], Path(folder))
            failed = table.wrong(self.records)
            if failed:
                shared.say_error(failed[0])
                return shared.EXIT_USAGE
            # Checks wait for compilers and for the CPU most of the time: side by side. Who measures has the device alone.
            self._run([step for step in wanted if not step.timing], Path(folder))
            for step in wanted:
                if step.timing:
                    self._run([step], Path(folder))
        text = table.text(self._machine, self.records)
        (self._options.out / "gpu.txt").write_text(text + "\n", encoding="utf-8")
        print("\n" + text, flush=True)
        found = table.wrong(self.records)
        for name in found:
            shared.say_error(f"wrong: {name}")
        print(f"\nwritten to {self._options.out / 'gpu.json'}, {time.monotonic() - self._began:.0f} s", flush=True)
        return EXIT_WRONG if found else shared.EXIT_OK

    def _run(self, steps: Sequence[Step], folder: Path) -> None:
        """Some steps at once, all of them to their end."""
        if not steps:
            return
        with concurrent.futures.ThreadPoolExecutor(len(steps)) as pool:
            for found in concurrent.futures.as_completed([pool.submit(self._one, step, folder) for step in steps]):
                self.records += found.result()
                self._write()

    def _one(self, step: Step, folder: Path) -> list[dict[str, object]]:
        """A step's records; one that crashes or hangs has a failed check among them."""
        from bench.gpu.report import Report, read

        left = self._options.seconds - (time.monotonic() - self._began) - GRACE
        seconds = min(step.seconds * (QUICK if self._options.quick and step.timing else 1), left)
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
        """The file as it is by now: whoever is stopped half-way has half of it."""
        from bench.gpu.bars import bars

        judged = [{"what": b.what, "least": b.least, "measured": b.measured, "met": b.met} for b in bars(self.records)]
        content = {**self._machine, "quick": self._options.quick, "bars": judged, "records": self.records}
        path = self._options.out / "gpu.json"
        spare = path.with_suffix(".part")
        spare.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        spare.replace(path)


def _watch(command: Sequence[str], log: Path, seconds: float) -> int | None:
    """Run a program with what it starts; its exit status, or None if it had to be stopped."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("CUPY_TF32", "NVIDIA_TF32_OVERRIDE")
    }
    environment["PYTHONUNBUFFERED"] = "1"
    with log.open("wb") as file:
        # A group of its own: what the step has started ends with it.
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=environment,
            start_new_session=True,
        )  # fmt: skip
        try:
            return process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return None
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
