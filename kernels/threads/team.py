"""How vitnp uses threads: images side by side or, where there is one image, blocks of its rows; BLAS on one thread.

A matrix product on several BLAS threads may round differently from one on a single thread, and a pool of BLAS threads below
a pool of Python threads is slow on a busy machine. So inside vitnp BLAS has one thread.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    pass
from vitnp.kernels.threads.pool import allowed_threads, thread_limit

# Where kernels that wait for each other find their three numbers, in bytes from the first: a cache line for each.
ARRIVED, ROUND, BROKEN = 0, 64, 128

# ``wait(meeting, members)``, by which threads meet without going to sleep; set by the compiled kernels where there are any.
wait_in_kernel: Callable[[int, int], bool] | None = None
_team = threading.Lock()
_pool: tuple[int, int, ThreadPoolExecutor] | None = None


class Barrier:
    """Where members wait for each other: in Python at a barrier, in kernels by way of numbers that all of them see."""

    def __init__(self, members: int):
        self.barrier, self.wait_in_kernel = threading.Barrier(members), wait_in_kernel
        self._numbers = np.zeros(3 * 8, np.int64)
        self.address = self._numbers.ctypes.data

    def abort(self) -> None:
        """Somebody isn't coming any more: let all go that wait or will wait, each with an error."""
        self._numbers[BROKEN // 8] = 1
        self.barrier.abort()


class Worker:
    """One of the threads that work together.

    Attributes
    ----------
    rank, size : int
        Which of how many.
    meeting : int
        Address of int64 numbers at ARRIVED, ROUND and BROKEN, for kernels that wait for each other; 0 for somebody alone.
    """

    def __init__(self, rank: int, size: int, barrier: Barrier | None):
        self.rank, self.size, self.barrier_address = rank, size, 0 if barrier is None else barrier.address
        self._barrier = barrier

    def wait(self) -> None:
        """Go on when all members have come here.

        Raises
        ------
        threading.BrokenBarrierError
            When one of them isn't coming any more.
        """
        if self._barrier is None:
            return
        if self._barrier.wait_in_kernel is None:
            self._barrier.barrier.wait()
        elif not self._barrier.wait_in_kernel(self.barrier_address, self.size):
            raise threading.BrokenBarrierError

    def share(self, count: int, granule: int = 1) -> tuple[int, int]:
        """This worker's part of range(count), start and stop: a fixed split, in multiples of `granule`."""
        cuts = -(-count // granule)
        start, stop = (cuts * (self.rank + more) // self.size * granule for more in (0, 1))
        return min(start, count), min(stop, count)


def run_team(work: Callable[[Worker], None], most: int | None = None) -> None:
    """Run one program in several threads at the same time, each on its own share of the data.

    How many there are: as :func:`thread_limit` says around it, else as :func:`resolve_n_threads`; and only the calling one while others
    are at it, for shares of shares on the same cores gain nothing. So `work` must give the same answer for any number. It should
    spend its time without the GIL.

    Parameters
    ----------
    work : callable
        Called once in each thread with its :class:`Worker`. An exception in one of them ends all, and is raised here.
    most : int, optional
        More have nothing to do.

    Examples
    --------
    >>> squares = [0] * 5
    >>> def work(worker):
    ...     for i in range(*worker.share(5)):
    ...         squares[i] = i * i
    >>> run_team(work)
    >>> squares
    [0, 1, 4, 9, 16]
    """
    count = allowed_threads() if most is None else min(allowed_threads(), most)
    if count <= 1 or not _team.acquire(blocking=False):
        work(Worker(0, 1, None))
        return
    try:
        meeting = Barrier(count)
        first: list[BaseException] = []

        def run(index: int) -> None:
            try:
                with thread_limit(1):
                    work(Worker(index, count, meeting))
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


def parallel_for(work: Callable[[int, int], None], count: int, granule: int = 1) -> None:
    """``work(start, stop)`` for parts of range(count), each in a thread of its own; see :func:`run_team`."""

    def part(worker: Worker) -> None:
        start, stop = worker.share(count, granule)
        if start < stop:
            work(start, stop)

    run_team(part, most=-(-count // granule))


def _helpers(count: int) -> ThreadPoolExecutor:
    """Threads that stay, so that what they hold (memory to work in) is there the next time. Only the team's owner comes here."""
    global _pool
    if _pool is None or _pool[0] < count or _pool[1] != os.getpid():
        if _pool is not None and _pool[1] == os.getpid():
            _pool[2].shutdown(wait=False)
        _pool = count, os.getpid(), ThreadPoolExecutor(count, thread_name_prefix="vitnp-team")
    return _pool[2]
