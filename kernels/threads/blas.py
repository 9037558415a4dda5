"""Hold BLAS to one thread."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController
_local = threading.local()
_lock = threading.Lock()
_callers = 0
_holder: _Holder | None = None
_seen: tuple[int, ThreadpoolController] | None = None  # modules imported when the libraries were looked for


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keep BLAS on one thread while any caller is inside; the former setting returns with the last one out.

    Libraries of the two kinds that there are obey: those with one setting for the process, which only one thread at a time may
    change, and those with a setting for each thread. Only what is loaded already can be kept to one thread.
    """
    if getattr(_local, "inside", False):
        yield
        return
    _local.inside = True
    try:
        with _held(), _libraries().limit(limits=1, user_api="blas"):
            yield
    finally:
        _local.inside = False


def _libraries() -> ThreadpoolController:
    """The thread pools of the libraries in the process. Looking for them takes milliseconds, so it's done again only when further
    modules have been imported, which may have brought others.
    """
    from threadpoolctl import ThreadpoolController

    global _seen
    if _seen is None or _seen[0] != len(sys.modules):
        _seen = len(sys.modules), ThreadpoolController()
    return _seen[1]


@contextlib.contextmanager
def _held() -> Iterator[None]:
    """The setting of the process, changed and restored by a thread of its own: callers come and go in any order, and whoever
    comes first may still be busy when another is the last to leave.
    """
    global _callers, _holder
    with _lock:
        if _callers == 0:
            _holder = _Holder()
        _callers += 1
    try:
        yield
    finally:
        with _lock:
            _callers -= 1
            if _callers == 0:
                _holder.let_go()
                _holder = None


class _Holder:
    """A thread that keeps BLAS to one thread until it's told to let go."""

    def __init__(self) -> None:
        self._begun, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._hold, name="vitnp-blas", daemon=True)
        self._thread.start()
        self._begun.wait()

    def _hold(self) -> None:
        with _libraries().limit(limits=1, user_api="blas"):
            self._begun.set()
            self._over.wait()

    def let_go(self) -> None:
        """Restore the former setting."""
        self._over.set()
        self._thread.join()
