"""Configure the kernels of ``tiles.cuh``: compile-time constants, use of shared memory, number of blocks."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

import numpy as np
from vitnp.kernels.cuda.loader import contiguous, kernel, require_cupy, shared_memory

if TYPE_CHECKING:
    import cupy

THREADS = 256
# Maximum of the static shared memory that the kernels use beside the tiles: partial products, labels, counts.
_STATIC = 26 * 1024
# The first compute capability with the tensor-core instructions and asynchronous copies that tiles.cuh uses.
_TENSOR_CORES = 80


@dataclasses.dataclass(frozen=True)
class Plan:
    """Configuration of a launch.

    Attributes
    ----------
    options : tuple of str
        Compiler options.
    shared : int
        Bytes of dynamic shared memory.
    rows : int
        Number of rows of a tile.
    group : int
        Number of columns processed at a time; y is padded to a multiple of it.
    parts : int
        Number of arrays that y is split into; 0 if it stays float32.
    extra : bool
        True if the extra bytes that the kernel asked for fit into shared memory.
    """

    options: tuple[str, ...]
    shared: int
    rows: int
    group: int
    parts: int
    extra: bool

    def blocks(self, n: int) -> int:
        """Return the number of blocks: one per multiprocessor, since a second block would lack shared memory."""
        return max(1, min(-(-n // self.rows), _multiprocessors(require_cupy().cuda.Device().id)))


def plan(width: int, columns: int, half: bool, extra: int = 0, define: str = "") -> Plan:
    """Return the configuration for products of rows of `width` numbers with `columns` other rows.

    Parameters
    ----------
    width, columns : int
    half : bool
        True if x is float16.
    extra : int
        Bytes that the kernel would like to have in shared memory beside the tiles.
    define : str
        Macro to define if they fit.
    """
    device = require_cupy().cuda.Device()
    capability = int(device.compute_capability)
    return _plan(width, columns, half, extra, define, capability, shared_memory(device.id))


@functools.cache
def _plan(width: int, columns: int, half: bool, extra: int, define: str, capability: int, memory: int) -> Plan:
    """Return the first configuration that fits, in the order of :func:`_preferences`."""
    size = 2 if half else 4
    group = 8 if columns <= 8 else 32 if columns <= 32 else 64
    options: tuple[str, ...] = ("-DHALF",) if half else ()
    if capability < _TENSOR_CORES or width * size % 64:
        rows = 32
        fits = bool(extra) and extra + _STATIC <= memory
        options += (f"-DGROUP={group}", f"-DROWS={rows}") + ((f"-D{define}",) if fits else ())
        return Plan(options, extra if fits else 0, rows, group, 0, fits)
    pitch = (width * size) | 64
    padded = -(-columns // group) * group * (2 if half else 1)
    # Copying a tile of 48 KB at a time is enough to use the memory bandwidth; wider rows get smaller tiles.
    sizes = [rows for rows in (64, 32, 16) if rows == 16 or (rows * pitch <= 56 * 1024 and (half or rows < 64))]
    room = memory - _STATIC
    for rows in sizes:
        for with_extra, with_columns, stages in _preferences(bool(extra)):
            shared = pitch * (stages * rows + with_columns * padded) + with_extra * extra
            if shared <= room:
                options += (f"-DWIDTH={width}", f"-DGROUP={group}", f"-DROWS={rows}", f"-DSTAGES={stages}")
                options += ("-DCOLUMNS_SHARED",) * with_columns + (f"-D{define}",) * with_extra
                return Plan(options, shared, rows, group, 2 if half else 1, with_extra)
    # No tile fits: the variant without tensor cores needs no shared memory.
    return _plan(width, columns, half, extra, define, 0, memory)


def _preferences(extra: bool) -> list[tuple[bool, bool, int]]:
    """Return what to keep in shared memory, as (extra bytes, y, number of tiles), the best first.

    Extra bytes and two tiles are better than y, and y is better than a third tile.
    """
    preferences = [
        (True, True, 3),
        (True, True, 2),
        (True, False, 3),
        (True, False, 2),
        (False, False, 2),
        (False, False, 1),
    ]
    return preferences if extra else [(False, columns, stages) for _, columns, stages in preferences]


def prepare(
    file: str, y: cupy.ndarray, plan: Plan, *, shift: cupy.ndarray | None = None, normalize: bool = False
) -> tuple[cupy.ndarray, cupy.ndarray]:
    """Convert y (K, D) to the layout of the products, and compute each row's constant; see ``prepare_columns``."""
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
