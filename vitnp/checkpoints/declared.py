"""What the JSON files beside a checkpoint declare, and whether its weights agree."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from vitnp.checkpoints.registry import MeanAndStd
from vitnp.errors import CheckpointError
from vitnp.vit.config import ViTConfig


@dataclasses.dataclass(frozen=True)
class DeclaredConfig:
    """What a config.json declares; None and "" stand for what it doesn't say.

    Attributes
    ----------
    library : {"timm", "transformers", ""}
        Library that wrote it; empty if there is none.
    width, depth, heads, patch, registers, swiglu, layerscale
        As in :class:`vitnp.vit.config.ViTConfig`.
    hidden : int, optional
        Width between the layers of the MLP.
    qkv_bias : bool, optional
        Whether query, key and value have a bias.
    eps : float, optional
        Epsilon of every LayerNorm.
    image_size : (int, int), optional
        Height and width in pixels that the position embeddings were trained on.
    class_position : bool, optional
        Whether the first position embedding is that of CLS.
    pos_embed : str
        Interpolation of the position embeddings.
    mean_and_std : pair of three floats, optional
        Normalization of RGB in 0..1.
    resizing : str
        How the library's own evaluation resizes images: for information.
    key_bias : bool, optional
        Whether the key has a bias.
    rotary : bool, optional
        Whether positions are encoded by rotation.
    rope_base : float, optional
        Base of the periods of rotary position embeddings.
    """

    library: str = ""
    width: int | None = None
    depth: int | None = None
    heads: int | None = None
    patch: int | None = None
    registers: int | None = None
    swiglu: bool | None = None
    layerscale: bool | None = None
    hidden: int | None = None
    qkv_bias: bool | None = None
    eps: float | None = None
    image_size: tuple[int, int] | None = None
    class_position: bool | None = None
    pos_embed: str = ""
    mean_and_std: MeanAndStd | None = None
    resizing: str = ""
    key_bias: bool | None = None
    rotary: bool | None = None
    rope_base: float | None = None

    def grid(self, patch: int) -> tuple[int, int] | None:
        """Return the rows and columns of patches of the declared image size."""
        return (self.image_size[0] // patch, self.image_size[1] // patch) if self.image_size else None

    def check_against(self, weights: Mapping[str, np.ndarray], architecture: ViTConfig) -> None:
        """Check that the weights are those of the declared network.

        Raises
        ------
        CheckpointError
            If not: the two files belong to different checkpoints, or one is damaged.
        """
        last_linear = weights["blocks.0.mlp.w3.weight" if architecture.swiglu else "blocks.0.mlp.fc2.weight"]
        found: dict[str, object] = {
            "width": architecture.width,
            "depth": architecture.depth,
            "patch": architecture.patch,
            "registers": architecture.registers,
            "swiglu": architecture.swiglu,
            "layerscale": architecture.layerscale,
            "hidden": last_linear.shape[1],
            "rotary": architecture.rotary,
        }
        biases = [weights[f"blocks.{index}.attn.qkv.bias"] for index in range(architecture.depth)]
        for name, part in (("qkv_bias", slice(None)), ("key_bias", slice(architecture.width, 2 * architecture.width))):
            if getattr(self, name) is False and any(bias[part].any() for bias in biases):
                raise CheckpointError(
                    f"config.json beside it says that {name} is false, but its weights have one: "
                    "move config.json away if it belongs to another checkpoint"
                )
        for name, value in found.items():
            declared = getattr(self, name)
            if declared is not None and value is not None and declared != value:
                raise CheckpointError(
                    f"config.json beside it says that {_IN_WORDS[name]} is {declared}, but its weights have {value}: "
                    "move config.json away if it belongs to another checkpoint"
                )


_IN_WORDS = {
    "width": "the width",
    "depth": "the number of blocks",
    "patch": "the patch size",
    "registers": "the number of registers",
    "swiglu": "the use of SwiGLU",
    "layerscale": "the use of LayerScale",
    "hidden": "the width of the MLP",
    "rotary": "the use of rotary positions",
}


def is_number(value: object) -> bool:
    """Tell whether a value of JSON is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def number(table: Mapping[str, Any], name: str) -> float | None:
    """Return a number of a table; None if it has none of that name.

    Raises
    ------
    CheckpointError
        If it isn't a number.
    """
    return None if table.get(name) is None else numbers(table[name], 1, name)[0]


def numbers(value: Any, count: int, name: str) -> tuple[float, ...]:
    """Parse numbers of metadata: "0.5,0.5,0.5", [0.5, 0.5, 0.5], or a single one.

    Raises
    ------
    CheckpointError
        If they are not `count` finite numbers.

    Examples
    --------
    >>> numbers("14, 16", 2, "grid")
    (14.0, 16.0)
    """
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
    try:
        parsed = tuple(float(part) for part in parts if not isinstance(part, bool))
    except (TypeError, ValueError, OverflowError):
        parsed = ()
    if len(parsed) != count or len(parts) != count or not all(map(math.isfinite, parsed)):
        raise CheckpointError(f"its {name} should be {count} number{'s' * (count > 1)}, not {str(value)[:40]!r}")
    return parsed


def whole(table: Mapping[str, Any], name: str) -> int | None:
    """Return a whole number of a table; None if it has none of that name.

    Raises
    ------
    CheckpointError
        If it isn't a whole number of at least 0.
    """
    value = number(table, name)
    if value is None:
        return None
    if value != int(value) or value < 0:
        raise CheckpointError(f"its {name} should be a whole number, not {str(table[name])[:40]!r}")
    return int(value)


def switch(table: Mapping[str, Any], name: str) -> bool | None:
    """Return a boolean of a table; None if it has none of that name.

    Raises
    ------
    CheckpointError
        If it isn't a boolean.
    """
    value = table.get(name)
    if value is not None and not isinstance(value, bool):
        raise CheckpointError(f"its {name} should be true or false, not {str(value)[:40]!r}")
    return value


def first_of(*values: Any) -> Any:
    """Return the first value that isn't None; None if there is none."""
    return next((value for value in values if value is not None), None)


def size(value: Any, name: str) -> tuple[int, int] | None:
    """Return a height and width in pixels, which may be given as one number; None for None.

    Raises
    ------
    CheckpointError
        If it isn't one or two whole numbers of at least 1.

    Examples
    --------
    >>> size(224, "image_size"), size([224, 256], "image_size")
    ((224, 224), (224, 256))
    """
    if value is None:
        return None
    sides = value if isinstance(value, list) else [value, value]
    height, width = numbers(sides, 2, name)
    if min(height, width) < 1 or (height, width) != (int(height), int(width)):
        raise CheckpointError(f"its {name} should be whole numbers of at least 1, not {str(value)[:40]!r}")
    return int(height), int(width)


def mean_and_std(mean: Any, std: Any) -> MeanAndStd:
    """Return the mean and standard deviation of a normalization; a single number holds for R, G and B.

    Raises
    ------
    CheckpointError
        If they aren't three numbers each, or a standard deviation isn't positive.
    """
    mean, std = ([value] * 3 if is_number(value) else value for value in (mean, std))
    red, green, blue = numbers(mean, 3, "mean")
    red_std, green_std, blue_std = numbers(std, 3, "std")
    if not all(0 < value < 1000 for value in (red_std, green_std, blue_std)):
        raise CheckpointError("the standard deviation of its normalization isn't positive")
    return (red, green, blue), (red_std, green_std, blue_std)


def unsupported_value(source: str, name: str, value: object, supported: str) -> CheckpointError:
    """Return the error for a field whose value the forward pass doesn't implement."""
    return CheckpointError(f"{source} beside it says {name}: {str(value)[:60]}, but vitnp {supported}")
