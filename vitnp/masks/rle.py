"""COCO run-length encoding of masks.

The pixels of a mask, column by column, are runs of alternating background and foreground. The first run is background,
so a mask that begins with foreground has a first run of length 0.

In the compressed form, each run from the fourth on is replaced by its difference to the run two before it, which is
small because neighboring columns are similar. Numbers are in two's complement, five bits per character, lowest bits
first; bit 6 marks that another character follows, and adding 48 makes the character printable (pycocotools,
``maskApi.c``, ``rleToString``).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Five bits each: enough for runs of up to 2^39 pixels, more than any mask in memory has.
_MAX_CHARACTERS = 8


def encode(mask: np.ndarray) -> str:
    """Encode a mask as compressed run lengths.

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
    """
    numbers = run_lengths(mask)
    numbers[3:] -= numbers[1:-2].copy()
    index = np.arange(_MAX_CHARACTERS)
    # A number fits into k characters if it lies in [-2^(5k-1), 2^(5k-1)).
    limits = np.int64(1) << (5 * index[1:] - 1)
    magnitude = np.where(numbers < 0, ~numbers, numbers)
    n_characters = 1 + (magnitude[:, None] >= limits).sum(axis=1)
    characters = (numbers[:, None] >> (5 * index)) & 31
    characters |= (index < n_characters[:, None] - 1) << 5
    return (characters[index < n_characters[:, None]] + 48).astype(np.uint8).tobytes().decode("ascii")


def decode(counts: str | Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """Decode run lengths to a mask.

    Parameters
    ----------
    counts : str or sequence of int
        Compressed run lengths, or the plain lengths.
    size : (int, int)
        Height and width.

    Returns
    -------
    array, shape (height, width), bool

    Raises
    ------
    ValueError
        If these are not the run lengths of a mask of this size.

    Examples
    --------
    >>> decode("13", (2, 2)).tolist()
    [[False, True], [True, True]]
    >>> decode([1, 3], (2, 2)).tolist()
    [[False, True], [True, True]]
    """
    height, width = size
    lengths = _decompress(counts) if isinstance(counts, str) else _check_lengths(counts)
    # Python integers, which cannot overflow.
    if (lengths < 0).any() or sum(lengths.tolist()) != height * width:
        raise ValueError(f"run lengths must be at least 0 and add up to {height} x {width} pixels")
    foreground = np.arange(lengths.size) % 2 == 1
    return np.ascontiguousarray(np.repeat(foreground, lengths).reshape(width, height).T)


def run_lengths(mask: np.ndarray) -> np.ndarray:
    """Compute the lengths of the runs of a mask, column by column, background first.

    Parameters
    ----------
    mask : array, shape (H, W), bool

    Returns
    -------
    array, shape (runs,), int64
        Their sum is H * W. Only the first can be 0.

    Examples
    --------
    >>> run_lengths(np.array([[0, 1], [1, 1]], bool)).tolist()
    [1, 3]
    """
    height, width = mask.shape
    top, bottom, left, right = extent(mask)
    if top == bottom:
        return np.array([height * width], np.int64)
    # Only the part with foreground is transposed, with a row of background below or above it if the mask has one: it
    # separates the runs of neighboring columns as in the whole mask.
    if bottom < height:
        bottom += 1
    elif top > 0:
        top -= 1
    flat = np.ascontiguousarray(mask[top:bottom, left:right].T).reshape(-1).view(np.uint8)
    changes = np.flatnonzero(np.diff(flat, prepend=np.uint8(0), append=np.uint8(0)))
    # Use the last pixel of a run instead of the one after it, which may lie in a row that was cut off.
    changes[1::2] -= 1
    column, row = np.divmod(changes, bottom - top)
    positions = (left + column) * height + top + row
    positions[1::2] += 1
    lengths = np.diff(positions, prepend=0, append=height * width)
    return lengths[:-1] if lengths[-1] == 0 else lengths


def extent(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return the bounds of the foreground: first row, row after the last, first column, column after the last.

    All are 0 for an empty mask.

    Examples
    --------
    >>> extent(np.array([[0, 0, 0], [0, 1, 1]], bool))
    (1, 2, 1, 3)
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        return 0, 0, 0, 0
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _check_lengths(counts: Sequence[int]) -> np.ndarray:
    """Return plain run lengths as an array."""
    if any(isinstance(count, bool) or not isinstance(count, int) for count in counts):
        raise ValueError("run lengths must be whole numbers")
    try:
        return np.array(counts, dtype=np.int64)
    except OverflowError:
        raise ValueError("a run must not be longer than any mask") from None


def _decompress(counts: str) -> np.ndarray:
    """Return the lengths of compressed runs; they may be negative if the text is damaged."""
    codes = np.frombuffer(counts.encode("utf-8", "replace"), np.uint8).astype(np.int64) - 48
    last = (codes & 32) == 0
    if codes.size and (codes.min() < 0 or codes.max() > 63 or not last[-1]):
        raise ValueError("compressed run lengths contain invalid characters or are truncated")
    if not codes.size:
        return codes
    ends = np.flatnonzero(last) + 1
    starts = np.concatenate([[0], ends[:-1]])
    n_characters = ends - starts
    if n_characters.max() > _MAX_CHARACTERS:
        raise ValueError("a run must not be longer than any mask")
    index = np.arange(codes.size) - np.repeat(starts, n_characters)
    numbers = np.add.reduceat((codes & 31) << (5 * index), starts)
    numbers -= np.where(codes[ends - 1] & 16, np.int64(1) << (5 * n_characters), 0)
    # From the fourth on, each is the difference to the run two before it.
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers
