"""Families of networks that vitnp doesn't run, told by their tensor names or by a config.json.

Many files under the names of these families would load after some renaming and give features, but wrong ones: their
forward pass has parts that that of a plain ViT lacks. So they are refused by name, with what to take instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from vitnp.errors import CheckpointError

_TAKE_DINO = "take DINO (--model dino_vits8) or DINOv2 with registers (dinov2_vits14_reg) instead"


class Family(NamedTuple):
    """A family of networks that vitnp doesn't run.

    Attributes
    ----------
    name : str
        Its name, and the part that vitnp lacks.
    tensors : str
        Regular expression for a tensor name that other families don't have; empty if there is none.
    models : str
        Regular expression for the whole of its names in a config.json: ``model_type`` of transformers, ``architecture``
        of timm.
    advice : str
        What to take instead.
    """

    name: str
    tensors: str
    models: str
    advice: str = _TAKE_DINO


# The first that fits counts: markers of the more specific families come first.
FAMILIES = (
    Family(
        "SAM (windowed attention with relative positions)",
        r"(?:^|\.)(?:image_encoder|vision_encoder|mask_decoder)\.(?:neck|patch_embed|pos_embed|transformer)"
        r"|\.attn\.rel_pos_[hw]$",
        r"sam\d?|sam_.*|sam2_.*|samvit_.*",
    ),
    Family(
        "CLIP (a norm before the blocks, another activation)",
        r"(?:^|\.)(?:visual\.)?(?:transformer\.)?resblocks\.\d+\.|(?:^|\.)pre_layrnorm\.|(?:^|\.)text_projection",
        r"clip|clip_.*|chinese_clip.*|altclip.*|metaclip.*|vit_.*clip.*",
    ),
    Family(
        "torchvision's ViT (names and attention of torch.nn.MultiheadAttention)",
        r"(?:^|\.)(?:class_token|encoder\.layers\.encoder_layer_\d+\.|conv_proj\.weight$)",
        r"torchvision.*",
        "take the same architecture from timm, or DINO (--model dino_vits8)",
    ),
    Family(
        "ConvNeXt (a convolutional network)",
        r"(?:^|\.)(?:stages\.\d+\.(?:blocks|layers)?\.?\d+\.(?:dwconv|conv_dw)|stages\.\d+\.layers\.\d+\.(?:dwconv|depthwise_conv))\.",
        r"convnext.*|dinov3_convnext.*",
    ),
    Family(
        "ResNet (a convolutional network)",
        r"(?:^|\.)layer[1-4]\.0\.(?:conv1|bn1)\.weight$|(?:^|\.)encoder\.stages\.\d+\.layers\.\d+\.layer\.\d+\.",
        r"resnet.*|resnext.*|regnet.*|efficientnet.*|mobilenet.*",
    ),
    Family(
        "Swin (shifted windows, several resolutions)",
        r"(?:layers|stages)\.\d+\.blocks\.\d+\.(?:attn|attention\.self)\."
        r"(?:relative_position_bias_table|logit_scale|cpb_mlp|continuous_position_bias)",
        r"swin.*|donut-swin|maskformer-swin",
    ),
    Family(
        "BEiT or data2vec (relative positions)",
        r"attention\.relative_position_bias\.|\.attn\.relative_position_bias_table$|(?:^|\.)rel_pos_bias\."
        r"|\.attn\.[qv]_bias$",
        r"beit.*|data2vec.*",
    ),
    Family(
        "EVA (rotary positions, or norms inside attention and MLP)",
        r"\.attn\.inner_attn_ln\.|\.mlp\.ffn_ln\.|(?:^|\.)blocks\.\d+\.attn\.[qkv]_proj\.weight$",
        r"eva.*|vit_.*(?:_rope|_pe_).*|vit_.*_sapiens2",
    ),
    Family("XCiT (attention between channels)", r"\.local_mp\.|(?:^|\.)(?:cls_attn_blocks|pos_embeder)\.", r"xcit.*"),
    Family("CaiT (class attention)", r"(?:^|\.)blocks_token_only\.", r"cait.*"),
    Family(
        "DeiT with a distillation token",
        r"(?:^|\.)(?:dist_token|head_dist\.(?:weight|bias)|distillation_classifier\.\w+|embeddings\.distillation_token)$",
        r"deit|deit_.*_distilled_.*",
        "take the DeiT without distillation, or DINO (--model dino_vits8)",
    ),
    Family("Hiera (several resolutions)", r"(?:^|\.)(?:pos_embed_window|unit_pool\.\w+)$", r"hiera.*"),
    Family(
        "a hybrid of ResNet and ViT", r"(?:^|\.)patch_embed\.backbone\.", r"vit[_-]hybrid|vit_.*_r\d+_.*|vit_.*resnet.*"
    ),
    Family("a ViT with norms after its blocks", "", r"vit_.*_rpn_.*"),
    Family(
        "a text model",
        r"(?:^|\.)(?:embeddings\.word_embeddings|embed_tokens|wte|token_embedding)\.weight$",
        r"bert|roberta|gpt.*|llama|t5",
    ),
)

_TAKE_MAE = "take MAE, DINO (--model dino_vits8) or DINOv2 with registers (dinov2_vits14_reg) instead"

# Told by their names only in files without a class token.
WITHOUT_CLASS_TOKEN = (
    Family(
        "CAPI (no class token, RMSNorm, rotary positions with learned frequencies)",
        r"(?:^|\.)encoder\.blocks\.\d+\.residual[12]\.",
        r"capi.*",
    ),
    Family("RADIO (several class tokens, cropped positions)", r"(?:^|\.)patch_generator\.", r"(?:c-?)?radio.*"),
    Family(
        "the RASA head of Franca alone",
        r"^(?:module\.)?(?:rasa_head\.)?pre_pos_layers\.\d+\.",
        r"rasa.*",
        "take the checkpoint of Franca itself, or DINO (--model dino_vits8)",
    ),
    Family(
        "SigLIP, or a ViT pooled by attention (no class token)",
        r"(?:^|\.)(?:head\.probe|attn_pool\.latent|logit_bias)$|(?:^|\.)encoder\.layers\.\d+\.self_attn\.k_proj\.",
        r"siglip.*|vit_.*siglip.*",
    ),
    Family("I-JEPA (no class token)", r"(?:^|\.)predictor_(?:pos_embed|embed|blocks)\b", r"ijepa.*", _TAKE_MAE),
    Family(
        "a ViT without a class token, such as I-JEPA's",
        r"(?:^|\.)(?:blocks\.0\.attn\.qkv|encoder\.layer\.0\.attention\.attention\.query)\.weight$",
        r"vit_.*_gap_.*",
        _TAKE_MAE,
    ),
)


def refuse_unsupported_names(names: Iterable[str], families: Iterable[Family] = FAMILIES) -> None:
    """Refuse the tensor names of a family that vitnp doesn't run.

    Raises
    ------
    CheckpointError
        The message says which family it is, and what to take instead.

    Examples
    --------
    >>> refuse_unsupported_names(["cls_token", "blocks.0.norm1.weight"])
    """
    names = list(names)
    for family in families:
        name = next(filter(re.compile(family.tensors).search, names), None) if family.tensors else None
        if name is not None:
            raise CheckpointError(
                f"tensor {name[:100]!r} is that of {family.name}, which vitnp doesn't run: {family.advice}"
            )


def refuse_unsupported_model(model: str, source: str) -> None:
    """Refuse the name of a model of a family that vitnp doesn't run.

    Parameters
    ----------
    model : str
        As a config.json has it, or a file that is named after its model.
    source : str
        What says that name, for the message: "config.json beside it".

    Raises
    ------
    CheckpointError
        The message says which family it is, and what to take instead.

    Examples
    --------
    >>> refuse_unsupported_model("vit_small_patch16_224", "its name")
    """
    for family in (*FAMILIES, *WITHOUT_CLASS_TOKEN):
        if re.fullmatch(family.models, model):
            raise CheckpointError(
                f"{source} says {model}, that is {family.name}, which vitnp doesn't run: {family.advice}"
            )
