"""Infer the configuration of a ViT from its weights, its metadata, the files beside it and the registry."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from vitnp.checkpoints import registry, rotary
from vitnp.checkpoints.architecture import check_tensors, infer_architecture
from vitnp.checkpoints.declared import DeclaredConfig, numbers
from vitnp.checkpoints.grid import DeclaredGrid, parse_grid
from vitnp.checkpoints.json_beside import CONFIG, read_files_beside
from vitnp.checkpoints.overrides import Overrides
from vitnp.checkpoints.read import Checkpoint
from vitnp.checkpoints.sources import GUESS, Sources
from vitnp.checkpoints.unsupported import refuse_unsupported_model
from vitnp.errors import CheckpointError
from vitnp.vit.config import ViTConfig

_LOGGER = logging.getLogger(__name__)
_NO_OVERRIDES = Overrides()

# File names of timm's models. Of some, rotary positions are in the code alone and not in the file.
_NAMED_AFTER_MODEL = re.compile(r"[a-z0-9]+_\w*patch[0-9]+_")


class InferredConfig(NamedTuple):
    """A configuration, and where what the weights don't say comes from.

    Attributes
    ----------
    config : ViTConfig
    sources : dict of str to str
        Sources of "grid", "heads", "eps", "pos_embed" and "normalization", in words; with rotary position embeddings
        that of their "periods" too.
    resizing : str
        How the library's own evaluation resizes images; vitnp does it in its own way.
    periods : float32 array, optional
        Periods of rotary position embeddings, of the file or computed.
    """

    config: ViTConfig
    sources: dict[str, str]
    resizing: str
    periods: np.ndarray | None = None


def infer_config(
    checkpoint: Checkpoint,
    path: pathlib.Path,
    *,
    entry: registry.Entry | None = None,
    sha256: str = "",
    overrides: Overrides = _NO_OVERRIDES,
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
            (DeclaredConfig(), (None, "")) if entry else read_files_beside(path.parent)
        )
        known = entry or registry.identify(path.stem, sha256)
        if _NAMED_AFTER_MODEL.match(path.stem):
            refuse_unsupported_model(path.stem.partition(".")[0], "its name")
        weights, dialect = checkpoint.weights, checkpoint.dialect
        grid, grid_source, class_position = _grid(checkpoint, declared, overrides)
        architecture = infer_architecture(weights, grid, class_position, dialect.rotary)
        check_tensors(weights, architecture)
        declared.check_against(weights, architecture)
        asked = Sources(
            *(overrides, checkpoint.metadata, declared, declared_normalization, dialect, known),
            periods=weights.get("rope_embed.periods"),
        )
        heads, heads_source = asked.heads(architecture)
        eps, eps_source = asked.eps()
        pos_embed, pos_embed_source = asked.pos_embed(entry, architecture.registers)
        periods, periods_source = asked.rotary_periods(architecture.width // heads)
        (mean, std), normalization_source = asked.normalization(architecture)
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
    if periods is not None:
        sources["periods"] = periods_source
    _log_guesses(path, config, sources)
    return InferredConfig(config, sources, resizing or declared.resizing, periods)


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
    rotates = checkpoint.dialect.rotary
    if overrides.grid is not None and not rotates:  # rotary positions fit any grid
        return DeclaredGrid(*parse_grid(str(overrides.grid)), "--grid"), "--grid", class_position
    if "grid" in metadata:
        rows, columns = numbers(metadata["grid"], 2, "grid")
        return DeclaredGrid(int(rows), int(columns), "its metadata"), "metadata", class_position
    projection = checkpoint.weights.get("patch_embed.proj.weight")
    if projection is not None and projection.ndim == 4 and (sides := declared.grid(projection.shape[2] or 1)):
        return DeclaredGrid(*sides, f"{CONFIG} beside it"), CONFIG, class_position
    if rotates and projection is not None and projection.ndim == 4:
        side = max(1, rotary.TRAINED_SIZE // (projection.shape[2] or 1))
        return DeclaredGrid(side, side, "its code"), f"that of {rotary.TRAINED_SIZE} px", class_position
    return None, "square", class_position


def _log_guesses(path: pathlib.Path, config: ViTConfig, sources: Mapping[str, str]) -> None:
    guesses = []
    if sources["heads"] == GUESS:
        guesses.append(f"{config.heads} attention heads (--heads)")
    if sources["normalization"] == GUESS:
        options = "--normalization, sat493m for satellite photographs" if config.rotary else "--normalization"
        guesses.append(f"ImageNet's mean and standard deviation ({options})")
    if sources["pos_embed"] == GUESS:
        guesses.append("positions resampled as in DINO (--pos-embed-interp)")
    if guesses:
        _LOGGER.warning("%s doesn't say all about the network, so some is guessed: %s", path.name, "; ".join(guesses))
