"""Where the values come from that the weights of a checkpoint don't say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from vitnp import options
from vitnp.checkpoints import registry, rotary
from vitnp.checkpoints.declared import DeclaredConfig, mean_and_std, number
from vitnp.checkpoints.dialects import HEADS, Dialect
from vitnp.checkpoints.json_beside import CONFIG, PREPROCESSOR
from vitnp.checkpoints.overrides import Overrides
from vitnp.errors import CheckpointError
from vitnp.vit.config import ViTConfig

GUESS = "a guess"

_HEAD_WIDTH = 64
# Width and depth of the DINOv3 that were trained on satellite photographs too, with a normalization of their own. Names
# and shapes don't tell them from the others.
_SAT_SIZES = ((1024, 24), (4096, 40))


class Sources(NamedTuple):
    """Where the values come from that weights don't say; each method asks them in the order in which they count.

    Attributes
    ----------
    overrides : Overrides
    metadata : mapping of str to str
        Metadata of the file.
    declared : DeclaredConfig
        What a config.json beside it declares.
    declared_normalization : pair of three floats, optional
        What a preprocessor_config.json beside it declares.
    dialect : Dialect
        Dialect of the tensor names.
    known : Entry, optional
        Entry in the registry.
    periods : float32 array, optional
        Periods of rotary position embeddings in the file.
    """

    overrides: Overrides
    metadata: Mapping[str, str]
    declared: DeclaredConfig
    declared_normalization: registry.MeanAndStd | None
    dialect: Dialect
    known: registry.Entry | None
    periods: np.ndarray | None = None

    def heads(self, architecture: ViTConfig) -> tuple[int, str]:
        """Return the number of heads, and its source."""
        heads, source = self._heads(architecture)
        width = architecture.width
        if heads < 1 or width % heads:
            raise CheckpointError(f"{heads} heads don't divide its width of {width}: give the right --heads")
        if self.periods is not None and 4 * len(self.periods) * heads != width:
            raise CheckpointError(
                f"its tensor 'rope_embed.periods' belongs to heads that are {4 * len(self.periods)} wide, but {heads} "
                f"heads ({source}) are {width // heads} wide"
            )
        return heads, source

    def _heads(self, architecture: ViTConfig) -> tuple[int, str]:
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
            return self.declared.heads, CONFIG
        if self.known:
            return self.known.heads, "registry"
        if self.periods is not None and len(self.periods):
            return width // (4 * len(self.periods)), "rope_embed.periods"
        if of_family is not None:
            return of_family, f"{self.dialect.name} of this width and depth"
        if width % _HEAD_WIDTH:
            raise CheckpointError(f"its number of heads can't be derived from its width of {width}: give --heads")
        return width // _HEAD_WIDTH, GUESS

    def eps(self) -> tuple[float, str]:
        """Return the epsilon of every LayerNorm, and its source."""
        for eps, source in (number(self.metadata, "norm_eps"), "metadata"), (self.declared.eps, CONFIG):
            if eps is not None:
                if not 0 < eps < 1:
                    raise CheckpointError(f"its LayerNorm epsilon should lie between 0 and 1, not be {eps}")
                return eps, source
        return self.dialect.eps, self.dialect.name

    def pos_embed(self, entry: registry.Entry | None, registers: int) -> tuple[str, str]:
        """Return the interpolation of position embeddings, and its source."""
        if self.dialect.rotary:  # there are none
            return ViTConfig.pos_embed, "rotary"
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
        return pos_embed, f"as in {dialect.name}" if dialect.marker else GUESS

    def rotary_periods(self, head_width: int) -> tuple[np.ndarray | None, str]:
        """Return the periods of rotary position embeddings, and their source; None if the network has none."""
        if not self.dialect.rotary:
            return None, ""
        if self.periods is not None:
            if not self.periods.min() > 0:
                raise CheckpointError("its tensor 'rope_embed.periods' should hold positive numbers")
            declared = self.declared.rope_base
            if declared is not None and not rotary.agree(self.periods, declared):
                raise CheckpointError(
                    f"{CONFIG} beside it says that the base of its rotary positions is {declared:g}, but its tensor "
                    "'rope_embed.periods' has another: move config.json away if it belongs to another checkpoint"
                )
            return self.periods, "its periods"
        if self.declared.rope_base is not None:
            return rotary.axial_periods(
                head_width, self.declared.rope_base
            ), f"base {self.declared.rope_base:g}, {CONFIG}"
        # A registered name stands for the official weights.
        official = self.known is not None and not self.declared.library
        source = "rounded as in DINOv3" if official else f"as in {self.dialect.name}"
        return rotary.axial_periods(head_width, rounded=official), f"base {rotary.BASE:g}, {source}"

    def normalization(self, architecture: ViTConfig) -> tuple[registry.MeanAndStd, str]:
        """Return mean and standard deviation of the input, and their source."""
        if self.overrides.normalization is not None:
            return registry.NORMALIZATIONS[self.overrides.normalization], "--normalization"
        if self.metadata.get("mean") is not None and self.metadata.get("std") is not None:
            return mean_and_std(self.metadata["mean"], self.metadata["std"]), "metadata"
        of_config = self.declared.mean_and_std
        if self.declared_normalization is not None:
            if of_config is not None and of_config != self.declared_normalization:
                raise CheckpointError(
                    f"{CONFIG} and {PREPROCESSOR} beside it have different mean and std: give --normalization"
                )
            return self.declared_normalization, PREPROCESSOR
        if of_config is not None:
            return of_config, CONFIG
        if self.known:
            return registry.NORMALIZATIONS[self.known.normalization], "registry"
        if self.dialect.rotary and (architecture.width, architecture.depth) in _SAT_SIZES:
            return registry.NORMALIZATIONS["imagenet"], GUESS
        if self.dialect.normalization is not None:
            return registry.NORMALIZATIONS[self.dialect.normalization], f"as in {self.dialect.name}"
        return registry.NORMALIZATIONS["imagenet"], GUESS
