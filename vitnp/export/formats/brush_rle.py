"""Label Studio's run-length encoding of brush masks.

A bit stream (the JavaScript package ``@thi.ng/rle-pack``): the number of values in 32 bits, the bits of a value minus 1
in 5, four sizes of a run's length minus 1 in 4 each. Then the runs: a 1 bit, the number of the size in 2 bits, the
length minus 1 in so many bits, and the value. A mask has four equal values per pixel, as red, green, blue and alpha.
"""

from __future__ import annotations

import numpy as np

_VALUE_BITS = 8
_CHANNELS = 4
# Bits of the length of a run: each run uses the first size that holds it.
_SIZES = np.array([3, 4, 8, 16])
_LONGEST = 1 << 16


def encode_brush(mask: np.ndarray) -> list[int]:
    """Encode a mask for the ``rle`` of a brush result.

    Parameters
    ----------
    mask : array, shape (H, W), bool

    Returns
    -------
    list of int
        Bytes.

    Examples
    --------
    >>> encode_brush(np.array([[False, True]]))
    [0, 0, 0, 8, 57, 27, 252, 96, 17, 255, 128]
    """
    values = np.ascontiguousarray(mask).reshape(-1)
    starts = np.flatnonzero(np.diff(values.view(np.int8), prepend=np.int8(-1)))
    lengths = np.diff(starts, append=values.size) * _CHANNELS
    # Runs longer than the longest are cut into pieces.
    pieces = -(-lengths // _LONGEST)
    run = np.repeat(np.arange(lengths.size), pieces)
    last = np.cumsum(pieces) - 1
    length = np.full(run.size, _LONGEST)
    length[last] = lengths - (pieces - 1) * _LONGEST
    size = np.searchsorted(1 << _SIZES, length)
    bits = _SIZES[size]
    value = np.where(values[starts[run]], 255, 0)
    code = (((4 | size) << bits | (length - 1)) << _VALUE_BITS) | value
    head = [
        _bits(np.array([values.size * _CHANNELS]), np.array([32])),
        _bits(np.array([_VALUE_BITS - 1]), np.array([5])),
        _bits(_SIZES - 1, np.full(len(_SIZES), 4)),
    ]
    stream = np.concatenate([*head, _bits(code, 3 + bits + _VALUE_BITS)])
    return np.packbits(stream).tolist()


def _bits(numbers: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Return the bits of numbers, the highest first, each in its own width."""
    position = np.arange(int(widths.max()))[::-1]
    bits = (numbers[:, None].astype(np.int64) >> position) & 1
    return bits[position < widths[:, None]].astype(np.uint8)
