"""The network of :mod:`vitnp.vit.forward` once more, in torch, because training needs derivatives.

Letters as there: B images, N patches, T tokens in the order CLS, registers, patches; D width, H heads, P patch. Weights
are a plain mapping with the names of the files, so that they go to and fro as they are.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from vitnp.weights.train.data.sampler import TRAINED, snapped

from vitnp.vit import model
from vitnp.vit.config import ViTConfig
from vitnp.vit.pos_embed import resample_positions

Weights = Mapping[str, Tensor]

_SPREAD = 0.02  # standard deviation of what a network begins with
_MLP = 4  # width of the MLP over D


def to_torch(network: model.ViT, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """The weights of a network of vitnp, float32."""
    return {name: torch.tensor(weight, dtype=torch.float32, device=device) for name, weight in network.weights.items()}


def to_numpy(weights: Weights) -> dict[str, np.ndarray]:
    """Weights for vitnp, float32."""
    return {name: weight.detach().float().cpu().numpy() for name, weight in weights.items()}


def student_config(teacher: ViTConfig, depth: int) -> ViTConfig:
    """A plain ViT of fewer blocks with the width, heads, patch, registers and normalization of its teacher."""
    rows, columns = (side // teacher.patch for side in snapped((TRAINED, TRAINED), teacher.patch))
    return dataclasses.replace(
        teacher, depth=depth, grid=(rows, columns), swiglu=False, layerscale=False, pos_embed="exact", eps=1e-6
    )


def initial_weights(config: ViTConfig, seed: int) -> dict[str, Tensor]:
    """Where a student begins: truncated normal weights, no biases, norms that do nothing.

    Parameters
    ----------
    config : ViTConfig
        Of a plain ViT, without SwiGLU and LayerScale.
    seed : int
    """
    width, patch, chance = config.width, config.patch, torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.nn.init.trunc_normal_(torch.empty(shape), std=_SPREAD, generator=chance)

    def uniform(*shape: int) -> Tensor:
        # As torch begins a convolution: the fan-in is a patch.
        return torch.empty(shape).uniform_(-1, 1, generator=chance) / (3 * patch**2) ** 0.5

    weights = {
        "cls_token": drawn(1, 1, width),
        "pos_embed": drawn(1, 1 + config.grid[0] * config.grid[1], width),
        "patch_embed.proj.weight": uniform(width, 3, patch, patch),
        "patch_embed.proj.bias": uniform(width),
    }
    if config.registers:
        weights["register_tokens"] = drawn(1, config.registers, width)
    linear = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    linear |= {"mlp.fc1": (_MLP * width, width), "mlp.fc2": (width, _MLP * width)}
    for index in range(config.depth):
        for name, shape in linear.items():
            weights[f"blocks.{index}.{name}.weight"] = drawn(*shape)
            weights[f"blocks.{index}.{name}.bias"] = torch.zeros(shape[0])
    for name in (*(f"blocks.{index}.norm{part}" for index in range(config.depth) for part in (1, 2)), "norm"):
        weights[f"{name}.weight"], weights[f"{name}.bias"] = torch.ones(width), torch.zeros(width)
    return weights


def stream(
    weights: Weights, config: ViTConfig, images: Tensor, every: int = 1, feed: Sequence[Tensor] | None = None
) -> tuple[list[Tensor], Tensor]:
    """Tokens on their way through the network.

    Parameters
    ----------
    weights : mapping of str to Tensor
    config : ViTConfig
    images : (B, 3, height, width) Tensor
        Normalized; sides are multiples of P.
    every : int
        Blocks from one state to the next.
    feed : sequence of (B, T, D) Tensor, optional
        What enters each block, in place of what the block before it made.

    Returns
    -------
    states : list of (B, T, D) float32 Tensor
        After the embedding and after each group of `every` blocks.
    key : (B, T, D) float32 Tensor
        Of the last block, heads side by side.
    """
    x = embed(weights, config, images)
    states = [x]
    for index in range(config.depth):
        x, key = block(weights, config, x if feed is None else feed[index], index)
        if (index + 1) % every == 0:
            states.append(x)
    return states, key.float()


def compiled_stream() -> Callable[..., tuple[list[Tensor], Tensor]]:
    """:func:`stream`, compiled anew for every shape of crops, with a teacher and a student, fed and not."""
    config = torch._dynamo.config
    setattr(config, "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit", 64)
    return torch.compile(stream, dynamic=False)


def embed(weights: Weights, config: ViTConfig, images: Tensor) -> Tensor:
    """Tokens (B, T, D) of images: patches and CLS with their positions, registers without."""
    patch = config.patch
    batch, _, height, width = images.shape
    rows, columns = height // patch, width // patch
    # A linear layer on patches is what the convolution amounts to, and is faster.
    patches = images.reshape(batch, 3, rows, patch, columns, patch).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    x = F.linear(patches, weights["patch_embed.proj.weight"].flatten(1), weights["patch_embed.proj.bias"]).float()
    table = weights["pos_embed"][0]  # (1 + N0, D), or (N0, D) where CLS has no position
    first = len(table) - config.grid[0] * config.grid[1]
    positions = table[first:]
    if (rows, columns) != config.grid:
        positions = _resampling(config.grid, (rows, columns), config.pos_embed).to(positions) @ positions
    leading = weights["cls_token"] + table[:first].sum(0)
    if config.registers:
        leading = torch.cat([leading, weights["register_tokens"]], 1)
    return torch.cat([leading.expand(batch, -1, -1), x + positions], 1)


def block(weights: Weights, config: ViTConfig, x: Tensor, index: int) -> tuple[Tensor, Tensor]:
    """One pre-norm transformer block on tokens (B, T, D): what it makes of them, and its keys (B, T, D)."""
    batch, tokens, width = x.shape
    name = f"blocks.{index}"
    y = _linear(weights, norm(weights, config, x, f"{name}.norm1"), f"{name}.attn.qkv")
    query, key, value = y.chunk(3, -1)
    heads = (part.reshape(batch, tokens, config.heads, -1).transpose(1, 2) for part in (query, key, value))
    y = F.scaled_dot_product_attention(*heads).transpose(1, 2).reshape(batch, tokens, width)
    y = _linear(weights, y, f"{name}.attn.proj").float()
    x = x + (y * weights[f"{name}.ls1.gamma"] if config.layerscale else y)
    y = norm(weights, config, x, f"{name}.norm2")
    if config.swiglu:
        gate, y = _linear(weights, y, f"{name}.mlp.w12").chunk(2, -1)
        y = _linear(weights, F.silu(gate) * y, f"{name}.mlp.w3").float()
    else:
        y = _linear(weights, F.gelu(_linear(weights, y, f"{name}.mlp.fc1")), f"{name}.mlp.fc2").float()
    return x + (y * weights[f"{name}.ls2.gamma"] if config.layerscale else y), key


def norm(weights: Weights, config: ViTConfig, x: Tensor, name: str = "norm") -> Tensor:
    """LayerNorm over D; by default the final one."""
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], config.eps)


def _linear(weights: Weights, x: Tensor, name: str) -> Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


@torch.compiler.disable
@functools.lru_cache(maxsize=32)
def _resampling(trained: tuple[int, int], grid: tuple[int, int], convention: str) -> Tensor:
    """Resampling of positions as a matrix (patches, trained patches): what vitnp's own does to each unit vector."""
    count = trained[0] * trained[1]
    units = np.eye(count).reshape(*trained, count)
    return torch.from_numpy(resample_positions(units, grid, convention)).float()
