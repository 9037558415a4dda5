"""Distillation losses."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from vitnp.weights.train import torch_vit
from vitnp.weights.train.targets import TargetBatch

from vitnp.vit.config import ViTConfig

_MIN_STD = 1e-4  # keeps constant channels from dividing by zero


class FeatureScales(NamedTuple):
    """Spread of the teacher's features, by which errors are divided so that all of them count alike.

    ``states``, each (1, 1, D), and ``key`` (1, 1, D) are standard deviations of channels over crops and tokens;
    ``token`` () is the variance of all final tokens.
    """

    states: list[Tensor]
    key: Tensor
    token: Tensor

    @classmethod
    def measure(cls, batch: TargetBatch, final_tokens: Tensor) -> FeatureScales:
        """Measure the scales on one batch and the teacher's final tokens (B, T, D)."""

        def channel_std(x: Tensor) -> Tensor:
            return x.std((0, 1), keepdim=True) + _MIN_STD

        return cls([channel_std(state) for state in batch.states], channel_std(batch.key), final_tokens.var())


def distillation_losses(
    student: torch_vit.Weights,
    config: ViTConfig,
    states: list[Tensor],
    key: Tensor,
    batch: TargetBatch,
    final_tokens: Tensor,
    scales: FeatureScales,
) -> dict[str, Tensor]:
    """Compute the mean squared errors of the student, relative to the teacher's spread, and their weighted sum.

    Parameters
    ----------
    student : mapping of str to Tensor
        Weights of the student, for its final norm.
    config : ViTConfig
        Configuration of the student.
    states : list of (B, T, D) Tensor
        Hidden states of the student, matching ``batch.states``.
    key : (B, T, D) Tensor
        Keys of the student's last block.
    batch : TargetBatch
        Targets.
    final_tokens : (B, T, D) Tensor
        The teacher's tokens after its final norm.
    scales : FeatureScales
        Spread of the teacher's features.

    Returns
    -------
    dict of str to () Tensor
        "hidden", the mean over all states; "key"; "token", all tokens after the final norm; "cls", the CLS token after
        the final norm; "loss", the weighted sum; and "cosine", the mean cosine similarity between the keys of student
        and teacher without CLS, which is not part of the loss.
    """
    student_tokens = torch_vit.layer_norm(student, config, states[-1])
    hidden = [
        ((a - b) / scale).square().mean() for a, b, scale in zip(states, batch.states, scales.states, strict=True)
    ]
    losses = {
        "hidden": torch.stack(hidden).mean(),
        "key": ((key - batch.key) / scales.key).square().mean(),
        "token": (student_tokens - final_tokens).square().mean() / scales.token,
        "cls": (student_tokens[:, 0] - final_tokens[:, 0]).square().mean() / scales.token,
    }
    losses["loss"] = losses["hidden"] + losses["key"] + 0.5 * losses["token"] + 0.5 * losses["cls"]
    losses["cosine"] = F.cosine_similarity(key[:, 1:].detach(), batch.key[:, 1:], dim=-1).mean()
    return losses
