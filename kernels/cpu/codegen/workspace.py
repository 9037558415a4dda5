"""Temporary arrays of kernels: kept per thread and reused, so that a second image allocates nothing."""

from __future__ import annotations

import math
import threading

import numpy as np
from numpy.typing import DTypeLike

MAX_VIEWS = 500  # a thread that meets ever new shapes must not keep views of all of them


class _Local(threading.local):
    """Memory of one thread by name and dtype, and the views of it by name, shape and dtype."""

    def __init__(self) -> None:
        self.arrays: dict[tuple[str, DTypeLike], np.ndarray] = {}
        self.views: dict[tuple[str, tuple[int, ...], DTypeLike], np.ndarray] = {}


_local = _Local()


def workspace(name: str, *shape: int, dtype: DTypeLike = np.float32) -> np.ndarray:
    """Return an uninitialized array for temporary use. The same thread gets the same memory for the same name.

    Parameters
    ----------
    name : str
        Purpose of the array: two arrays in use at the same time need two names.
    *shape : int
    dtype : NumPy dtype

    Examples
    --------
    >>> first, second = workspace("example", 2, 3), workspace("example", 3)
    >>> bool(np.shares_memory(first, second)), second.shape
    (True, (3,))
    """
    try:
        return _local.views[name, shape, dtype]
    except KeyError:
        return _new_view(name, shape, dtype)


def _new_view(name: str, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    if len(_local.views) > MAX_VIEWS:
        _local.views.clear()
    size, arrays = math.prod(shape), _local.arrays
    if (name, dtype) not in arrays or arrays[name, dtype].size < size:
        # Views of the smaller array stay valid for their owners, but are not returned again.
        _local.views = {key: view for key, view in _local.views.items() if (key[0], key[2]) != (name, dtype)}
        arrays[name, dtype] = np.empty(size, dtype)
    view = _local.views[name, shape, dtype] = arrays[name, dtype][:size].reshape(shape)
    return view


def temporary(name: str, *shape: int, dtype: DTypeLike = np.float32) -> np.ndarray:
    return workspace(f"temporary {name}", *shape, dtype=dtype)
