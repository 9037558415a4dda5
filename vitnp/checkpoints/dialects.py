"""Code bases whose checkpoints vitnp reads: their tensor names, and the conventions that their weights were made for.

To read the checkpoints of another code base, add an entry to :data:`DIALECTS`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

from vitnp.checkpoints.dialect import Dialect

# Attention heads of published ViTs, by width and depth. MoCo v3 and DINOv3 differ, see DIALECTS.
HEADS = {
    (192, 12): 3,  # Ti
    (384, 12): 6,  # S
    (768, 12): 12,  # B
    (1024, 24): 16,  # L
    (1280, 32): 16,  # H: heads of width 80
    (1408, 40): 16,  # g of Zhai et al. 2022: heads of width 88
    (1536, 40): 24,  # g of DINOv2
    (1664, 48): 16,  # G: heads of width 104
    # Web-SSL with 2, 3, 5 and 7 billion parameters: heads of width 128.
    (2688, 24): 21,
    (3072, 26): 24,
    (3584, 32): 28,
    (4096, 32): 32,
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
    "embeddings.patch_embeddings.weight": "patch_embed.proj.weight",  # DINOv3
    "embeddings.patch_embeddings.bias": "patch_embed.proj.bias",
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
)

# The heads of all DINOv3 are as wide as those of the others of its width, but for H+ and 7B.
_DINOV3_HEADS = {1280: 20, 4096: 32}

# DINOv3's own code, and what vitnp writes. Its SwiGLU has three layers.
_DINOV3 = dataclasses.replace(
    _DINO,
    name="DINOv3",
    marker=r"(?:^|\.)(?:storage_tokens|rope_embed\.periods|attn\.qkv\.bias_mask)$",
    tensors={
        **_DINO.tensors,
        "storage_tokens": "register_tokens",
        "rope_embed.periods": "rope_embed.periods",
        "cls_norm.weight": "cls_norm.weight",
        "cls_norm.bias": "cls_norm.bias",
    },
    block_modules={
        **_DINO.block_modules,
        "mlp.w1": "mlp.gate_proj",
        "mlp.w2": "mlp.up_proj",
    },
    block_tensors={**_DINO.block_tensors, "attn.qkv.bias_mask": "attn.qkv.bias_mask"},
    normalization="imagenet",
    heads=_DINOV3_HEADS,
    eps=1e-5,
    rotary=True,
)

# In the order in which they are recognized.
DIALECTS = (
    _DINOV3,
    Dialect(
        name="transformers-dinov3",
        marker=r"(?<!encoder\.)\blayer\.[0-9]+\.attention\.[qkvo]_proj\.weight$",
        tensors={
            **_TRANSFORMERS_TENSORS,
            "rope_embeddings.inv_freq": "rope_embed.inv_freq",  # of the first versions
            "norm.weight": "norm.weight",
            "norm.bias": "norm.bias",
        },
        block_prefix=r"(?:model\.)?layer",
        block_modules={
            "norm1": "norm1",
            "norm2": "norm2",
            "attention.q_proj": "attn.q",
            "attention.k_proj": "attn.k",
            "attention.v_proj": "attn.v",
            "attention.o_proj": "attn.proj",
            "mlp.gate_proj": "mlp.gate_proj",
            "mlp.up_proj": "mlp.up_proj",  # also the first layer of an MLP without a gate
            "mlp.down_proj": "mlp.down_proj",
        },
        block_tensors={"layer_scale1.lambda1": "ls1.gamma", "layer_scale2.lambda1": "ls2.gamma"},
        normalization="imagenet",
        heads=_DINOV3_HEADS,
        eps=1e-5,
        rotary=True,
    ),
    # timm's form of DINOv3, EUPE and LingBot-Vision is its EVA. The file doesn't tell that it rotates, but no other
    # network of timm has CLS, registers and LayerScale of these names without a table of positions.
    dataclasses.replace(
        _DINOV3,
        name="timm-dinov3",
        marker=r"(?:^|\.)reg_token$",
        also=r"(?:^|\.)blocks\.[0-9]+\.gamma_1$",
        lacks=r"(?:^|\.)(?:pos_embed|blocks\.[0-9]+\.attn\.(?:q_proj\.weight|qkv\.bias))$",
        block_modules={
            **_DINO.block_modules,
            "mlp.fc1_g": "mlp.gate_proj",
            "mlp.fc1_x": "mlp.up_proj",
        },
        block_tensors={**_DINO.block_tensors, "attn.q_bias": "attn.q.bias", "attn.v_bias": "attn.v.bias"},
    ),
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

    def found(pattern: str) -> bool:
        return any(map(re.compile(pattern).search, names))

    return next(
        dialect
        for dialect in DIALECTS
        if found(dialect.marker)
        and (not dialect.also or found(dialect.also))
        and not (dialect.lacks and found(dialect.lacks))
    )
