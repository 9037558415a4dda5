"""Let a process that is forked while other threads compute go on without them.

A forked child has copies of all locks, but only the thread that forked: a lock that another thread held would stay
locked forever. Locks that only order the work of threads are unlocked in the child. While kernels are imported or
compiled, locks of Python, numba and LLVM are held that vitnp cannot unlock; so forking waits until that is done.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

Lock = TypeVar("Lock")

# Held while kernels are imported.
importing = threading.RLock()

# Forking goes on after this many seconds in any case, so that a thread that hangs does not hang others.
_PATIENCE = 120

_locks: weakref.WeakSet[Any] = weakref.WeakSet()
_acquired = threading.local()


def unlocked_in_child(lock: Lock) -> Lock:
    """Return a lock that a forked child finds unlocked, whoever held it in the parent.

    Use it where the state that the lock guards is consistent at any moment, or not used by the child.

    Parameters
    ----------
    lock : threading.Lock or threading.RLock

    Examples
    --------
    >>> lock = unlocked_in_child(threading.Lock())
    """
    _locks.add(lock)
    return lock


def call_in_child(function: Callable[[], None]) -> None:
    """Call a function in every forked child before it goes on; systems without fork ignore it."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)


def _before() -> None:
    _acquired.importing = importing.acquire(timeout=_PATIENCE)


def _in_parent() -> None:
    if _acquired.importing:
        importing.release()


def _in_child() -> None:
    for lock in list(_locks):
        lock._at_fork_reinit()  # what concurrent.futures and logging do with their locks
    if _acquired.importing:
        importing.release()
    else:
        importing._at_fork_reinit()  # type: ignore[attr-defined]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
