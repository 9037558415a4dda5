"""Limit BLAS to one thread."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vitnp.kernels.threads.fork import call_in_child, unlocked_in_child

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

_local = threading.local()
_lock = unlocked_in_child(threading.Lock())
_n_callers = 0
_limiter: _Limiter | None = None
_known: tuple[int, ThreadpoolController] | None = None  # number of imported modules at the last search, and its result


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Limit BLAS to one thread while any caller is inside; the last one to leave restores the previous setting.

    This works for both kinds of libraries: those with one setting per process, which only one thread at a time may
    change, and those with a setting per thread. Only libraries that are loaded already can be limited.
    """
    if getattr(_local, "inside", False):
        yield
        return
    _local.inside = True
    try:
        with _process_limit(), _libraries().limit(limits=1, user_api="blas"):
            yield
    finally:
        _local.inside = False


def _libraries() -> ThreadpoolController:
    """Return a controller of the BLAS libraries in this process.

    Searching for them takes milliseconds, so it is repeated only if more modules have been imported, which may have
    loaded further libraries.
    """
    from threadpoolctl import ThreadpoolController

    global _known
    if _known is None or _known[0] != len(sys.modules):
        _known = len(sys.modules), ThreadpoolController()
    return _known[1]


@contextlib.contextmanager
def _process_limit() -> Iterator[None]:
    """Change the setting of the process when the first caller enters, and restore it when the last one leaves.

    A separate thread does both, because callers may leave in any order: the first one may still be inside when the
    others have left, or the other way round.
    """
    global _n_callers, _limiter
    with _lock:
        if _limiter is None:
            _limiter = _Limiter()
        _n_callers += 1
    try:
        yield
    finally:
        with _lock:
            _n_callers -= 1
            if _n_callers == 0 and _limiter is not None:
                _limiter.stop()
                _limiter = None


def _forget_other_callers() -> None:
    """In a forked child only the thread that forked is inside, if it was; the limit ends when it leaves."""
    global _n_callers
    _n_callers = int(getattr(_local, "inside", False))


call_in_child(_forget_other_callers)


class _Limiter:
    """A thread that limits BLAS to one thread until :meth:`stop` is called."""

    def __init__(self) -> None:
        self._started, self._stopped = threading.Event(), threading.Event()
        self._process = os.getpid()
        self._limits: Any = None
        self._thread = threading.Thread(target=self._run, name="vitnp-blas", daemon=True)
        self._thread.start()
        self._started.wait()

    def _run(self) -> None:
        with _libraries().limit(limits=1, user_api="blas") as self._limits:
            self._started.set()
            self._stopped.wait()

    def stop(self) -> None:
        """Restore the previous setting."""
        if self._process != os.getpid():  # the thread stayed in the parent of this process
            self._limits.restore_original_limits()
            return
        self._stopped.set()
        self._thread.join()
