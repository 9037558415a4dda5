"""Muon: an optimizer whose updates are orthogonalized momentum.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Five iterations of the quintic 3.4445 x - 4.7750 x^3 + 2.0315 x^5 map singular values in 0.01..1 to about 0.7..1.2.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


class _Part(NamedTuple):
    """View of a weight matrix and its update, which is transposed if the matrix is `tall`: more rows than columns."""

    weight: Tensor
    update: Tensor
    tall: bool


class Muon:
    """Optimizer of the weight matrices of transformer blocks; all other weights need another optimizer.

    The momentum is orthogonalized before it is applied, so that rare directions are learned as fast as common ones. The
    fused query, key and value matrix is treated as three matrices. Matrices of equal shape are orthogonalized together.

    Parameters
    ----------
    matrices : sequence of Tensor
        Weights to update; a matrix of 3 D rows holds query, key and value.
    width : int
        Width D of the network.
    momentum : float
        Decay of the running average of gradients.
    weight_decay : float
        Decoupled weight decay, multiplied by the learning rate.
    """

    def __init__(
        self, matrices: Sequence[Tensor], width: int, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        self._matrices, self._width, self._momentum, self._weight_decay = matrices, width, momentum, weight_decay
        self._averages = [torch.zeros_like(matrix) for matrix in matrices]

    def state_dict(self) -> dict[str, list[Tensor]]:
        """Return the running averages of the gradients."""
        return {"averages": self._averages}

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        """Restore a state."""
        torch._foreach_copy_(self._averages, state["averages"])

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Update every matrix by its gradient, at a learning rate."""
        groups: dict[tuple[int, ...], list[_Part]] = {}
        for matrix, average in zip(self._matrices, self._averages):
            for part in self._parts(matrix, average, lr):
                groups.setdefault(tuple(part.update.shape), []).append(part)
        for group in groups.values():
            for (weight, _, tall), step in zip(group, orthogonalize(torch.stack([part.update for part in group]))):
                # A tall matrix needs larger steps to change its outputs as much.
                scale = (weight.shape[0] / weight.shape[1]) ** 0.5
                weight.sub_(step.T * scale if tall else step, alpha=lr)

    def _parts(self, matrix: Tensor, average: Tensor, lr: float) -> list[_Part]:
        """Advance the average of a matrix, decay its weights, and return its parts with their Nesterov updates."""
        assert matrix.grad is not None, "step() must follow backward()"
        average.lerp_(matrix.grad, 1 - self._momentum)
        nesterov = matrix.grad.lerp(average, self._momentum)
        matrix.mul_(1 - lr * self._weight_decay)
        n_parts = len(matrix) // self._width if len(matrix) == 3 * self._width else 1
        parts = []
        for weight, update in zip(matrix.chunk(n_parts), nesterov.chunk(n_parts)):
            tall = update.shape[0] > update.shape[1]
            parts.append(_Part(weight, update.T if tall else update, tall))
        return parts


def orthogonalize(matrices: Tensor) -> Tensor:
    """Return approximately the nearest matrices with orthonormal rows: five Newton-Schulz iterations in bfloat16.

    Parameters
    ----------
    matrices : (n, a, b) Tensor
        Matrices with a <= b.

    Returns
    -------
    (n, a, b) float32 Tensor
        Matrices whose singular values are about 0.7 to 1.2.
    """
    x = matrices.bfloat16()
    x = x / (x.float().flatten(1).norm(dim=1)[:, None, None].to(x.dtype) + 1e-7)
    first, third, fifth = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = first * x + (third * gram + fifth * (gram @ gram)) @ x
    return x.float()
