"""Where two arrays differ, for whoever has to find out why and has no GPU."""

from __future__ import annotations

import numpy as np


def mismatch(found: np.ndarray, expected: np.ndarray, most: float, count: int = 3) -> str:
    """Where two arrays differ by more than `most`: how many places, the first few, what was found and expected there.

    Examples
    --------
    >>> mismatch(np.array([[1.0, 2.0], [3.5, 4.0]]), np.array([[1.0, 2.0], [3.0, 4.0]]), 0.1)
    '1 of 4 differ: (1, 0) is 3.5, expected 3'
    """
    found, expected = np.asarray(found), np.asarray(expected)
    if found.shape != expected.shape:
        return f"the shape is {found.shape}, expected {expected.shape}"
    apart = ~(np.abs(found.astype(np.float64) - expected) <= most)
    places = np.argwhere(apart)
    said = [
        f"{tuple(map(int, at))} is {found[tuple(at)]:.8g}, expected {expected[tuple(at)]:.8g}" for at in places[:count]
    ]
    return f"{len(places)} of {apart.size} differ" + (f": {'; '.join(said)}" if said else "")
