"""Memory that kernels work in: kept for each thread and used again, so that a second image allocates nothing."""

from __future__ import annotations

import math
import threading

import numpy as np

_held = threading.local()
MOST_VIEWS = 500  # a thread that meets ever new shapes must not remember them all


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
    try:
        return _held.views[name, shape, dtype]
    except (AttributeError, KeyError):
        return _new_view(name, shape, dtype)


def _new_view(name: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    held = _held.__dict__
    if len(held.setdefault("views", {})) > MOST_VIEWS:
        held["views"].clear()
    size, arrays = math.prod(shape), held.setdefault("arrays", {})
    if (name, dtype) not in arrays or arrays[name, dtype].size < size:
        # Whoever has the smaller one may keep it, but nobody gets it again.
        held["views"] = {key: view for key, view in held["views"].items() if (key[0], key[2]) != (name, dtype)}
        arrays[name, dtype] = np.empty(size, dtype)
    view = held["views"][name, shape, dtype] = arrays[name, dtype][:size].reshape(shape)
    return view


def temporary(name: str, *shape: int, dtype: type = np.float32) -> np.ndarray:
    return scratch(("caller's", name), *shape, dtype=dtype)
