"""The names that ViT weights go by, told apart by the names themselves, translated into one set.

Canonical names are those of DINO, DINOv2 and timm: ``blocks.{i}.attn.qkv.weight`` and so on. Three dialects are read:

- ``"timm"``: DINO, DINOv2 and timm, fused query-key-value; DINOv2's chunked blocks (``blocks.0.3.norm1``) too;
- ``"transformers-vit"``: transformers' ViT and its kin, among them ``facebook/dino-*``;
- ``"transformers-dinov2"``: transformers' Dinov2, with or without registers.

Training checkpoints nest these (``teacher``, ``state_dict``) and prefix them (``module.backbone.``) together with heads
that no feature needs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from vitnp.errors import CheckpointError

DIALECTS = ("timm", "transformers-vit", "transformers-dinov2")

_TOP = {
    "cls_token": "cls_token",
    "pos_embed": "pos_embed",
    "register_tokens": "register_tokens",
    "reg_token": "register_tokens",
    "patch_embed.proj.weight": "patch_embed.proj.weight",
    "patch_embed.proj.bias": "patch_embed.proj.bias",
    "norm.weight": "norm.weight",
    "norm.bias": "norm.bias",
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.register_tokens": "register_tokens",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}

_LINEAR = {  # modules of one block that hold a weight and a bias
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.qkv": "attn.qkv",
    "attn.proj": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "mlp.w12": "mlp.w12",
    "mlp.w3": "mlp.w3",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.attention.query": "attn.q",
    "attention.attention.key": "attn.k",
    "attention.attention.value": "attn.v",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "mlp.weights_in": "mlp.w12",
    "mlp.weights_out": "mlp.w3",
}
_BLOCK = {f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in _LINEAR.items() for kind in ("weight", "bias")}
_BLOCK |= {
    "ls1.gamma": "ls1.gamma",
    "ls2.gamma": "ls2.gamma",
    "gamma_1": "ls1.gamma",  # the original DeiT III and iBOT
    "gamma_2": "ls2.gamma",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
}

_BLOCK_NAME = re.compile(r"(?:blocks(?:\.[0-9]{1,4})?|encoder\.layer)\.([0-9]{1,4})\.([a-z].*)")
_UNUSED = ("mask_token", "embeddings.mask_token")
# Names under these belong to the network itself: one that isn't known means another architecture, not a head to drop.
_INSIDE = ("blocks.", "encoder.", "embeddings.", "patch_embed.", "norm_pre.", "dist_token", "rope", "rel_pos")

# Which of several backbones in one file to take: what each method's own evaluation code takes.
_PREFERENCE = ("teacher", "target_encoder", "base_encoder", "", "momentum_encoder", "student")


def flatten(tree: object) -> dict[str, np.ndarray]:
    """The arrays of a nested checkpoint by their dotted path; anything else in it is left out.

    Parameters
    ----------
    tree : object
        What :func:`vitnp.checkpoints.torch_io.read_torch_file` gives: dicts of dicts of arrays, counters, options.

    Examples
    --------
    >>> sorted(flatten({"epoch": 3, "teacher": {"cls_token": np.zeros((1, 1, 4))}}))
    ['teacher.cls_token']
    """
    found: dict[str, np.ndarray] = {}
    waiting, seen = [("", tree)], set()
    while waiting:
        path, value = waiting.pop(0)
        if isinstance(value, np.ndarray):
            found[path] = value
        elif isinstance(value, dict) and id(value) not in seen:  # a hostile file may hold a dict that holds itself
            seen.add(id(value))
            waiting += [(f"{path}.{key}" if path else key, inner) for key, inner in value.items() if type(key) is str]
    return found


def canonical(tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], str]:
    """Translate the weights of any known dialect into canonical names, as float32.

    Parameters
    ----------
    tensors : mapping of str to array
        Names as a file holds them, prefixes and heads included; float16, float32 or float64. Linear weights are
        (outputs, inputs).

    Returns
    -------
    weights : dict of str to float32 array
        Canonical names only. float32 arrays are passed on without a copy. Shapes are not checked here.
    dialect : str
        One of :data:`DIALECTS`.

    Raises
    ------
    CheckpointError
        No ViT is found, or it has a part that the ViT here has not; the sentence names the tensor, not the file.

    Examples
    --------
    >>> weights, dialect = canonical({"module.cls_token": np.zeros((1, 1, 4)), "head.weight": np.zeros((2, 4)),
    ...                               "module.blocks.0.norm1.weight": np.ones(4, np.float16)})
    >>> sorted(weights), dialect
    (['blocks.0.norm1.weight', 'cls_token'], 'timm')
    """
    prefix = _prefix(tensors)
    named: dict[str, np.ndarray] = {}
    split, before = False, False
    for full_name, tensor in tensors.items():
        if not full_name.startswith(prefix):
            continue
        name = full_name[len(prefix) :]
        split |= name.startswith("encoder.layer.")
        before |= name.endswith(".layernorm_before.weight")
        translated = _translate(name, full_name)
        if translated is None:
            continue
        if translated in named:
            raise CheckpointError(f"tensor {full_name[:100]!r} stands there twice under two names")
        if tensor.dtype.kind != "f":
            raise CheckpointError(
                f"tensor {full_name[:100]!r} holds {tensor.dtype} numbers, but weights are floating point"
            )
        named[translated] = np.require(tensor, np.float32, ["C", "A"])
    depth = 1 + max((_block_index(name) for name in named), default=-1)
    if depth == 0:
        raise CheckpointError("it holds a class token but no transformer blocks under a name known here")
    for i in range(depth):
        _complete_block(named, f"blocks.{i}.")
    dialect = "timm" if not split else "transformers-vit" if before else "transformers-dinov2"
    return named, dialect


def _prefix(tensors: Mapping[str, np.ndarray]) -> str:
    """What stands before the names of the backbone to take, ``"teacher.backbone."`` for instance."""
    prefixes = []
    for name in tensors:
        for ending in ("embeddings.cls_token", "cls_token"):
            if name == ending or name.endswith("." + ending):
                prefixes.append(name[: len(name) - len(ending)])
                break
    if not prefixes:
        raise CheckpointError("it holds no ViT: no tensor is named cls_token")

    def rank(prefix: str) -> int:
        parts = prefix.split(".")
        return next((i for i, word in enumerate(_PREFERENCE) if word in parts and word), _PREFERENCE.index(""))

    return min(prefixes, key=rank)


def _translate(name: str, full_name: str) -> str | None:
    """The canonical name; None for a head and the like; refuses what belongs to another architecture."""
    if name in _TOP:
        return _TOP[name]
    block = _BLOCK_NAME.fullmatch(name)
    if block and block[2] in _BLOCK:
        return f"blocks.{int(block[1])}.{_BLOCK[block[2]]}"
    if name.startswith(_INSIDE) and name not in _UNUSED:
        raise CheckpointError(f"tensor {full_name[:100]!r} belongs to no plain ViT, so this is another architecture")
    return None


def _block_index(name: str) -> int:
    return int(name.split(".")[1]) if name.startswith("blocks.") else -1


def _complete_block(named: dict[str, np.ndarray], block: str) -> None:
    """Fuse split projections, give an absent bias its meaning and tell a gated MLP by its shape, in place."""
    for kind in ("weight", "bias"):
        parts = [f"{block}attn.{letter}.{kind}" for letter in "qkv"]
        if any(part in named for part in parts):
            missing = [part for part in parts if part not in named]
            if missing:
                raise CheckpointError(f"tensor {missing[0]!r} is missing beside its siblings")
            arrays = [named.pop(part) for part in parts]
            if len({array.shape for array in arrays}) != 1:
                raise CheckpointError(f"query, key and value of {block[:-1]} differ in shape")
            named[f"{block}attn.qkv.{kind}"] = np.concatenate(arrays)
    weight = named.get(f"{block}attn.qkv.weight")
    if weight is not None and weight.ndim == 2:
        named.setdefault(f"{block}attn.qkv.bias", np.zeros(len(weight), np.float32))  # a linear layer without bias
    # timm calls the gated MLP fc1 and fc2 as well; then fc1 gives twice what fc2 takes.
    first, second = named.get(f"{block}mlp.fc1.weight"), named.get(f"{block}mlp.fc2.weight")
    if (
        first is not None
        and second is not None
        and first.ndim == second.ndim == 2
        and len(first) == 2 * second.shape[1]
    ):
        for theirs, ours in (("fc1", "w12"), ("fc2", "w3")):
            for kind in ("weight", "bias"):
                if f"{block}mlp.{theirs}.{kind}" in named:
                    named[f"{block}mlp.{ours}.{kind}"] = named.pop(f"{block}mlp.{theirs}.{kind}")
