"""Translation of the tensor names of other code bases into one set of names.

The canonical names are those of DINO, DINOv2 and timm, such as ``blocks.{i}.attn.qkv.weight``. Each code base is one
entry of :data:`DIALECTS`; to read the checkpoints of another one, add an entry. Training checkpoints nest these names
(``teacher``, ``state_dict``), prefix them (``module.backbone.``) and hold heads that no feature needs.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from vitnp.errors import CheckpointError


@dataclasses.dataclass(frozen=True)
class Dialect:
    """Tensor names and conventions of one code base. Every table maps its names to the canonical ones.

    Attributes
    ----------
    name : str
        Name of the dialect.
    marker : str
        Regular expression that finds a tensor name of this dialect and of none below it in :data:`DIALECTS`.
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
        Interpolation of position embeddings in this code base, for networks without registers.
    has_config_json : bool
        Whether a ``config.json`` beside a checkpoint describes it.
    """

    name: str
    marker: str
    tensors: dict[str, str]
    block_prefix: str
    block_modules: dict[str, str]
    block_tensors: dict[str, str]
    pos_embed: str
    has_config_json: bool

    def tensors_of_a_block(self) -> dict[str, str]:
        """Return the table of all tensors of a block, relative to its prefix."""
        kinds = ("weight", "bias")
        modules = {
            f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in self.block_modules.items() for kind in kinds
        }
        return modules | self.block_tensors


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

# In the order in which they are recognized.
DIALECTS = (
    Dialect(  # ViT in transformers, and facebook/dino-*
        name="transformers-vit",
        marker=r"^encoder\.layer\..*\.layernorm_before\.weight$",
        tensors=_TRANSFORMERS_TENSORS,
        block_prefix=r"encoder\.layer",
        block_modules=_TRANSFORMERS_ATTENTION
        | {
            "layernorm_before": "norm1",
            "layernorm_after": "norm2",
            "intermediate.dense": "mlp.fc1",
            "output.dense": "mlp.fc2",
        },
        block_tensors={},
        pos_embed="exact",
        has_config_json=True,
    ),
    Dialect(  # Dinov2 in transformers, with or without registers
        name="transformers-dinov2",
        marker=r"^encoder\.layer\.",
        tensors=_TRANSFORMERS_TENSORS,
        block_prefix=r"encoder\.layer",
        block_modules=_TRANSFORMERS_ATTENTION
        | {
            "norm1": "norm1",
            "norm2": "norm2",
            "mlp.fc1": "mlp.fc1",
            "mlp.fc2": "mlp.fc2",
            "mlp.weights_in": "mlp.w12",
            "mlp.weights_out": "mlp.w3",
        },
        block_tensors={"layer_scale1.lambda1": "ls1.gamma", "layer_scale2.lambda1": "ls2.gamma"},
        pos_embed="exact",
        has_config_json=True,
    ),
    Dialect(  # DINO, DINOv2 and timm: fused query, key and value
        name="timm",
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
        has_config_json=False,
    ),
)

# All dialects are translated with one table, since no name means different things in two of them.
_TENSORS = {theirs: ours for dialect in DIALECTS for theirs, ours in dialect.tensors.items()}
_BLOCK_TENSORS = {theirs: ours for dialect in DIALECTS for theirs, ours in dialect.tensors_of_a_block().items()}
_BLOCK_PREFIX = "|".join(dict.fromkeys(dialect.block_prefix for dialect in DIALECTS))
_BLOCK_NAME = re.compile(rf"(?:{_BLOCK_PREFIX})\.([0-9]{{1,4}})\.([a-z].*)")
_CLS_TOKEN_NAMES = sorted((name for name in _TENSORS if _TENSORS[name] == "cls_token"), key=len, reverse=True)

_UNUSED = ("mask_token", "embeddings.mask_token")
# Unknown tensors under these names belong to the backbone, so they mean another architecture; others are heads to drop.
_BACKBONE = ("blocks.", "encoder.", "embeddings.", "patch_embed.", "norm_pre.", "dist_token", "rope", "rel_pos")

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
        If there is no ViT in the file, or one with parts that a plain ViT lacks. The message names the tensor, not the
        file.

    Examples
    --------
    >>> weights, dialect = to_canonical({"module.cls_token": np.zeros((1, 1, 4)), "head.weight": np.zeros((2, 4)),
    ...                                  "module.blocks.0.norm1.weight": np.ones(4, np.float16)})
    >>> sorted(weights), dialect.name
    (['blocks.0.norm1.weight', 'cls_token'], 'timm')
    """
    prefix = _backbone_prefix(tensors)
    backbone = {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}
    weights: dict[str, np.ndarray] = {}
    for name, tensor in backbone.items():
        full_name = (prefix + name)[:100]
        canonical = _translate(name, full_name)
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
    for index in range(depth):
        _fuse_qkv(weights, f"blocks.{index}")
        _rename_gated_mlp(weights, f"blocks.{index}")
    return weights, next(dialect for dialect in DIALECTS if any(re.search(dialect.marker, name) for name in backbone))


def _backbone_prefix(tensors: Mapping[str, np.ndarray]) -> str:
    """Return what precedes the names of the preferred backbone, ``"teacher.backbone."`` for example."""
    prefixes = []
    for name in tensors:
        for cls_token in _CLS_TOKEN_NAMES:
            if name == cls_token or name.endswith("." + cls_token):
                prefixes.append(name.removesuffix(cls_token))
                break
    if not prefixes:
        raise CheckpointError("it holds no ViT: no tensor is named cls_token")

    def rank(prefix: str) -> int:
        parts = prefix.split(".")
        return next((i for i, word in enumerate(_PREFERENCE) if word in parts and word), _PREFERENCE.index(""))

    return min(prefixes, key=rank)


def _translate(name: str, full_name: str) -> str | None:
    """Return the canonical name, or None for heads; refuse tensors of another architecture."""
    if name in _TENSORS:
        return _TENSORS[name]
    block = _BLOCK_NAME.fullmatch(name)
    if block and block[2] in _BLOCK_TENSORS:
        return f"blocks.{int(block[1])}.{_BLOCK_TENSORS[block[2]]}"
    if name.startswith(_BACKBONE) and name not in _UNUSED:
        raise CheckpointError(f"tensor {full_name!r} belongs to another architecture than a plain ViT")
    return None


def _fuse_qkv(weights: dict[str, np.ndarray], block: str) -> None:
    """Concatenate separate projections to query, key and value, in place; an absent bias becomes zeros."""
    for kind in ("weight", "bias"):
        names = [f"{block}.attn.{letter}.{kind}" for letter in "qkv"]
        missing = [name for name in names if name not in weights]
        if len(missing) == 3:
            continue
        if missing:
            raise CheckpointError(f"tensor {missing[0]!r} is missing, though its siblings are present")
        arrays = [weights.pop(name) for name in names]
        if len({array.shape for array in arrays}) != 1:
            raise CheckpointError(f"query, key and value of {block} differ in shape")
        weights[f"{block}.attn.qkv.{kind}"] = np.concatenate(arrays)
    weight = weights.get(f"{block}.attn.qkv.weight")
    if weight is not None and weight.ndim == 2:
        weights.setdefault(f"{block}.attn.qkv.bias", np.zeros(len(weight), np.float32))


def _rename_gated_mlp(weights: dict[str, np.ndarray], block: str) -> None:
    """Rename fc1 and fc2 of a gated MLP to w12 and w3, in place.

    timm uses fc1 and fc2 for gated MLPs too. Then fc1 has twice as many outputs as fc2 has inputs.
    """
    fc1, fc2 = weights.get(f"{block}.mlp.fc1.weight"), weights.get(f"{block}.mlp.fc2.weight")
    if fc1 is None or fc2 is None or not fc1.ndim == fc2.ndim == 2 or len(fc1) != 2 * fc2.shape[1]:
        return
    for theirs, ours in (("fc1", "w12"), ("fc2", "w3")):
        for kind in ("weight", "bias"):
            if f"{block}.mlp.{theirs}.{kind}" in weights:
                weights[f"{block}.mlp.{ours}.{kind}"] = weights.pop(f"{block}.mlp.{theirs}.{kind}")
