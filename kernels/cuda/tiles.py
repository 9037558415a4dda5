"""Chooses how ``tiles.cuh`` works: what is compiled in, what lies in shared memory, how many blocks there are."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

import numpy as np
from vitnp.kernels.cuda.loader import contiguous, kernel, require_cupy, shared_memory

if TYPE_CHECKING:
    import cupy

THREADS = 256
# Static shared memory that the kernels use beside the tiles, at most: partial products, labels, counts.
_STATIC = 26 * 1024
# The first compute capability that has the tensor cores and asynchronous copies that tiles.cuh speaks to.
_TENSOR_CORES = 80


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a launch is compiled and laid out.

    Attributes
    ----------
    options : tuple of str
        For the compiler.
    shared : int
        Bytes of dynamic shared memory.
    rows : int
        Of a tile.
    group : int
        Columns at a time; y is padded to a multiple.
    parts : int
        Arrays that y is cut into; 0 where it stays float32.
    extra : bool
        Whether what was asked for beside the tiles has found room in shared memory.
    """

    options: tuple[str, ...]
    shared: int
    rows: int
    group: int
    parts: int
    extra: bool

    def blocks(self, n: int) -> int:
        """One a multiprocessor: a block's shared memory leaves no room for a second."""
        return max(1, min(-(-n // self.rows), _multiprocessors(require_cupy().cuda.Device().id)))


def plan(width: int, columns: int, half: bool, extra: int = 0, define: str = "") -> Plan:
    """The plan for rows of `width` numbers against `columns` rows.

    Parameters
    ----------
    width, columns : int
    half : bool
        x is float16.
    extra : int
        Bytes wanted in shared memory beside the tiles.
    define : str
        What to define if there is room for them.
    """
    device = require_cupy().cuda.Device()
    capability = int(device.compute_capability)
    return _plan(width, columns, half, extra, define, capability, shared_memory(device.id))


@functools.cache
def _plan(width: int, columns: int, half: bool, extra: int, define: str, capability: int, memory: int) -> Plan:
    """The first of these that fits: rather the extra and two tiles than y, rather y than a third tile."""
    size = 2 if half else 4
    group = 8 if columns <= 8 else 32 if columns <= 32 else 64
    options = ("-DHALF",) if half else ()
    if capability < _TENSOR_CORES or width * size % 64:
        rows = 32
        fits = bool(extra) and extra + _STATIC <= memory
        options += (f"-DGROUP={group}", f"-DROWS={rows}") + ((f"-D{define}",) if fits else ())
        return Plan(options, extra if fits else 0, rows, group, 0, fits)
    pitch = (width * size) | 64
    padded = -(-columns // group) * group * (2 if half else 1)
    # A tile of 48 KB keeps enough bytes under way; wider rows get fewer of them.
    sizes = [rows for rows in (64, 32, 16) if rows == 16 or (rows * pitch <= 56 * 1024 and (half or rows < 64))]
    room = memory - _STATIC
    for rows in sizes:
        for wants_extra, wants_columns, stages in _wishes(bool(extra)):
            shared = pitch * (stages * rows + wants_columns * padded) + wants_extra * extra
            if shared <= room:
                options += (f"-DWIDTH={width}", f"-DGROUP={group}", f"-DROWS={rows}", f"-DSTAGES={stages}")
                options += ("-DCOLUMNS_SHARED",) * wants_columns + (f"-D{define}",) * wants_extra
                return Plan(options, shared, rows, group, 2 if half else 1, wants_extra)
    # No tile fits at all: the plain form needs no shared memory.
    return _plan(width, columns, half, extra, define, 0, memory)


def _wishes(extra: bool) -> list[tuple[bool, bool, int]]:
    """(extra in shared memory, y in shared memory, tiles in shared memory), the best first."""
    wishes = [
        (True, True, 3),
        (True, True, 2),
        (True, False, 3),
        (True, False, 2),
        (False, False, 2),
        (False, False, 1),
    ]
    return wishes if extra else [(False, *wish[1:]) for wish in wishes]


def prepare(
    file: str, y: cupy.ndarray, plan: Plan, *, shift: cupy.ndarray | None = None, normalize: bool = False
) -> tuple[cupy.ndarray, cupy.ndarray]:
    """Y (K, D) as the products want it, and each row's constant; see prepare_columns in tiles.cuh."""
    cupy = require_cupy()
    columns, width = y.shape
    padded = -(-columns // plan.group) * plan.group
    out = cupy.empty((max(plan.parts, 1), padded, width), np.float16 if plan.parts == 2 else np.float32)
    constants = cupy.empty(padded, np.float32)
    y = contiguous(y, np.float32)
    arguments = (y, shift, out, constants, np.int32(columns), np.int32(width), np.int32(normalize))
    kernel(file, "prepare_columns", *plan.options)((padded,), (128,), arguments)
    return out, constants


@functools.cache
def _multiprocessors(device: int) -> int:
    return require_cupy().cuda.Device(device).attributes["MultiProcessorCount"]
