"""Muon: steps whose singular values are all about the same.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# The quintic 3.4445 x - 4.7750 x^3 + 2.0315 x^5, five times over, brings singular values from 0.01 to 1 to about
# 0.7 to 1.2.
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


class Muon:
    """An optimizer for the matrices of a transformer's blocks; everything else needs another one.

    Momentum is orthogonalised before it is applied, so that rare directions are learnt as fast as common ones. Query,
    key and value, which lie in one matrix, are three. Matrices of the same shape go through the iteration together.

    Parameters
    ----------
    matrices : sequence of Tensor
        Those of 3 D rows are query, key and value.
    width : int
        D.
    momentum, decay : float
    """

    def __init__(self, matrices: Sequence[Tensor], width: int, momentum: float = 0.95, decay: float = 0.01):
        self._matrices, self._width, self._momentum, self._decay = matrices, width, momentum, decay
        self._means = [torch.zeros_like(matrix) for matrix in matrices]

    def state_dict(self) -> dict[str, list[Tensor]]:
        """What the next step depends on."""
        return {"means": self._means}

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        """Go on from there."""
        torch._foreach_copy_(self._means, state["means"])

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Move every matrix by its gradient, at a learning rate."""
        groups: dict[tuple[int, ...], list[tuple[Tensor, Tensor, bool]]] = {}
        for matrix, mean in zip(self._matrices, self._means):
            mean.lerp_(matrix.grad, 1 - self._momentum)
            update = matrix.grad.lerp(mean, self._momentum)
            matrix.mul_(1 - rate * self._decay)
            pieces = len(matrix) // self._width if len(matrix) == 3 * self._width else 1
            for part, piece in zip(matrix.chunk(pieces), update.chunk(pieces)):
                tall = piece.shape[0] > piece.shape[1]
                piece = piece.T if tall else piece
                groups.setdefault(tuple(piece.shape), []).append((part, piece, tall))
        for group in groups.values():
            steps = orthogonal(torch.stack([piece for _, piece, _ in group]))
            for (part, _, tall), step in zip(group, steps):
                # A tall matrix needs larger steps for its outputs to change as much.
                part.sub_(step.T * (part.shape[0] / part.shape[1]) ** 0.5 if tall else step, alpha=rate)


def orthogonal(matrices: Tensor) -> Tensor:
    """The nearest matrices (n, a, b), a <= b, with orthonormal rows, roughly: five Newton-Schulz steps in bfloat16."""
    x = matrices.bfloat16()
    x = x / (x.float().flatten(1).norm(dim=1)[:, None, None].to(x.dtype) + 1e-7)
    first, third, fifth = _QUINTIC
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = first * x + (third * gram + fifth * (gram @ gram)) @ x
    return x.float()
