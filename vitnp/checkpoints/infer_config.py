"""Infer the configuration of a ViT from its weights, its metadata, the files beside it and the registry."""

from __future__ import annotations

import dataclasses
import json
import logging
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from vitnp import options
from vitnp.checkpoints import registry
from vitnp.checkpoints.architecture import check_tensors, infer_architecture
from vitnp.checkpoints.declared import DeclaredConfig, mean_and_std, number, numbers
from vitnp.checkpoints.dialects import HEADS, Dialect
from vitnp.checkpoints.grid import DeclaredGrid, parse_grid
from vitnp.checkpoints.read import Checkpoint
from vitnp.checkpoints.timm_json import read_timm_config
from vitnp.checkpoints.transformers_json import read_preprocessor_config, read_transformers_config
from vitnp.checkpoints.unsupported import refuse_unsupported_model
from vitnp.errors import CheckpointError
from vitnp.vit.config import ViTConfig

_LOGGER = logging.getLogger(__name__)

_DEFAULT_EPS = 1e-6
_MAX_JSON = 2**24  # bytes; those of real checkpoints have some kilobytes
_HEAD_WIDTH = 64
_GUESS = "a guess"

# File names of timm's models. Of some, rotary positions are in the code alone and not in the file.
_NAMED_AFTER_MODEL = re.compile(r"[a-z0-9]+_\w*patch[0-9]+_")

_CONFIG, _PREPROCESSOR = "config.json", "preprocessor_config.json"
_TRANSFORMERS_FIELDS = {
    "model_type",
    "hidden_size",
    "num_attention_heads",
    "layer_norm_eps",
    "hidden_act",
    "patch_size",
}


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
    grid : str or (int, int), optional
        Rows and columns of patches that the position embeddings were trained on, such as "14x16" or (14, 16).

    Raises
    ------
    UsageError
        If one of them isn't allowed.
    """

    heads: int | None = None
    pos_embed: str | None = None
    normalization: str | None = None
    grid: str | tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.grid, (tuple, list)):
            object.__setattr__(self, "grid", "x".join(map(str, self.grid)))
        for field in dataclasses.fields(self):
            options.check(field.name, getattr(self, field.name))


class InferredConfig(NamedTuple):
    """A configuration, and where what the weights don't say comes from.

    Attributes
    ----------
    config : ViTConfig
    sources : dict of str to str
        Sources of "grid", "heads", "eps", "pos_embed" and "normalization", in words.
    resizing : str
        How the library's own evaluation resizes images; vitnp does it in its own way.
    """

    config: ViTConfig
    sources: dict[str, str]
    resizing: str


def infer_config(
    checkpoint: Checkpoint,
    path: pathlib.Path,
    *,
    entry: registry.Entry | None = None,
    sha256: str = "",
    overrides: Overrides = Overrides(),
) -> InferredConfig:
    """Infer the configuration of a checkpoint, and check every tensor against it.

    What is guessed is logged as a guess.

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
        If a tensor is missing or has the wrong shape, one of the sources holds a value that can't be, two of them
        contradict each other, or a value that changes the features is one that vitnp doesn't compute.
    """
    try:
        declared, (declared_normalization, resizing) = (
            (DeclaredConfig(), (None, "")) if entry else _read_files_beside(path.parent)
        )
        known = entry or registry.identify(path.stem, sha256)
        if _NAMED_AFTER_MODEL.match(path.stem):
            refuse_unsupported_model(path.stem.partition(".")[0], "its name")
        grid, grid_source, class_position = _grid(checkpoint, declared, overrides)
        architecture = infer_architecture(checkpoint.weights, grid, class_position)
        check_tensors(checkpoint.weights, architecture)
        declared.check_against(checkpoint.weights, architecture)
        asked = _Sources(overrides, checkpoint.metadata, declared, declared_normalization, checkpoint.dialect, known)
        heads, heads_source = asked.heads(architecture)
        if heads < 1 or architecture.width % heads:
            raise CheckpointError(
                f"{heads} heads don't divide its width of {architecture.width}: give the right --heads"
            )
        eps, eps_source = asked.eps()
        pos_embed, pos_embed_source = asked.pos_embed(entry, architecture.registers)
        (mean, std), normalization_source = asked.normalization()
    except CheckpointError as error:
        raise CheckpointError(f"{path} can't be used: {error}") from None
    config = dataclasses.replace(architecture, heads=heads, eps=eps, pos_embed=pos_embed, mean=mean, std=std)
    sources = {
        "grid": grid_source,
        "heads": heads_source,
        "eps": eps_source,
        "pos_embed": pos_embed_source,
        "normalization": normalization_source,
    }
    _log_guesses(path, config, sources)
    return InferredConfig(config, sources, resizing or declared.resizing)


class _Sources(NamedTuple):
    """Where the values come from that weights don't say; each method asks them in the order in which they count."""

    overrides: Overrides
    metadata: Mapping[str, str]
    declared: DeclaredConfig
    declared_normalization: registry.MeanAndStd | None
    dialect: Dialect
    known: registry.Entry | None

    def heads(self, architecture: ViTConfig) -> tuple[int, str]:
        width = architecture.width
        in_metadata = number(self.metadata, "heads")
        of_family = self.dialect.heads.get(width) or HEADS.get((width, architecture.depth))
        if self.overrides.heads is not None:
            return self.overrides.heads, "--heads"
        if in_metadata is not None:
            if in_metadata != int(in_metadata):
                raise CheckpointError(f"its number of heads should be a whole number, not {in_metadata}")
            return int(in_metadata), "metadata"
        if self.declared.heads is not None:
            return self.declared.heads, _CONFIG
        if self.known:
            return self.known.heads, "registry"
        if of_family is not None:
            return of_family, f"{self.dialect.name} of this width and depth"
        if width % _HEAD_WIDTH:
            raise CheckpointError(f"its number of heads can't be derived from its width of {width}: give --heads")
        return width // _HEAD_WIDTH, _GUESS

    def eps(self) -> tuple[float, str]:
        for eps, source in (number(self.metadata, "norm_eps"), "metadata"), (self.declared.eps, _CONFIG):
            if eps is not None:
                if not 0 < eps < 1:
                    raise CheckpointError(f"its LayerNorm epsilon should lie between 0 and 1, not be {eps}")
                return eps, source
        return _DEFAULT_EPS, self.dialect.name

    def pos_embed(self, entry: registry.Entry | None, registers: int) -> tuple[str, str]:
        if self.overrides.pos_embed is not None:
            return self.overrides.pos_embed, "--pos-embed-interp"
        if entry:
            return entry.pos_embed, "registry"
        if "pos_embed" in self.metadata:
            if self.metadata["pos_embed"] not in options.POS_EMBED_INTERPS:
                given, choices = self.metadata["pos_embed"][:40], ", ".join(options.POS_EMBED_INTERPS)
                raise CheckpointError(f"its metadata says pos_embed {given!r}, not one of {choices}")
            return self.metadata["pos_embed"], "metadata"
        if self.declared.pos_embed:
            return self.declared.pos_embed, f"as in {self.declared.library}"
        dialect = self.dialect
        if self.known and not dialect.marker:  # its names don't say which code base it is of
            return self.known.pos_embed, "registry"
        pos_embed = dialect.pos_embed_registers if registers else dialect.pos_embed
        return pos_embed, f"as in {dialect.name}" if dialect.marker else _GUESS

    def normalization(self) -> tuple[registry.MeanAndStd, str]:
        if self.overrides.normalization is not None:
            return registry.NORMALIZATIONS[self.overrides.normalization], "--normalization"
        if self.metadata.get("mean") is not None and self.metadata.get("std") is not None:
            return mean_and_std(self.metadata["mean"], self.metadata["std"]), "metadata"
        of_config = self.declared.mean_and_std
        if self.declared_normalization is not None:
            if of_config is not None and of_config != self.declared_normalization:
                raise CheckpointError(
                    f"{_CONFIG} and {_PREPROCESSOR} beside it have different mean and std: give --normalization"
                )
            return self.declared_normalization, _PREPROCESSOR
        if of_config is not None:
            return of_config, _CONFIG
        if self.known:
            return registry.NORMALIZATIONS[self.known.normalization], "registry"
        if self.dialect.normalization is not None:
            return registry.NORMALIZATIONS[self.dialect.normalization], f"as in {self.dialect.name}"
        return registry.NORMALIZATIONS["imagenet"], _GUESS


def _grid(
    checkpoint: Checkpoint, declared: DeclaredConfig, overrides: Overrides
) -> tuple[DeclaredGrid | None, str, bool | None]:
    """Return the declared grid, its source, and whether the first position is that of CLS."""
    class_position = checkpoint.dialect.class_position
    if declared.class_position is not None:
        class_position = declared.class_position
    metadata = checkpoint.metadata
    if "grid" in metadata:
        class_position = None  # vitnp has written it, under one name for the registers of all dialects
    if overrides.grid is not None:
        return DeclaredGrid(*parse_grid(str(overrides.grid)), "--grid"), "--grid", class_position
    if "grid" in metadata:
        rows, columns = numbers(metadata["grid"], 2, "grid")
        return DeclaredGrid(int(rows), int(columns), "its metadata"), "metadata", class_position
    projection = checkpoint.weights.get("patch_embed.proj.weight")
    if projection is not None and projection.ndim == 4 and (sides := declared.grid(projection.shape[2] or 1)):
        return DeclaredGrid(*sides, f"{_CONFIG} beside it"), _CONFIG, class_position
    return None, "square", class_position


def _log_guesses(path: pathlib.Path, config: ViTConfig, sources: Mapping[str, str]) -> None:
    guesses = []
    if sources["heads"] == _GUESS:
        guesses.append(f"{config.heads} attention heads (--heads)")
    if sources["normalization"] == _GUESS:
        guesses.append("ImageNet's mean and standard deviation (--normalization)")
    if sources["pos_embed"] == _GUESS:
        guesses.append("positions resampled as in DINO (--pos-embed-interp)")
    if guesses:
        _LOGGER.warning("%s doesn't say all about the network, so some is guessed: %s", path.name, "; ".join(guesses))


def _read_files_beside(folder: pathlib.Path) -> tuple[DeclaredConfig, tuple[registry.MeanAndStd | None, str]]:
    """Read the config.json and the preprocessor_config.json in a folder, as far as they are there."""
    config = _read_json(folder / _CONFIG)
    declared = DeclaredConfig()
    if "architecture" in config or "pretrained_cfg" in config or config.get("model_type") == "timm_wrapper":
        declared = read_timm_config(config)
    elif _TRANSFORMERS_FIELDS & set(config) or "backbone_config" in config:
        declared = read_transformers_config(config)
    return declared, read_preprocessor_config(_read_json(folder / _PREPROCESSOR))


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    """Return the object in a JSON file; empty if there is no such file."""
    if not path.is_file():  # a pipe would never end
        return {}
    try:
        with open(path, "rb") as file:
            content = json.loads(file.read(_MAX_JSON).decode("utf-8"))
    except (OSError, ValueError, RecursionError):
        raise CheckpointError(f"{path.name} beside it can't be read: repair it or move it away") from None
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path.name} beside it should be a table, not {str(content)[:40]!r}: repair it or move it away"
        )
    return content
