"""BLAS kept to one thread, whoever comes and goes; results in order; how many threads."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits
from vitnp.kernels.threads.blas import one_blas_thread
from vitnp.kernels.threads.pool import map_ordered, resolve_n_threads, thread_limit
from vitnp.kernels.threads.team import parallel_for, run_team

from vitnp.errors import UsageError


def blas_threads() -> set[int]:
    np.ones((2, 2)) @ np.ones((2, 2))  # BLAS is there
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def elsewhere(work):
    """What `work` gives in another thread."""
    return next(map_ordered(lambda _: work(), [0, 0], threads=2))


@pytest.fixture(autouse=True)
def two_threads():
    """As on a machine with nothing set: BLAS with two threads, which the test must find again."""
    with threadpool_limits(limits=2, user_api="blas"):
        if blas_threads() != {2}:
            pytest.skip("this BLAS can't be told to use two threads")
    yield


def limited() -> set[int]:
    with one_blas_thread():
        return blas_threads()


def test_one_thread_in_the_main_thread_and_in_any_other_and_after_each_other():
    before = blas_threads()
    for _ in range(2):
        assert limited() == {1}
        assert elsewhere(limited) == {1}
    assert blas_threads() == before


def test_nested_and_seen_by_all_threads():
    before = blas_threads()
    with one_blas_thread():
        with one_blas_thread():
            assert blas_threads() == {1}
        assert blas_threads() == {1}
        assert elsewhere(limited) == {1}
        assert blas_threads() == {1}
    assert blas_threads() == before


def test_whoever_came_first_may_leave_first():
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


def test_an_error_inside_restores_too():
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
def test_results_come_in_order_and_few_wait(threads):
    begun = []
    results = map_ordered(lambda item: begun.append(item) or item * item, range(50), threads)
    assert next(results) == 0
    assert len(begun) <= 2 * threads + 1
    assert list(results) == [item * item for item in range(1, 50)]


def test_an_error_comes_out_where_its_item_stood():
    results = map_ordered(lambda item: 1 // item, [1, 1, 0, 1], 2)
    assert [next(results), next(results)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_thread_count(monkeypatch):
    monkeypatch.setenv("VITNP_NUM_THREADS", "5")
    assert resolve_n_threads() == 5 and resolve_n_threads(2) == 2
    monkeypatch.setenv("VITNP_NUM_THREADS", "")
    assert resolve_n_threads() >= 1
    for wrong in ("0", "-1", "two"):
        monkeypatch.setenv("VITNP_NUM_THREADS", wrong)
        with pytest.raises(UsageError):
            resolve_n_threads()


def test_together_gives_each_member_its_share_and_waits_for_all():
    for count in (1, 2, 5):
        seen, late = [], []

        def work(worker):
            seen.append((worker.rank, worker.share(10, 3)))
            worker.wait()
            late.append(len(seen))  # only when all have been here

        with thread_limit(count):
            run_team(work)
        assert [index for index, _ in sorted(seen)] == list(range(count))
        covered = [i for _, (start, stop) in sorted(seen) for i in range(start, stop)]
        assert covered == list(range(10)) and set(late) == {count}


def test_an_error_in_one_member_ends_all_and_is_raised():
    def work(worker):
        if worker.rank == 1:
            raise ZeroDivisionError("here")
        worker.wait()

    for _ in range(2):
        with thread_limit(3), pytest.raises(ZeroDivisionError, match="here"):
            run_team(work)


def test_whoever_comes_while_a_team_works_works_alone_and_so_does_each_item_of_many():
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


def test_split_covers_everything_once():
    for count, granule in ((10, 1), (10, 4), (3, 8), (0, 1)):
        done = []
        with thread_limit(3):
            parallel_for(lambda start, stop: done.extend(range(start, stop)), count, granule)
        assert sorted(done) == list(range(count))


def test_a_baton_that_somebody_has_gone_away_with_is_waited_for_only_a_moment():
    """The first of two threads leaves a kernel and stays in Python; the second one's kernels must return all the same."""
    from vitnp import kernels

    k = kernels.for_device("cpu")
    x, ones, zeros = np.ones((4, 16), np.float32), np.ones(16, np.float32), np.zeros(16, np.float32)
    away, may_return = threading.Event(), threading.Event()

    def first():
        k.layernorm(x, ones, zeros, 1e-6)
        away.set()
        may_return.wait(30)

    thread = threading.Thread(target=first)
    thread.start()
    assert away.wait(30)
    for _ in range(1000):
        k.layernorm(x, ones, zeros, 1e-6)
    may_return.set()
    thread.join()


def test_members_meet_in_python_however_long_one_of_them_takes():
    from vitnp import kernels

    _ = kernels.for_device("cpu").layernorm  # from now on by the compiled kernels' way
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
