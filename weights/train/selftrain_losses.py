"""Losses of self-training: foreground must be linear in the keys, and the features must stay what they were."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor
from vitnp.weights.train import torch_vit

from vitnp.vit.config import ViTConfig

# Names of the linear readout beside the weights of the network.
READOUT_WEIGHT, READOUT_BIAS = "readout.weight", "readout.bias"


class Features(NamedTuple):
    """What self-training looks at.

    ``key`` (B, N, D), the keys of the patches, normalized to unit length; ``cls`` (A, D) and ``region_cls`` (A, D), for
    the first A crops, the CLS token and that of the foreground alone, both after the final norm. All float32.
    """

    key: Tensor
    cls: Tensor
    region_cls: Tensor

    @classmethod
    def compute(cls, weights: torch_vit.Weights, config: ViTConfig, crops: Tensor, foreground: Tensor) -> Features:
        """Compute the features of normalized crops (B, 3, h, w), with foreground patches (A, N) bool of the first A."""
        states, key = torch_vit.forward(weights, config, crops)
        n_regions, n_patches = foreground.shape
        rotation = torch_vit.token_rotation(weights, config, crops)
        region_cls = torch_vit.region_cls(weights, config, states[-2][:n_regions], foreground, rotation)
        cls_token = torch_vit.layer_norm(weights, config, states[-1][:n_regions, 0])
        unit = F.normalize(key[:, -n_patches:].float(), dim=-1)
        return cls(unit, cls_token.float(), region_cls.float())


class LossWeights(NamedTuple):
    """Weights of the losses beside that of the mask, which has weight 1."""

    key: float
    cls: float


def selftraining_losses(
    features: Features,
    anchor: Features,
    readout: tuple[Tensor, Tensor],
    targets: Tensor,
    weights: LossWeights,
) -> dict[str, Tensor]:
    """Compute the losses of a batch and their weighted sum.

    Parameters
    ----------
    features : Features
        Features of the network that is trained, on B crops, A of them anchored.
    anchor : Features
        Features of the original network on the first A crops.
    readout : ((D,) Tensor, (1,) Tensor)
        Weights and bias of the linear readout of foreground, which is trained too.
    targets : (B, N) Tensor
        Foreground of each patch, 0 to 1.
    weights : LossWeights
        Weights of the anchors.

    Returns
    -------
    dict of str to () Tensor
        "mask", the cross-entropy of the readout; "key", "cls" and "region_cls", 1 - the mean cosine similarity with the
        anchor; and "loss", mask + weights.key * key + weights.cls * (cls + region_cls).
    """
    weight, bias = readout
    logits = features.key @ weight + bias
    losses = {
        "mask": F.binary_cross_entropy_with_logits(logits, targets),
        "key": _cosine_distance(features.key[: len(anchor.key)], anchor.key),
        "cls": _cosine_distance(features.cls, anchor.cls),
        "region_cls": _cosine_distance(features.region_cls, anchor.region_cls),
    }
    losses["loss"] = losses["mask"] + weights.key * losses["key"] + weights.cls * (losses["cls"] + losses["region_cls"])
    return losses


def sharpen(targets: Tensor, sharpness: float) -> Tensor:
    """Push soft targets away from 1/2, where means of several levels lie: clip(sharpness (y - 1/2) + 1/2, 0, 1).

    Examples
    --------
    >>> import torch
    >>> sharpen(torch.tensor([0.25, 0.5, 0.6]), 3.0)
    tensor([0.0000, 0.5000, 0.8000])
    """
    return (sharpness * (targets - 0.5) + 0.5).clamp(0, 1)


def _cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(a, b, dim=-1).mean()
