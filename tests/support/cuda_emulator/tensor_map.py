"""Tensor maps: cuTensorMapEncodeTiled with the driver's rules, in 128 bytes that the emulator reads.

The driver's own bytes are secret, so these are the emulator's: see ``Map`` in ``runtime/hopper.cpp``.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence

import numpy as np

BYTES = 128
_MAGIC = int.from_bytes(b"tnsormap", "little")
_LAYOUT = "<QQ3Q2Q3III"  # magic, address, sizes, steps, box, bytes of an item, swizzle
_INVALID = 1  # CUDA_ERROR_INVALID_VALUE
_ITEM = {6: 2, 9: 2, 7: 4}  # CUtensorMapDataType: float16, bfloat16, float32
_SWIZZLED = {0: 1 << 20, 1: 32, 2: 64, 3: 128}  # CUtensorMapSwizzle: the most bytes of a row of the box


class FakeDriver:
    """The driver library with this one function.

    Parameters
    ----------
    covers : callable
        Called with the address and the number of bytes that a map reaches; raises an error if there is no array.
    """

    def __init__(self, covers: Callable[[int, int], None]):
        self._covers = covers

    def cuTensorMapEncodeTiled(
        self, target, kind, rank, address, sizes, steps, box, item_steps, interleave, swizzle, promotion, fill
    ) -> int:
        kind, rank, swizzle = kind.value, rank.value, swizzle.value
        sizes, box, item_steps = (list(array)[:rank] for array in (sizes, box, item_steps))
        steps = list(steps)[: rank - 1]
        item = _ITEM.get(kind, 0)
        right = (
            rank == 3  # the only one that the emulator knows
            and item > 0
            and address.value % 16 == 0
            and all(0 < size <= 2**32 for size in sizes)
            and all(step % 16 == 0 and 0 < step < 2**40 for step in steps)
            and steps[0] >= sizes[0] * item
            and steps[1] % steps[0] == 0
            and all(0 < side <= 256 for side in box)
            and box[0] * item % 16 == 0
            and box[0] * item <= _SWIZZLED.get(swizzle, 0)
            and item_steps == [1] * rank
            and interleave.value == 0
            and promotion.value in range(4)
            and fill.value == 0
        )
        if not right:
            return _INVALID
        reached = sum((size - 1) * step for size, step in zip(sizes, (item, *steps))) + item
        self._covers(address.value, reached)
        fields = struct.pack(_LAYOUT, _MAGIC, address.value, *sizes, *steps, *box, item, swizzle)
        ctypes.memmove(target, fields.ljust(BYTES, b"\0"), BYTES)
        return 0


def is_map(argument: object) -> bool:
    """Return whether an argument of a kernel is a tensor map."""
    return isinstance(argument, np.void) and argument.tobytes()[:8] == _MAGIC.to_bytes(8, "little")


def moved(argument: np.void, place: Callable[[int, int], int]) -> bytes:
    """Return a tensor map with the address at which the emulator has put its array.

    Parameters
    ----------
    argument : numpy.void
    place : callable
        Called with address and number of bytes; returns the new address.
    """
    data = argument.tobytes()
    magic, address, *rest = struct.unpack_from(_LAYOUT, data)
    sizes: Sequence[int] = rest[:3]
    steps, item = rest[3:5], rest[8]
    reached = sum((size - 1) * step for size, step in zip(sizes, (item, *steps))) + item
    return struct.pack(_LAYOUT, magic, place(address, reached), *rest).ljust(BYTES, b"\0")
