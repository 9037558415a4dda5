"""Memory that kernels work in: kept for each thread and used again, so that a second image allocates nothing."""

from __future__ import annotations

import math
import threading

import numpy as np

_held = threading.local()


def scratch(name: str, *shape: int, dtype: type = np.float32) -> np.ndarray:
    """An array to work in, with anything in it. The same thread gets the same memory for the same name.

    Parameters
    ----------
    name : str
        What it's for: two arrays in use at the same time need two names.
    *shape : int
    dtype : NumPy type

    Examples
    --------
    >>> first, second = scratch("example", 2, 3), scratch("example", 3)
    >>> bool(np.shares_memory(first, second)), second.shape
    (True, (3,))
    """
    arrays = _held.__dict__.setdefault("arrays", {})
    size, kind = math.prod(shape), np.dtype(dtype)
    held = arrays.get((name, kind.char))
    if held is None or held.size < size:
        held = arrays[name, kind.char] = np.empty(size, kind)
    return held[:size].reshape(shape)


def temporary(name: str, *shape: int, dtype: type = np.float32) -> np.ndarray:
    return scratch(f"temporary {name}", *shape, dtype=dtype)


def forget() -> None:
    """Give this thread's memory back."""
    _held.__dict__.clear()
