"""How a run proceeds, by the share of it that is done, so that it ends well whenever it has to end."""

from __future__ import annotations

import math

_FULL_RATE_UNTIL = 0.3
_LAST_RATE = 0.003
_WARM_UP = 200  # steps


def rate(share: float, step: int, steps: int | None = None) -> float:
    """Learning rate over its peak: up in 200 steps, constant for 30 % of the run, then down along a cosine.

    Parameters
    ----------
    share : float
        Of the run that is done, 0 to 1.
    step : int
        From 0 on.
    steps : int, optional
        All there will be, where that is known; the way up takes a tenth of them at most.

    Examples
    --------
    >>> [round(rate(share, 1000), 3) for share in (0, 0.65, 1)]
    [1.0, 0.503, 0.003]
    >>> rate(0, 0), rate(0, 1, steps=40)
    (0.005, 0.5)
    """
    warm_up = _WARM_UP if steps is None else max(1, min(_WARM_UP, steps // 10))
    up = min(1.0, (step + 1) / warm_up)
    if share < _FULL_RATE_UNTIL:
        return up
    return up * (0.5 * (1 + math.cos(math.pi * (share - _FULL_RATE_UNTIL) / (1 - _FULL_RATE_UNTIL))) + _LAST_RATE)


def own_stream(share: float, fresh: bool) -> float:
    """Probability that the student's blocks get what the blocks before made, rather than what the teacher's made.

    With the teacher's, each block learns by itself, which is fast; with its own, the student learns not to add up
    errors.

    Parameters
    ----------
    share : float
        Of the run that is done, 0 to 1.
    fresh : bool
        Whether the student began from nothing.

    Examples
    --------
    >>> own_stream(0, True), own_stream(0.25, True), own_stream(0, False), own_stream(1, False)
    (0.0, 0.4, 0.5, 1.0)
    """
    return min(1.0, 1.6 * share if fresh else 0.5 + 1.2 * share)
