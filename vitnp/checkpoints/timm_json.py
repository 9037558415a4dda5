"""What the config.json of a timm model declares.

timm writes it with ``save_for_hf`` and ``push_to_hf_hub``: ``architecture``, ``model_args`` (the arguments of the model
that differ from its architecture) and ``pretrained_cfg`` (preprocessing). Old files hold the fields of
``pretrained_cfg`` beside ``architecture``; files of transformers' ``TimmWrapperModel`` have a ``model_type`` besides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vitnp.checkpoints.declared import (
    DeclaredConfig,
    first_of,
    mean_and_std,
    number,
    numbers,
    size,
    switch,
    unsupported_value,
    whole,
)
from vitnp.checkpoints.registry import NORMALIZATIONS
from vitnp.checkpoints.unsupported import refuse_unsupported_model
from vitnp.errors import CheckpointError

# Architectures that are plain ViTs, unless their tensors say otherwise.
_PLAIN_VIT = re.compile(r"(?:test_)?(?:vit|deit|deit3|flexivit)_\w+|test_vit\d?")
# DINOv3 and what is built like it; in timm they are configurations of its EVA.
_DINOV3 = re.compile(r"vit_\w+_dinov3(?:_qkvb)?|vit_\w+_lingbot")
_HEADS = {"test_vit": 2}  # architectures whose heads aren't those of their width
_EPS, _EPS_DINOV3 = 1e-6, 1e-5

# Arguments of the model whose value changes the forward pass, and the values for which vitnp computes the same.
_SUPPORTED: dict[str, tuple[object, ...]] = {
    "in_chans": (None, 3),
    "class_token": (None, True),
    "pos_embed": (None, "learn"),
    "pre_norm": (None, False),
    "qk_norm": (None, False),
    "scale_attn_norm": (None, False),
    "scale_mlp_norm": (None, False),
    "norm_layer": (None, "layernorm", "LayerNorm"),
    "embed_layer": (None,),
    "embed_norm_layer": (None,),
    "attn_layer": (None, "", "attn"),
    "block_fn": (None,),
    "mlp_layer": (None,),
    "dynamic_img_pad": (None, False),
    "parallel_attn_mlp": (None, False),
}
# The same for those of EVA, besides: timm's DINOv3 sets them so.
_SUPPORTED_DINOV3: dict[str, tuple[object, ...]] = {
    **_SUPPORTED,
    "norm_layer": (None,),  # its own has an epsilon of 1e-5
    "act_layer": (None,),
    "use_rot_pos_emb": (None, True),
    "use_abs_pos_emb": (None, False),
    "rope_type": (None, "dinov3"),
    "rope_rotate_half": (None, True),
    "rope_grid_offset": (None, 0, 0.0),
    "rope_grid_indexing": (None, "ij"),
    "attn_type": (None, "eva"),
    "attn_only_layer_scale": (None, False),
    "scale_attn_inner": (None, False),
    "scale_mlp": (None, False),
    "gated_attn": (None, False),
    "num_kv_heads": (None,),
    "use_post_norm": (None, False),
    "use_pre_transformer_norm": (None, False),
}
# Arguments that the shapes of the weights decide, that only training uses, or that only heads do.
_WITHOUT_EFFECT = {
    *("embed_dim", "depth", "mlp_ratio", "patch_size", "reg_tokens", "init_values", "qkv_bias", "proj_bias"),
    *("num_heads", "img_size", "no_embed_class", "act_layer", "dynamic_img_size", "strict_img_size"),
    *("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"),
    *("weight_init", "fix_init", "num_classes", "global_pool", "final_norm", "fc_norm", "pool_include_prefix"),
    *("head_dropout", "features_only", "scriptable", "exportable", "cache_dir", "device", "dtype"),
}
_WITHOUT_EFFECT_DINOV3 = {
    *(_WITHOUT_EFFECT - {"act_layer"}),
    *("num_reg_tokens", "qkv_fused", "swiglu_mlp", "swiglu_align_to", "rope_temperature", "head_init_scale"),
    *("rope_shift_coords", "rope_jitter_coords", "rope_rescale_coords"),  # of training
    *("use_post_transformer_norm", "use_fc_norm", "attn_pool_num_heads", "attn_pool_mlp_ratio"),
}


def read_timm_config(config: Mapping[str, Any]) -> DeclaredConfig:
    """Return what a config.json of timm declares.

    Raises
    ------
    CheckpointError
        If it describes another network than a plain ViT, or one with parts that vitnp lacks.

    Examples
    --------
    >>> arguments = {"img_size": [224, 256], "num_heads": 12}
    >>> declared = read_timm_config({"architecture": "vit_small_patch16_224", "model_args": arguments})
    >>> declared.image_size, declared.heads
    ((224, 256), 12)
    """
    architecture = config.get("architecture") or ""
    if not isinstance(architecture, str):
        raise CheckpointError("the architecture in config.json beside it should be a name")
    architecture = architecture[:100].partition(".")[0]
    if architecture:
        refuse_unsupported_model(architecture, "config.json beside it")
        if not _PLAIN_VIT.fullmatch(architecture):
            raise CheckpointError(
                f"config.json beside it is that of timm's {architecture[:60]}, which is no plain ViT: give another "
                "checkpoint, or move config.json away if it belongs to one"
            )
    is_dinov3 = bool(_DINOV3.fullmatch(architecture))
    arguments = _table(config, "model_args", {})
    _check_arguments(arguments, is_dinov3)
    preprocessing = _table(config, "pretrained_cfg", config)
    swiglu = "silu" if arguments.get("act_layer") in ("silu", "swish") else None
    return DeclaredConfig(
        library="timm",
        width=first_of(whole(arguments, "embed_dim"), whole(config, "num_features")),
        depth=whole(arguments, "depth"),
        heads=first_of(whole(arguments, "num_heads"), _HEADS.get(architecture)),
        patch=whole(arguments, "patch_size"),
        registers=whole(arguments, "num_reg_tokens" if is_dinov3 else "reg_tokens"),
        swiglu=switch(arguments, "swiglu_mlp") if is_dinov3 else True if swiglu else None,
        layerscale=True if arguments.get("init_values") else None,
        qkv_bias=switch(arguments, "qkv_bias"),
        eps=_EPS_DINOV3 if is_dinov3 else _EPS,
        image_size=size(arguments.get("img_size"), "img_size") or _input_size(preprocessing),
        class_position=False if switch(arguments, "no_embed_class") else None,
        pos_embed="antialias",
        mean_and_std=_mean_and_std(preprocessing),
        resizing=_resizing(preprocessing),
        rotary=is_dinov3 if architecture else None,
        rope_base=number(arguments, "rope_temperature") if is_dinov3 else None,
    )


def _check_arguments(arguments: Mapping[str, Any], is_dinov3: bool) -> None:
    supported = _SUPPORTED_DINOV3 if is_dinov3 else _SUPPORTED
    for name, value in arguments.items():
        if name in supported:
            if value not in supported[name]:
                allowed = " or ".join(str(choice) for choice in supported[name][-1:])
                raise unsupported_value(
                    "config.json", f"model_args.{name}", value, f"runs only ViTs in which it is {allowed}"
                )
        elif name not in (_WITHOUT_EFFECT_DINOV3 if is_dinov3 else _WITHOUT_EFFECT):
            raise unsupported_value("config.json", f"model_args.{name[:60]}", value, "doesn't know this argument")
    activation = None if is_dinov3 else arguments.get("act_layer")
    if activation not in (None, "gelu", "silu", "swish"):
        raise unsupported_value(
            "config.json", "model_args.act_layer", activation, "runs ViTs with the exact gelu, or SwiGLU"
        )


def _input_size(preprocessing: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return height and width of ``input_size``, which is [3, height, width]."""
    if preprocessing.get("input_size") is None:
        return None
    channels, height, width = numbers(preprocessing["input_size"], 3, "input_size")
    if channels != 3:
        raise unsupported_value("config.json", "input_size", preprocessing["input_size"], "takes images of 3 channels")
    return size([height, width], "input_size")


def _mean_and_std(preprocessing: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return mean and std; what is missing is ImageNet's, as in timm."""
    mean, std = NORMALIZATIONS["imagenet"]
    given = (preprocessing.get("mean"), preprocessing.get("std"))
    return mean_and_std(
        list(mean) if given[0] is None else given[0],
        list(std) if given[1] is None else given[1],
    )


def _resizing(preprocessing: Mapping[str, Any]) -> str:
    parts = []
    if isinstance(preprocessing.get("interpolation"), str):
        parts.append(preprocessing["interpolation"][:20])
    if (sides := _input_size(preprocessing)) is not None:
        parts.append(f"to {sides[0]} x {sides[1]}")
    return " ".join(parts)


def _table(config: Mapping[str, Any], name: str, default: Mapping[str, Any]) -> Mapping[str, Any]:
    value = config.get(name)
    if value is None:
        return default
    if not isinstance(value, dict):
        raise CheckpointError(f"{name} in config.json beside it should be a table, not {str(value)[:40]!r}")
    return value
