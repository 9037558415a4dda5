"""What distillation asks of the student."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from vitnp.weights.train import torch_vit
from vitnp.weights.train.targets import Batch

from vitnp.vit.config import ViTConfig

_TOO_LITTLE = 1e-4  # spread of a channel that says nothing


class Scales(NamedTuple):
    """How much the teacher's features vary, so that errors in all of them count alike.

    ``states``, each (1, 1, D), and ``key`` (1, 1, D) are standard deviations of channels over crops and tokens;
    ``token`` () is the variance of all final tokens.
    """

    states: list[Tensor]
    key: Tensor
    token: Tensor

    @classmethod
    def of(cls, lesson: Batch, final: Tensor) -> Scales:
        """Measured on one lesson and the teacher's final tokens (B, T, D)."""

        def spread(x: Tensor) -> Tensor:
            return x.std((0, 1), keepdim=True) + _TOO_LITTLE

        return cls([spread(state) for state in lesson.states], spread(lesson.key), final.var())


def errors(
    student: torch_vit.Weights, config: ViTConfig, states: list[Tensor], key: Tensor,
    lesson: Batch, final: Tensor, scales: Scales,
) -> dict[str, Tensor]:  # fmt: skip
    """Mean squared errors of the student, each () and relative to the teacher's spread, and their sum.

    Parameters
    ----------
    student : mapping of str to Tensor
    config : ViTConfig
        The student's.
    states, key
        Of the student, as in :class:`Batch`.
    lesson : Lesson
    final : (B, T, D) Tensor
        The teacher's tokens after its final norm.
    scales : Scales

    Returns
    -------
    dict of str to Tensor
        "hidden", over all states; "key"; "token", after the final norm; "cls", of those the first; "loss"; and
        "cosine", the mean cosine between the keys of both, CLS left out, which is no part of the loss.
    """
    own = torch_vit.norm(student, config, states[-1])
    parts = [
        ((a - b) / scale).square().mean() for a, b, scale in zip(states, lesson.states, scales.states, strict=True)
    ]
    found = {
        "hidden": torch.stack(parts).mean(),
        "key": ((key - lesson.key) / scales.key).square().mean(),
        "token": (own - final).square().mean() / scales.token,
        "cls": (own[:, 0] - final[:, 0]).square().mean() / scales.token,
    }
    found["loss"] = found["hidden"] + found["key"] + 0.5 * found["token"] + 0.5 * found["cls"]
    found["cosine"] = F.cosine_similarity(key[:, 1:].detach(), lesson.key[:, 1:], dim=-1).mean()
    return found
