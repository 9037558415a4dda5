"""Schedules over the progress of a run, so that a run limited by time also reaches their end."""

from __future__ import annotations

import math

_CONSTANT_UNTIL = 0.3
_FINAL_LR_FACTOR = 0.003
_WARMUP_STEPS = 200


def lr_factor(progress: float, step: int, n_steps: int | None = None) -> float:
    """Return the learning rate relative to its peak: linear warmup over 200 steps, constant for 30 %, cosine decay.

    Parameters
    ----------
    progress : float
        Completed fraction of the run, 0 to 1.
    step : int
        Step number, from 0.
    n_steps : int, optional
        Total number of steps, if known; the warmup takes at most a tenth of them.

    Returns
    -------
    float
        Factor of the peak learning rate.

    Examples
    --------
    >>> [round(lr_factor(progress, 1000), 3) for progress in (0, 0.65, 1)]
    [1.0, 0.503, 0.003]
    >>> lr_factor(0, 0), lr_factor(0, 1, n_steps=40)
    (0.005, 0.5)
    """
    warmup_steps = _WARMUP_STEPS if n_steps is None else max(1, min(_WARMUP_STEPS, n_steps // 10))
    warmup = min(1.0, (step + 1) / warmup_steps)
    if progress < _CONSTANT_UNTIL:
        return warmup
    decay = 0.5 * (1 + math.cos(math.pi * (progress - _CONSTANT_UNTIL) / (1 - _CONSTANT_UNTIL)))
    return warmup * (decay + _FINAL_LR_FACTOR)


def free_running_probability(progress: float, from_scratch: bool) -> float:
    """Return the probability that each block of the student reads the student's own hidden state in a step.

    Otherwise each block reads the teacher's hidden state (teacher forcing) and learns independently of the blocks
    before it, which is fast. Free running teaches the student not to accumulate errors.

    Parameters
    ----------
    progress : float
        Completed fraction of the run, 0 to 1.
    from_scratch : bool
        Whether the student started from random weights.

    Returns
    -------
    float
        Probability, 0 to 1.

    References
    ----------
    Bengio et al. 2015, Scheduled sampling for sequence prediction with recurrent neural networks, arXiv 1506.03099.

    Examples
    --------
    >>> [free_running_probability(progress, from_scratch=True) for progress in (0, 0.25)]
    [0.0, 0.4]
    >>> [free_running_probability(progress, from_scratch=False) for progress in (0, 1)]
    [0.5, 1.0]
    """
    return min(1.0, 1.6 * progress if from_scratch else 0.5 + 1.2 * progress)
