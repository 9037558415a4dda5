"""What the student is shown: crops, and what the teacher makes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

USES = 3  # of each lesson that is kept
_CHOICE = 2  # a stream of random numbers, beside those of plans


class Batch(NamedTuple):
    """``crops`` (B, 3, h, w), ``states``, each (B, T, D), and the last ``key`` (B, T, D) of the teacher."""

    crops: Tensor
    states: list[Tensor]
    key: Tensor

    def to(self, dtype: torch.dtype) -> Batch:
        """The same in another type."""
        return Batch(self.crops.to(dtype), [state.to(dtype) for state in self.states], self.key.to(dtype))


class Targets:
    """One lesson a step, with some of them kept and given again.

    On a CPU the teacher takes 40 % of a step. With each answer used three times that shrinks to a seventh, and kept for
    hundreds of steps the three are far enough apart.

    Parameters
    ----------
    fresh : callable
        The next batch of crops; each call is the next one's.
    cut : callable
        Any batch of crops, by number.
    teach : callable
        From crops to a lesson.
    kept : int
        Lessons kept, in bfloat16; 0 gives every lesson once. One of 16 crops takes some 14 MB with 6 states of width
        192.
    seed : int
    """

    def __init__(
        self, fresh: Callable[[], Tensor], cut: Callable[[int], Tensor], teach: Callable[[Tensor], Batch],
        kept: int, seed: int,
    ):  # fmt: skip
        self._fresh, self.cut, self._teach, self._most, self._seed = fresh, cut, teach, kept, seed
        self.given = 0  # fresh batches so far
        self._kept: list[list] = []  # batch, uses left, the lesson or None when it's to be made again

    def state_dict(self) -> dict:
        """Which lessons are kept, without their contents, which can be had again."""
        return {"given": self.given, "kept": [[number, left] for number, left, _ in self._kept]}

    def load_state_dict(self, state: dict) -> None:
        """Go on from there; `fresh` begins with the batch ``state["given"]``."""
        self.given, self._kept = state["given"], [[number, left, None] for number, left in state["kept"]]

    def __call__(self, step: int) -> Batch:
        """The lesson of a step; steps come in order."""
        if not self._most:
            self.given += 1
            return self._teach(self._fresh())
        chance = np.random.default_rng([self._seed, _CHOICE, step])
        if len(self._kept) < self._most or chance.random() < 1 / USES:
            self._kept.append([self.given, USES, self._teach(self._fresh()).to(torch.bfloat16)])
            self.given += 1
            place = len(self._kept) - 1
        else:
            place = chance.integers(len(self._kept))
        entry = self._kept[place]
        if entry[2] is None:
            entry[2] = self._teach(self.cut(entry[0])).to(torch.bfloat16)
        entry[1] -= 1
        if not entry[1]:
            self._kept[place] = self._kept[-1]
            self._kept.pop()
        return entry[2].to(torch.float32)
