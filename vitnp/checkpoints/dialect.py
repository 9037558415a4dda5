"""What a code base is described by: the names of its tensors, and the conventions that its weights were made for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Dialect:
    """Tensor names and conventions of one code base. Every table maps its names to the canonical ones.

    Attributes
    ----------
    name : str
        Name of the dialect.
    marker : str
        Regular expression that finds a tensor name of this dialect, with the prefix of the backbone, and none of a
        dialect below it in :data:`DIALECTS`.
    also, lacks : str
        Regular expressions for a name that this dialect has too and for names that it doesn't have, where the marker
        alone doesn't tell; empty where it does.
    tensors : dict of str to str
        Tensors outside the blocks.
    block_prefix : str
        Regular expression for what precedes the number of a block.
    block_modules : dict of str to str
        Modules of a block that have a weight and a bias. Query, key and value are "attn.q", "attn.k" and "attn.v" where
        they are separate.
    block_tensors : dict of str to str
        Other tensors of a block.
    pos_embed : {"offset", "exact", "antialias"}
        Interpolation of position embeddings in this code base.
    pos_embed_registers : {"offset", "exact", "antialias"}
        The same for networks with registers.
    class_position : bool, optional
        Whether the first position embedding is that of CLS; None if this code base has networks of both kinds.
    normalization : str, optional
        Normalization of all networks of this code base, a key of :data:`vitnp.checkpoints.registry.NORMALIZATIONS`.
    heads : dict of int to int
        Attention heads by width, where they aren't those of :data:`HEADS`.
    eps : float
        Epsilon of every LayerNorm.
    rotary : bool
        Whether the networks have rotary position embeddings, those of DINOv3, and no table of positions.
    """

    name: str
    marker: str
    tensors: Mapping[str, str]
    block_prefix: str
    block_modules: Mapping[str, str]
    block_tensors: Mapping[str, str]
    pos_embed: str = "offset"
    pos_embed_registers: str = "antialias"
    class_position: bool | None = None
    normalization: str | None = None
    heads: Mapping[int, int] = dataclasses.field(default_factory=dict)
    eps: float = 1e-6
    rotary: bool = False
    also: str = ""
    lacks: str = ""

    def tensors_of_a_block(self) -> dict[str, str]:
        """Return the table of all tensors of a block, relative to its prefix."""
        kinds = ("weight", "bias")
        modules = {
            f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in self.block_modules.items() for kind in kinds
        }
        return {**modules, **self.block_tensors}
