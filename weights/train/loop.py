"""The loop of a training run: counts steps, crops and seconds, and says when to log and to save."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Protocol

from torch import Tensor


class Environment(Protocol):
    """What the loop reads of the settings of a run."""

    @property
    def save_minutes(self) -> float:
        """Minutes between two saves."""

    @property
    def log_steps(self) -> int:
        """Number of steps between two entries of the log."""

    @property
    def should_stop(self) -> Callable[[], bool]:
        """Called before each step; True ends the loop."""


@dataclasses.dataclass
class Counters:
    """How far a run is: number of steps and crops, and seconds of training."""

    step: int = 0
    crops: int = 0
    seconds: float = 0.0


def train(
    counters: Counters,
    progress: Callable[[int, float], float],
    environment: Environment,
    train_step: Callable[[float], tuple[dict[str, Tensor], int]],
    log: Callable[[dict[str, float], float, float], None],
    save: Callable[[], None],
) -> bool:
    """Train until the run is finished (True) or asked to stop (False).

    Parameters
    ----------
    counters : Counters
        Where to start; updated after each step.
    progress : callable
        Returns the completed fraction of the run for a number of steps and seconds.
    environment : Environment
        Intervals, and whether to stop.
    train_step : callable
        Makes one step at a given progress; returns its losses and its number of crops.
    log : callable
        Gets the mean losses since the call before, the progress, and the crops per second.
    save : callable
        Saves the run.
    """
    sums: dict[str, Tensor] = {}
    n_summed = 0
    start = saved = logged = time.monotonic()
    crops, seconds = counters.crops, counters.seconds
    while (fraction := progress(counters.step, seconds + time.monotonic() - start)) < 1:
        if environment.should_stop():
            counters.seconds = seconds + time.monotonic() - start
            return False
        losses, n_crops = train_step(fraction)
        counters.step += 1
        counters.crops += n_crops
        sums = {name: value + sums[name] if sums else value for name, value in losses.items()}
        n_summed += 1
        now = time.monotonic()
        counters.seconds = seconds + now - start
        if counters.step % environment.log_steps == 0:
            means = {name: value.item() / n_summed for name, value in sums.items()}
            log(means, fraction, (counters.crops - crops) / (now - logged))
            sums, n_summed, crops, logged = {}, 0, counters.crops, now
        if now - saved > 60 * environment.save_minutes:
            save()
            saved = time.monotonic()
    return True
