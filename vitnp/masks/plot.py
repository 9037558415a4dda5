"""Show a result with matplotlib, where it is installed."""

from __future__ import annotations

from typing import Any

import numpy as np

from vitnp.errors import UsageError


def plot(overlay: np.ndarray, title: str, ax: Any = None) -> Any:
    """Draw an overlay (H, W, 3) uint8 on an axes of matplotlib, a new one by default, and return the axes.

    Raises
    ------
    UsageError
        If matplotlib is not installed.
    """
    try:
        from matplotlib import pyplot
    except ImportError:
        raise UsageError(
            "plot needs matplotlib, which is not installed; `pip install matplotlib`, or use overlay() without it"
        ) from None
    if ax is None:
        _, ax = pyplot.subplots()
    ax.imshow(overlay)
    ax.set_title(title)
    ax.set_axis_off()
    return ax
