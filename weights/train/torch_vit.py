"""The network of :mod:`vitnp.vit.forward` in torch, because training needs derivatives.

Notation as there: B images, N patches, T tokens in the order CLS, registers, patches; width D, H heads, patch size P.
Weights are a plain mapping with the names used in checkpoint files, so that no conversion is needed.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from vitnp.weights.train.data.sampler import BASE_SIZE, round_to_patch

from vitnp.vit import model
from vitnp.vit.config import ViTConfig
from vitnp.vit.pos_embed import resample_abs_pos_embed
from vitnp.vit.rotary import rotation_table

Weights = Mapping[str, Tensor]
Forward = Callable[..., tuple[list[Tensor], Tensor]]  # the signature of forward()

_INIT_STD = 0.02
_MLP_RATIO = 4


def to_torch(vit: model.ViT, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Return the weights of a ViT as float32 tensors."""
    return {name: torch.tensor(weight, dtype=torch.float32, device=device) for name, weight in vit.weights.items()}


def to_numpy(weights: Weights) -> dict[str, np.ndarray]:
    """Return weights as float32 arrays."""
    return {name: weight.detach().float().cpu().numpy() for name, weight in weights.items()}


def student_config(teacher: ViTConfig, depth: int) -> ViTConfig:
    """Return the configuration of a student: a plain ViT of `depth` blocks, otherwise like its teacher.

    Width, heads, patch size, registers and normalization are the teacher's. Its position embeddings are a table, also
    where the teacher's are rotary.
    """
    rows, columns = (side // teacher.patch for side in round_to_patch((BASE_SIZE, BASE_SIZE), teacher.patch))
    return dataclasses.replace(
        teacher,
        depth=depth,
        grid=(rows, columns),
        swiglu=False,
        layerscale=False,
        pos_embed="exact",
        eps=1e-6,
        rotary=False,
    )


def initial_weights(config: ViTConfig, seed: int) -> dict[str, Tensor]:
    """Return random initial weights: truncated normal matrices, zero biases, identity norms.

    Parameters
    ----------
    config : ViTConfig
        A plain ViT, without SwiGLU and LayerScale.
    seed : int
        Seed of the random numbers.

    Returns
    -------
    dict of str to float32 Tensor
        Weights by name, on the CPU.
    """
    width, patch, generator = config.width, config.patch, torch.Generator().manual_seed(seed)

    def trunc_normal(*shape: int) -> Tensor:
        return torch.nn.init.trunc_normal_(torch.empty(shape), std=_INIT_STD, generator=generator)

    def conv_uniform(*shape: int) -> Tensor:
        # torch's default initialization of a convolution; the fan-in is one patch.
        return torch.empty(shape).uniform_(-1, 1, generator=generator) / (3 * patch**2) ** 0.5

    weights = {
        "cls_token": trunc_normal(1, 1, width),
        "pos_embed": trunc_normal(1, 1 + config.grid[0] * config.grid[1], width),
        "patch_embed.proj.weight": conv_uniform(width, 3, patch, patch),
        "patch_embed.proj.bias": conv_uniform(width),
    }
    if config.registers:
        weights["register_tokens"] = trunc_normal(1, config.registers, width)
    linear = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    linear |= {"mlp.fc1": (_MLP_RATIO * width, width), "mlp.fc2": (width, _MLP_RATIO * width)}
    for index in range(config.depth):
        for name, shape in linear.items():
            weights[f"blocks.{index}.{name}.weight"] = trunc_normal(*shape)
            weights[f"blocks.{index}.{name}.bias"] = torch.zeros(shape[0])
    for name in (*(f"blocks.{index}.norm{part}" for index in range(config.depth) for part in (1, 2)), "norm"):
        weights[f"{name}.weight"], weights[f"{name}.bias"] = torch.ones(width), torch.zeros(width)
    return weights


def forward(
    weights: Weights,
    config: ViTConfig,
    images: Tensor,
    group_size: int = 1,
    block_inputs: Sequence[Tensor] | None = None,
) -> tuple[list[Tensor], Tensor]:
    """Run the network, and return its hidden states and last keys.

    Parameters
    ----------
    weights : mapping of str to Tensor
        Weights by name.
    config : ViTConfig
        Architecture.
    images : (B, 3, height, width) Tensor
        Normalized; sides must be multiples of P.
    group_size : int
        Number of blocks between two returned states.
    block_inputs : sequence of (B, T, D) Tensor, optional
        Input of each block, instead of the output of the block before it (teacher forcing).

    Returns
    -------
    states : list of (B, T, D) float32 Tensor
        Hidden states after the embedding and after each group of blocks.
    key : (B, T, D) float32 Tensor
        Keys of the last block, heads side by side; before the rotation by rotary position embeddings.
    """
    x, rotation = prepare_tokens(weights, config, images), token_rotation(weights, config, images)
    states = [x]
    for index in range(config.depth):
        x, key = block(weights, config, x if block_inputs is None else block_inputs[index], index, rotation)
        if (index + 1) % group_size == 0:
            states.append(x)
    return states, key.float()


def compiled_forward() -> Forward:
    """Return :func:`forward` compiled by ``torch.compile``, separately for each shape of crops and each network."""
    config = torch._dynamo.config
    # The option was renamed in torch 2.6. Its default of 8 is less than the number of shapes, networks and modes.
    setattr(config, "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit", 64)
    return torch.compile(forward, dynamic=False)


def prepare_tokens(weights: Weights, config: ViTConfig, images: Tensor) -> Tensor:
    """Return the input tokens (B, T, D) of images; CLS and patches get position embeddings, registers do not."""
    patch = config.patch
    batch, _, height, width = images.shape
    rows, columns = height // patch, width // patch
    # A linear layer on flattened patches equals the convolution, and is faster.
    patches = images.reshape(batch, 3, rows, patch, columns, patch).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    x = F.linear(patches, weights["patch_embed.proj.weight"].flatten(1), weights["patch_embed.proj.bias"]).float()
    prefix_tokens = weights["cls_token"]
    if not config.rotary:
        pos_embed = weights["pos_embed"][0]  # (1 + N0, D), or (N0, D) if CLS has no position embedding
        n_prefix = len(pos_embed) - config.grid[0] * config.grid[1]
        patch_pos_embed = pos_embed[n_prefix:]
        if (rows, columns) != config.grid:
            matrix = _resampling_matrix(config.grid, (rows, columns), config.pos_embed)
            patch_pos_embed = matrix.to(patch_pos_embed) @ patch_pos_embed
        x, prefix_tokens = x + patch_pos_embed, prefix_tokens + pos_embed[:n_prefix].sum(0)
    if config.registers:
        prefix_tokens = torch.cat([prefix_tokens, weights["register_tokens"]], 1)
    return torch.cat([prefix_tokens.expand(batch, -1, -1), x], 1)


@torch.compiler.disable
def token_rotation(weights: Weights, config: ViTConfig, images: Tensor) -> Tensor | None:
    """Return the rotation (T, d) of the tokens of images, see :mod:`vitnp.vit.rotary`; None without rotary positions.

    The periods are no parameters: they get no derivatives.
    """
    if not config.rotary:
        return None
    rows, columns = (side // config.patch for side in images.shape[2:])
    periods = weights["rope_embed.periods"]
    table = rotation_table(periods.detach().cpu().numpy(), config, (rows, columns), config.patch)
    return torch.from_numpy(table).to(periods.device)


def block(
    weights: Weights, config: ViTConfig, x: Tensor, index: int, rotation: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Apply one pre-norm transformer block to tokens (B, T, D); return its output and its keys, both (B, T, D).

    Queries and keys are rotated if there is a rotation (T, d); the returned keys are those before it.
    """
    name = f"blocks.{index}"
    y = _linear(weights, layer_norm(weights, config, x, f"{name}.norm1"), f"{name}.attn.qkv")
    query, key, value = y.chunk(3, -1)
    q, k, v = (_split_heads(config, part) for part in (query, key, value))
    q, k = _rotate(q, rotation), _rotate(k, rotation)
    attn_out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
    return _block_tail(weights, config, x, attn_out, name), key


def _split_heads(config: ViTConfig, x: Tensor) -> Tensor:
    """Turn (B, T, D) into (B, H, T, d)."""
    return x.reshape(*x.shape[:2], config.heads, -1).transpose(1, 2)


def _rotate(x: Tensor, rotation: Tensor | None) -> Tensor:
    """Rotate queries or keys (B, H, T, d), see rotate in :mod:`vitnp.kernels.reference`."""
    if rotation is None:
        return x
    cos, sin = rotation.chunk(2, -1)
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)


def region_cls(
    weights: Weights, config: ViTConfig, x: Tensor, patches: Tensor, rotation: Tensor | None = None
) -> Tensor:
    """Return CLS of a part of each image, like :meth:`vitnp.vit.model.ViT.region_cls`, by which classes are found.

    In the last block, the attention of CLS is restricted to itself and the patches of the part.

    Parameters
    ----------
    weights : mapping of str to Tensor
    config : ViTConfig
    x : (B, T, D) Tensor
        Input of the last block.
    patches : (B, N) bool Tensor
        The patches of each part.
    rotation : (T, d) Tensor, optional
        From :func:`token_rotation`.

    Returns
    -------
    (B, D) float32 Tensor
        After the final norm.
    """
    batch, n_tokens, width = x.shape
    name = f"blocks.{config.depth - 1}"
    y = _linear(weights, layer_norm(weights, config, x, f"{name}.norm1"), f"{name}.attn.qkv")
    query, key, value = y.chunk(3, -1)
    q, k, v = (_split_heads(config, part) for part in (query[:, :1], key, value))
    k = _rotate(k, rotation)  # CLS itself has no position
    attended = patches.new_zeros((batch, n_tokens))
    attended[:, 0] = True
    attended[:, n_tokens - patches.shape[1] :] = patches  # registers, between the two, are left out
    attn_out = F.scaled_dot_product_attention(q, k, v, attn_mask=attended[:, None, None])
    cls = _block_tail(weights, config, x[:, :1], attn_out.transpose(1, 2).reshape(batch, 1, width), name)
    return layer_norm(weights, config, cls)[:, 0]


def _block_tail(weights: Weights, config: ViTConfig, x: Tensor, attn_out: Tensor, name: str) -> Tensor:
    """Apply the second half of a block: output projection, MLP, residuals."""
    y = _linear(weights, attn_out, f"{name}.attn.proj").float()
    x = x + (y * weights[f"{name}.ls1.gamma"] if config.layerscale else y)
    y = layer_norm(weights, config, x, f"{name}.norm2")
    if config.swiglu:
        gate, y = _linear(weights, y, f"{name}.mlp.w12").chunk(2, -1)
        y = _linear(weights, F.silu(gate) * y, f"{name}.mlp.w3").float()
    else:
        y = _linear(weights, F.gelu(_linear(weights, y, f"{name}.mlp.fc1")), f"{name}.mlp.fc2").float()
    return x + (y * weights[f"{name}.ls2.gamma"] if config.layerscale else y)


def layer_norm(weights: Weights, config: ViTConfig, x: Tensor, name: str = "norm") -> Tensor:
    """Apply a LayerNorm over the last axis, by default the final one."""
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], config.eps)


def _linear(weights: Weights, x: Tensor, name: str) -> Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


@torch.compiler.disable
@functools.lru_cache(maxsize=32)
def _resampling_matrix(trained_grid: tuple[int, int], grid: tuple[int, int], convention: str) -> Tensor:
    """Return the resampling of position embeddings as a matrix (N, N0): vitnp's own, applied to unit vectors."""
    n_trained = trained_grid[0] * trained_grid[1]
    units = np.eye(n_trained).reshape(*trained_grid, n_trained)
    return torch.from_numpy(resample_abs_pos_embed(units, grid, convention)).float()
