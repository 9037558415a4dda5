"""Translation of the tensor names of other code bases into one set of names.

The canonical names are those of DINO, DINOv2 and timm, such as ``blocks.{i}.attn.qkv.weight``; the tables are in
:mod:`vitnp.checkpoints.dialects`. Training checkpoints nest these names (``teacher``, ``state_dict``), prefix them
(``module.backbone.``) and hold heads that no feature needs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from vitnp.checkpoints.dialects import DIALECTS, Dialect, recognize
from vitnp.checkpoints.fuse import fuse
from vitnp.checkpoints.memory import require_memory
from vitnp.checkpoints.unsupported import FAMILIES, WITHOUT_CLASS_TOKEN, refuse_unsupported_names
from vitnp.errors import CheckpointError

# All dialects are translated with one table, since no name means different things in two of them.
_TENSORS = {theirs: ours for dialect in DIALECTS for theirs, ours in dialect.tensors.items()}
_BLOCK_TENSORS = {theirs: ours for dialect in DIALECTS for theirs, ours in dialect.tensors_of_a_block().items()}
_BLOCK_PREFIX = "|".join(dict.fromkeys(dialect.block_prefix for dialect in DIALECTS))
_BLOCK_NAME = re.compile(rf"(?:{_BLOCK_PREFIX})\.([0-9]{{1,4}})\.([a-z].*)")
_CLS_TOKEN_NAMES = sorted((name for name in _TENSORS if _TENSORS[name] == "cls_token"), key=len, reverse=True)

# Parameters that only training uses: what replaces masked patches, and DINOv3's norm of CLS in local crops.
_UNUSED = (
    *("mask_token", "masked_embed", "embeddings.mask_token"),
    *("local_cls_norm.weight", "local_cls_norm.bias"),
)
# Unknown tensors under these names belong to the backbone, so they mean another architecture; others are heads to drop.
_BACKBONE = (
    *(
        "blocks.",
        "blocks_",
        "layer.",
        "layers.",
        "model.layer.",
        "encoder.",
        "embeddings.",
        "patch_embed.",
        "patch_embed_",
    ),
    *("norm_pre.", "norm_embed.", "pre_norm.", "pre_layernorm.", "ln_pre.", "embed_norm.", "pos_embed", "pos_embeder."),
    *("cls_norm.", "local_cls_norm.", "cls_attn_blocks.", "cls_token_", "dist_token", "prompt", "rope", "rel_pos"),
)

# Preferred backbone of a file that has several: the one that each method's own evaluation code takes.
_PREFERENCE = ("teacher", "target_encoder", "base_encoder", "", "momentum_encoder", "student")


def to_canonical(tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], Dialect]:
    """Translate the weights of any known dialect to canonical names and float32.

    Parameters
    ----------
    tensors : mapping of str to array
        Names as in the file, with prefixes and heads; float16, float32 or float64. Linear weights are
        (outputs, inputs).

    Returns
    -------
    weights : dict of str to float32 array
        Canonical names only; float32 arrays are not copied. Shapes are not checked here.
    dialect : Dialect
        Dialect of the names.

    Raises
    ------
    CheckpointError
        If there is no ViT in the file, one with parts that a plain ViT lacks, or one that memory doesn't hold. The
        message names the tensor, not the file.

    Examples
    --------
    >>> weights, dialect = to_canonical({"module.cls_token": np.zeros((1, 1, 4)), "head.weight": np.zeros((2, 4)),
    ...                                  "module.blocks.0.norm1.weight": np.ones(4, np.float16)})
    >>> sorted(weights), dialect.name
    (['blocks.0.norm1.weight', 'cls_token'], 'DINO')
    """
    prefix = _backbone_prefix(tensors)
    names = [name for name in tensors if name.startswith(prefix)]
    dialect = recognize(names)
    # Names that the form of DINOv3 in timm shares with other families don't tell those.
    refuse_unsupported_names(name for name in names if not (dialect.rotary and _canonical(name.removeprefix(prefix))))
    backbone = {name.removeprefix(prefix): tensors[name] for name in names}
    require_memory(sum(tensor.size for tensor in backbone.values()))
    weights: dict[str, np.ndarray] = {}
    for name, tensor in backbone.items():
        full_name = (prefix + name)[:100]
        canonical = _translate(name, full_name)
        if canonical is None and _is_parameter_of_tokens(name, tensor, backbone):
            raise CheckpointError(f"tensor {full_name!r} belongs to another architecture than a plain ViT")
        if canonical is None:
            continue
        if canonical in weights:
            raise CheckpointError(f"tensor {full_name!r} is present twice, under two names")
        if tensor.dtype.kind != "f":
            raise CheckpointError(f"tensor {full_name!r} holds {tensor.dtype} numbers, but weights are floating point")
        weights[canonical] = np.require(tensor, np.float32, ["C", "A"])
    depth = 1 + max((int(name.split(".")[1]) for name in weights if name.startswith("blocks.")), default=-1)
    if depth == 0:
        raise CheckpointError("it has a class token but no transformer blocks under a known name")
    fuse(weights, depth, partial_bias=dialect.rotary)
    return weights, dialect


def _backbone_prefix(tensors: Mapping[str, np.ndarray]) -> str:
    """Return what precedes the names of the preferred backbone, ``"teacher.backbone."`` for example."""
    prefixes = []
    for name in tensors:
        for cls_token in _CLS_TOKEN_NAMES:
            if name == cls_token or name.endswith("." + cls_token):
                prefixes.append(name.removesuffix(cls_token))
                break
    if not prefixes:
        refuse_unsupported_names(tensors, (*FAMILIES, *WITHOUT_CLASS_TOKEN))
        raise CheckpointError("it holds no ViT: no tensor is named cls_token")

    # A teacher beside a model_ema is the network that a DINOv3 was distilled from; elsewhere it is the average itself.
    preference = (
        ("model_ema", *_PREFERENCE) if any("teacher" in prefix.split(".") for prefix in prefixes) else _PREFERENCE
    )

    def rank(prefix: str) -> int:
        parts = prefix.split(".")
        return next((i for i, word in enumerate(preference) if word in parts and word), preference.index(""))

    return min(prefixes, key=rank)


def _canonical(name: str) -> str | None:
    """Return the canonical name; None if no dialect has this one."""
    if name in _TENSORS:
        return _TENSORS[name]
    block = _BLOCK_NAME.fullmatch(name)
    if block and block[2] in _BLOCK_TENSORS:
        return f"blocks.{int(block[1])}.{_BLOCK_TENSORS[block[2]]}"
    return None


def _translate(name: str, full_name: str) -> str | None:
    """Return the canonical name, or None for heads; refuse tensors of another architecture."""
    canonical = _canonical(name)
    if canonical is None and name.startswith(_BACKBONE) and name not in _UNUSED:
        raise CheckpointError(f"tensor {full_name!r} belongs to another architecture than a plain ViT")
    return canonical


def _is_parameter_of_tokens(name: str, tensor: np.ndarray, backbone: Mapping[str, np.ndarray]) -> bool:
    """Tell whether an unknown parameter of the network itself, not of a module, is as wide as its tokens.

    Such are storage tokens, prompts and further position embeddings: without them the features would be others.
    """
    if "." in name or name in _UNUSED or not tensor.ndim or "cls_token" not in backbone:
        return False
    return tensor.shape[-1:] == backbone["cls_token"].shape[-1:] and not name.startswith(("decoder_", "predictor_"))
