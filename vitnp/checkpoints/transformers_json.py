"""What the config.json and the preprocessor_config.json of a transformers model declare."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from vitnp.checkpoints.declared import (
    DeclaredConfig,
    first_of,
    is_number,
    mean_and_std,
    number,
    size,
    switch,
    unsupported_value,
    whole,
)
from vitnp.checkpoints.registry import MeanAndStd
from vitnp.checkpoints.unsupported import refuse_unsupported_model
from vitnp.errors import CheckpointError


class _Model(NamedTuple):
    """Values of the configuration of a model for fields that a file leaves out, and its position convention."""

    eps: float
    patch: int
    pos_embed: str = "exact"
    registers: int = 0
    heads: int = 12
    rotary: bool = False


# Models that are plain ViTs, by model_type.
_MODELS = {
    "vit": _Model(eps=1e-12, patch=16),
    "vit_mae": _Model(eps=1e-12, patch=16),
    "vit_msn": _Model(eps=1e-6, patch=16),
    "dinov2": _Model(eps=1e-6, patch=14),
    "dinov2_with_registers": _Model(eps=1e-6, patch=16, pos_embed="antialias", registers=4),
    "dinov3_vit": _Model(eps=1e-5, patch=16, heads=6, rotary=True),
}
_IMAGE_SIZE = (224, 224)
_EXACT_GELU = ("gelu", "gelu_python")  # transformers' names; the others are approximations

# Fields that other networks have, with the values for which they change nothing.
_SUPPORTED: dict[str, tuple[object, ...]] = {
    "num_channels": (None, 3),
    "use_absolute_position_embeddings": (None, True),
    "use_relative_position_bias": (None, False),
    "use_shared_relative_position_bias": (None, False),
    "use_cls_token": (None, True),
    "use_qk_norm": (None, False),
    "qk_norm": (None, False),
    "use_pre_norm": (None, False),
    "rope_parameters": (None,),
    "is_decoder": (None, False),
    "interpolate_offset": (None, 0, 0.0),
}
# Fields of rotary positions that only training uses.
_OF_TRAINING = re.compile(r"pos_embed_(?:rope_)?(?:shift|jitter|rescale)(?:_coords)?")
# Other fields of them, in the words of DINOv3's own code, with the values for which they change nothing.
_SUPPORTED_ROTARY: dict[str, tuple[object, ...]] = {
    "pos_embed_rope_normalize_coords": (None, "separate"),
    "pos_embed_rope_min_period": (None,),
    "pos_embed_rope_max_period": (None,),
    "pos_embed_rope_dtype": (None, "fp32"),
}
_BASES = ("rope_theta", "pos_embed_rope_base")  # transformers, and DINOv3's own code
# Fields of preprocessors that change the pixels in ways that vitnp doesn't.
_SUPPORTED_PREPROCESSING: dict[str, tuple[object, ...]] = {
    "rescale_offset": (None, False),
    "do_flip_channel_order": (None, False),
    "do_grayscale": (None, False),
    "do_convert_annotations": (None, False),
}
_RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}  # Pillow's numbers


def read_transformers_config(config: Mapping[str, Any]) -> DeclaredConfig:
    """Return what a config.json of transformers declares.

    Fields that it leaves out have the default of its ``model_type``.

    Raises
    ------
    CheckpointError
        If it describes another network than a plain ViT, or one with parts that vitnp lacks.

    Examples
    --------
    >>> declared = read_transformers_config({"model_type": "vit", "hidden_size": 384, "num_attention_heads": 6})
    >>> declared.heads, declared.eps, declared.image_size
    (6, 1e-12, (224, 224))
    """
    if isinstance(config.get("backbone_config"), dict):  # Depth Anything and DPT, for example
        return read_transformers_config(config["backbone_config"])
    kind = config.get("model_type")
    model = None
    if kind is not None:
        refuse_unsupported_model(str(kind)[:60], "config.json beside it")
        model = _MODELS.get(str(kind))
        if model is None:
            raise CheckpointError(
                f"config.json beside it says model_type: {str(kind)[:60]}, but vitnp runs only "
                f"{', '.join(_MODELS)}: give another checkpoint, or move config.json away if it belongs to one"
            )
    for name, values in _SUPPORTED.items():
        if config.get(name) not in values:
            raise unsupported_value("config.json", name, config[name], "runs only plain ViTs")
    rope_base = _rope_base(config, model)
    swiglu = _swiglu(config)
    pos_embed = model.pos_embed if model else ""
    if switch(config, "interpolate_antialias") is not None:
        pos_embed = "antialias" if config["interpolate_antialias"] else "exact"
    width = whole(config, "hidden_size")
    patch = size(config.get("patch_size"), "patch_size")
    if patch and patch[0] != patch[1]:
        raise unsupported_value("config.json", "patch_size", config["patch_size"], "runs ViTs with square patches")
    hidden = whole(config, "intermediate_size")
    ratio = number(config, "mlp_ratio")
    if ratio is not None and width and hidden is None:
        hidden = int(width * ratio)
        if swiglu:  # DINOv2's is narrower, so that it has as many weights
            hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
    return DeclaredConfig(
        library="transformers",
        width=width,
        depth=whole(config, "num_hidden_layers"),
        heads=first_of(whole(config, "num_attention_heads"), model.heads if model else None),
        patch=first_of(patch[0] if patch else None, model.patch if model else None),
        registers=first_of(whole(config, "num_register_tokens"), model.registers if model else None),
        swiglu=swiglu,
        hidden=hidden,
        qkv_bias=switch(config, "qkv_bias"),
        key_bias=switch(config, "key_bias"),
        eps=first_of(number(config, "layer_norm_eps"), model.eps if model else None),
        image_size=size(config.get("image_size"), "image_size") or (_IMAGE_SIZE if model else None),
        class_position=True,
        pos_embed=pos_embed,
        rotary=model.rotary if model else True if rope_base is not None else None,
        rope_base=rope_base,
    )


def _swiglu(config: Mapping[str, Any]) -> bool | None:
    """Return whether the MLP is a SwiGLU, and check its activation, which DINOv2 leaves to SwiGLU and DINOv3 names."""
    gated = switch(config, "use_gated_mlp")
    if gated:
        if config.get("hidden_act") != "silu":
            raise unsupported_value(
                "config.json", "hidden_act", config.get("hidden_act"), "computes gated MLPs with silu only"
            )
        return True
    swiglu = switch(config, "use_swiglu_ffn")
    activation = config.get("hidden_act", "gelu")
    if not swiglu and activation not in _EXACT_GELU:
        raise unsupported_value("config.json", "hidden_act", activation, "computes the exact gelu only")
    return first_of(swiglu, gated)


def _rope_base(config: Mapping[str, Any], model: _Model | None) -> float | None:
    """Return the base of rotary positions; None if it isn't declared.

    Raises
    ------
    CheckpointError
        If it is declared of a network that has none, or a field of rotary positions isn't that of DINOv3.
    """
    for name, value in config.items():
        if name in _SUPPORTED_ROTARY and value in _SUPPORTED_ROTARY[name]:
            continue
        if value is None or name in _BASES or _OF_TRAINING.fullmatch(name):
            continue
        if name.startswith(("pos_embed_rope", "rope_")):
            raise unsupported_value("config.json", name[:60], value, "computes the rotary positions of DINOv3 only")
    base = first_of(*(number(config, name) for name in _BASES))
    if base is not None and model is not None and not model.rotary:
        name = next(name for name in _BASES if config.get(name) is not None)
        raise unsupported_value("config.json", name, base, "runs only plain ViTs")
    return base


def read_preprocessor_config(preprocessor: Mapping[str, Any]) -> tuple[MeanAndStd | None, str]:
    """Return the normalization that a preprocessor_config.json declares, and how it resizes images.

    With ``do_rescale`` pixels are multiplied by ``rescale_factor``, with ``do_normalize`` the mean is subtracted and
    they are divided by the standard deviation. Both together are one normalization of RGB in 0..1.

    Returns
    -------
    mean_and_std : pair of three floats, or None
        None if it doesn't say.
    resizing : str
        For information: vitnp resizes photographs in its own way.

    Raises
    ------
    CheckpointError
        If a value can't be, or it does something to the pixels that vitnp doesn't.

    Examples
    --------
    >>> read_preprocessor_config({"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]})[0]
    ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    >>> read_preprocessor_config({"do_normalize": False})[0]
    ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    """
    for name, values in _SUPPORTED_PREPROCESSING.items():
        if preprocessor.get(name) not in values:
            raise unsupported_value("preprocessor_config.json", name, preprocessor[name], "doesn't do this to pixels")
    rescaled = switch(preprocessor, "do_rescale") is not False
    factor = number(preprocessor, "rescale_factor") if rescaled else 1.0
    factor = 1 / 255 if factor is None else factor
    if not 0 < factor <= 1:
        raise CheckpointError(f"its rescale_factor should lie between 0 and 1, not be {factor}")
    # Pixels p are given as p / 255, but the network takes p * factor.
    scale = 1.0 if abs(255 * factor - 1) < 1e-6 else 255 * factor
    mean, std = preprocessor.get("image_mean"), preprocessor.get("image_std")
    if switch(preprocessor, "do_normalize") is False:
        mean, std = [0.0] * 3, [1.0] * 3
    elif mean is None and std is None:
        if scale != 1:
            raise unsupported_value(
                "preprocessor_config.json", "rescale_factor", factor, "needs image_mean and image_std with it"
            )
        return None, _resizing(preprocessor)
    elif mean is None or std is None:
        raise CheckpointError("preprocessor_config.json beside it has only one of image_mean and image_std")
    means, stds = mean_and_std(mean, std)
    return mean_and_std([value / scale for value in means], [value / scale for value in stds]), _resizing(preprocessor)


def _resizing(preprocessor: Mapping[str, Any]) -> str:
    if switch(preprocessor, "do_resize") is False:
        return ""
    sides = preprocessor.get("size")
    if isinstance(sides, dict):
        text = " x ".join(str(sides[key])[:8] for key in ("height", "width", "shortest_edge") if key in sides)
    else:
        text = f"{sides:g}" if is_number(sides) else ""
    resampling = preprocessor.get("resample")
    words = [_RESAMPLING.get(resampling, "") if isinstance(resampling, int) else "", f"to {text}" if text else ""]
    return " ".join(word for word in words if word)
