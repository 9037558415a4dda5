"""How vitnp uses threads: images side by side, BLAS on one thread.

A matrix product on several BLAS threads may round differently from one on a single thread, and a pool of BLAS threads below
a pool of Python threads is slow on a busy machine. So inside vitnp BLAS has one thread.
"""

from __future__ import annotations

import collections
import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from vitnp.errors import UsageError

Item = TypeVar("Item")
Result = TypeVar("Result")

# A photograph of more pixels than this has the machine's memory to itself: decoding takes 7 bytes a pixel, its results 7 more.
LARGE = 24_000_000

_large = threading.Lock()
_lock = threading.Lock()
_here = threading.local()
_callers = 0
_holder: _Holder | None = None


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keep BLAS on one thread while any caller is inside; the former setting returns with the last one out.

    Libraries of the two kinds that there are obey: those with one setting for the process, which only one thread at a time may
    change, and those with a setting for each thread. Only what is loaded already can be kept to one thread.
    """
    if getattr(_here, "inside", False):
        yield
        return
    from threadpoolctl import threadpool_limits

    _here.inside = True
    try:
        with _held(), threadpool_limits(limits=1, user_api="blas"):
            yield
    finally:
        _here.inside = False


@contextlib.contextmanager
def _held() -> Iterator[None]:
    """The setting of the process, changed and restored by a thread of its own: callers come and go in any order, and whoever
    comes first may still be busy when another is the last to leave."""
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
        from threadpoolctl import threadpool_limits

        with threadpool_limits(limits=1, user_api="blas"):
            self._begun.set()
            self._over.wait()

    def let_go(self) -> None:
        """Restore the former setting."""
        self._over.set()
        self._thread.join()


def room_for(pixels: int) -> contextlib.AbstractContextManager:
    """What to hold while working on a photograph: large ones go one at a time, small ones pass."""
    return _large if pixels > LARGE else contextlib.nullcontext()


def thread_count(asked: int | None = None) -> int:
    """Images in flight: as asked, else VITNP_NUM_THREADS, else one for each core that this process may use.

    Raises
    ------
    UsageError
        For anything below 1, or an environment variable that is no number.

    Examples
    --------
    >>> thread_count(3)
    3
    """
    if asked is None:
        text = os.environ.get("VITNP_NUM_THREADS", "").strip()
        if not text:
            return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        try:
            asked = int(text)
        except ValueError:
            raise UsageError(f"VITNP_NUM_THREADS is {text!r}; set it to a whole number from 1 on") from None
    if asked < 1:
        raise UsageError(f"the number of threads is {asked}; choose 1 or more")
    return asked


def in_order(work: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """Results of `work`, several items at a time, in the order of the items.

    Few results wait for their turn, so that memory stays bounded. Whoever leaves early (an exception, Ctrl-C) drops the items
    that have not begun and waits for those that have.

    Parameters
    ----------
    work : callable
        Called once an item, in threads of its own unless `threads` is 1.
    items : iterable
    threads : int

    Examples
    --------
    >>> list(in_order(abs, [-3, 1, -2], threads=2))
    [3, 1, 2]
    """
    if threads == 1:
        yield from map(work, items)
        return
    with contextlib.ExitStack() as stack:
        pool = ThreadPoolExecutor(threads, thread_name_prefix="vitnp")
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        waiting = collections.deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
