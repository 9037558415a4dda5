"""Make the golden files of the families: checkpoints that their own library saves, and its features of a raw picture.

    python tests/golden/make_families.py [--out tests/golden/families] [FAMILY ...]

It needs torch, timm and transformers; the tests need none of them. Unlike the files of make_vit.py these begin with the
raw picture and end with features, so that everything beside the weights counts that the library itself reads:
config.json, preprocessor_config.json, heads, grids that aren't square, normalization. Weights lie on a coarse binary
grid, so that they compress well. `pytest -m parity` makes all families anew, with other numbers, and compares them too.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import re
import sys
import tempfile
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn

HERE = pathlib.Path(__file__).resolve().parent
PATCH, WIDTH, DEPTH = 4, 24, 2
TRAINED = (24, 40)  # pixels: a grid of 6 x 10
STORED = ("key", "cls")  # features in the golden files
SIZES = (TRAINED, (44, 16), (16, 28))  # of pictures: as trained, then larger and smaller grids


class Peer(NamedTuple):
    """A network of a library, which has saved it to a folder.

    `embed` turns normalized pictures into tokens (B, T, D) after the final norm; `projections` are the modules of the
    last block that compute query, key and value: one for all, or three.
    """

    embed: Callable[[torch.Tensor], torch.Tensor]
    preprocess: Callable[[np.ndarray], torch.Tensor]  # (h, w, 3) uint8 -> (3, h, w)
    projections: list[nn.Module]
    prefix: int  # tokens before the patches
    file: str = "model.safetensors"
    sizes: tuple[tuple[int, int], ...] = SIZES


def randomize(model: nn.Module, seed: int) -> None:
    """Fill every parameter with random numbers; none stays zero or one, so that every part changes the result."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            center, spread = 0.0, 0.2  # biases
            if "token" in name or "pos" in name or "gamma" in name or "lambda1" in name:
                spread = 0.5
            elif parameter.dim() > 1:
                spread = 1 / math.sqrt(parameter[0].numel())
            elif "norm" in name and name.endswith("weight"):
                center = 1.0
            step = 2.0 ** math.floor(math.log2(spread / 3))
            numbers = torch.randn(parameter.shape, generator=generator) * spread
            parameter.copy_(center + torch.round(numbers / step) * step)
    model.eval().requires_grad_(False)


# ---- timm ------------------------


def timm_transform(model: nn.Module) -> Callable[[np.ndarray], torch.Tensor]:
    """Return timm's own evaluation transform for a picture that has the size of the network's input already."""
    from timm.data import create_transform, resolve_data_config

    def transform(picture: np.ndarray) -> torch.Tensor:
        data = resolve_data_config({"input_size": (3, *picture.shape[:2]), "crop_pct": 1.0}, model=model)
        return create_transform(**data)(Image.fromarray(picture))

    return transform


def timm_peer(model: nn.Module) -> Peer:
    return Peer(model.forward_features, timm_transform(model), [model.blocks[-1].attn.qkv], model.num_prefix_tokens)


def timm_model(architecture: str, seed: int, **arguments) -> tuple[nn.Module, dict]:
    import timm

    defaults = {"img_size": TRAINED, "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": 4}
    arguments = {**defaults, "mlp_ratio": 2, "dynamic_img_size": True, **arguments}
    model = timm.create_model(architecture, num_classes=5, **arguments)
    randomize(model, seed)
    return model, arguments


def timm_saved(folder: pathlib.Path, architecture: str, seed: int, **arguments) -> Peer:
    from timm.models import save_for_hf

    model, arguments = timm_model(architecture, seed, **arguments)
    # Classes of layers aren't JSON; the names of the tensors tell them.
    plain = {name: value for name, value in arguments.items() if not isinstance(value, type)}
    save_for_hf(model, str(folder), model_args=plain, safe_serialization=True)
    return timm_peer(model)


def timm_augreg(folder: pathlib.Path, seed: int) -> Peer:
    """Heads of width 6, mean and std of 0.5."""
    return timm_saved(folder, "vit_tiny_patch16_224.augreg_in21k_ft_in1k", seed)


def timm_deit3(folder: pathlib.Path, seed: int) -> Peer:
    """LayerScale, and no position for CLS: 15 x 15 positions, which might be CLS and 14 x 16."""
    return timm_saved(folder, "deit3_small_patch16_224.fb_in1k", seed, img_size=(60, 60), num_heads=2)


def timm_dinov2_registers(folder: pathlib.Path, seed: int) -> Peer:
    return timm_saved(folder, "vit_small_patch14_reg4_dinov2.lvd142m", seed, num_heads=3)


def timm_dinov2_giant(folder: pathlib.Path, seed: int) -> Peer:
    """SwiGLU whose layers are called fc1 and fc2; ImageNet's mean and std."""
    return timm_saved(folder, "vit_giant_patch14_dinov2.lvd142m", seed, num_heads=3)


def timm_flexivit(folder: pathlib.Path, seed: int) -> Peer:
    return timm_saved(folder, "flexivit_small.1200ep_in1k", seed, num_heads=8)


def timm_wrapper(folder: pathlib.Path, seed: int) -> Peer:
    """transformers around timm: other names, one config.json for both."""
    from transformers import TimmWrapperConfig, TimmWrapperModel

    model, arguments = timm_model("vit_tiny_patch16_224.augreg_in21k_ft_in1k", seed)
    config = TimmWrapperConfig.from_dict(
        {
            "architecture": "vit_tiny_patch16_224",
            "num_classes": 5,
            "model_args": arguments,
            "pretrained_cfg": {"mean": [0.4, 0.5, 0.6], "std": [0.3, 0.2, 0.1], "input_size": [3, *TRAINED]},
        }
    )
    wrapper = TimmWrapperModel(config)
    randomize(wrapper, seed)
    wrapper.save_pretrained(folder)
    model = wrapper.timm_model
    model.pretrained_cfg = config.pretrained_cfg
    return timm_peer(model)


# ---- transformers ------------------------


def transformers_saved(
    folder: pathlib.Path,
    name: str,
    seed: int,
    *,
    backbone: str = "",
    prefix: int = 1,
    preprocessing: dict | None = None,
    **options,
) -> Peer:
    import transformers

    model_class = getattr(transformers, name)
    options = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": 3, **options}
    options = {"patch_size": PATCH, "image_size": 24, **options}
    model = model_class(model_class.config_class(**options))
    randomize(model, seed)
    model.save_pretrained(folder)
    processor = transformers.ViTImageProcessor(**(preprocessing or {}))
    processor.save_pretrained(folder)
    inner = getattr(model, backbone) if backbone else model
    is_dinov2 = "Dinov2" in name
    mask = {"noise": None} if "MAE" in name else {}
    layers = inner.layers if hasattr(inner, "layers") else inner.encoder.layer
    # transformers resamples positions of square grids only; others run at the size that they were trained at.
    oblong = options["image_size"] if isinstance(options["image_size"], tuple) else None

    def embed(images: torch.Tensor) -> torch.Tensor:
        if mask:  # MAE shuffles the patches that it keeps, here all of them; this noise keeps their order
            n_patches = images.shape[2] // PATCH * (images.shape[3] // PATCH)
            mask["noise"] = torch.arange(n_patches)[None].float()
        resample = {} if is_dinov2 else {"interpolate_pos_encoding": not oblong}
        return inner(images, **resample, **mask).last_hidden_state

    def preprocess(picture: np.ndarray) -> torch.Tensor:
        return processor(picture, do_resize=False, return_tensors="pt")["pixel_values"][0]

    attention = layers[-1].attention
    projections = [attention.q_proj, attention.k_proj, attention.v_proj]
    return Peer(embed, preprocess, projections, prefix, sizes=(oblong,) if oblong else SIZES)


IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def hf_dino(folder: pathlib.Path, seed: int) -> Peer:
    """ViTModel as facebook/dino-vits8 is: eps 1e-12, ImageNet's mean and std."""
    return transformers_saved(folder, "ViTModel", seed, intermediate_size=48, preprocessing=IMAGENET)


def hf_vit_classifier(folder: pathlib.Path, seed: int) -> Peer:
    """Prefix and head, no bias in q, k, v, 15 x 17 patches (1 + 15 * 17 = 16 * 16), pixels from -1 to 1 in one step."""
    preprocessing = {"do_normalize": False, "rescale_factor": 1 / 127.5}
    options = {"intermediate_size": 48, "qkv_bias": False, "layer_norm_eps": 1e-3, "image_size": (60, 68)}
    name = "ViTForImageClassification"
    return transformers_saved(folder, name, seed, backbone="vit", preprocessing=preprocessing, **options)


def hf_msn(folder: pathlib.Path, seed: int) -> Peer:
    """Pixels that aren't scaled to 0..1."""
    preprocessing = {"do_rescale": False, "image_mean": [120.0, 110.0, 100.0], "image_std": [60.0, 50.0, 40.0]}
    return transformers_saved(folder, "ViTMSNModel", seed, intermediate_size=48, preprocessing=preprocessing)


def hf_mae(folder: pathlib.Path, seed: int) -> Peer:
    options = {"intermediate_size": 48, "mask_ratio": 0.0, "num_attention_heads": 6}
    return transformers_saved(folder, "ViTMAEModel", seed, preprocessing=IMAGENET, **options)


def hf_dinov2(folder: pathlib.Path, seed: int) -> Peer:
    return transformers_saved(folder, "Dinov2Model", seed, mlp_ratio=2, preprocessing=IMAGENET)


def hf_dinov2_registers(folder: pathlib.Path, seed: int) -> Peer:
    """SwiGLU and three registers."""
    options = {"num_register_tokens": 3, "mlp_ratio": 2, "use_swiglu_ffn": True, "prefix": 4}
    return transformers_saved(folder, "Dinov2WithRegistersModel", seed, preprocessing=IMAGENET, **options)


def webssl(folder: pathlib.Path, seed: int) -> Peer:
    """Web-SSL's DINO: a Dinov2Model with SwiGLU, whose MLP has two thirds of the width that its ratio says."""
    return transformers_saved(folder, "Dinov2Model", seed, mlp_ratio=4, use_swiglu_ffn=True, preprocessing=IMAGENET)


def franca(folder: pathlib.Path, seed: int) -> Peer:
    """Franca's own file: DINOv2's names in chunks of blocks, nested, beside heads and RASA, and nothing beside it.

    Its code is DINOv2's with SwiGLU, which transformers computes too, at the size that positions were trained at.
    """
    options = {"hidden_size": 64, "num_attention_heads": 1, "use_swiglu_ffn": True, "mlp_ratio": 1}
    peer = transformers_saved(folder, "Dinov2Model", seed, preprocessing=IMAGENET, **options)
    state = dinov2_names(load_safetensors(folder / peer.file))
    heads = {"rasa_head.pos_pred.weight": torch.ones(2, 64), "dino_head.mlp.0.weight": torch.ones(8, 64)}
    heads["rasa_head.pre_pos_layers.0.weight"] = torch.ones(2, 64)
    nested = {f"module.{name}": value for name, value in heads.items()}
    nested |= {f"module.backbone.{name}": value for name, value in state.items()}
    torch.save({"teacher": nested}, folder / "franca_vitb14_In21K.pth")
    for name in ("config.json", "preprocessor_config.json", peer.file):
        (folder / name).unlink()
    return peer._replace(file="franca_vitb14_In21K.pth", sizes=((24, 24),))


def load_safetensors(path: pathlib.Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def dinov2_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the tensors of a Dinov2Model to those of DINOv2 with each block in a chunk of its own."""
    rules = (
        ("embeddings.position_embeddings", "pos_embed"), ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
        ("embeddings.", ""), ("layernorm", "norm"), ("attention.output.dense", "attn.proj"),
        ("layer_scale1.lambda1", "ls1.gamma"), ("layer_scale2.lambda1", "ls2.gamma"),
        ("weights_in", "w12"), ("weights_out", "w3"),
    )  # fmt: skip
    state = {}
    for theirs, value in tensors.items():
        name = re.sub(r"encoder\.layer\.(\d+)", r"blocks.\1.\1", theirs)
        for before, after in rules:
            name = name.replace(before, after)
        if ".query." in name:
            parts = [tensors[theirs.replace(".query.", f".{part}.")] for part in ("query", "key", "value")]
            state[name.replace("attention.attention.query", "attn.qkv")] = torch.cat(parts)
        elif ".key." not in name and ".value." not in name:
            state[name] = value
    return state


# ---- training checkpoints of code that is built on timm ------------------------


def moco_v3(folder: pathlib.Path, seed: int) -> Peer:
    """MoCo v3's ViT-S: width 384 with 12 heads, as a checkpoint of its main_moco.py; no file says anything else."""
    sizes = {"embed_dim": 384, "depth": 1, "num_heads": 12, "mlp_ratio": 1, "img_size": (24, 24), "class_token": True}
    model, _ = timm_model("vit_small_patch16_224", seed, **sizes)
    model.pretrained_cfg = {"mean": IMAGENET["image_mean"], "std": IMAGENET["image_std"], "input_size": (3, 24, 24)}
    base = {f"module.base_encoder.{name}": value for name, value in model.state_dict().items()}
    momentum = {f"module.momentum_encoder.{name}": -value for name, value in model.state_dict().items()}
    state = {"epoch": 300, "arch": "vit_small", "state_dict": {**base, **momentum}, "optimizer": {"state": {}}}
    torch.save(state, folder / "vit-s-300ep.pth.tar")
    return timm_peer(model)._replace(file="vit-s-300ep.pth.tar")


def deit(folder: pathlib.Path, seed: int) -> Peer:
    """DeiT's own file: timm's names under "model", and nothing beside it; width 192 in 12 blocks is known: 3 heads."""
    sizes = {"embed_dim": 192, "depth": 12, "num_heads": 3, "mlp_ratio": 0.25, "img_size": (24, 24)}
    model, _ = timm_model("deit_tiny_patch16_224", seed, **sizes)
    torch.save({"model": model.state_dict()}, folder / "deit_tiny_patch16_224-a1311bcf.pth")
    return timm_peer(model)._replace(file="deit_tiny_patch16_224-a1311bcf.pth")


def mae(folder: pathlib.Path, seed: int) -> Peer:
    """MAE's pretraining file: timm's names beside those of the decoder, and heads of width 64 by a guess.

    Its encoder without masking is timm's ViT; it has no code to resample positions.
    """
    sizes = {"embed_dim": 64, "num_heads": 1, "img_size": (24, 24)}
    model, _ = timm_model("vit_base_patch16_224.mae", seed, **sizes)
    encoder = {name: value for name, value in model.state_dict().items() if not name.startswith("head.")}
    decoder = {"decoder_pos_embed": torch.ones(1, 37, 16), "decoder_blocks.0.norm1.weight": torch.ones(16)}
    state = {**encoder, **decoder, "mask_token": torch.ones(1, 1, 16), "decoder_pred.bias": torch.ones(48)}
    torch.save({"model": state, "epoch": 799}, folder / "mae_pretrain.pth")
    return timm_peer(model)._replace(file="mae_pretrain.pth", sizes=((24, 24),))


SMALL = (
    timm_augreg, timm_deit3, timm_dinov2_registers, timm_dinov2_giant, timm_flexivit, timm_wrapper,
    hf_dino, hf_vit_classifier, hf_msn, hf_mae, hf_dinov2, hf_dinov2_registers,
)  # fmt: skip
FAMILIES = {family.__name__: family for family in (*SMALL, webssl, franca, moco_v3, deit, mae)}


def pictures(peer: Peer, seed: int) -> list[np.ndarray]:
    """Return one picture of each size: noise, coarse enough to compress."""
    rng = np.random.default_rng(seed)
    return [(rng.integers(0, 16, (*size, 3)) * 17).astype(np.uint8) for size in peer.sizes]


def features(peer: Peer, picture: np.ndarray) -> dict[str, np.ndarray]:
    """Return the features of a raw picture.

    "query", "key", "value" (N, D) are those of the last block; "token" (N, D), "cls" (D,) and "register" (R, D) are
    taken after the final norm.
    """
    kept: dict[nn.Module, torch.Tensor] = {}
    handles = [
        module.register_forward_hook(lambda module, _inputs, output: kept.update({module: output}))
        for module in peer.projections
    ]
    tokens = peer.embed(peer.preprocess(picture)[None])[0]
    for handle in handles:
        handle.remove()
    facets = torch.cat([kept[module][0] for module in peer.projections], dim=-1).chunk(3, dim=-1)
    found = {name: facet[peer.prefix :] for name, facet in zip(("query", "key", "value"), facets, strict=True)}
    found |= {"token": tokens[peer.prefix :], "cls": tokens[0], "register": tokens[1 : peer.prefix]}
    return {name: array.numpy() for name, array in found.items() if len(array)}


def golden(name: str, seed: int) -> dict[str, np.ndarray]:
    """Return the arrays of one golden file: the weights and JSON files as written by the library, and the features."""
    from safetensors.numpy import load_file

    content: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        peer = FAMILIES[name](folder, seed)
        content |= {f"weights/{key}": value for key, value in load_file(folder / peer.file).items()}
        files = {file.name: json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))}
        content["files"] = np.array(json.dumps(files))
        for index, picture in enumerate(pictures(peer, seed)):
            content[f"picture{index}"] = picture
            content |= {f"{key}{index}": value for key, value in features(peer, picture).items() if key in STORED}
    return content


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "families")
    parser.add_argument("families", nargs="*", metavar="FAMILY")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(exist_ok=True)
    for seed, family in enumerate(SMALL):
        if arguments.families and family.__name__ not in arguments.families:
            continue
        path = arguments.out / f"{family.__name__}.npz"
        np.savez_compressed(path, **golden(family.__name__, seed))
        print(f"{path.name}: {path.stat().st_size:,} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
