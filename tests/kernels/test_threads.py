"""BLAS limited to one thread; results in order; number of threads; teams of threads."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits
from vitnp.kernels.threads import pool
from vitnp.kernels.threads.blas import one_blas_thread
from vitnp.kernels.threads.pool import map_ordered, resolve_n_threads, thread_limit
from vitnp.kernels.threads.team import parallel_for, run_team

from vitnp.errors import UsageError


def blas_threads() -> set[int]:
    np.ones((2, 2)) @ np.ones((2, 2))  # so that BLAS is loaded
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def elsewhere(work):
    """Return the result of `work` in another thread."""
    return next(map_ordered(lambda _: work(), [0, 0], threads=2))


@pytest.fixture(autouse=True)
def two_threads():
    """Set BLAS to two threads, a setting that the test must restore."""
    with threadpool_limits(limits=2, user_api="blas"):
        if blas_threads() != {2}:
            pytest.skip("this BLAS does not support two threads")
    yield


def limited() -> set[int]:
    with one_blas_thread():
        return blas_threads()


def test_blas_has_one_thread_in_any_thread_repeatedly():
    before = blas_threads()
    for _ in range(2):
        assert limited() == {1}
        assert elsewhere(limited) == {1}
    assert blas_threads() == before


def test_nested_limits_apply_to_all_threads():
    before = blas_threads()
    with one_blas_thread():
        with one_blas_thread():
            assert blas_threads() == {1}
        assert blas_threads() == {1}
        assert elsewhere(limited) == {1}
        assert blas_threads() == {1}
    assert blas_threads() == before


def test_the_first_caller_may_leave_first():
    before = blas_threads()
    entered, leave, seen = threading.Event(), threading.Event(), []

    def first():
        with one_blas_thread():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    entered.wait(10)
    with one_blas_thread():
        leave.set()
        thread.join()
        seen.append(blas_threads())
        seen.append(elsewhere(limited))
    assert seen == [{1}, {1}]
    assert blas_threads() == before


def test_an_error_restores_the_setting():
    before = blas_threads()
    with pytest.raises(KeyError), one_blas_thread():
        raise KeyError
    assert blas_threads() == before


def test_products_are_the_same_to_the_bit_in_every_thread():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((541, 192), np.float32), rng.standard_normal((768, 192), np.float32)

    def product():
        with one_blas_thread():
            return x @ w.T

    expected = product()
    for threads in (1, 2, 3):
        for found in map_ordered(lambda _: product(), range(6), threads):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("threads", [1, 3])
def test_map_ordered_keeps_the_order_and_works_little_ahead(threads):
    begun = []
    results = map_ordered(lambda item: begun.append(item) or item * item, range(50), threads)
    assert next(results) == 0
    assert len(begun) <= 2 * threads + 1
    assert list(results) == [item * item for item in range(1, 50)]


def test_map_ordered_raises_an_error_in_the_order_of_the_items():
    results = map_ordered(lambda item: 1 // item, [1, 1, 0, 1], 2)
    assert [next(results), next(results)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_resolve_n_threads(monkeypatch):
    monkeypatch.setenv("VITNP_NUM_THREADS", "5")
    assert resolve_n_threads() == 5 and resolve_n_threads(2) == 2
    monkeypatch.setenv("VITNP_NUM_THREADS", "")
    assert resolve_n_threads() >= 1
    for wrong in ("0", "-1", "two"):
        monkeypatch.setenv("VITNP_NUM_THREADS", wrong)
        with pytest.raises(UsageError):
            resolve_n_threads()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_run_team_gives_each_worker_its_share_and_waits_for_all(count):
    before, after = [], []

    def work(worker):
        before.append((worker.rank, worker.share(10, 3)))
        worker.wait()
        after.append(len(before))

    with thread_limit(count):
        run_team(work)
    assert [rank for rank, _ in sorted(before)] == list(range(count))
    covered = [i for _, (start, stop) in sorted(before) for i in range(start, stop)]
    assert covered == list(range(10)) and set(after) == {count}


def test_an_error_in_one_worker_ends_all_and_is_raised():
    def work(worker):
        if worker.rank == 1:
            raise ZeroDivisionError("here")
        worker.wait()

    for _ in range(2):
        with thread_limit(3), pytest.raises(ZeroDivisionError, match="here"):
            run_team(work)


def test_teams_within_a_team_and_items_of_many_have_one_thread():
    sizes = []

    def inner(worker):
        sizes.append(worker.size)

    def outer(worker):
        if worker.rank == 0:
            with thread_limit(4):
                run_team(inner)
        worker.wait()

    with thread_limit(2):
        run_team(outer)
    assert sizes == [1]
    sizes.clear()
    list(map_ordered(lambda _: run_team(inner), range(3), threads=2))
    assert sizes == [1, 1, 1]
    sizes.clear()
    list(map_ordered(lambda _: run_team(inner), [0], threads=2))
    assert sizes == [2, 2]


@pytest.mark.parametrize("count, granule", [(10, 1), (10, 4), (3, 8), (0, 1)])
def test_parallel_for_covers_everything_once(count, granule):
    done = []
    with thread_limit(3):
        parallel_for(lambda start, stop: done.extend(range(start, stop)), count, granule)
    assert sorted(done) == list(range(count))


def test_kernels_return_although_another_thread_stays_in_python():
    """One thread leaves a kernel, which sets the flag, and does something else: kernels of others must still return."""
    from vitnp import kernels

    k = kernels.for_device("cpu")
    x, ones, zeros = np.ones((4, 16), np.float32), np.ones(16, np.float32), np.zeros(16, np.float32)
    left, may_return = threading.Event(), threading.Event()

    def first():
        k.layernorm(x, ones, zeros, 1e-6)
        left.set()
        may_return.wait(30)

    thread = threading.Thread(target=first)
    thread.start()
    assert left.wait(30)
    for _ in range(1000):
        k.layernorm(x, ones, zeros, 1e-6)
    may_return.set()
    thread.join()


def test_workers_wait_in_python_for_a_slow_one():
    from vitnp import kernels

    _ = kernels.for_device("cpu").layernorm  # from now on, teams use the barrier of the compiled kernels
    order = []

    def work(worker):
        if worker.rank == 0:
            time.sleep(0.05)
        order.append("before")
        worker.wait()
        order.append("after")

    for _ in range(3):
        order.clear()
        with thread_limit(3):
            run_team(work)
        assert order == ["before"] * 3 + ["after"] * 3


def test_items_are_computed_ahead_by_another_thread():
    threads, done = [], []

    def items():
        try:
            for number in range(50):
                threads.append(threading.current_thread())
                done.append(number)
                yield number
        finally:
            done.append("closed")

    ahead = pool.run_ahead(items(), 2)
    assert next(ahead) == 0 and next(ahead) == 1
    ahead.close()
    assert done[-1] == "closed" and len(done) <= 6 and threading.current_thread() not in threads
    assert list(pool.run_ahead(items(), 3)) == list(range(50))


def test_an_error_of_the_other_thread_is_raised_where_the_items_are_used():
    def items():
        yield 1
        raise ValueError("no second item")

    ahead = pool.run_ahead(items(), 4)
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="no second item"):
        next(ahead)
