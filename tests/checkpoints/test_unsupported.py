"""Families that vitnp doesn't run are refused by their name, with what to take instead."""

from __future__ import annotations

import re

import numpy as np
import pytest
import safetensors.numpy

from vitnp.checkpoints.load import load_vit
from vitnp.checkpoints.unsupported import FAMILIES, WITHOUT_CLASS_TOKEN, refuse_unsupported_model
from vitnp.errors import CheckpointError

# A tensor name or two of each, as their own code, timm or transformers save them.
NAMES = {
    "CLIP": (
        ["visual.class_embedding", "visual.transformer.resblocks.0.ln_1.weight"],
        ["vision_model.embeddings.class_embedding", "vision_model.pre_layrnorm.weight"],
        ["cls_token", "norm_pre.weight", "blocks.0.attn.qkv.weight"],
    ),
    "SigLIP": (
        ["vision_model.head.probe", "vision_model.encoder.layers.0.self_attn.k_proj.weight"],
        ["pos_embed", "attn_pool.latent", "blocks.0.attn.qkv.weight"],
    ),
    "torchvision": (["class_token", "conv_proj.weight", "encoder.layers.encoder_layer_0.ln_1.weight"],),
    "Swin": (
        ["layers.0.blocks.0.attn.relative_position_bias_table", "patch_embed.proj.weight"],
        ["swin.encoder.layers.0.blocks.0.attention.self.relative_position_bias_table"],
        ["layers.0.blocks.0.attn.logit_scale", "layers.0.blocks.0.attn.q_bias"],
    ),
    "XCiT": (["cls_token", "pos_embeder.token_projection.weight", "blocks.0.local_mp.conv1.weight"],),
    "CaiT": (["cls_token", "blocks.0.gamma_1", "blocks_token_only.0.gamma_1"],),
    "I-JEPA": (
        ["encoder.module.pos_embed", "encoder.module.blocks.0.attn.qkv.weight", "predictor.module.predictor_pos_embed"],
        ["embeddings.position_embeddings", "encoder.layer.0.attention.attention.query.weight"],
    ),
    "EVA": (
        ["cls_token", "blocks.0.attn.inner_attn_ln.weight", "blocks.0.attn.q_proj.weight"],
        ["cls_token", "pos_embed", "blocks.0.attn.q_proj.weight", "blocks.0.mlp.fc1_g.weight"],
    ),
    "BEiT": (
        ["cls_token", "blocks.0.gamma_1", "blocks.0.attn.relative_position_bias_table", "blocks.0.attn.q_bias"],
        [
            "beit.embeddings.cls_token",
            "beit.encoder.layer.0.attention.attention.relative_position_bias.relative_position_bias_table",
        ],
        ["cls_token", "rel_pos_bias.relative_position_bias_table"],
    ),
    "ConvNeXt": (
        ["stages.0.0.dwconv.weight", "downsample_layers.0.0.weight"],
        ["stages.0.blocks.0.conv_dw.weight", "stem.0.weight"],
        ["convnext.encoder.stages.0.layers.0.dwconv.weight"],
        ["downsample_layers.0.0.weight", "stages.0.0.dwconv.weight", "stages.0.0.gamma", "norms.3.weight"],  # DINOv3's
        ["model.stages.0.layers.0.depthwise_conv.weight", "layer_norm.weight"],
    ),
    "CAPI": (["registers", "encoder.blocks.0.residual1.fn.q_proj.weight", "encoder.blocks.0.residual1.fn.rope.freqs"],),
    "RADIO": (["radio_model.model.patch_generator.cls_token.token", "radio_model.model.blocks.0.attn.qkv.weight"],),
    "RASA head of Franca": (["pre_pos_layers.0.weight", "pos_pred.weight"],),
    "SAM": (
        ["image_encoder.pos_embed", "image_encoder.neck.0.weight", "image_encoder.blocks.0.attn.rel_pos_h"],
        ["vision_encoder.layers.0.attn.rel_pos_h", "mask_decoder.transformer.layers.0.self_attn.q_proj.weight"],
    ),
    "DeiT with a distillation": (
        ["cls_token", "dist_token", "head_dist.weight"],
        ["deit.embeddings.cls_token", "deit.embeddings.distillation_token"],
    ),
    "ResNet": (["conv1.weight", "layer1.0.conv1.weight"],),
    "text model": (["bert.embeddings.word_embeddings.weight"],),
}


@pytest.mark.parametrize(
    ("family", "index"), [(family, i) for family, names in NAMES.items() for i in range(len(names))]
)
def test_tensor_names_tell_the_family(tmp_path, family, index):
    shapes = {"cls_token": (1, 1, 8), "patch_embed.proj.weight": (8, 3, 2, 2), "reg_token": (1, 4, 8)}
    tensors = {name: np.ones(shapes.get(name, (24, 8)), np.float32) for name in NAMES[family][index]}
    path = tmp_path / "some.safetensors"
    safetensors.numpy.save_file(tensors, path)
    # A norm before the blocks is refused by the name of the tensor.
    with pytest.raises(CheckpointError, match="norm_pre" if "norm_pre.weight" in tensors else family) as caught:
        load_vit(path)
    message = str(caught.value)
    assert "\n" not in message and ("norm_pre" in message or "take " in message)


@pytest.mark.parametrize(
    ("model", "family"),
    [
        *(("clip_vision_model", "CLIP"), ("vit_base_patch32_clip_224", "CLIP"), ("siglip", "SigLIP")),
        *(("vit_base_patch16_siglip_224", "SigLIP"), ("swinv2", "Swin"), ("beitv2_base_patch16_224", "BEiT")),
        *(("data2vec-vision", "BEiT"), ("eva02_tiny_patch14_224", "EVA"), ("xcit_nano_12_p8_224", "XCiT")),
        *(("ijepa", "I-JEPA"), ("deit", "distillation"), ("deit_tiny_distilled_patch16_224", "distillation")),
        *(("convnextv2", "ConvNeXt"), ("dinov3_convnext", "ConvNeXt"), ("convnext_tiny_dinov3", "ConvNeXt")),
        *(("capi_vitl14_lvd", "CAPI"), ("c-radio_v3", "RADIO"), ("vit_base_patch16_sapiens2", "EVA")),
        *(("sam_vision_model", "SAM"), ("samvit_base_patch16", "SAM"), ("hiera", "Hiera"), ("vit-hybrid", "hybrid")),
    ],
)
def test_a_model_name_tells_the_family(model, family):
    with pytest.raises(CheckpointError, match=family):
        refuse_unsupported_model(model, "its name")


@pytest.mark.parametrize(
    "model",
    [
        *(
            "vit",
            "vit_mae",
            "vit_msn",
            "dinov3_vit",
            "vit_small_patch16_dinov3",
            "vit_giant_patch16_lingbot",
            "dinov2",
            "dinov2_with_registers",
            "vit_small_patch16_224",
            "deit3_base_patch16_224",
        ),
        *(
            "vit_small_patch14_reg4_dinov2",
            "deit_tiny_patch16_224",
            "flexivit_small",
            "vit_base_patch8_224",
            "dino_vits8",
        ),
    ],
)
def test_plain_vits_are_not_refused(model):
    refuse_unsupported_model(model, "its name")


def test_every_family_has_a_name_to_match_and_says_what_to_take():
    for family in (*FAMILIES, *WITHOUT_CLASS_TOKEN):
        assert re.compile(family.tensors) and re.compile(family.models) and "dino_vits8" in family.advice


def test_a_file_named_after_a_model_whose_tensors_do_not_tell(tmp_path):
    # Its rotary positions are in the code alone: the file could be one of DeiT III.
    tensors = {"cls_token": np.zeros((1, 1, 8), np.float32), "blocks.0.norm1.weight": np.ones(8, np.float32)}
    path = tmp_path / "vit_base_patch16_rope_ape_224.naver_in1k.safetensors"
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(CheckpointError, match="its name says vit_base_patch16_rope_ape_224.*rotary"):
        load_vit(path)


@pytest.mark.parametrize("name", ["storage", "prompt_embeddings", "pos_embed_spatial", "cls_token_2", "prompts"])
def test_unknown_parameters_as_wide_as_the_tokens_are_refused(tmp_path, name):
    tensors = {"cls_token": np.zeros((1, 1, 8), np.float32), "blocks.0.norm1.weight": np.ones(8, np.float32)}
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file(tensors | {name: np.zeros((1, 5, 8), np.float32)}, path)
    with pytest.raises(CheckpointError, match=f"{name}' belongs to another architecture"):
        load_vit(path)


@pytest.mark.parametrize(
    "name",
    [
        *("attn.q_norm.weight", "attn.norm.weight", "mlp.norm.weight", "attn.rel_pos_h", "attns.0.qkv.weight"),
        *("ls1.beta", "adapter.down.weight", "attn.qkv.lora_A.weight", "norm3.weight"),
    ],
)
def test_unknown_tensors_in_a_block_are_refused(tmp_path, name):
    tensors = {"cls_token": np.zeros((1, 1, 8), np.float32), "blocks.0.norm1.weight": np.ones(8, np.float32)}
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file(tensors | {f"blocks.0.{name}": np.zeros((8, 8), np.float32)}, path)
    with pytest.raises(CheckpointError, match=re.escape(name)):
        load_vit(path)
