"""The GPU as a device: check that it works, wait for it, and manage its memory."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from vitnp.kernels.cuda.graphs import release_all
from vitnp.kernels.cuda.loader import kernel, require_cupy

from vitnp.errors import DeviceError

if TYPE_CHECKING:
    import cupy
    import numpy as np

_local = threading.local()  # `stream`, of this thread


def check() -> None:
    """Check that there is a GPU and that kernels can be compiled for it.

    Raises
    ------
    DeviceError
        If not; the message says in one sentence what is missing and what to do.
    """
    # Every network needs this kernel, and like the others it includes CUDA's headers.
    kernel("gelu", "epilogue")


def wait() -> None:
    """Wait until all launched kernels have finished."""
    require_cupy().cuda.get_current_stream().synchronize()


def mark() -> cupy.cuda.Event:
    """Return an event that happens when all that this thread has launched so far has finished."""
    event = require_cupy().cuda.Event()
    event.record()
    return event


def seconds_between(begin: cupy.cuda.Event, end: cupy.cuda.Event) -> float:
    """Return the seconds between two events; waits until both have happened."""
    begin.synchronize()
    end.synchronize()
    return require_cupy().cuda.get_elapsed_time(begin, end) / 1e3


def hand_over() -> Callable[[], None]:
    """Return a function by which the stream of another thread waits for what this thread has launched so far.

    The host does not wait. Memory belongs to the stream on which it was allocated: whoever takes an array over has to
    keep it until its own work is finished, and what that work was made from, too.
    """
    event = require_cupy().cuda.Event(disable_timing=True)
    event.record()
    return lambda: require_cupy().cuda.get_current_stream().wait_event(event)


@contextlib.contextmanager
def own_stream() -> Iterator[None]:
    """Launch the work of this thread on a stream of its own, as a context manager.

    Streams of several threads run at the same time: one uploads, another computes, a third one downloads. When the
    context ends, all of its work has finished, so that other threads can use the results on their streams.
    """
    if not hasattr(_local, "stream"):
        _local.stream = require_cupy().cuda.Stream(non_blocking=True)
    with _local.stream:
        try:
            yield
        finally:
            _local.stream.synchronize()


def upload(x: np.ndarray) -> cupy.ndarray:
    """Return a copy on the GPU that has arrived, so that any stream can use it."""
    copy = require_cupy().asarray(x)
    wait()
    return copy


def free_bytes() -> int:
    """Return the bytes that are available for new arrays: free memory, and memory that CuPy's pool holds in reserve."""
    cupy = require_cupy()
    free, _ = cupy.cuda.runtime.memGetInfo()
    return free + cupy.get_default_memory_pool().free_bytes()


def total_bytes() -> int:
    """Return the bytes of memory that the GPU has."""
    _, total = require_cupy().cuda.runtime.memGetInfo()
    return int(total)


def release() -> None:
    """Return unused memory to the driver: CUDA graphs, and CuPy's pool, which may consist of unsuitable blocks."""
    release_all()


def out_of_memory(what: str) -> DeviceError:
    """Return the error for a `what` that does not fit into the GPU's memory."""
    return DeviceError(
        f"the GPU's memory doesn't hold {what}; free some of it, choose a smaller --size or --max-tokens, "
        "or --device cpu"
    )
