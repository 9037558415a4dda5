"""Map a function over items with a pool of threads."""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from vitnp.errors import UsageError

if TYPE_CHECKING:
    pass

Item = TypeVar("Item")
Result = TypeVar("Result")

# A photograph of more pixels than this has the machine's memory to itself: decoding takes 7 bytes a pixel, its results 7 more.
LARGE_IMAGE_PIXELS = 24_000_000

_large = threading.Lock()
_here = threading.local()


def large_image_lock(pixels: int) -> contextlib.AbstractContextManager:
    """What to hold while working on a photograph: large ones go one at a time, small ones pass."""
    return _large if pixels > LARGE_IMAGE_PIXELS else contextlib.nullcontext()


def resolve_n_threads(asked: int | None = None) -> int:
    """Images in flight: as asked, else VITNP_NUM_THREADS, else one for each core that this process may use.

    Raises
    ------
    UsageError
        For anything below 1, or an environment variable that is no number.

    Examples
    --------
    >>> resolve_n_threads(3)
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


def map_ordered(work: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """Results of `work`, several items at a time, in the order of the items.

    Few results wait for their turn, so that memory stays bounded. Whoever leaves early (an exception, Ctrl-C) drops the items
    that have not begun and waits for those that have. A single item is worked on in the caller's thread, and may share its
    work among `threads` of them (:func:`run_team`); of several items each has one.

    Parameters
    ----------
    work : callable
        Called once an item, in threads of its own unless there is one item or one thread.
    items : iterable
    threads : int

    Examples
    --------
    >>> list(map_ordered(abs, [-3, 1, -2], threads=2))
    [3, 1, 2]
    """
    items = iter(items)
    ahead = list(itertools.islice(items, 2))
    alone, items = len(ahead) < 2, itertools.chain(ahead, items)
    if alone or threads == 1:
        for item in items:
            with thread_limit(threads):
                result = work(item)
            yield result
        return

    def by_itself(item: Item) -> Result:
        with thread_limit(1):
            return work(item)

    with contextlib.ExitStack() as stack:
        pool = ThreadPoolExecutor(threads, thread_name_prefix="vitnp")
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        waiting = collections.deque()
        for item in items:
            waiting.append(pool.submit(by_itself, item))
            if len(waiting) >= 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@contextlib.contextmanager
def thread_limit(count: int) -> Iterator[None]:
    """So many threads for whatever this thread computes meanwhile with :func:`run_team`."""
    before = getattr(_here, "count", None)
    _here.count = count
    try:
        yield
    finally:
        _here.count = before


def allowed_threads() -> int:
    """Threads that :func:`run_team` may use here, unless others are at it: as :func:`thread_limit` says, else as many as there are."""
    return getattr(_here, "count", None) or resolve_n_threads()
