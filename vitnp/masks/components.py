"""Connected components of a mask, computed from its horizontal runs, which are few even in a large mask."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# A mask is read in bands of about this many pixels, to keep temporary arrays small.
_BAND_PIXELS = 1 << 20


class Runs(NamedTuple):
    """Horizontal runs of a mask, in the order of their first pixels, and the component of each.

    The position of a pixel is row * pitch + column. The pitch is the width + 1, so the end of a run is never the start
    of the next row.

    Attributes
    ----------
    starts, ends : (R,) int
        Positions of the first pixel and of the pixel after the last.
    component : (R,) int
        Number of the first run of the component that the run belongs to.
    pitch : int
        Distance between positions of vertically neighboring pixels.
    """

    starts: np.ndarray
    ends: np.ndarray
    component: np.ndarray
    pitch: int


def find_runs(mask: np.ndarray) -> Runs:
    """Find the runs of a mask (H, W) bool and its 8-connected components, without a label image.

    Two runs in neighboring rows are connected if neither ends more than one pixel before the other begins.

    Examples
    --------
    >>> find_runs(np.array([[1, 1, 0, 1], [0, 0, 1, 0], [1, 0, 0, 0]], bool)).component
    array([0, 0, 0, 3])
    """
    starts, ends = _run_bounds(mask)
    pitch = mask.shape[1] + 1
    first = np.searchsorted(ends, starts + pitch)
    counts = np.searchsorted(starts, ends + pitch, side="right") - first
    upper = np.repeat(np.arange(starts.size), counts)
    lower = np.arange(upper.size) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(first, counts)
    return Runs(starts, ends, _connect(starts.size, upper, lower), pitch)


def label(mask: np.ndarray) -> np.ndarray:
    """Label the 8-connected components of a mask (H, W) bool.

    The result is 0 in the background, and 1, 2, ... in the components, in the order of their first pixels.

    Examples
    --------
    >>> label(np.array([[1, 0, 1], [1, 0, 0]], bool))
    array([[1, 0, 2],
           [1, 0, 0]])
    """
    starts, ends, component, pitch = find_runs(mask)
    _, number = np.unique(component, return_inverse=True)
    # Cumulative sums of steps: up at the start of a run, down after its end.
    steps = np.zeros(mask.shape[0] * pitch + 1, np.int64)
    np.add.at(steps, starts, number + 1)
    np.add.at(steps, ends, -(number + 1))
    return np.cumsum(steps)[:-1].reshape(mask.shape[0], pitch)[:, :-1]


def _connect(count: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return, for each of `count` nodes, the smallest node that it is connected to by the edges (a, b).

    Roots are hooked onto smaller roots and paths are shortened until nothing changes (Shiloach and Vishkin 1982).
    """
    root = np.arange(count)
    while True:
        low, high = np.minimum(root[a], root[b]), np.maximum(root[a], root[b])
        different = low != high
        if not different.any():
            return root
        np.minimum.at(root, high[different], low[different])
        while not np.array_equal(root, parent := root[root]):
            root = parent


def _run_bounds(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of the first pixels of all runs, and of the pixels after their last ones."""
    height, width = mask.shape
    pitch = width + 1
    changes = [np.empty(0, np.int64)]
    rows = max(1, _BAND_PIXELS // pitch)
    for top in range(0, height, rows):
        band = mask[top : top + rows]
        # With a column of False before and after each row, a run starts or has ended where neighbors differ.
        padded = np.zeros((len(band), width + 2), bool)
        padded[:, 1:-1] = band
        changes.append(np.flatnonzero(padded[:, 1:] != padded[:, :-1]) + top * pitch)
    alternating = np.concatenate(changes)
    return alternating[0::2], alternating[1::2]
