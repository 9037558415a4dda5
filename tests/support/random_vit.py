"""Random weights for tests of the vision transformer."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vitnp import ViTConfig


def random_weights(
    config: ViTConfig,
    *,
    seed: int,
    hidden: int,
    class_position: bool,
    dtype: npt.DTypeLike = np.float64,
    qkv_bias: bool = True,
    cls_norm: bool = False,
) -> dict[str, np.ndarray]:
    """Return weights in which no number is zero or one, so that leaving one out changes the features.

    `hidden` is the width of the MLP; with `class_position` CLS has a position embedding. Networks with rotary position
    embeddings have no others.
    """
    rng = np.random.default_rng(seed)
    width, patch = config.width, config.patch
    w: dict[str, np.ndarray] = {}

    def add(name: str, *shape: int, spread: float, center: float = 0.0) -> None:
        w[name] = (center + spread * rng.standard_normal(shape)).astype(dtype)

    def add_linear(name: str, inputs: int, outputs: int) -> None:
        add(name + ".weight", outputs, inputs, spread=inputs**-0.5)
        add(name + ".bias", outputs, spread=0.2)

    def add_norm(name: str) -> None:
        add(name + ".weight", width, spread=0.2, center=1.0)
        add(name + ".bias", width, spread=0.2)

    add("cls_token", 1, 1, width, spread=0.5)
    if config.rotary:
        quarter = width // config.heads // 4
        w["rope_embed.periods"] = (100 ** (np.arange(quarter) / quarter)).astype(dtype)
    else:
        add("pos_embed", 1, class_position + config.grid[0] * config.grid[1], width, spread=0.5)
    if config.registers:
        add("register_tokens", 1, config.registers, width, spread=0.5)
    add("patch_embed.proj.weight", width, 3, patch, patch, spread=(3 * patch * patch) ** -0.5)
    add("patch_embed.proj.bias", width, spread=0.2)
    for index in range(config.depth):
        block = f"blocks.{index}."
        add_norm(block + "norm1")
        add_norm(block + "norm2")
        add_linear(block + "attn.qkv", width, 3 * width)
        if not qkv_bias:
            del w[block + "attn.qkv.bias"]
        add_linear(block + "attn.proj", width, width)
        if config.swiglu:
            add_linear(block + "mlp.w12", width, 2 * hidden)
            add_linear(block + "mlp.w3", hidden, width)
        else:
            add_linear(block + "mlp.fc1", width, hidden)
            add_linear(block + "mlp.fc2", hidden, width)
        if config.layerscale:
            add(block + "ls1.gamma", width, spread=0.5)
            add(block + "ls2.gamma", width, spread=0.5)
    add_norm("norm")
    if cls_norm:
        add_norm("cls_norm")
    return w
