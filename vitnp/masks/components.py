"""Connected parts of a mask, from its runs: the horizontal stretches, which are few even in a large mask."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# A mask is gone through in bands of about so many pixels, so that temporaries stay small.
_BAND_PIXELS = 1 << 20


class Runs(NamedTuple):
    """Runs of a mask in the order of their first pixels, and which part each belongs to.

    Positions count a pixel more than the width in each row, row * pitch + column, so that a run never reaches into the next row.

    Attributes
    ----------
    starts, ends : (R,) int
        Positions of the first pixel and of the one after the last.
    part : (R,) int
        Equal for runs of one part: the number of the part's first run.
    pitch : int
    """

    starts: np.ndarray
    ends: np.ndarray
    part: np.ndarray
    pitch: int


def runs_of(mask: np.ndarray) -> Runs:
    """The runs of a mask (H, W) bool and its 8-connected parts.

    Two runs in neighboring rows touch when neither ends more than one pixel before the other begins. No label image is made.

    Examples
    --------
    >>> runs_of(np.array([[1, 1, 0, 1], [0, 0, 1, 0], [1, 0, 0, 0]], bool)).part
    array([0, 0, 0, 3])
    """
    starts, ends = _ends_of_runs(mask)
    pitch = mask.shape[1] + 1
    first = np.searchsorted(ends, starts + pitch)
    counts = np.searchsorted(starts, ends + pitch, side="right") - first
    upper = np.repeat(np.arange(starts.size), counts)
    lower = np.arange(upper.size) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(first, counts)
    return Runs(starts, ends, _joined(starts.size, upper, lower), pitch)


def label(mask: np.ndarray) -> np.ndarray:
    """A number for each 8-connected part of a mask (H, W) bool: 0 outside, and 1, 2, … by the parts' first pixels.

    Examples
    --------
    >>> label(np.array([[1, 0, 1], [1, 0, 0]], bool))
    array([[1, 0, 2],
           [1, 0, 0]])
    """
    starts, ends, part, pitch = runs_of(mask)
    _, number = np.unique(part, return_inverse=True)
    # Up at a run's start, down after its end, and sums in between.
    steps = np.zeros(mask.shape[0] * pitch + 1, np.int64)
    np.add.at(steps, starts, number + 1)
    np.add.at(steps, ends, -(number + 1))
    return np.cumsum(steps)[:-1].reshape(mask.shape[0], pitch)[:, :-1]


def _joined(count: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The smallest number among all that pairs (a, b) join, for each of `count` numbers: roots are hooked onto smaller ones, and
    chains cut short, until nothing changes (Shiloach and Vishkin 1982).
    """
    root = np.arange(count)
    while True:
        low, high = np.minimum(root[a], root[b]), np.maximum(root[a], root[b])
        apart = low != high
        if not apart.any():
            return root
        np.minimum.at(root, high[apart], low[apart])
        while not np.array_equal(root, above := root[root]):
            root = above


def _ends_of_runs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First positions of a mask's runs, and those after their last."""
    height, width = mask.shape
    pitch = width + 1
    changes = [np.empty(0, np.int64)]
    rows = max(1, _BAND_PIXELS // pitch)
    for top in range(0, height, rows):
        band = mask[top : top + rows]
        # A column of False before and after each row; where neighbors differ, a run begins or has ended.
        padded = np.zeros((len(band), width + 2), bool)
        padded[:, 1:-1] = band
        changes.append(np.flatnonzero(padded[:, 1:] != padded[:, :-1]) + top * pitch)
    alternating = np.concatenate(changes)
    return alternating[0::2], alternating[1::2]
