"""Measurements in a process of its own: results and errors come back, and no process outlives the benchmark."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = str(pathlib.Path(__file__).resolve().parent.parent.parent)
# bench/ is not installed. It is appended, so that an installed vitnp stays the one that is tested.
sys.path.append(ROOT)

from bench.process import EXIT_TERMINATED, ProcessDied, run_isolated

# Measures forever in a process that has started another one, and writes both process ids.
SCRIPT = """
import os, pathlib, subprocess, sys, time
sys.path.insert(0, {root!r})
from bench.process import exit_on_sigterm, run_isolated

def measure(path):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
    pathlib.Path(path + ".part").write_text(f"{{os.getpid()}} {{child.pid}}")
    os.replace(path + ".part", path)
    time.sleep(120)

if __name__ == "__main__":
    with exit_on_sigterm():
        run_isolated(measure, {path!r})
"""


def is_running(pid):
    """Return whether a process runs; zombies don't."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def wait_for(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.skipif(not pathlib.Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_benchmark_leaves_no_process_behind(tmp_path, number):
    pids, script = tmp_path / "pids", tmp_path / "script.py"
    script.write_text(SCRIPT.format(root=ROOT, path=str(pids)))
    benchmark = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL)
    try:
        wait_for(pids.exists)
        benchmark.send_signal(number)
        status = benchmark.wait(timeout=30)
    finally:
        benchmark.kill()
    assert status == (EXIT_TERMINATED if number == signal.SIGTERM else -signal.SIGINT)
    for pid in map(int, pids.read_text().split()):
        wait_for(lambda pid=pid: not is_running(pid))


def test_results_and_errors_come_back():
    assert run_isolated(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        run_isolated(divmod, 1, 0)


def test_a_process_that_dies_is_reported():
    with pytest.raises(ProcessDied, match="ended with status 3"):
        run_isolated(os._exit, 3)
