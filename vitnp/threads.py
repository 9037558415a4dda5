"""How vitnp uses threads: images side by side or, where there is one image, blocks of its rows; BLAS on one thread.

A matrix product on several BLAS threads may round differently from one on a single thread, and a pool of BLAS threads below
a pool of Python threads is slow on a busy machine. So inside vitnp BLAS has one thread.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from vitnp.errors import UsageError

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

Item = TypeVar("Item")
Result = TypeVar("Result")

# A photograph of more pixels than this has the machine's memory to itself: decoding takes 7 bytes a pixel, its results 7 more.
LARGE = 24_000_000

# Where kernels that wait for each other find their three numbers, in bytes from the first: a cache line for each.
ARRIVED, ROUND, BROKEN = 0, 64, 128

# ``wait(meeting, members)``, by which threads meet without going to sleep; set by the compiled kernels where there are any.
wait_in_kernel: Callable[[int, int], bool] | None = None

_large = threading.Lock()
_lock = threading.Lock()
_here = threading.local()
_callers = 0
_holder: _Holder | None = None
_seen: tuple[int, ThreadpoolController] | None = None  # modules imported when the libraries were looked for
_team = threading.Lock()
_pool: tuple[int, int, ThreadPoolExecutor] | None = None


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keep BLAS on one thread while any caller is inside; the former setting returns with the last one out.

    Libraries of the two kinds that there are obey: those with one setting for the process, which only one thread at a time may
    change, and those with a setting for each thread. Only what is loaded already can be kept to one thread.
    """
    if getattr(_here, "inside", False):
        yield
        return
    _here.inside = True
    try:
        with _held(), _libraries().limit(limits=1, user_api="blas"):
            yield
    finally:
        _here.inside = False


def _libraries() -> ThreadpoolController:
    """The thread pools of the libraries in the process. Looking for them takes milliseconds, so it's done again only when further
    modules have been imported, which may have brought others."""
    from threadpoolctl import ThreadpoolController

    global _seen
    if _seen is None or _seen[0] != len(sys.modules):
        _seen = len(sys.modules), ThreadpoolController()
    return _seen[1]


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
        with _libraries().limit(limits=1, user_api="blas"):
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
    that have not begun and waits for those that have. A single item is worked on in the caller's thread, and may share its
    work among `threads` of them (:func:`together`); of several items each has one.

    Parameters
    ----------
    work : callable
        Called once an item, in threads of its own unless there is one item or one thread.
    items : iterable
    threads : int

    Examples
    --------
    >>> list(in_order(abs, [-3, 1, -2], threads=2))
    [3, 1, 2]
    """
    items = iter(items)
    ahead = list(itertools.islice(items, 2))
    alone, items = len(ahead) < 2, itertools.chain(ahead, items)
    if alone or threads == 1:
        for item in items:
            with at_most(threads):
                result = work(item)
            yield result
        return

    def by_itself(item: Item) -> Result:
        with at_most(1):
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
def at_most(count: int) -> Iterator[None]:
    """So many threads for whatever this thread computes meanwhile with :func:`together`."""
    before = getattr(_here, "count", None)
    _here.count = count
    try:
        yield
    finally:
        _here.count = before


def allowed() -> int:
    """Threads that :func:`together` may use here, unless others are at it: as :func:`at_most` says, else as many as there are."""
    return getattr(_here, "count", None) or thread_count()


class Meeting:
    """Where members wait for each other: in Python at a barrier, in kernels by way of numbers that all of them see."""

    def __init__(self, members: int):
        self.barrier, self.wait_in_kernel = threading.Barrier(members), wait_in_kernel
        self._numbers = np.zeros(3 * 8, np.int64)
        self.address = self._numbers.ctypes.data

    def abort(self) -> None:
        """Somebody isn't coming any more: let all go that wait or will wait, each with an error."""
        self._numbers[BROKEN // 8] = 1
        self.barrier.abort()


class Member:
    """One of the threads that work together.

    Attributes
    ----------
    index, members : int
        Which of how many.
    meeting : int
        Address of int64 numbers at ARRIVED, ROUND and BROKEN, for kernels that wait for each other; 0 for somebody alone.
    """

    def __init__(self, index: int, members: int, meeting: Meeting | None):
        self.index, self.members, self.meeting = index, members, 0 if meeting is None else meeting.address
        self._meeting = meeting

    def wait(self) -> None:
        """Go on when all members have come here.

        Raises
        ------
        threading.BrokenBarrierError
            When one of them isn't coming any more.
        """
        if self._meeting is None:
            return
        if self._meeting.wait_in_kernel is None:
            self._meeting.barrier.wait()
        elif not self._meeting.wait_in_kernel(self.meeting, self.members):
            raise threading.BrokenBarrierError

    def share(self, count: int, granule: int = 1) -> tuple[int, int]:
        """This member's part of range(count), start and stop: a fixed split, in multiples of `granule`."""
        cuts = -(-count // granule)
        start, stop = (cuts * (self.index + more) // self.members * granule for more in (0, 1))
        return min(start, count), min(stop, count)


def together(work: Callable[[Member], None], most: int | None = None) -> None:
    """Run one program in several threads at the same time, each on its own share of the data.

    How many there are: as :func:`at_most` says around it, else as :func:`thread_count`; and only the calling one while others
    are at it, for shares of shares on the same cores gain nothing. So `work` must give the same answer for any number. It should
    spend its time without the GIL.

    Parameters
    ----------
    work : callable
        Called once in each thread with its :class:`Member`. An exception in one of them ends all, and is raised here.
    most : int, optional
        More have nothing to do.

    Examples
    --------
    >>> squares = [0] * 5
    >>> def work(member):
    ...     for i in range(*member.share(5)):
    ...         squares[i] = i * i
    >>> together(work)
    >>> squares
    [0, 1, 4, 9, 16]
    """
    count = allowed() if most is None else min(allowed(), most)
    if count <= 1 or not _team.acquire(blocking=False):
        work(Member(0, 1, None))
        return
    try:
        meeting = Meeting(count)
        first: list[BaseException] = []

        def run(index: int) -> None:
            try:
                with at_most(1):
                    work(Member(index, count, meeting))
            except BaseException as error:
                if not isinstance(error, threading.BrokenBarrierError):
                    first.append(error)
                meeting.abort()  # or the others would wait for ever

        others = []
        try:
            for index in range(1, count):
                others.append(_helpers(count - 1).submit(run, index))
            run(0)
        except BaseException:  # Ctrl-C may come at any point
            meeting.abort()
            raise
        finally:
            for other in others:
                other.result()
        if first:
            raise first[0]
    finally:
        _team.release()


def split(work: Callable[[int, int], None], count: int, granule: int = 1) -> None:
    """``work(start, stop)`` for parts of range(count), each in a thread of its own; see :func:`together`."""

    def part(member: Member) -> None:
        start, stop = member.share(count, granule)
        if start < stop:
            work(start, stop)

    together(part, most=-(-count // granule))


def _helpers(count: int) -> ThreadPoolExecutor:
    """Threads that stay, so that what they hold (memory to work in) is there the next time. Only the team's owner comes here."""
    global _pool
    if _pool is None or _pool[0] < count or _pool[1] != os.getpid():
        if _pool is not None and _pool[1] == os.getpid():
            _pool[2].shutdown(wait=False)
        _pool = count, os.getpid(), ThreadPoolExecutor(count, thread_name_prefix="vitnp-team")
    return _pool[2]
