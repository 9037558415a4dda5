"""A stable sort of integers by the kernels of ``sort.cu``, which a CUDA graph can record."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from vitnp.kernels.cuda.loader import kernel

if TYPE_CHECKING:
    import cupy

# As in the source file.
WARPS, TILE, DIGITS = 4, 512, 256


def sort_by_bits(keys: cupy.ndarray, low: int, high: int) -> cupy.ndarray:
    """Sort integers by some of their bits; the order of those that agree in them is kept.

    Nothing is read from the device and nothing is transferred. CuPy's own sort waits for the device.

    Parameters
    ----------
    keys : (n,) int64
        At least 0; unchanged if there are bits to sort by, else returned.
    low, high : int
        The bits ``low`` to ``high - 1`` are compared.

    Returns
    -------
    (n,) int64

    Examples
    --------
    >>> sort_by_bits(cupy.array([6, 3, 4]), low=1, high=3)     # doctest: +SKIP
    array([3, 6, 4])
    """
    import cupy

    tiles = -(-keys.size // TILE)
    for shift in range(low, high, DIGITS.bit_length() - 1):
        # Beyond `high` all bits are equal.
        arguments = (keys, np.int32(keys.size), np.int32(shift), np.int32(tiles))
        counts = cupy.empty(DIGITS * tiles, np.int32)
        _launch("count_digits", tiles, *arguments, counts)
        out = cupy.empty(keys.size, np.int64)
        _launch("scatter_digits", tiles, *arguments, counts, cupy.cumsum(counts, dtype=np.int32), out)
        keys = out
    return keys


def _launch(name: str, tiles: int, *arguments: object) -> None:
    kernel("sort", name)((-(-tiles // WARPS),), (32 * WARPS,), arguments)
