"""A child that is forked while other threads compute goes on without them."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import random_vit
from threadpoolctl import threadpool_info, threadpool_limits
from vitnp.kernels.threads import fork
from vitnp.kernels.threads.blas import one_blas_thread
from vitnp.kernels.threads.pool import LARGE_IMAGE_PIXELS, large_image_lock
from vitnp.kernels.threads.team import run_team

from vitnp import ViT, ViTConfig, segment_image
from vitnp.features.spec import FeatureSpec
from vitnp.features.store import FeatureStore
from vitnp.io import pillow_warnings

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),  # that is what is tested
]


def runs_in_child(function: Callable[[], bool], seconds: float = 20) -> bool:
    """Fork; return whether the function returns True in the child before the time is up."""
    child = os.fork()
    if child == 0:
        right = False
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(int(seconds))
            right = function()
        finally:
            os._exit(0 if right else 1)
    return os.waitpid(child, 0)[1] == 0


@contextlib.contextmanager
def held_by_another_thread(context: Callable[[], contextlib.AbstractContextManager]):
    """Enter a context manager in another thread, and leave it at the end."""
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with context():
            entered.set()
            leave.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait()
    try:
        yield
    finally:
        leave.set()
        thread.join()


def network(seed: int = 1) -> ViT:
    config = ViTConfig(width=24, depth=2, heads=3, patch=8, grid=(4, 5))
    return ViT(config, random_vit.random_weights(config, seed=seed, hidden=32, class_position=True, dtype=np.float32))


IMAGE = np.random.default_rng(0).random((1, 3, 40, 56), np.float32)


def passes(vit: ViT, expected: np.ndarray) -> bool:
    return np.array_equal(vit(IMAGE)["key"], expected)


def test_while_another_thread_reads_a_large_image():
    def lock():
        return large_image_lock(LARGE_IMAGE_PIXELS + 1)

    def enter() -> bool:
        with lock():
            return True

    with held_by_another_thread(lock):
        assert runs_in_child(enter, 5)
    assert enter()  # here it works as before


def test_while_another_thread_holds_the_locks_of_a_network_and_a_store(tmp_path):
    vit = network()
    expected = vit(IMAGE)["key"]
    store = FeatureStore(tmp_path, FeatureSpec.of(vit, short_side=32))
    for lock in (vit._lock, vit._packed._lock, store._lock):
        with held_by_another_thread(lambda lock=lock: lock):
            assert runs_in_child(lambda: passes(vit, expected) and store.refresh() is None, 5)


def test_while_another_thread_reads_an_image():
    filters = list(warnings.filters)
    with held_by_another_thread(pillow_warnings.collected):
        assert warnings.filters != filters
        assert runs_in_child(lambda: warnings.filters == filters and reads_an_image(), 5)
    with held_by_another_thread(lambda: pillow_warnings._lock):
        assert runs_in_child(reads_an_image, 5)


def reads_an_image() -> bool:
    with pillow_warnings.collected() as messages:
        return messages == []


def blas_threads() -> set[int]:
    np.ones((2, 2)) @ np.ones((2, 2))
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def test_blas_gets_its_threads_back_in_the_child():
    def limited_then_free() -> bool:
        with one_blas_thread():
            limited = blas_threads()
        return limited == {1} and blas_threads() == {2}

    with threadpool_limits(limits=2, user_api="blas"):
        if blas_threads() != {2}:
            pytest.skip("this BLAS does not support two threads")
        with held_by_another_thread(one_blas_thread):
            assert runs_in_child(limited_then_free)
        with one_blas_thread():
            assert runs_in_child(lambda: blas_threads() == {1})
        assert blas_threads() == {2}


def test_a_child_forked_inside_leaves_like_any_other():
    with threadpool_limits(limits=2, user_api="blas"):
        if blas_threads() != {2}:
            pytest.skip("this BLAS does not support two threads")
        context = contextlib.ExitStack()
        context.enter_context(one_blas_thread())

        def leave() -> bool:
            context.close()
            return blas_threads() == {2}

        assert runs_in_child(leave)
        context.close()


def test_forking_waits_until_kernels_are_imported():
    order: list[str] = []

    def hold() -> None:
        with fork.importing:
            entered.set()
            time.sleep(0.2)
            order.append("imported")

    entered = threading.Event()
    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait()
    assert runs_in_child(lambda: order == ["imported"] and fork.importing.acquire(timeout=1), 5)
    thread.join()


def test_a_team_works_in_the_child():
    def sizes() -> list[int]:
        found: list[int] = []
        run_team(lambda worker: found.append(worker.size), most=2)
        return found

    here = sizes()  # the threads of the team exist now
    started, leave = threading.Event(), threading.Event()

    def work(worker) -> None:
        started.set()
        leave.wait()

    thread = threading.Thread(target=run_team, args=(work, 2))
    thread.start()
    started.wait()
    try:
        assert runs_in_child(lambda: sizes() == here)
    finally:
        leave.set()
        thread.join()


@pytest.mark.slow(reason="forks many times")
@pytest.mark.skipif(sys.platform == "darwin", reason="macOS forbids its libraries in forked children")
def test_segmenting_in_children_while_threads_segment():
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (60, 80, 3), np.uint8)
    expected = segment_image(rgb, network()).mask
    stop = threading.Event()

    def segment() -> None:
        while not stop.is_set():
            segment_image(rgb, network())  # a new one packs its weights anew

    threads = [threading.Thread(target=segment) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(10):
            assert runs_in_child(lambda: np.array_equal(segment_image(rgb, network()).mask, expected))
            time.sleep(rng.random() / 100)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
