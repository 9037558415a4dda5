"""Map a function over items with a pool of threads, and limit how many threads are used."""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from vitnp.kernels.threads.fork import unlocked_in_child

from vitnp.errors import UsageError

Item = TypeVar("Item")
Result = TypeVar("Result")

# Images with more pixels than this are processed one at a time: decoding takes 7 bytes per pixel, the results 7 more.
LARGE_IMAGE_PIXELS = 24_000_000

_large_image = unlocked_in_child(threading.Lock())
_local = threading.local()  # `n_threads`, while a thread is inside `thread_limit`


def large_image_lock(pixels: int) -> contextlib.AbstractContextManager:
    """Return a context manager that admits one large image at a time, and any number of small ones.

    Parameters
    ----------
    pixels : int
        Number of pixels of the image.
    """
    return _large_image if pixels > LARGE_IMAGE_PIXELS else contextlib.nullcontext()


def resolve_n_threads(n_threads: int | None = None) -> int:
    """Resolve the number of threads: the argument, else VITNP_NUM_THREADS, else the cores that this process may use.

    Raises
    ------
    UsageError
        If the number is below 1, or the environment variable is not an integer.

    Examples
    --------
    >>> resolve_n_threads(3)
    3
    """
    if n_threads is None:
        text = os.environ.get("VITNP_NUM_THREADS", "").strip()
        if not text:
            return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        try:
            n_threads = int(text)
        except ValueError:
            raise UsageError(f"VITNP_NUM_THREADS must be an integer of at least 1, got {text!r}") from None
    if n_threads < 1:
        raise UsageError(f"the number of threads must be at least 1, got {n_threads}")
    return n_threads


def map_ordered(work: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Generator[Result, None, None]:
    """Yield the results of `work` in the order of the items, computing several items at the same time.

    At most ``2 * threads`` results are waiting, so that memory stays bounded. If the caller stops early (an exception,
    Ctrl-C, closing the generator), items that have not begun are dropped, and those that have begun are completed
    first. A single item runs in the caller's thread and may itself use `threads` threads
    (:func:`vitnp.kernels.threads.team.run_team`); of several items, each uses one thread.

    Parameters
    ----------
    work : callable
        Called once per item, in worker threads unless there is only one item or one thread.
    items : iterable
    threads : int
        Maximum number of threads.

    Yields
    ------
    object
        ``work(item)`` for each item.

    Examples
    --------
    >>> list(map_ordered(abs, [-3, 1, -2], threads=2))
    [3, 1, 2]
    """
    items = iter(items)
    first_two = list(itertools.islice(items, 2))
    single, items = len(first_two) < 2, itertools.chain(first_two, items)
    if single or threads == 1:
        for item in items:
            with thread_limit(threads):
                result = work(item)
            yield result
        return

    def work_alone(item: Item) -> Result:
        with thread_limit(1):
            return work(item)

    with contextlib.ExitStack() as stack:
        executor = ThreadPoolExecutor(threads, thread_name_prefix="vitnp")
        stack.callback(executor.shutdown, wait=True, cancel_futures=True)
        pending: collections.deque[Future[Result]] = collections.deque()
        for item in items:
            pending.append(executor.submit(work_alone, item))
            if len(pending) >= 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def run_ahead(
    items: Generator[Item, None, None],
    most: int,
    context: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> Generator[Item, None, None]:
    """Yield the items of a generator, which another thread computes ahead of their use.

    If the caller stops early, the item that has begun is completed first, and the generator is closed in its thread.

    Parameters
    ----------
    items : generator
    most : int
        Maximum number of items that wait for the caller.
    context : callable
        Returns a context manager that the thread runs the generator in.

    Yields
    ------
    object
        Each item, in order; or the generator's exception is raised.

    Examples
    --------
    >>> list(run_ahead((number * number for number in range(4)), most=2))
    [0, 1, 4, 9]
    """
    ready: queue.Queue[tuple[Item | None, BaseException | None, bool]] = queue.Queue()
    room, stopped = threading.Semaphore(most), threading.Event()

    def run() -> None:
        error: BaseException | None = None
        try:
            with context(), contextlib.closing(items):
                for item in items:
                    ready.put((item, None, False))
                    room.acquire()
                    if stopped.is_set():
                        break
        except BaseException as raised:  # raised again where the items are used
            error = raised
        ready.put((None, error, True))

    thread = threading.Thread(target=run, name="vitnp-ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error, last = ready.get()
            if error is not None:
                raise error
            if last:
                return
            room.release()
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        room.release()
        thread.join()


@contextlib.contextmanager
def thread_limit(n_threads: int) -> Iterator[None]:
    """Limit the threads that :func:`vitnp.kernels.threads.team.run_team` uses when called from this thread."""
    before = getattr(_local, "n_threads", None)
    _local.n_threads = n_threads
    try:
        yield
    finally:
        _local.n_threads = before


def allowed_threads() -> int:
    """Return how many threads ``run_team`` may use here: the :func:`thread_limit`, else :func:`resolve_n_threads`."""
    return getattr(_local, "n_threads", None) or resolve_n_threads()
