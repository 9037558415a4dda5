"""CUDA graphs: record the launches of a computation once per shape, and launch all of them with one call.

A graph holds the addresses of the arrays that it was recorded with, so these belong to the graph: inputs are copied
into arrays of its own, results out of them, and everything between comes from a memory pool of its own, which lives as
long as the graph.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

from vitnp.kernels.cuda.loader import require_cupy

if TYPE_CHECKING:
    import cupy

_logger = logging.getLogger("vitnp")

# Results by name, and the function that computes them: it launches kernels, and neither reads from the GPU nor
# transfers anything to it.
Results: TypeAlias = "dict[str, cupy.ndarray]"
Compute: TypeAlias = "Callable[[], Results]"

# Number of graphs of a cache, and the share of the GPU's memory that they may take together.
MAX_GRAPHS = 16
SHARE_OF_MEMORY = 0.125
# Number of shapes that are remembered without a graph.
_REMEMBERED = 256

_local = threading.local()  # `singly`, while a thread is inside `launched_singly`
_caches: weakref.WeakSet[GraphCache] = weakref.WeakSet()


@dataclasses.dataclass(frozen=True)
class _Recorded:
    """A graph with all that it reads and writes."""

    graph: cupy.cuda.Graph
    pool: cupy.cuda.MemoryPool
    inputs: tuple[cupy.ndarray, ...]
    compute: Compute  # holds the arrays that were prepared
    results: Results
    launched: cupy.cuda.Event  # after the last launch, which the next one must not overtake on another stream


class GraphCache:
    """Run computations by CUDA graphs, one for each shape that occurs more than once.

    The first time a shape is computed kernel by kernel, which also compiles kernels and loads libraries; the second
    time it is recorded. If CuPy or CUDA refuse that, or memory is short, everything is computed kernel by kernel.

    Parameters
    ----------
    max_graphs : int
        Beyond this number the graph that has not been used for longest is freed.
    max_bytes : int, optional
        Limit of the memory of all graphs; by default a share of the GPU's memory.
    """

    def __init__(self, max_graphs: int = MAX_GRAPHS, max_bytes: int | None = None) -> None:
        self._max_graphs, self._max_bytes = max_graphs, max_bytes
        self._graphs: collections.OrderedDict[Hashable, _Recorded] = collections.OrderedDict()
        # Shapes without a graph: True if one may be recorded.
        self._seen: collections.OrderedDict[Hashable, bool] = collections.OrderedDict()
        self._refused = False
        self._lock = threading.RLock()
        _caches.add(self)

    def __len__(self) -> int:
        return len(self._graphs)

    @property
    def nbytes(self) -> int:
        """Bytes of GPU memory that the graphs hold."""
        return sum(one.pool.total_bytes() for one in self._graphs.values())

    def clear(self) -> None:
        """Free all graphs and their memory."""
        with self._lock:
            self._graphs.clear()
            self._seen.clear()

    def run(self, key: Hashable, inputs: Sequence[cupy.ndarray], prepare: Callable[..., Compute]) -> Results:
        """Compute results from inputs.

        Parameters
        ----------
        key : hashable
            Everything that the launches depend on besides the shapes and types of the inputs.
        inputs : sequence of array
        prepare : callable
            Called with arrays of the inputs' shapes and types; may allocate and transfer. Returns a function without
            arguments that computes the results from these arrays, each time from what they contain then.

        Returns
        -------
        dict of str to array
            The caller's own: the next launch does not overwrite them.

        Raises
        ------
        MemoryError
            If the GPU's memory is too small even without graphs.
        """
        key = (key, require_cupy().cuda.Device().id, *((array.shape, array.dtype.str) for array in inputs))
        if getattr(_local, "singly", False):
            return prepare(*inputs)()
        with self._lock:
            try:
                return self._run(key, inputs, prepare)
            except MemoryError:
                if not self._graphs:
                    raise
                release_all()
            return prepare(*inputs)()

    def _run(self, key: Hashable, inputs: Sequence[cupy.ndarray], prepare: Callable[..., Compute]) -> Results:
        recorded = self._graphs.get(key)
        if recorded is None and self._seen.get(key, False) and not self._refused:
            recorded = self._record(key, inputs, prepare)
        if recorded is None:
            self._remember(key, self._seen.get(key, True))
            return prepare(*inputs)()
        self._graphs.move_to_end(key)
        return _launch(recorded, inputs)

    def _remember(self, key: Hashable, may_record: bool) -> None:
        self._seen[key] = may_record
        self._seen.move_to_end(key)
        while len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)

    def _record(
        self, key: Hashable, inputs: Sequence[cupy.ndarray], prepare: Callable[..., Compute]
    ) -> _Recorded | None:
        """Record a graph and keep it, or return None if that is refused."""
        try:
            recorded = _capture(inputs, prepare)
        except MemoryError:
            _logger.debug("no memory for a CUDA graph; kernels are launched one by one")
            release_all()
            self._remember(key, False)
            return None
        except (NotImplementedError, AttributeError, RuntimeError) as error:  # CUDA's errors are RuntimeErrors
            _logger.debug("CUDA graphs are refused (%s); kernels are launched one by one", error)
            self._refused = True
            self.clear()
            return None
        limit = self._max_bytes
        if limit is None:
            limit = int(SHARE_OF_MEMORY * require_cupy().cuda.runtime.memGetInfo()[1])
        if recorded.pool.total_bytes() > limit:
            self._remember(key, False)
            return None
        self._seen.pop(key, None)
        self._graphs[key] = recorded
        while len(self._graphs) > self._max_graphs or self.nbytes > limit:
            self._graphs.popitem(last=False)
        return recorded


@contextlib.contextmanager
def launched_singly() -> Iterator[None]:
    """Launch kernels one by one in this thread instead of graphs, as a context manager: to measure each of them."""
    before = getattr(_local, "singly", False)
    _local.singly = True
    try:
        yield
    finally:
        _local.singly = before


def release_all() -> None:
    """Free the graphs of all caches, and return the unused memory of CuPy's pool to the driver."""
    for cache in list(_caches):
        cache.clear()
    require_cupy().get_default_memory_pool().free_all_blocks()


def _capture(inputs: Sequence[cupy.ndarray], prepare: Callable[..., Compute]) -> _Recorded:
    """Record a computation; nothing is computed."""
    cupy = require_cupy()
    pool = cupy.cuda.MemoryPool()
    # The legacy default stream can't be recorded, and work on it must not be mixed up with what is.
    stream = cupy.cuda.Stream(non_blocking=True)
    with cupy.cuda.using_allocator(pool.malloc):
        own = tuple(cupy.empty(array.shape, array.dtype) for array in inputs)
        compute = prepare(*own)
        cupy.cuda.get_current_stream().synchronize()  # until everything has been transferred
        with stream:
            stream.begin_capture()
            try:
                results = compute()
            except BaseException:
                _abandon(stream)
                raise
            graph = stream.end_capture()
    return _Recorded(graph, pool, own, compute, results, cupy.cuda.Event(disable_timing=True))


def _abandon(stream: cupy.cuda.Stream) -> None:
    """End a capture whose graph isn't wanted; CUDA reports once more that it failed."""
    with contextlib.suppress(RuntimeError):
        stream.end_capture()


def _launch(recorded: _Recorded, inputs: Sequence[cupy.ndarray]) -> Results:
    """Copy the inputs, launch the graph on the current stream, and copy the results."""
    stream = require_cupy().cuda.get_current_stream()
    stream.wait_event(recorded.launched)
    for own, array in zip(recorded.inputs, inputs):
        own[...] = array
    recorded.graph.launch()
    results = {name: array.copy() for name, array in recorded.results.items()}
    recorded.launched.record()
    return results
