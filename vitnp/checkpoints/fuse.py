"""Tensors that other code bases keep apart, or mask, become the one tensor that vitnp computes with.

Everything here works in place on weights under canonical names, to which the dialects have added names of parts:
``attn.q``, ``attn.k`` and ``attn.v`` of ``attn.qkv``; ``mlp.gate_proj``, ``mlp.up_proj`` and ``mlp.down_proj`` of a
gated MLP in three layers; ``attn.qkv.bias_mask``; ``rope_embed.inv_freq``.
"""

from __future__ import annotations

import numpy as np

from vitnp.errors import CheckpointError

Weights = dict[str, np.ndarray]


def fuse(weights: Weights, depth: int, partial_bias: bool = False) -> None:
    """Fuse the tensors of all blocks, in place.

    Parameters
    ----------
    weights : dict of str to float32 array
    depth : int
        Number of blocks.
    partial_bias : bool
        Whether some of query, key and value may lack a bias that the others have, as the keys of DINOv3. It is zero.

    Raises
    ------
    CheckpointError
        If one of several parts is missing, or they don't fit together; the message names the tensor.

    Examples
    --------
    >>> parts = {f"blocks.0.attn.{letter}.weight": np.ones((2, 2), np.float32) for letter in "qkv"}
    >>> fuse(parts, 1)
    >>> {name: array.shape for name, array in parts.items()}
    {'blocks.0.attn.qkv.weight': (6, 2), 'blocks.0.attn.qkv.bias': (6,)}
    """
    blocks = [f"blocks.{index}" for index in range(depth)]
    biased = "qkv"
    if partial_bias:
        biased = "".join(
            letter for letter in "qkv" if any(f"{block}.attn.{letter}.bias" in weights for block in blocks)
        )
    for block in blocks:
        _fuse(weights, [f"{block}.attn.{letter}.weight" for letter in "qkv"], f"{block}.attn.qkv.weight")
        _add_zero_bias(weights, block, biased)
        _fuse(weights, [f"{block}.attn.{letter}.bias" for letter in "qkv"], f"{block}.attn.qkv.bias")
        _apply_bias_mask(weights, block)
        _fuse_gated_mlp(weights, block)
        _rename_gated_mlp(weights, block)
    if not any(f"{block}.attn.qkv.bias" in weights for block in blocks):
        for block in blocks:
            _add_zero_qkv_bias(weights, block)
    if "rope_embed.inv_freq" in weights:
        with np.errstate(divide="ignore"):  # zeros are refused later, as infinite periods
            weights["rope_embed.periods"] = 1 / weights.pop("rope_embed.inv_freq")


def _fuse(weights: Weights, parts: list[str], whole: str) -> None:
    """Concatenate parts, if there are any."""
    missing = [name for name in parts if name not in weights]
    if len(missing) == len(parts):
        return
    if missing:
        raise CheckpointError(f"tensor {missing[0]!r} is missing, though its siblings are present")
    arrays = [weights.pop(name) for name in parts]
    if len({array.shape for array in arrays}) != 1 or not arrays[0].ndim:
        raise CheckpointError(f"the parts of {whole!r} differ in shape: {', '.join(parts)}")
    weights[whole] = np.concatenate(arrays)


def _add_zero_bias(weights: Weights, block: str, biased: str) -> None:
    """Add a bias of zeros where no block has one, if others of query, key and value have one."""
    present = [weights[name] for name in (f"{block}.attn.{letter}.bias" for letter in biased) if name in weights]
    if present:
        for letter in set("qkv") - set(biased):
            weights[f"{block}.attn.{letter}.bias"] = np.zeros_like(present[0])


def _add_zero_qkv_bias(weights: Weights, block: str) -> None:
    weight = weights.get(f"{block}.attn.qkv.weight")
    if weight is not None and weight.ndim == 2:
        weights[f"{block}.attn.qkv.bias"] = np.zeros(len(weight), np.float32)


def _apply_bias_mask(weights: Weights, block: str) -> None:
    """Multiply the bias of query, key and value by its mask, which is zero for the keys in DINOv3.

    Its code creates masks of NaN, and sets them when it initializes weights: 1 for queries and values, 0 for keys.
    Files that were saved without that mean the same. What is masked may hold any number.
    """
    mask = weights.pop(f"{block}.attn.qkv.bias_mask", None)
    bias = weights.get(f"{block}.attn.qkv.bias")
    if mask is None or bias is None:
        return
    if mask.shape != bias.shape or bias.ndim != 1 or len(bias) % 3:
        raise CheckpointError(f"tensor '{block}.attn.qkv.bias_mask' doesn't fit '{block}.attn.qkv.bias'")
    of_dinov3 = np.repeat(np.array([1, 0, 1], np.float32), len(bias) // 3)
    mask = np.where(np.isnan(mask), of_dinov3, mask)
    weights[f"{block}.attn.qkv.bias"] = np.where(mask == 0, np.float32(0), bias) * mask


def _fuse_gated_mlp(weights: Weights, block: str) -> None:
    """Fuse gate and up to w12, as in DINOv2's SwiGLU; without a gate, up and down are the layers of a plain MLP.

    The last layer of a gated MLP is w3 in DINOv3, down_proj in transformers and fc2 in timm.
    """
    mlp = f"{block}.mlp"
    gated = f"{mlp}.gate_proj.weight" in weights
    for kind in ("weight", "bias"):
        if gated:
            _fuse(weights, [f"{mlp}.gate_proj.{kind}", f"{mlp}.up_proj.{kind}"], f"{mlp}.w12.{kind}")
        elif f"{mlp}.up_proj.{kind}" in weights:
            weights[f"{mlp}.fc1.{kind}"] = weights.pop(f"{mlp}.up_proj.{kind}")
        for last in ("down_proj", "fc2") if gated else ("down_proj",):
            if f"{mlp}.{last}.{kind}" in weights:
                weights[f"{mlp}.{'w3' if gated else 'fc2'}.{kind}"] = weights.pop(f"{mlp}.{last}.{kind}")


def _rename_gated_mlp(weights: Weights, block: str) -> None:
    """Rename fc1 and fc2 of a gated MLP to w12 and w3.

    timm uses fc1 and fc2 for gated MLPs too. Then fc1 has twice as many outputs as fc2 has inputs.
    """
    fc1, fc2 = weights.get(f"{block}.mlp.fc1.weight"), weights.get(f"{block}.mlp.fc2.weight")
    if fc1 is None or fc2 is None or not fc1.ndim == fc2.ndim == 2 or len(fc1) != 2 * fc2.shape[1]:
        return
    for theirs, ours in (("fc1", "w12"), ("fc2", "w3")):
        for kind in ("weight", "bias"):
            if f"{block}.mlp.{theirs}.{kind}" in weights:
                weights[f"{block}.mlp.{ours}.{kind}"] = weights.pop(f"{block}.mlp.{theirs}.{kind}")
