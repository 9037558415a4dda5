"""Configuration of a self-training run. Does not need torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from vitnp.errors import UsageError


@dataclasses.dataclass(frozen=True)
class SelftrainRecipe:
    """Hyperparameters of a run.

    Together with the network and the photographs they determine the result: exactly for `steps` on a CPU; for `minutes`
    it also depends on the speed of the machine.

    Parameters
    ----------
    rounds : int
        Number of rounds; in each of them the network of the round before makes the labels.
    minutes : float, optional
        Training time of each round in minutes, without the labels; the learning rate follows the clock. Exactly one of
        `minutes` and `steps` must be given.
    steps : int, optional
        Number of training steps of each round. On a CPU the result is then bitwise reproducible, also across
        interruptions.
    n_fit : int
        Number of photographs that the collection of a round is fitted on.
    n_labels : int, optional
        Number of photographs that are labeled; by default all.
    min_confidence : float
        Photographs with less confidence are not learned from.
    sharpness : float
        How far soft labels are pushed to 0 and 1, see :func:`vitnp.weights.train.selftrain_losses.sharpen`; the
        method has doubled their contrast before.
    batch_size : int
        Number of 224 x 224 crops per batch.
    lr : float
        Peak learning rate of the last block; each block before it has `layer_decay` times that of the next.
    layer_decay : float
        See `lr`.
    key_weight, cls_weight : float
        Weights of the losses that keep keys, and CLS tokens, near those of the original network.
    seed : int
        Seed of all random numbers.
    bfloat16 : bool
        Whether matrix products run in bfloat16 (autocast) instead of float32.
    """

    rounds: int = 2
    minutes: float | None = None
    steps: int | None = None
    n_fit: int = 1500
    n_labels: int | None = None
    min_confidence: float = 0.3
    sharpness: float = 1.5
    batch_size: int = 16
    lr: float = 1.5e-4
    layer_decay: float = 0.8
    key_weight: float = 0.1
    cls_weight: float = 0.7
    seed: int = 0
    bfloat16: bool = True

    def progress(self, step: int, seconds: float) -> float:
        """Return the completed fraction of a round after a number of steps and seconds; 1 and above means finished."""
        if self.steps is not None:
            return step / self.steps
        assert self.minutes is not None, "check_selftrain() requires minutes or steps"
        return seconds / (60 * self.minutes)


@dataclasses.dataclass(frozen=True)
class SelftrainEnvironment:
    """Settings of a run that do not change its result, except by rounding.

    Parameters
    ----------
    device : {"cpu", "cuda"}
        Where to train; labels are made where the network that is given computes.
    n_threads : int
        Number of threads that read and segment photographs.
    save_minutes : float
        Minutes between two saves.
    log_steps : int
        Number of steps between two entries of the log.
    should_stop : callable
        Called before each step; when it returns True the run is saved and ends.
    """

    device: str = "cpu"
    n_threads: int = 1
    save_minutes: float = 5.0
    log_steps: int = 50
    should_stop: Callable[[], bool] = lambda: False


def check_selftrain(recipe: SelftrainRecipe, n_photographs: int) -> None:
    """Check a recipe before anything is read or written.

    Raises
    ------
    UsageError
        If its values contradict each other, or do not fit the number of photographs.
    """
    if (recipe.minutes is None) == (recipe.steps is None):
        raise UsageError("the length of a round must be given as either --minutes or --steps; give exactly one of them")
    needed = max(recipe.batch_size, recipe.n_labels or 0)
    if n_photographs < needed:
        raise UsageError(f"{n_photographs} photographs are too few, {needed} are needed; give more, or ask for fewer")
    if recipe.n_labels is not None and recipe.n_labels < recipe.batch_size:
        raise UsageError(
            f"{recipe.n_labels} labels are too few for a batch of {recipe.batch_size}; ask for more, or a smaller batch"
        )
