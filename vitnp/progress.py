"""The progress callback that long operations take."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

# Opens the display of a stage and gives a function to be called with the number of steps done since the last call.
Progress = Callable[[str, int], contextlib.AbstractContextManager[Callable[[int], object]]]


def silent(stage: str, total: int) -> contextlib.AbstractContextManager[Callable[[int], object]]:
    """Show no progress."""
    return contextlib.nullcontext(lambda steps: None)
