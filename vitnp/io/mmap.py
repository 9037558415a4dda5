"""Arrays that lie in files mapped into memory."""

from __future__ import annotations

import mmap

import numpy as np


def forget_pages(array: np.ndarray) -> None:
    """Let the system take back the memory of a mapped file that an array lies in; it reads the file again when need be.

    Nothing happens to arrays that lie elsewhere, or on systems that can't be told.

    Examples
    --------
    >>> forget_pages(np.zeros(3))
    """
    held = array
    while isinstance(held, np.ndarray):
        held = held.base
    if isinstance(held, memoryview):
        held = held.obj
    if isinstance(held, mmap.mmap) and hasattr(held, "madvise") and not held.closed:
        held.madvise(mmap.MADV_DONTNEED)
