"""Split one computation over several threads that can wait for each other.

Images are processed side by side, one thread each; where there is only one image, a team of threads shares its rows.
BLAS is limited to one thread meanwhile (:mod:`vitnp.kernels.threads.blas`): a matrix product on several BLAS threads
may round differently, and BLAS threads that compete with Python threads for the same cores are slow.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from vitnp.kernels.threads.fork import unlocked_in_child
from vitnp.kernels.threads.pool import allowed_threads, thread_limit

# Byte offsets of the three numbers that a barrier inside kernels uses; each has a cache line of its own.
ARRIVED, ROUND, BROKEN = 0, 64, 128

# ``wait(address, n_workers)``: a barrier that spins instead of sleeping. The compiled kernels set it when they are
# imported.
wait_in_kernel: Callable[[int, int], bool] | None = None

_team = unlocked_in_child(threading.Lock())  # held while a team is at work
_pool: tuple[int, int, ThreadPoolExecutor] | None = None  # size, process id, executor


class Barrier:
    """Barrier of a team: a :class:`threading.Barrier` in Python, three shared numbers in kernels.

    Parameters
    ----------
    n_workers : int

    Attributes
    ----------
    address : int
        Address of the numbers at ARRIVED, ROUND and BROKEN, each int64.
    """

    def __init__(self, n_workers: int):
        self.barrier, self.wait_in_kernel = threading.Barrier(n_workers), wait_in_kernel
        self._numbers = np.zeros(3 * 8, np.int64)
        self.address = self._numbers.ctypes.data

    def abort(self) -> None:
        """Break the barrier: every current and future wait fails."""
        self._numbers[BROKEN // 8] = 1
        self.barrier.abort()


class Worker:
    """One thread of a team.

    Attributes
    ----------
    rank, size : int
        Index of the thread, and number of threads in the team.
    barrier_address : int
        Address of the barrier's numbers for kernels that wait for each other, see :class:`Barrier`; 0 for a team of
        one.
    """

    def __init__(self, rank: int, size: int, barrier: Barrier | None):
        self.rank, self.size, self.barrier_address = rank, size, 0 if barrier is None else barrier.address
        self._barrier = barrier

    def wait(self) -> None:
        """Wait until all workers of the team have called this method.

        Raises
        ------
        threading.BrokenBarrierError
            If another worker has failed.
        """
        if self._barrier is None:
            return
        if self._barrier.wait_in_kernel is None:
            self._barrier.barrier.wait()
        elif not self._barrier.wait_in_kernel(self.barrier_address, self.size):
            raise threading.BrokenBarrierError

    def share(self, count: int, granule: int = 1) -> tuple[int, int]:
        """Return start and stop of this worker's part of ``range(count)``, in multiples of `granule`.

        Examples
        --------
        >>> Worker(1, 2, None).share(10, granule=4)
        (4, 10)
        """
        n_granules = -(-count // granule)
        start, stop = (n_granules * (self.rank + offset) // self.size * granule for offset in (0, 1))
        return min(start, count), min(stop, count)


def run_team(work: Callable[[Worker], None], most: int | None = None) -> None:
    """Run the same function in several threads at the same time, each on its own part of the data.

    The team has as many threads as :func:`vitnp.kernels.threads.pool.allowed_threads` says. If another team is at work
    already it consists of the calling thread alone, because more threads on the same cores would gain nothing. So
    `work` has to give the same result for any size of the team. It should spend its time without the GIL.

    Parameters
    ----------
    work : callable
        Called once in each thread with its :class:`Worker`. An exception in one thread ends the others and is raised
        here.
    most : int, optional
        Maximum size of the team, if more threads would have nothing to do.

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
    size = allowed_threads() if most is None else min(allowed_threads(), most)
    if size <= 1 or not _team.acquire(blocking=False):
        work(Worker(0, 1, None))
        return
    try:
        _run(work, size)
    finally:
        _team.release()


def _run(work: Callable[[Worker], None], size: int) -> None:
    """Run `work` in this thread and ``size - 1`` others; raise the first error."""
    barrier = Barrier(size)
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            with thread_limit(1):
                work(Worker(rank, size, barrier))
        except BaseException as error:
            if not isinstance(error, threading.BrokenBarrierError):
                errors.append(error)
            barrier.abort()  # or the others would wait forever

    others = []
    try:
        for rank in range(1, size):
            others.append(_executor(size - 1).submit(run, rank))
        run(0)
    except BaseException:  # Ctrl-C may come at any point
        barrier.abort()
        raise
    finally:
        for other in others:
            other.result()
    if errors:
        raise errors[0]


def parallel_for(work: Callable[[int, int], None], count: int, granule: int = 1) -> None:
    """Call ``work(start, stop)`` for parts of ``range(count)``, one part per thread; see :func:`run_team`.

    Parameters
    ----------
    work : callable
    count : int
    granule : int
        All parts start at a multiple of it.
    """

    def run(worker: Worker) -> None:
        start, stop = worker.share(count, granule)
        if start < stop:
            work(start, stop)

    run_team(run, most=-(-count // granule))


def _executor(n_threads: int) -> ThreadPoolExecutor:
    """Return threads that stay alive, so that their workspaces are reused. Only the holder of `_team` calls this."""
    global _pool
    if _pool is None or _pool[0] < n_threads or _pool[1] != os.getpid():
        if _pool is not None and _pool[1] == os.getpid():
            _pool[2].shutdown(wait=False)
        _pool = n_threads, os.getpid(), ThreadPoolExecutor(n_threads, thread_name_prefix="vitnp-team")
    return _pool[2]
