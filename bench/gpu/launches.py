"""What each of our kernels does within some work: how often it's launched, how long it takes, what it needs."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from types import ModuleType

from bench.gpu.report import Report


@dataclasses.dataclass(frozen=True)
class Launch:
    """One launch.

    Attributes
    ----------
    function : cupy.RawKernel
    grid, block : tuple of int
    shared : int
        Bytes of dynamic shared memory.
    before, after : cupy.cuda.Event
        On the stream around it.
    """

    function: object
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int
    before: object
    after: object


@contextlib.contextmanager
def recorded(cupy: ModuleType) -> Iterator[list[Launch]]:
    """Note every launch of a kernel of ours while the context lasts; the list grows as they come."""
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
        yield found
    finally:
        Kernel.__call__ = launch


def tell(report: Report, cupy: ModuleType, within: str, found: list[Launch]) -> None:
    """Report each kernel's launches together, the longest first.

    Parameters
    ----------
    report : Report
    cupy : module
    within : str
        What was done meanwhile.
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
            # Spilled registers and arrays that found no room in any: there should be none.
            local_bytes=first.function.local_size_bytes,
            shared_bytes=first.function.shared_size_bytes + max(one.shared for one in launches),
            block=list(first.block),
            largest_grid=list(max(one.grid for one in launches)),
        )
