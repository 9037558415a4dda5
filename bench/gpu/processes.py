"""Programs that a benchmark starts, and that leave nothing behind: not when they hang, not when the benchmark is stopped.

What a program has started is found by a mark in its environment, which every child inherits: processes that have begun a
session of their own have it too. Where there is no /proc the program's process group has to do.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parent.parent.parent
MARK = "VITNP_BENCH_MARK"
PROCESSES = Path("/proc")
# What a killed process may take to disappear: a driver may hold on to it for a while.
LONGEST_END = 5.0

_lock = threading.Lock()
_running: dict[str, subprocess.Popen] = {}
_stopped = threading.Event()


class Stopped(Exception):
    """The benchmark has been told to stop, by a signal."""


def run(
    command: Sequence[str],
    seconds: float,
    output: IO[bytes] | None = None,
    environment: Mapping[str, str] | None = None,
) -> int | None:
    """Run a program from the checkout's root to its end, and end whatever it leaves running.

    Parameters
    ----------
    command : sequence of str
    seconds : float
        The most it may take.
    output : file, optional
        Gets what it prints and its errors, instead of this process's own output.
    environment : mapping of str to str, optional
        Instead of this process's own.

    Returns
    -------
    int or None
        Its exit status; None if it had to be stopped.
    """
    token = uuid.uuid4().hex
    marked = dict(os.environ if environment is None else environment)
    marked[MARK] = f"{marked.get(MARK, '')} {token}".strip()
    with _lock:
        if _stopped.is_set():
            return None
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=marked,
            start_new_session=True,
        )  # fmt: skip
        _running[token] = process
    try:
        status = process.wait(timeout=max(0.0, seconds))
        return None if _stopped.is_set() else status
    except subprocess.TimeoutExpired:
        return None
    finally:
        _end(process, token)
        with _lock:
            _running.pop(token, None)


def stop_all() -> None:
    """End every program that runs, with what it has started; none begins after this."""
    _stopped.set()
    with _lock:
        running = list(_running.items())
    for token, process in running:
        _end(process, token)


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Have SIGTERM and Ctrl-C raise :class:`Stopped` while the context lasts; later ones of both do nothing."""

    def stop(number: int, frame: object) -> None:
        for other in (signal.SIGTERM, signal.SIGINT):
            signal.signal(other, signal.SIG_IGN)
        raise Stopped(signal.Signals(number).name)

    _stopped.clear()
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _stopped.clear()


def _end(process: subprocess.Popen, token: str) -> None:
    """Kill a program and all that bears its mark."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    until = time.monotonic() + LONGEST_END
    # Again and again: what is killed last may have started something before.
    while (left := _marked(token)) and time.monotonic() < until:
        for number in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(number, signal.SIGKILL)
        time.sleep(0.02)


def _marked(token: str) -> list[int]:
    """Processes whose environment has the token; those that are dead, but not yet waited for, have none."""
    found, wanted = [], token.encode()
    for place in PROCESSES.glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted in (place / "environ").read_bytes():
                found.append(int(place.name))
    return found
