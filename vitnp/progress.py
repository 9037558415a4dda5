"""The progress callback that long operations take."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import scipy.linalg  # noqa: F401  (its BLAS must be there before it can be kept to one thread)

# Opens the display of a stage's progress; what it gives is called with the number of steps done since.
Progress = Callable[[str, int], contextlib.AbstractContextManager[Callable[[int], object]]]


def silent(stage: str, total: int) -> contextlib.AbstractContextManager[Callable[[int], object]]:
    """Show no progress."""
    return contextlib.nullcontext(lambda steps: None)
