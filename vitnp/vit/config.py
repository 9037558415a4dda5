"""Architecture and preprocessing of a ViT."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """What the weights alone don't say, and what they do, at one glance.

    Parameters
    ----------
    width, depth, heads, patch : int
        D, number of blocks, H, P.
    grid : (int, int)
        Rows and columns of patches that the position embeddings were trained on.
    registers : int
        Register tokens, R.
    swiglu, layerscale : bool
        Whether the MLP is gated; whether residual branches are scaled.
    eps : float
        Of every LayerNorm.
    pos_embed : {"offset", "exact", "antialias"}
        How position embeddings are resampled, see :mod:`vitnp.vit.pos_embed`.
    mean, std : (float, float, float)
        Normalization of RGB in 0..1 that the network was trained with.
    """

    width: int
    depth: int
    heads: int
    patch: int
    grid: tuple[int, int]
    registers: int = 0
    swiglu: bool = False
    layerscale: bool = False
    eps: float = 1e-6
    pos_embed: str = "offset"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
