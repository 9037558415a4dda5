"""Code bases whose checkpoints vitnp reads: their tensor names, and the conventions that their weights were made for.

To read the checkpoints of another code base, add an entry to :data:`DIALECTS`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping


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
    """

    name: str
    marker: str
    tensors: Mapping[str, str]
    block_prefix: str
    block_modules: Mapping[str, str]
    block_tensors: Mapping[str, str]
    pos_embed: str
    pos_embed_registers: str = "antialias"
    class_position: bool | None = None
    normalization: str | None = None
    heads: Mapping[int, int] = dataclasses.field(default_factory=dict)

    def tensors_of_a_block(self) -> dict[str, str]:
        """Return the table of all tensors of a block, relative to its prefix."""
        kinds = ("weight", "bias")
        modules = {
            f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in self.block_modules.items() for kind in kinds
        }
        return {**modules, **self.block_tensors}


# Attention heads of published ViTs, by width and depth. Only MoCo v3 differs, see DIALECTS.
HEADS = {
    (192, 12): 3,  # Ti
    (384, 12): 6,  # S
    (768, 12): 12,  # B
    (1024, 24): 16,  # L
    (1280, 32): 16,  # H: heads of width 80
    (1408, 40): 16,  # g of Zhai et al. 2022: heads of width 88
    (1536, 40): 24,  # g of DINOv2
    (1664, 48): 16,  # G: heads of width 104
    # Sizes that only timm has.
    (384, 36): 6,
    (512, 12): 8,
    (640, 12): 10,
    (896, 12): 14,
    (768, 8): 8,  # the ViT-S of timm's first releases: heads of width 96
    (1152, 27): 16,  # SoViT-400m: heads of width 72
}

_TRANSFORMERS_TENSORS = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.register_tokens": "register_tokens",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
_TRANSFORMERS_ATTENTION = {
    "attention.attention.query": "attn.q",
    "attention.attention.key": "attn.k",
    "attention.attention.value": "attn.v",
    "attention.output.dense": "attn.proj",
}

# DINO and the code that is built on it or on timm: fused query, key and value.
_DINO = Dialect(
    name="DINO",
    marker="",
    tensors={
        "cls_token": "cls_token",
        "pos_embed": "pos_embed",
        "register_tokens": "register_tokens",
        "reg_token": "register_tokens",
        "patch_embed.proj.weight": "patch_embed.proj.weight",
        "patch_embed.proj.bias": "patch_embed.proj.bias",
        "norm.weight": "norm.weight",
        "norm.bias": "norm.bias",
    },
    block_prefix=r"blocks(?:\.[0-9]{1,4})?",  # DINOv2 may save its blocks in chunks: blocks.0.3.norm1
    block_modules={
        "norm1": "norm1",
        "norm2": "norm2",
        "attn.qkv": "attn.qkv",
        "attn.proj": "attn.proj",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
        "mlp.w12": "mlp.w12",
        "mlp.w3": "mlp.w3",
    },
    block_tensors={
        "ls1.gamma": "ls1.gamma",
        "ls2.gamma": "ls2.gamma",
        "gamma_1": "ls1.gamma",  # DeiT III and iBOT
        "gamma_2": "ls2.gamma",
    },
    pos_embed="offset",
)

# In the order in which they are recognized.
DIALECTS = (
    Dialect(  # ViT in transformers, and facebook/dino-*
        name="transformers-vit",
        marker=r"(?:^|\.)encoder\.layer\..*\.layernorm_before\.weight$",
        tensors=_TRANSFORMERS_TENSORS,
        block_prefix=r"encoder\.layer",
        block_modules={
            **_TRANSFORMERS_ATTENTION,
            "layernorm_before": "norm1",
            "layernorm_after": "norm2",
            "intermediate.dense": "mlp.fc1",
            "output.dense": "mlp.fc2",
        },
        block_tensors={},
        pos_embed="exact",
        class_position=True,
    ),
    Dialect(  # Dinov2 in transformers, with or without registers
        name="transformers-dinov2",
        marker=r"(?:^|\.)encoder\.layer\.",
        tensors=_TRANSFORMERS_TENSORS,
        block_prefix=r"encoder\.layer",
        block_modules={
            **_TRANSFORMERS_ATTENTION,
            "norm1": "norm1",
            "norm2": "norm2",
            "mlp.fc1": "mlp.fc1",
            "mlp.fc2": "mlp.fc2",
            "mlp.weights_in": "mlp.w12",
            "mlp.weights_out": "mlp.w3",
        },
        block_tensors={"layer_scale1.lambda1": "ls1.gamma", "layer_scale2.lambda1": "ls2.gamma"},
        pos_embed="exact",
        class_position=True,
        normalization="imagenet",
    ),
    dataclasses.replace(  # built on timm; its ViT-S has heads of width 32
        _DINO,
        name="MoCo v3",
        marker=r"(?:^|\.)(?:base|momentum)_encoder\.",
        pos_embed="antialias",
        class_position=True,
        normalization="imagenet",
        heads={384: 12},
    ),
    dataclasses.replace(
        _DINO,
        name="MAE",
        marker=r"(?:^|\.)decoder_pos_embed$",
        pos_embed="exact",
        class_position=True,
        normalization="imagenet",
    ),
    dataclasses.replace(
        _DINO,
        name="MSN",
        marker=r"(?:^|\.)target_encoder\.",
        pos_embed="exact",
        class_position=True,
        normalization="imagenet",
    ),
    # timm gives registers no position, and networks with registers none to CLS either.
    dataclasses.replace(
        _DINO, name="timm with registers", marker=r"(?:^|\.)reg_token$", pos_embed="antialias", class_position=False
    ),
    dataclasses.replace(  # DINO, DINOv2 and iBOT save no classifier under these names
        _DINO, name="timm", marker=r"^(?:.*\.)?(?:timm_model\.|fc_norm\.|head\.(?:weight|bias)$)", pos_embed="antialias"
    ),
    dataclasses.replace(
        _DINO,
        name="DINOv2",
        marker=r"(?:^|\.)(?:register_tokens|mask_token)$",
        class_position=True,
        normalization="imagenet",
    ),
    dataclasses.replace(  # training checkpoints of DINO and iBOT
        _DINO, marker=r"(?:^|\.)(?:teacher|student)\.", class_position=True, normalization="imagenet"
    ),
    _DINO,  # or anything else under these names: what follows from it is a guess
)


def recognize(names: Iterable[str]) -> Dialect:
    """Return the dialect of a backbone's tensor names, which include its prefix.

    Examples
    --------
    >>> recognize(["module.base_encoder.cls_token", "module.base_encoder.blocks.0.norm1.weight"]).name
    'MoCo v3'
    """
    names = list(names)
    return next(dialect for dialect in DIALECTS if any(re.search(dialect.marker, name) for name in names))
