"""Run programs with a time limit and end all of their child processes, even if the benchmark is stopped.

Child processes are found by a token in their environment, which every child inherits, even if it has started a new
session. On systems without /proc only the process group of the program is ended.
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
# Seconds that a killed process may take to disappear, because a driver may still use it.
LONGEST_END = 5.0

_lock = threading.Lock()
_running: dict[str, subprocess.Popen] = {}
_stopped = threading.Event()


class Stopped(Exception):
    """A signal has requested the benchmark to stop."""


def run(
    command: Sequence[str],
    seconds: float,
    output: IO[bytes] | None = None,
    environment: Mapping[str, str] | None = None,
) -> int | None:
    """Run a program in the root of the checkout, and end all processes that it leaves behind.

    Parameters
    ----------
    command : sequence of str
    seconds : float
        Time limit.
    output : file, optional
        File for standard output and standard error; by default those of this process.
    environment : mapping of str to str, optional
        Environment; by default that of this process.

    Returns
    -------
    int or None
        Exit status; None if the program had to be stopped.
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
    """End all running programs with their child processes; no program starts after this."""
    _stopped.set()
    with _lock:
        running = list(_running.items())
    for token, process in running:
        _end(process, token)


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Raise :class:`Stopped` on the first SIGTERM or Ctrl-C inside the context; ignore further ones."""

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
    """Kill a program and all processes with its token."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    until = time.monotonic() + LONGEST_END
    # Repeat: a process may have started another one before it was killed.
    while (left := _marked(token)) and time.monotonic() < until:
        for number in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(number, signal.SIGKILL)
        time.sleep(0.02)


def _marked(token: str) -> list[int]:
    """Return the processes whose environment contains the token; zombies have no environment."""
    found, wanted = [], token.encode()
    for place in PROCESSES.glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted in (place / "environ").read_bytes():
                found.append(int(place.name))
    return found
