"""Infer the configuration of a ViT from its weights, its metadata, the registry and the files beside it."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from vitnp import options
from vitnp.checkpoints import registry
from vitnp.checkpoints.architecture import check_tensors, infer_architecture
from vitnp.checkpoints.read import Checkpoint
from vitnp.checkpoints.state_dict_names import Dialect
from vitnp.errors import CheckpointError
from vitnp.vit.config import ViTConfig

_DEFAULT_EPS = 1e-6
_HEAD_WIDTH = 64


@dataclasses.dataclass(frozen=True)
class Overrides:
    """Choices of the user that take precedence over what the checkpoint says; None leaves them to the checkpoint.

    Attributes
    ----------
    heads : int, optional
        Number of attention heads.
    pos_embed : {"offset", "exact", "antialias"}, optional
        Interpolation of position embeddings.
    normalization : {"imagenet", "half"}, optional
        Mean and standard deviation of the input.

    Raises
    ------
    UsageError
        If one of them isn't allowed.
    """

    heads: int | None = None
    pos_embed: str | None = None
    normalization: str | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            options.check(field.name, getattr(self, field.name))


def infer_config(
    checkpoint: Checkpoint,
    path: pathlib.Path,
    *,
    entry: registry.Entry | None = None,
    sha256: str = "",
    overrides: Overrides = Overrides(),
) -> ViTConfig:
    """Infer the configuration of a checkpoint, and check every tensor against it.

    Parameters
    ----------
    checkpoint : Checkpoint
    path : pathlib.Path
        File of the checkpoint, for the files beside it and for messages.
    entry : Entry, optional
        Entry in the registry, if the checkpoint was asked for by name. Then the conventions of the official code hold,
        and files beside the checkpoint don't count.
    sha256 : str
        SHA-256 of the file, to find its entry if it wasn't asked for by name.
    overrides : Overrides

    Raises
    ------
    CheckpointError
        If a tensor is missing or has the wrong shape, or one of the sources holds a value that can't be.
    """
    metadata, dialect = checkpoint.metadata, checkpoint.dialect
    try:
        architecture = infer_architecture(checkpoint.weights, _grid(metadata))
        check_tensors(checkpoint.weights, architecture)
        known = entry or registry.identify(path.stem, sha256)
        has_config_json = dialect.has_config_json and not entry
        config_json = _read_json_beside(path, "config.json") if has_config_json else {}
        heads = overrides.heads or _heads(architecture.width, metadata, known, config_json)
        if heads < 1 or architecture.width % heads:
            raise CheckpointError(
                f"{heads} heads don't divide its width of {architecture.width}: give the right --heads"
            )
        eps = _eps(metadata, config_json)
        pos_embed = overrides.pos_embed or _pos_embed(metadata, entry, dialect, architecture.registers)
        if overrides.normalization is not None:
            mean, std = registry.NORMALIZATIONS[overrides.normalization]
        else:
            preprocessor_json = {} if entry else _read_json_beside(path, "preprocessor_config.json")
            mean, std = _mean_and_std(metadata, preprocessor_json, known)
    except CheckpointError as error:
        raise CheckpointError(f"{path} can't be used: {error}") from None
    return dataclasses.replace(architecture, heads=heads, eps=eps, pos_embed=pos_embed, mean=mean, std=std)


def _grid(metadata: Mapping[str, str]) -> tuple[int, int] | None:
    if "grid" not in metadata:
        return None
    rows, columns = _numbers(metadata["grid"], 2, "grid")
    return int(rows), int(columns)


def _heads(
    width: int, metadata: Mapping[str, str], known: registry.Entry | None, config_json: Mapping[str, Any]
) -> int:
    heads = _first(
        _number(metadata, "heads"), known.heads if known else None, _number(config_json, "num_attention_heads")
    )
    if heads is None:
        if width % _HEAD_WIDTH:
            raise CheckpointError(f"its number of heads can't be derived from its width of {width}: give --heads")
        return width // _HEAD_WIDTH
    if heads != int(heads):
        raise CheckpointError(f"its number of heads should be a whole number, not {heads}")
    return int(heads)


def _eps(metadata: Mapping[str, str], config_json: Mapping[str, Any]) -> float:
    eps = _first(_number(metadata, "norm_eps"), _number(config_json, "layer_norm_eps"))
    if eps is None:
        return _DEFAULT_EPS
    if not 0 < eps < 1:
        raise CheckpointError(f"its LayerNorm epsilon should lie between 0 and 1, not be {eps}")
    return eps


def _pos_embed(metadata: Mapping[str, str], entry: registry.Entry | None, dialect: Dialect, registers: int) -> str:
    if entry:
        return entry.pos_embed
    if "pos_embed" in metadata:
        if metadata["pos_embed"] not in options.POS_EMBED_INTERPS:
            choices = ", ".join(options.POS_EMBED_INTERPS)
            raise CheckpointError(f"its metadata says pos_embed {metadata['pos_embed'][:40]!r}, not one of {choices}")
        return metadata["pos_embed"]
    return "antialias" if registers else dialect.pos_embed


def _mean_and_std(
    metadata: Mapping[str, str], preprocessor_json: Mapping[str, Any], known: registry.Entry | None
) -> registry.MeanAndStd:
    """Return mean and std from the metadata, else the preprocessor, else the registry, else those of ImageNet."""
    for mean, std in (
        (metadata.get("mean"), metadata.get("std")),
        (preprocessor_json.get("image_mean"), preprocessor_json.get("image_std")),
    ):
        if mean is not None and std is not None:
            red, green, blue = _numbers(mean, 3, "mean")
            red_std, green_std, blue_std = _numbers(std, 3, "std")
            if not all(0 < value < 100 for value in (red_std, green_std, blue_std)):
                raise CheckpointError("the standard deviation of its normalization isn't positive")
            return (red, green, blue), (red_std, green_std, blue_std)
    return registry.NORMALIZATIONS[known.normalization if known else "imagenet"]


def _read_json_beside(path: pathlib.Path, name: str) -> dict[str, Any]:
    """Return the object in a JSON file beside the checkpoint; empty if there is none."""
    try:
        content = json.loads((path.parent / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        raise CheckpointError(f"{name} beside it can't be read: repair it or move it away") from None
    return content if isinstance(content, dict) else {}


def _number(table: Mapping[str, Any], name: str) -> float | None:
    return None if table.get(name) is None else _numbers(table[name], 1, name)[0]


def _numbers(value: Any, count: int, name: str) -> tuple[float, ...]:
    """Parse numbers of metadata: "0.5,0.5,0.5", [0.5, 0.5, 0.5], or a single one."""
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
    try:
        numbers = tuple(float(part) for part in parts)
    except (TypeError, ValueError, OverflowError):
        numbers = ()
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise CheckpointError(f"its {name} should be {count} number{'s' * (count > 1)}, not {str(value)[:40]!r}")
    return numbers


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)
