"""Streams, events, memory pools and CUDA graphs of the replacement of cupy.

A capture notes the operations that are launched, and a graph does them again on the same memory. As with a real graph,
memory has to outlive it: an operation whose memory is gone raises an error. What comes from a memory pool lives as long
as the pool does. While a stream is captured, nothing is transferred between host and device, and cuBLAS is refused.
"""

from __future__ import annotations

import collections
import contextlib
import threading
import time
import types
import weakref

import numpy as np

counts: collections.Counter[str] = collections.Counter()  # of launches and transfers
_local = threading.local()
_memory: weakref.WeakValueDictionary[int, np.ndarray] = weakref.WeakValueDictionary()  # by address


class CaptureError(RuntimeError):
    """cudaErrorStreamCaptureUnsupported."""


class Place:
    """A view of memory that it doesn't keep alive."""

    def __init__(self, array: np.ndarray):
        owner = owner_of(array)
        self._owner = weakref.ref(owner)
        start = owner.__array_interface__["data"][0]
        self._facts = array.shape, array.dtype, array.__array_interface__["data"][0] - start, array.strides

    def array(self) -> np.ndarray:
        owner, (shape, dtype, offset, strides) = self._owner(), self._facts
        if owner is None:
            raise RuntimeError("a graph uses memory that has been freed")
        return np.ndarray(shape, dtype, owner, offset, strides)


def owner_of(array: np.ndarray) -> np.ndarray:
    """Return the array whose memory another one is a view of; as_strided puts an object between them."""
    while isinstance(array.base, np.ndarray) or isinstance(getattr(array.base, "base", None), np.ndarray):
        array = array.base if isinstance(array.base, np.ndarray) else array.base.base
    return array


def keep(array: np.ndarray) -> None:
    """Note where an array lies; the current memory pool holds on to it."""
    owner = owner_of(array)
    _memory[owner.ctypes.data] = owner
    if id(owner) not in _allocated:
        weakref.finalize(owner, _freed, id(owner))
    _allocated[id(owner)] = get_current_stream()
    pool = getattr(_local, "pool", None)
    if pool is not None:
        pool.arrays.append(owner)


def packed(value):
    """Replace arrays in arguments by their places."""
    if isinstance(value, np.ndarray):
        return Place(value)
    if isinstance(value, (list, tuple)):
        return type(value)(map(packed, value))
    return {name: packed(one) for name, one in value.items()} if isinstance(value, dict) else value


def unpacked(value):
    if isinstance(value, Place):
        return value.array()
    if isinstance(value, (list, tuple)):
        return type(value)(map(unpacked, value))
    return {name: unpacked(one) for name, one in value.items()} if isinstance(value, dict) else value


def capture() -> list | None:
    """Return the list of operations of the capture in this thread, or None."""
    return getattr(_local, "capture", None)


def refuse(what: str) -> None:
    """Refuse what must not happen while a stream is captured."""
    if capture() is not None:
        raise CaptureError(f"cudaErrorStreamCaptureUnsupported: {what}")


class Stream:
    """A stream; what it has launched counts as finished only once the host has waited for it."""

    def __init__(self, null: bool = False, non_blocking: bool = False):
        self.null, self.ptr = null, 0 if null else id(self)
        self.launched = self.finished = 0
        self.waited_for: dict[Stream, int] = {}

    def __enter__(self):
        _local.streams = [*getattr(_local, "streams", []), self]
        return self

    def __exit__(self, *error):
        _local.streams = _local.streams[:-1]

    def synchronize(self):
        refuse("synchronize")
        counts["wait"] += 1
        self.finished = self.launched
        for other, launched in self.waited_for.items():
            other.finished = max(other.finished, launched)

    def wait_event(self, event):
        if event.recorded is not None:
            stream, launched = event.recorded
            self.waited_for[stream] = max(launched, self.waited_for.get(stream, 0))

    def record(self, event=None):
        event = event or Event()
        event.record(self)
        return event

    def begin_capture(self, mode=None):
        if self.null:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        _local.capture = []

    def end_capture(self):
        operations, _local.capture = _local.capture, None
        return Graph(operations)


NULL = Stream(null=True)


def get_current_stream() -> Stream:
    streams = getattr(_local, "streams", [])
    return streams[-1] if streams else NULL


class Event:
    def __init__(self, block=False, disable_timing=False):
        self.timed = not disable_timing
        self.recorded: tuple[Stream, int] | None = None
        self.when: float | None = None

    def record(self, stream=None):
        refuse("an event outside of the graph")
        stream = stream or get_current_stream()
        self.recorded, self.when = (stream, stream.launched), time.perf_counter()

    def synchronize(self):
        refuse("synchronize")
        counts["wait"] += 1
        if self.recorded is not None:
            stream, launched = self.recorded
            stream.finished = max(stream.finished, launched)


def get_elapsed_time(begin: Event, end: Event) -> float:
    """Return the milliseconds between two events that have happened."""
    for event in (begin, end):
        if not event.timed or event.recorded is None:
            raise RuntimeError("cudaErrorInvalidResourceHandle: an event without a time")
        stream, launched = event.recorded
        if stream.finished < launched:
            raise RuntimeError("cudaErrorNotReady: the host has not waited for the event")
    return 1e3 * (end.when - begin.when)


_writers: dict[int, tuple[Stream, int]] = {}  # of each array's memory: the stream that wrote to it last, and when
# Of each array's memory: the stream on which it was allocated, and when another stream used it last.
_allocated: dict[int, Stream] = {}
_users: dict[int, dict[Stream, int]] = {}
freed_early: list[str] = []  # memory that was freed while another stream than its own may still have used it


def _freed(owner: int) -> None:
    own = _allocated.pop(owner, None)
    for stream, launched in _users.pop(owner, {}).items():
        if stream is not own and launched > max(stream.finished, own.waited_for.get(stream, 0) if own else 0):
            freed_early.append("memory is freed that another stream may still use, and its own may hand out again")


def use(reads, writes) -> None:
    """Note a launch on the current stream; it must not use what another stream may not have written yet.

    Memory goes back to the stream on which it was allocated; see :data:`freed_early`.
    """
    if capture() is not None:
        return
    stream, reads = get_current_stream(), list(reads)
    stream.launched += 1
    for array in (*reads, *writes):
        owner = owner_of(array)
        if id(owner) in _allocated and _allocated[id(owner)] is not stream:
            _users.setdefault(id(owner), {})[stream] = stream.launched
    for array in (*reads, *writes):
        writer, when = _writers.get(id(owner_of(array)), (stream, 0))
        if writer is not stream and when > max(writer.finished, stream.waited_for.get(writer, 0)):
            raise RuntimeError("a stream uses an array that another stream may still be writing")
    for array in writes:
        owner = owner_of(array)
        if id(owner) not in _writers:
            weakref.finalize(owner, _writers.pop, id(owner), None)
        _writers[id(owner)] = stream, stream.launched


class Graph:
    def __init__(self, operations):
        self._operations = operations

    def launch(self, stream=None):
        before = counts.copy()
        _local.streams = [*getattr(_local, "streams", []), stream or get_current_stream()]
        for operation in self._operations:
            operation()
        _local.streams = _local.streams[:-1]
        counts.clear()
        counts.update(before)
        counts["graph"] += 1  # one launch for all of them


class MemoryPool:
    def __init__(self):
        self.arrays: list[np.ndarray] = []

    def malloc(self, size):
        raise AssertionError("only handed to using_allocator")

    def total_bytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)


@contextlib.contextmanager
def using_allocator(allocator: types.MethodType):
    before, _local.pool = getattr(_local, "pool", None), allocator.__self__
    try:
        yield
    finally:
        _local.pool = before


def _contains(array: np.ndarray, address: int) -> bool:
    return 0 <= address - array.ctypes.data < max(array.nbytes, 1)


def launch_at(run, addresses: list[int], workspace: int) -> None:
    """Run what a library does at addresses, or note it for a graph."""
    counts["product"] += 1
    noted = capture()
    owners = [owner for owner in list(_memory.values()) if any(_contains(owner, address) for address in addresses)]
    if noted is None:
        use(owners, [owner for owner in owners if _contains(owner, addresses[3])])
        run()
        return
    places = [Place(owner) for owner in owners]
    del owners

    def again() -> None:
        arrays = [place.array() for place in places]  # that are still there
        use(arrays, [array for array in arrays if _contains(array, addresses[3])])
        run()

    noted.append(again)
