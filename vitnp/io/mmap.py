"""Arrays in memory-mapped files."""

from __future__ import annotations

import mmap

import numpy as np


def forget_pages(array: np.ndarray) -> None:
    """Release the memory pages of the mapped file that an array is part of; they are read again when needed.

    Does nothing for other arrays, and on systems without ``madvise``.

    Examples
    --------
    >>> forget_pages(np.zeros(3))
    """
    owner: object = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, memoryview):
        owner = owner.obj
    if isinstance(owner, mmap.mmap) and hasattr(owner, "madvise") and not owner.closed:
        owner.madvise(mmap.MADV_DONTNEED)
