"""Masks from COCO's run lengths, plain or packed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["decode"]

# No run of a mask that fits into memory takes more characters.
_CHARACTERS = 8


def decode(counts: str | Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """The mask that run lengths describe: down its columns, background and foreground in turn, background first.

    Parameters
    ----------
    counts : str or sequence of int
        Packed, as pycocotools writes them (``maskApi.c``: differences of every other run, five bits a character), or
        the plain lengths.
    size : (int, int)
        Rows and columns.

    Returns
    -------
    bool (rows, columns)

    Raises
    ------
    ValueError
        When these aren't run lengths of a mask of this size.

    Examples
    --------
    >>> decode("13", (2, 2)).tolist()
    [[False, True], [True, True]]
    >>> decode([1, 3], (2, 2)).tolist()
    [[False, True], [True, True]]
    """
    rows, columns = size
    lengths = _unpack(counts) if isinstance(counts, str) else _plain(counts)
    # In Python's whole numbers, which don't overflow.
    if (lengths < 0).any() or sum(lengths.tolist()) != rows * columns:
        raise ValueError(f"the runs don't add up to {rows} x {columns} pixels")
    inside = np.arange(lengths.size) % 2 == 1
    return np.ascontiguousarray(np.repeat(inside, lengths).reshape(columns, rows).T)


def _plain(counts: Sequence[int]) -> np.ndarray:
    if any(isinstance(count, bool) or not isinstance(count, int) for count in counts):
        raise ValueError("run lengths must be whole numbers")
    try:
        return np.array(counts, dtype=np.int64)
    except OverflowError:
        raise ValueError("a run is longer than any mask") from None


def _unpack(counts: str) -> np.ndarray:
    codes = np.frombuffer(counts.encode("utf-8", "replace"), np.uint8).astype(np.int64) - 48
    last = (codes & 32) == 0
    if codes.size and (codes.min() < 0 or codes.max() > 63 or not last[-1]):
        raise ValueError("these aren't packed run lengths")
    if not codes.size:
        return codes
    ends = np.flatnonzero(last) + 1
    starts = np.concatenate([[0], ends[:-1]])
    digits = ends - starts
    if digits.max() > _CHARACTERS:
        raise ValueError("a run is longer than any mask")
    places = np.arange(codes.size) - np.repeat(starts, digits)
    numbers = np.add.reduceat((codes & 31) << (5 * places), starts)
    numbers -= np.where(codes[ends - 1] & 16, np.int64(1) << (5 * digits), 0)
    # From the fourth on, a run is noted as its difference from the one before the last.
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers
