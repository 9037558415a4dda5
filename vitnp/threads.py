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
_inside = 0
_limits = None


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keep BLAS on one thread while any caller is inside; the former setting returns with the last one out."""
    global _inside, _limits
    with _lock:
        if _inside == 0:
            from threadpoolctl import threadpool_limits

            _limits = threadpool_limits(limits=1, user_api="blas")
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _limits.restore_original_limits()
                _limits = None


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
