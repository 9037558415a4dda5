"""What the shapes of a ViT's tensors say about it, and whether they all agree."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from vitnp.errors import CheckpointError
from vitnp.vit.config import ViTConfig


def architecture(weights: Mapping[str, np.ndarray], grid: tuple[int, int] | None = None) -> ViTConfig:
    """Width, depth, patch, grid, registers and form of the MLP, from shapes alone.

    Parameters
    ----------
    weights : mapping of str to array
        Under canonical names, at least one block of them.
    grid : (int, int), optional
        Rows and columns of the trained grid. By default it is taken to be square.

    Returns
    -------
    ViTConfig
        Heads and conventions, which no shape tells, are left at 1 and at their defaults.

    Raises
    ------
    CheckpointError
        A tensor that tells one of these is missing or has a shape that can't be.

    Examples
    --------
    >>> from vitnp import load_vit
    >>> architecture(load_vit("auto").weights).grid
    (14, 14)
    """
    projection = _need(weights, "patch_embed.proj.weight", 4)
    width, channels, patch, patch_width = projection.shape
    if channels != 3 or patch != patch_width or patch < 1 or width < 1:
        raise CheckpointError(
            f"tensor 'patch_embed.proj.weight' is {_sides(projection)}, not width x 3 x patch x patch as for RGB images"
        )
    positions = _need(weights, "pos_embed", 3).shape[1]
    depth = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
    registers = weights.get("register_tokens")
    return ViTConfig(
        width=width,
        depth=depth,
        heads=1,
        patch=patch,
        grid=_grid(positions, grid),
        registers=0 if registers is None else _need(weights, "register_tokens", 3).shape[1],
        swiglu="blocks.0.mlp.w12.weight" in weights,
        layerscale="blocks.0.ls1.gamma" in weights,
    )


def _grid(positions: int, grid: tuple[int, int] | None) -> tuple[int, int]:
    """Rows and columns of the trained grid, with or without one more position for the class token."""
    if grid is not None:
        if min(grid) >= 1 and math.prod(grid) in (positions, positions - 1):
            return grid
        raise CheckpointError(f"its metadata says grid {grid[0]} x {grid[1]}, but pos_embed has {positions} positions")
    for patches in (positions - 1, positions):
        side = math.isqrt(max(patches, 0))
        if side >= 1 and side * side == patches:
            return side, side
    raise CheckpointError(f"tensor 'pos_embed' has {positions} positions, which are no square grid of patches")


def check_shapes(weights: Mapping[str, np.ndarray], config: ViTConfig) -> None:
    """Make sure that every tensor of this architecture is there, in its shape and finite, and that there is no other.

    Raises
    ------
    CheckpointError
        The sentence names the tensor.
    """
    d, patches = config.width, math.prod(config.grid)
    hidden = len(_need(weights, "blocks.0.mlp.w12.weight" if config.swiglu else "blocks.0.mlp.fc1.weight", 2))
    if config.swiglu:
        mlp = {
            "mlp.w12.weight": (hidden, d),
            "mlp.w12.bias": (hidden,),
            "mlp.w3.weight": (d, hidden // 2),
            "mlp.w3.bias": (d,),
        }
    else:
        mlp = {
            "mlp.fc1.weight": (hidden, d),
            "mlp.fc1.bias": (hidden,),
            "mlp.fc2.weight": (d, hidden),
            "mlp.fc2.bias": (d,),
        }
    block = {
        "norm1.weight": (d,),
        "norm1.bias": (d,),
        "attn.qkv.weight": (3 * d, d),
        "attn.qkv.bias": (3 * d,),
        "attn.proj.weight": (d, d),
        "attn.proj.bias": (d,),
        "norm2.weight": (d,),
        "norm2.bias": (d,),
        **mlp,
    }
    if config.layerscale:
        block |= {"ls1.gamma": (d,), "ls2.gamma": (d,)}
    positions = weights["pos_embed"].shape[1]
    expected: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, d),
        "pos_embed": (1, positions if positions == patches else 1 + patches, d),
        "patch_embed.proj.weight": (d, 3, config.patch, config.patch),
        "patch_embed.proj.bias": (d,),
        "norm.weight": (d,),
        "norm.bias": (d,),
    }
    if config.registers or "register_tokens" in weights:
        expected["register_tokens"] = (1, config.registers, d)
    for i in range(config.depth):
        expected |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    for name, shape in expected.items():
        if name not in weights:
            raise CheckpointError(f"tensor {name!r} is missing")
        if weights[name].shape != shape:
            sides = " x ".join(map(str, shape))
            raise CheckpointError(f"tensor {name!r} is {_sides(weights[name])}, but a ViT of width {d} needs {sides}")
    for name, tensor in weights.items():
        if name not in expected:
            raise CheckpointError(f"tensor {name!r} has no place in a ViT of {config.depth} blocks like the first")
        # The sum is finite unless a number isn't, or the sum itself overflows; it needs no array of its own.
        with np.errstate(over="ignore", invalid="ignore"):
            suspicious = not np.isfinite(tensor.sum())
        if suspicious and not np.isfinite(tensor).all():
            raise CheckpointError(f"tensor {name!r} holds numbers that are infinite or none: the file is damaged")


def _need(weights: Mapping[str, np.ndarray], name: str, dimensions: int) -> np.ndarray:
    if name not in weights:
        raise CheckpointError(f"tensor {name!r} is missing")
    if weights[name].ndim != dimensions:
        raise CheckpointError(f"tensor {name!r} is {_sides(weights[name])}, but should have {dimensions} dimensions")
    return weights[name]


def _sides(array: np.ndarray) -> str:
    return " x ".join(map(str, array.shape)) or "a single number"
