"""Targets of the student: the outputs of the teacher on batches of crops."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import NamedTuple, TypedDict

import numpy as np
import torch
from torch import Tensor
from vitnp.weights.train import torch_vit
from vitnp.weights.train.data.crops import Normalizer

from vitnp.vit.model import ViT

USES_PER_BATCH = 3  # in a pool
_POOL_STREAM = 2  # random stream, distinct from those of data/sampler.py


class TargetBatch(NamedTuple):
    """A batch of crops and the outputs of the teacher on them.

    ``crops`` (B, 3, h, w) are normalized; ``states``, each (B, T, D), are the hidden states after the embedding and
    after each group of blocks; ``key`` (B, T, D) holds the keys of the last block.
    """

    crops: Tensor
    states: list[Tensor]
    key: Tensor

    def to(self, dtype: torch.dtype) -> TargetBatch:
        """Return the batch converted to another dtype."""
        return TargetBatch(self.crops.to(dtype), [state.to(dtype) for state in self.states], self.key.to(dtype))


class Teacher:
    """The trained network that provides the targets.

    Parameters
    ----------
    vit : ViT
        Any network that vitnp runs.
    group_size : int
        Number of blocks of the teacher per block of the student.
    device : torch.device
        Where to compute.
    forward : callable
        :func:`vitnp.weights.train.torch_vit.forward`, or its compiled form.
    autocast : callable
        Returns the context that sets the precision of matrix products.
    """

    def __init__(
        self,
        vit: ViT,
        group_size: int,
        device: torch.device,
        forward: torch_vit.Forward,
        autocast: Callable[[], contextlib.AbstractContextManager[object]],
    ) -> None:
        self.name, self.config = vit.name, vit.config
        self._weights = torch_vit.to_torch(vit, device)
        self._group_size, self._forward, self._autocast = group_size, forward, autocast
        self._normalize = Normalizer(vit.config, device)

    def __call__(self, crops: Tensor) -> TargetBatch:
        """Return the targets of crops (B, 3, h, w) with values in 0..255."""
        crops = self._normalize(crops)
        with torch.no_grad(), self._autocast():
            return TargetBatch(crops, *self._forward(self._weights, self.config, crops, self._group_size))

    def final_tokens(self, batch: TargetBatch) -> Tensor:
        """Return the teacher's tokens (B, T, D) after its final norm."""
        return torch_vit.layer_norm(self._weights, self.config, batch.states[-1])


class PoolState(TypedDict):
    """State of a :class:`TargetPool`: index of the next new batch, and [index, remaining uses] of each in the pool."""

    next_batch: int
    pool: list[list[int]]


@dataclasses.dataclass
class _PoolEntry:
    index: int
    remaining_uses: int
    batch: TargetBatch | None  # None after resuming, until it is needed


class TargetPool:
    """Provide one target batch per step, optionally reusing recent ones (data echoing).

    On a CPU the teacher takes 40 % of the time of a step. Using each of its outputs three times reduces this to a
    seventh. In a pool of hundreds of batches the three uses are far enough apart.

    Parameters
    ----------
    next_crops : callable
        Returns the next batch of crops at each call.
    crops_at : callable
        Returns a batch of crops by its index.
    teacher : callable
        Computes a :class:`TargetBatch` from a batch of crops.
    size : int
        Number of batches in the pool, stored in bfloat16; 0 uses every batch once. A batch of 16 crops with 6 states of
        width 192 takes about 14 MB.
    seed : int
        Seed of the order.

    References
    ----------
    Choi et al. 2019, Faster neural network training with data echoing, arXiv 1907.05550.
    """

    def __init__(
        self,
        next_crops: Callable[[], Tensor],
        crops_at: Callable[[int], Tensor],
        teacher: Callable[[Tensor], TargetBatch],
        size: int,
        seed: int,
    ) -> None:
        self._next_crops, self._crops_at, self._teacher = next_crops, crops_at, teacher
        self._size, self._seed = size, seed
        self.next_batch = 0
        self._pool: list[_PoolEntry] = []

    def state_dict(self) -> PoolState:
        """Return which batches are in the pool, without their contents, which can be computed again."""
        pool = [[entry.index, entry.remaining_uses] for entry in self._pool]
        return {"next_batch": self.next_batch, "pool": pool}

    def load_state_dict(self, state: PoolState) -> None:
        """Restore a state; `next_crops` must continue with batch ``state["next_batch"]``."""
        self.next_batch = state["next_batch"]
        self._pool = [_PoolEntry(index, uses, None) for index, uses in state["pool"]]

    def __call__(self, step: int) -> TargetBatch:
        """Return the batch of a step; steps must come in ascending order."""
        if not self._size:
            self.next_batch += 1
            return self._teacher(self._next_crops())
        rng = np.random.default_rng([self._seed, _POOL_STREAM, step])
        if len(self._pool) < self._size or rng.random() < 1 / USES_PER_BATCH:
            batch = self._teacher(self._next_crops()).to(torch.bfloat16)
            self._pool.append(_PoolEntry(self.next_batch, USES_PER_BATCH, batch))
            self.next_batch += 1
            position = len(self._pool) - 1
        else:
            position = int(rng.integers(len(self._pool)))
        return self._use(position).to(torch.float32)

    def _use(self, position: int) -> TargetBatch:
        """Return a batch of the pool, and remove it after its last use."""
        entry = self._pool[position]
        if entry.batch is None:
            entry.batch = self._teacher(self._crops_at(entry.index)).to(torch.bfloat16)
        entry.remaining_uses -= 1
        if not entry.remaining_uses:
            self._pool[position] = self._pool[-1]
            self._pool.pop()
        return entry.batch
