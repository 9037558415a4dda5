"""Masks as COCO's run lengths: column by column, written in printable characters.

A mask is read down its columns as runs that alternate between background and foreground, background first, so that
a mask which begins with foreground has a first run of 0. From the fourth on, a run is noted as its difference from the
one before the last, since neighboring columns are alike. Numbers are in two's complement, five bits a character, the
lowest first; a sixth bit says that more follow, and 48 makes the character printable (pycocotools, ``maskApi.c``).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Differences of runs in a mask of up to 2^34 pixels fit into so many characters.
_CHARACTERS = 7


def encode(mask: np.ndarray) -> str:
    """A mask as COCO's compressed run lengths.

    Parameters
    ----------
    mask : array, shape (H, W), bool

    Returns
    -------
    str
        The ``counts`` of ``{"size": [H, W], "counts": ...}``.

    Examples
    --------
    >>> encode(np.array([[0, 1], [1, 1]], bool))
    '13'
    >>> encode(np.zeros((480, 640), bool))
    'PP\\\\9'
    """
    numbers = run_lengths(mask)
    numbers[3:] -= numbers[1:-2].copy()
    steps = np.arange(_CHARACTERS)
    # A number fits into k characters when it lies in [-2^(5k-1), 2^(5k-1)).
    limits = np.int64(1) << (5 * steps[1:] - 1)
    spread = np.where(numbers < 0, ~numbers, numbers)
    lengths = 1 + (spread[:, None] >= limits).sum(axis=1)
    characters = (numbers[:, None] >> (5 * steps)) & 31
    characters |= (steps < lengths[:, None] - 1) << 5
    return (characters[steps < lengths[:, None]] + 48).astype(np.uint8).tobytes().decode("ascii")


def run_lengths(mask: np.ndarray) -> np.ndarray:
    """Lengths of a mask's runs down its columns, background first.

    Parameters
    ----------
    mask : array, shape (H, W), bool

    Returns
    -------
    array, shape (runs,), int64
        Their sum is H * W. Only the first may be 0.

    Examples
    --------
    >>> run_lengths(np.array([[0, 1], [1, 1]], bool)).tolist()
    [1, 3]
    """
    height, width = mask.shape
    top, bottom, left, right = extent(mask)
    if top == bottom:
        return np.array([height * width], np.int64)
    # Only the part that holds foreground is turned into columns, with a row of background below or above it, if there
    # is one: it keeps the runs of neighboring columns apart, as they are in the whole mask.
    if bottom < height:
        bottom += 1
    elif top > 0:
        top -= 1
    flat = np.ascontiguousarray(mask[top:bottom, left:right].T).reshape(-1).view(np.uint8)
    changes = np.flatnonzero(np.diff(flat, prepend=np.uint8(0), append=np.uint8(0)))
    # The last pixel of a run has a place in the whole mask; the one behind it may be in a row that was cut off.
    changes[1::2] -= 1
    column, row = np.divmod(changes, bottom - top)
    places = (left + column) * height + top + row
    places[1::2] += 1
    lengths = np.diff(places, prepend=0, append=height * width)
    return lengths[:-1] if lengths[-1] == 0 else lengths


def extent(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Rows and columns that hold all of a mask's foreground: first row, row behind the last, and so for columns.

    Four zeros for an empty mask.

    Examples
    --------
    >>> extent(np.array([[0, 0, 0], [0, 1, 1]], bool))
    (1, 2, 1, 3)
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        return 0, 0, 0, 0
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


# No run of a mask that fits into memory takes more characters.
_LONGEST_PACKED_RUN = 8


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
    if digits.max() > _LONGEST_PACKED_RUN:
        raise ValueError("a run is longer than any mask")
    places = np.arange(codes.size) - np.repeat(starts, digits)
    numbers = np.add.reduceat((codes & 31) << (5 * places), starts)
    numbers -= np.where(codes[ends - 1] & 16, np.int64(1) << (5 * digits), 0)
    # From the fourth on, a run is noted as its difference from the one before the last.
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers
