"""Derive the architecture of a ViT from the shapes of its tensors, and check that all of them agree."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from vitnp.checkpoints.grid import DeclaredGrid, trained_grid
from vitnp.errors import CheckpointError
from vitnp.vit.config import ViTConfig

_MAX_SIDE = 9999  # patches


def infer_architecture(
    weights: Mapping[str, np.ndarray],
    grid: DeclaredGrid | None = None,
    class_position: bool | None = None,
    rotary: bool = False,
) -> ViTConfig:
    """Derive width, depth, patch size, grid, registers and the form of the MLP from shapes alone.

    Parameters
    ----------
    weights : mapping of str to array
        Canonical names, with at least one block.
    grid : DeclaredGrid, optional
        Rows and columns of the trained grid; by default it is assumed to be square, where that leaves no doubt.
    class_position : bool, optional
        Whether the first position embedding is that of CLS, as far as is known.
    rotary : bool
        Whether positions are encoded by rotation, as in DINOv3, so that there is no table of them.

    Returns
    -------
    ViTConfig
        With ``heads=1`` and default conventions, which no shape determines.

    Raises
    ------
    CheckpointError
        If a tensor that determines one of these is missing or has an impossible shape.

    Examples
    --------
    >>> from vitnp import load_vit
    >>> infer_architecture(load_vit("auto").weights).grid
    (14, 14)
    """
    projection = _require(weights, "patch_embed.proj.weight", 4)
    width, channels, patch, patch_width = projection.shape
    if channels != 3 or patch != patch_width or patch < 1 or width < 1:
        raise CheckpointError(
            f"tensor 'patch_embed.proj.weight' is {_sides(projection)}, not width x 3 x patch x patch as for RGB images"
        )
    if rotary:
        trained = grid[:2] if grid else (1, 1)
        if not all(1 <= side <= _MAX_SIDE for side in trained):
            raise CheckpointError(f"a grid of {trained[0]} x {trained[1]} patches can't be that of its training")
    elif "pos_embed" in weights:
        trained = trained_grid(_require(weights, "pos_embed", 3).shape[1], grid, class_position)
    else:
        raise CheckpointError(
            "tensor 'pos_embed' is missing: vitnp runs ViTs with learned position embeddings or the rotary ones of "
            "DINOv3, not those of EVA or RoPE-ViT; take DINO (--model dino_vits8) or DINOv2 with registers "
            "(dinov2_vits14_reg) instead"
        )
    registers = _require(weights, "register_tokens", 3).shape[1] if "register_tokens" in weights else 0
    return ViTConfig(
        width=width,
        depth=1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks.")),
        heads=1,
        patch=patch,
        grid=trained,
        registers=registers,
        swiglu="blocks.0.mlp.w12.weight" in weights,
        layerscale="blocks.0.ls1.gamma" in weights,
        rotary=rotary,
    )


def check_tensors(weights: Mapping[str, np.ndarray], config: ViTConfig) -> None:
    """Check that exactly the tensors of an architecture are there, in their shapes, without NaN or infinity.

    Raises
    ------
    CheckpointError
        If not; the message names the tensor.
    """
    expected = _expected_shapes(weights, config)
    for name, shape in expected.items():
        if name not in weights:
            raise CheckpointError(f"tensor {name!r} is missing")
        if weights[name].shape != shape:
            sides = " x ".join(map(str, shape))
            raise CheckpointError(
                f"tensor {name!r} is {_sides(weights[name])}, but a ViT of width {config.width} needs {sides}"
            )
    for name, tensor in weights.items():
        if name not in expected:
            raise CheckpointError(f"tensor {name!r} doesn't belong to a ViT of {config.depth} blocks like the first")
        # The sum takes no memory. It is finite unless a number isn't, or the sum itself overflows.
        with np.errstate(over="ignore", invalid="ignore"):
            suspicious = not np.isfinite(tensor.sum())
        if suspicious and not np.isfinite(tensor).all():
            raise CheckpointError(f"tensor {name!r} contains NaN or infinity: the file is damaged")


def _expected_shapes(weights: Mapping[str, np.ndarray], config: ViTConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor; the width of the MLP is that of the first block."""
    d, n_patches = config.width, math.prod(config.grid)
    first_linear, last_linear = ("mlp.w12", "mlp.w3") if config.swiglu else ("mlp.fc1", "mlp.fc2")
    hidden = len(_require(weights, f"blocks.0.{first_linear}.weight", 2))
    modules: dict[str, tuple[int, ...]] = {
        "norm1": (d,),
        "attn.qkv": (3 * d, d),
        "attn.proj": (d, d),
        "norm2": (d,),
        first_linear: (hidden, d),
        last_linear: (d, hidden // 2 if config.swiglu else hidden),
    }
    block: dict[str, tuple[int, ...]] = {}
    for name, shape in modules.items():
        block |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    if config.layerscale:
        block |= {"ls1.gamma": (d,), "ls2.gamma": (d,)}
    expected: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, d),
        "patch_embed.proj.weight": (d, 3, config.patch, config.patch),
        "patch_embed.proj.bias": (d,),
    }
    if config.rotary:
        expected |= _expected_of_dinov3(weights, d)
    else:
        n_positions = weights["pos_embed"].shape[1]
        expected["pos_embed"] = (1, n_positions if n_positions == n_patches else 1 + n_patches, d)
    if "norm.weight" in weights or "norm.bias" in weights:  # keys don't need the final norm
        expected |= {"norm.weight": (d,), "norm.bias": (d,)}
    if config.registers or "register_tokens" in weights:
        expected["register_tokens"] = (1, config.registers, d)
    for index in range(config.depth):
        expected |= {f"blocks.{index}.{name}": shape for name, shape in block.items()}
    return expected


def _expected_of_dinov3(weights: Mapping[str, np.ndarray], width: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what only networks with rotary positions have, each as far as it is there."""
    expected: dict[str, tuple[int, ...]] = {}
    if "rope_embed.periods" in weights:
        expected["rope_embed.periods"] = (len(_require(weights, "rope_embed.periods", 1)) or 1,)
    if "cls_norm.weight" in weights or "cls_norm.bias" in weights:  # of CLS and the registers, where untied
        expected |= {"cls_norm.weight": (width,), "cls_norm.bias": (width,)}
    return expected


def _require(weights: Mapping[str, np.ndarray], name: str, n_dimensions: int) -> np.ndarray:
    if name not in weights:
        raise CheckpointError(f"tensor {name!r} is missing")
    if weights[name].ndim != n_dimensions:
        raise CheckpointError(f"tensor {name!r} is {_sides(weights[name])}, but should have {n_dimensions} dimensions")
    return weights[name]


def _sides(array: np.ndarray) -> str:
    return " x ".join(map(str, array.shape)) or "a single number"
