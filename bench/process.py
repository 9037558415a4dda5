"""Measure in a process of its own, which never outlives the benchmark."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, NoReturn, TypeVar

from vitnp.errors import VitnpError

Result = TypeVar("Result")

EXIT_TERMINATED = 128 + signal.SIGTERM


class ProcessDied(VitnpError):
    """The process of a measurement ended without a result."""


@contextlib.contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into SystemExit within the ``with`` block, so that ``finally`` blocks run; main thread only."""

    def leave(*_: object) -> NoReturn:
        raise SystemExit(EXIT_TERMINATED)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def run_isolated(function: Callable[..., Result], *args: Any) -> Result:
    """Call a function in a new process, so that its peak memory, threads and libraries affect no other measurement.

    The process leads a process group of its own. However the call ends, by its result, an error, Ctrl-C or SIGTERM
    (within :func:`exit_on_sigterm`), the whole group is killed before this function returns.

    Parameters
    ----------
    function : callable
        Importable by name. It, its arguments and its result are pickled.
    *args
        Passed on to `function`.

    Returns
    -------
    object
        What `function` returned.

    Raises
    ------
    ProcessDied
        When the process ended without a result, for example for lack of memory.
    Exception
        Whatever `function` raised; its traceback is the cause.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(sender, function, args))
    process.start()
    try:
        sender.close()  # the child has the only other end: recv() fails when the child dies
        try:
            result, error, details = receiver.recv()
        except EOFError:
            process.join()
            raise ProcessDied(f"the measuring process ended with status {process.exitcode}; see its output") from None
    finally:
        _kill_group(process)
    if error is not None:
        raise error from RuntimeError(f"in the measuring process:\n{details}")
    return result


def _call(sender: Connection, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    try:
        outcome = (function(*args), None, "")
    except Exception as error:
        outcome = (None, error, traceback.format_exc())
    sender.send(outcome)


def _kill_group(process: multiprocessing.process.BaseProcess) -> None:
    """Kill a process and its descendants; the group doesn't exist yet if the process has just been started."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()
