"""Record the launches of our kernels: number, duration, and resources; count copies between host and device."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from types import ModuleType

from bench.gpu.report import Report


@dataclasses.dataclass(frozen=True)
class Launch:
    """One launch of a kernel.

    Attributes
    ----------
    function : cupy.RawKernel
    grid, block : tuple of int
    shared : int
        Bytes of dynamic shared memory.
    before, after : cupy.cuda.Event
        Events on the stream before and after it.
    """

    function: object
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int
    before: object
    after: object


@contextlib.contextmanager
def recorded(cupy: ModuleType) -> Iterator[list[Launch]]:
    """Record every launch of our kernels inside the context; the list grows meanwhile.

    CUDA graphs are not used by this thread there, because the kernels of a graph cannot be told apart.
    """
    from vitnp.kernels.cuda.graphs import launched_singly
    from vitnp.kernels.cuda.loader import Kernel

    found: list[Launch] = []
    launch = Kernel.__call__

    def noted(self, grid, block, arguments, *, shared_mem: int = 0) -> None:
        before, after = cupy.cuda.Event(), cupy.cuda.Event()
        before.record()
        launch(self, grid, block, arguments, shared_mem=shared_mem)
        after.record()
        found.append(Launch(self._function, grid, block, shared_mem, before, after))

    Kernel.__call__ = noted
    try:
        with launched_singly():
            yield found
    finally:
        Kernel.__call__ = launch


@dataclasses.dataclass
class Traffic:
    """Numbers of launches of our kernels, and of copies by CuPy's functions.

    Attributes
    ----------
    launches : int
        Without CuPy's own kernels and cuBLAS.
    uploads, reads : int
        Copies to the device and back. Implicit ones, such as ``float(x)`` of an array on the device, are not counted.
    """

    launches: int = 0
    uploads: int = 0
    reads: int = 0


@contextlib.contextmanager
def counted(cupy: ModuleType) -> Iterator[Traffic]:
    """Count launches and copies inside the context; the numbers grow meanwhile. It works with an emulated CuPy too."""
    from vitnp.kernels.cuda.loader import Kernel

    found = Traffic()
    launch, read, upload = Kernel.__call__, cupy.asnumpy, cupy.asarray

    def launched(self, *arguments, **options) -> None:
        found.launches += 1
        launch(self, *arguments, **options)

    def fetched(array, *arguments, **options) -> object:
        found.reads += isinstance(array, cupy.ndarray)
        return read(array, *arguments, **options)

    def sent(array, *arguments, **options) -> object:
        found.uploads += not isinstance(array, cupy.ndarray)
        return upload(array, *arguments, **options)

    Kernel.__call__, cupy.asnumpy, cupy.asarray = launched, fetched, sent
    try:
        yield found
    finally:
        Kernel.__call__, cupy.asnumpy, cupy.asarray = launch, read, upload


def tell(report: Report, cupy: ModuleType, within: str, found: list[Launch]) -> None:
    """Report the launches of each kernel, the one with the longest total time first.

    Parameters
    ----------
    report : Report
    cupy : module
    within : str
        Description of the work.
    found : list of Launch
    """
    cupy.cuda.Device().synchronize()
    groups: dict[int, list[Launch]] = {}
    for launch in found:
        groups.setdefault(id(launch.function), []).append(launch)

    def seconds(launches: list[Launch]) -> float:
        return sum(cupy.cuda.get_elapsed_time(one.before, one.after) for one in launches) / 1e3

    for launches in sorted(groups.values(), key=seconds, reverse=True):
        first = launches[0]
        report.kernel(
            first.function.name,
            within=within,
            launches=len(launches),
            seconds=seconds(launches),
            registers=first.function.num_regs,
            # Spilled registers and arrays in local memory: there should be none.
            local_bytes=first.function.local_size_bytes,
            shared_bytes=first.function.shared_size_bytes + max(one.shared for one in launches),
            block=list(first.block),
            largest_grid=list(max(one.grid for one in launches)),
        )
