"""Make the golden files of the vision transformer: features of small random networks, computed by their own code.

    python tests/golden/make_vit.py --dino CHECKOUT --dinov2 CHECKOUT [--out tests/golden/vit] [CASE ...]

It needs torch, transformers, timm and safetensors, and checkouts of facebookresearch/dino and facebookresearch/dinov2;
the tests need none of them. Each file holds one case: a checkpoint as its own code writes it (tensor names, container),
and the features of some blocks for several images, captured by forward hooks. Weights and images are rounded to a
coarse binary grid, so that they are exact in float32 and compress well. Embeddings are small (about 0.03), so that the
epsilon of the first LayerNorm makes a difference.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import io
import json
import math
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn

HERE = pathlib.Path(__file__).resolve().parent
DEPTH = 3


@dataclasses.dataclass
class Run:
    """One forward pass: an image of rows x columns patches, and the blocks to read."""

    rows: int
    columns: int
    batch: int = 1
    stride: int | None = None
    layers: tuple[int, ...] = (0, DEPTH - 1)


WIDE = Run(5, 7)
LOW = Run(3, 5)
PAIR = Run(3, 6, batch=2)
TRAINED = Run(4, 4, layers=(DEPTH - 1,))  # position embeddings without resampling
SAME_COUNT = Run(2, 8, layers=(0,))  # as many patches as trained, in another shape
SMALL = Run(3, 2, layers=(0,))  # fewer patches than trained: antialiasing matters


@dataclasses.dataclass
class Peer:
    """A network of another code base: how to call it, where its parts are, and what its checkpoint looks like.

    `projections(block)` returns the modules that project to q, k, v: one (fused) or three. `attention(block)` returns
    the module whose output is the attention (B, H, T, T), or a tuple with it. `prefix` counts the tokens before the
    patches.
    """

    model: nn.Module
    forward: Callable[[torch.Tensor], torch.Tensor]  # images -> (B, T, D) or (B, D), after the final norm
    blocks: list[nn.Module]
    norm: nn.Module
    projections: Callable[[nn.Module], list[nn.Module]]
    attention: Callable[[nn.Module], nn.Module]
    patch: int
    heads: int
    prefix: int = 1
    runs: tuple[Run, ...] = (LOW,)
    checkpoint: dict[str, np.ndarray] | bytes | None = None  # names -> arrays, or the bytes of a .pth file
    config_json: str | None = None
    load: dict = dataclasses.field(default_factory=dict)  # arguments of load_vit that the file doesn't determine


# ---- filling networks with numbers --------------------


def on_grid(values: torch.Tensor, spread: float) -> torch.Tensor:
    """Round values to multiples of a power of two, about a quarter of their spread."""
    step = 2.0 ** math.floor(math.log2(spread / 3))
    return torch.round(values / step) * step


def randomize(model: nn.Module, seed: int) -> None:
    """Fill every parameter with random numbers; none stays zero or one, so that every part changes the result."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            center, spread = 0.0, 0.2  # biases
            if parameter.dim() == 4:  # patch embedding
                spread = 0.03 / math.sqrt(parameter[0].numel())
            elif "token" in name or "pos" in name:
                spread = 0.03
            elif "gamma" in name or "lambda1" in name:
                spread = 0.5
            elif parameter.dim() == 2:
                spread = 1 / math.sqrt(parameter.shape[1])
            elif "norm" in name and name.endswith("weight"):
                center = 1.0
            parameter.copy_(center + on_grid(torch.randn(parameter.shape, generator=generator) * spread, spread))
    model.eval().requires_grad_(False)


# ---- the peers --------------------


def arrays(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in model.state_dict().items()}


def pth(content: object, *, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def fused(model: nn.Module, blocks: list[nn.Module], seed: int, **fields) -> Peer:
    """A peer in the layout of DINO: a fused `attn.qkv`, and a dropout (inactive here) that receives the attention."""
    randomize(model, seed)
    return Peer(
        model=model,
        blocks=blocks,
        norm=model.norm,
        projections=lambda block: [block.attn.qkv],
        attention=lambda block: block.attn.attn_drop,
        **fields,
    )


def official_dino(
    seed: int,
    *,
    checkout: pathlib.Path,
    width: int = 24,
    heads: int = 2,
    depth: int = DEPTH,
    mlp_ratio: float = 2,
    **fields,
) -> Peer:
    sys.path.insert(0, str(checkout))  # vision_transformer.py imports its neighbor utils.py
    try:
        spec = importlib.util.spec_from_file_location("official_dino", checkout / "vision_transformer.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(checkout))
        sys.modules.pop("utils", None)
    model = module.VisionTransformer(
        img_size=[16], patch_size=4, embed_dim=width, depth=depth, num_heads=heads, mlp_ratio=mlp_ratio, qkv_bias=True,
        norm_layer=functools.partial(nn.LayerNorm, eps=1e-6),
    )  # fmt: skip
    peer = fused(model, list(model.blocks), seed, forward=model, patch=4, heads=heads, **fields)
    peer.checkpoint = arrays(model)
    return peer


def dino(seed: int, paths: argparse.Namespace) -> Peer:
    """DINO, from a training checkpoint (nested, prefixed, with a head to drop) in torch's older container.

    Overlapping patches are made the way dino-vit-features (Amir et al. 2021) makes them: the convolution's stride is
    lowered, and positions are resampled to the larger grid of 1 + (side - patch) // stride.
    """
    runs = (PAIR, TRAINED, SAME_COUNT, SMALL, Run(3, 4, stride=2), Run(2, 2, stride=1, layers=(0, 1)))
    peer = official_dino(seed, checkout=paths.dino, runs=runs)
    teacher = {f"module.backbone.{name}": value for name, value in peer.model.state_dict().items()}
    teacher["module.head.last_layer.weight_v"] = torch.ones(3, 2)
    training = {"teacher": teacher, "epoch": 7, "args": argparse.Namespace(arch="vit_small", patch_size=4)}
    peer.checkpoint = pth(training, legacy=True)
    return peer


def dino_one_head(seed: int, paths: argparse.Namespace) -> Peer:
    """DINO with heads of width 64, whose number load_vit infers."""
    runs = (Run(5, 3, layers=(1,)),)
    return official_dino(seed, checkout=paths.dino, width=64, heads=1, depth=2, mlp_ratio=1, runs=runs)


def official_dinov2(
    seed: int, *, checkout: pathlib.Path, patch: int = 4, registers: int = 0, runs: tuple[Run, ...] = (LOW,), **options
) -> Peer:
    if str(checkout) not in sys.path:
        sys.path.insert(0, str(checkout))
    from dinov2.models.vision_transformer import DinoVisionTransformer

    model = DinoVisionTransformer(
        img_size=4 * patch, patch_size=patch, embed_dim=24, depth=DEPTH, num_heads=3, mlp_ratio=2, init_values=1.0,
        num_register_tokens=registers, **options,
    )  # fmt: skip
    blocks = list(model.blocks)
    if model.chunked_blocks:
        blocks = [block for chunk in blocks for block in chunk if not isinstance(block, nn.Identity)]
    return fused(model, blocks, seed, forward=model, patch=patch, heads=3, prefix=1 + registers, runs=runs)


def dinov2(seed: int, paths: argparse.Namespace) -> Peer:
    """DINOv2 with its blocks in chunks (`blocks.1.1.…`), as a .pth file."""
    peer = official_dinov2(seed, checkout=paths.dinov2, patch=7, block_chunks=DEPTH, runs=(WIDE, SAME_COUNT, SMALL))
    peer.checkpoint = pth(peer.model.state_dict())
    return peer


def dinov2_registers(seed: int, paths: argparse.Namespace) -> Peer:
    """DINOv2 with registers, with the two options that its own hub entry sets."""
    runs = (PAIR, TRAINED, SAME_COUNT, SMALL)
    options = {"block_chunks": 0, "interpolate_antialias": True, "interpolate_offset": 0.0}
    peer = official_dinov2(seed, checkout=paths.dinov2, registers=4, runs=runs, **options)
    peer.checkpoint = arrays(peer.model)
    return peer


def dinov2_giant(seed: int, paths: argparse.Namespace) -> Peer:
    """DINOv2 with the giant's SwiGLU."""
    peer = official_dinov2(seed, checkout=paths.dinov2, ffn_layer="swiglufused", block_chunks=0)
    peer.checkpoint = arrays(peer.model)
    return peer


def timm_vit(seed: int, *, registers: int = 0, runs: tuple[Run, ...] = (LOW,), **options) -> Peer:
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(
        img_size=16, patch_size=4, embed_dim=24, depth=DEPTH, num_heads=3, num_classes=0, reg_tokens=registers,
        dynamic_img_size=True, mlp_ratio=2, **options,
    )  # fmt: skip
    for block in model.blocks:
        block.attn.fused_attn = False  # the fused kernel has no attention matrix to hook
    fields = {"forward": model.forward_features, "patch": 4, "heads": 3, "prefix": 1 + registers, "runs": runs}
    peer = fused(model, list(model.blocks), seed, **fields)
    peer.checkpoint = arrays(model)
    # timm resamples to the exact size with antialiasing, wherever the weights come from.
    peer.load = {"pos_embed": "antialias"}
    return peer


def timm_plain(seed: int, paths: argparse.Namespace) -> Peer:
    """timm's ViT: a position for CLS, no LayerScale."""
    return timm_vit(seed, runs=(PAIR, SAME_COUNT, SMALL))


def timm_registers(seed: int, paths: argparse.Namespace) -> Peer:
    """timm's form of DINOv2 with registers: `reg_token`, LayerScale, positions for the patches only."""
    return timm_vit(seed, registers=4, no_embed_class=True, init_values=1.0, runs=(WIDE, TRAINED, SMALL))


def timm_giant(seed: int, paths: argparse.Namespace) -> Peer:
    """timm's form of the giant: a SwiGLU whose layers are called fc1 (twice as wide as it seems) and fc2."""
    from timm.layers import SwiGLUPacked

    return timm_vit(seed, registers=2, no_embed_class=True, init_values=1.0, mlp_layer=SwiGLUPacked, act_layer=nn.SiLU)


def transformers_model(
    seed: int, name: str, *, backbone: str = "", registers: int = 0, runs: tuple[Run, ...] = (LOW,), depth: int = DEPTH,
    **options,
) -> Peer:  # fmt: skip
    import transformers
    from safetensors.numpy import load_file

    model_class = getattr(transformers, name)
    config = model_class.config_class(
        hidden_size=24, num_hidden_layers=depth, num_attention_heads=3, patch_size=4, image_size=16,
        attn_implementation="eager", **{"layer_norm_eps": 1e-6, **options},
    )  # fmt: skip
    model = model_class(config)
    randomize(model, seed)
    inner = getattr(model, backbone) if backbone else model
    is_vit = hasattr(inner, "layers")
    resample = {"interpolate_pos_encoding": True} if is_vit else {}
    peer = Peer(
        model=model,
        forward=lambda images: inner(images, **resample).last_hidden_state,
        blocks=list(inner.layers if is_vit else inner.encoder.layer),
        norm=inner.layernorm,
        projections=lambda block: [block.attention.q_proj, block.attention.k_proj, block.attention.v_proj],
        attention=lambda block: block.attention,
        patch=4,
        heads=3,
        prefix=1 + registers,
        runs=runs,
    )
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        peer.checkpoint = load_file(pathlib.Path(folder) / "model.safetensors")
        peer.config_json = (pathlib.Path(folder) / "config.json").read_text()
    return peer


def hf_vit(seed: int, paths: argparse.Namespace) -> Peer:
    """transformers' ViTModel, with the epsilon that the published DINO weights were trained with."""
    return transformers_model(seed, "ViTModel", intermediate_size=48, runs=(PAIR, TRAINED, SAME_COUNT, SMALL))


def hf_vit_classifier(seed: int, paths: argparse.Namespace) -> Peer:
    """The same inside a classifier (prefix `vit.`), with another epsilon, which only config.json holds."""
    options = {"intermediate_size": 48, "layer_norm_eps": 1e-3, "depth": 2, "runs": (Run(5, 7, layers=(1,)),)}
    return transformers_model(seed, "ViTForImageClassification", backbone="vit", **options)


def hf_dinov2(seed: int, paths: argparse.Namespace) -> Peer:
    return transformers_model(seed, "Dinov2Model", mlp_ratio=2, runs=(PAIR, SMALL))


def hf_dinov2_giant(seed: int, paths: argparse.Namespace) -> Peer:
    return transformers_model(seed, "Dinov2Model", mlp_ratio=2, use_swiglu_ffn=True)


def hf_dinov2_registers(seed: int, paths: argparse.Namespace) -> Peer:
    return transformers_model(
        seed, "Dinov2WithRegistersModel", registers=4, num_register_tokens=4, mlp_ratio=2, runs=(WIDE, SMALL)
    )


def hf_dinov2_registers_giant(seed: int, paths: argparse.Namespace) -> Peer:
    return transformers_model(
        seed, "Dinov2WithRegistersModel", registers=3, num_register_tokens=3, mlp_ratio=2, use_swiglu_ffn=True
    )


CASES = (
    dino, dino_one_head, dinov2, dinov2_registers, dinov2_giant, timm_plain, timm_registers, timm_giant,
    hf_vit, hf_vit_classifier, hf_dinov2, hf_dinov2_giant, hf_dinov2_registers, hf_dinov2_registers_giant,
)  # fmt: skip


# ---- forward hooks ------------------------


def set_stride(peer: Peer, run: Run) -> None:
    """Set the stride of the patch embedding; positions are those of an image with as many patches without overlap."""
    step = run.stride or peer.patch
    projection = next(module for module in peer.model.modules() if isinstance(module, nn.Conv2d))
    projection.stride = (step, step)
    if run.stride is None:
        peer.model.__dict__.pop("interpolate_pos_encoding", None)
        return
    official = type(peer.model).interpolate_pos_encoding
    height, width = (((side - 1) * peer.patch // step + 1) * peer.patch for side in (run.rows, run.columns))
    peer.model.interpolate_pos_encoding = lambda x, w, h: official(peer.model, x, height, width)


def record_features(peer: Peer, run: Run, images: torch.Tensor) -> Iterator[tuple[str, np.ndarray]]:
    """Run the peer once and generate ("layer/feature", array) for the blocks of the run."""
    outputs: dict[tuple[int, str], torch.Tensor | tuple] = {}

    def keep(layer: int, what: str) -> Callable:
        def hook(_module, _inputs, output):
            outputs[layer, what] = output

        return hook

    handles = []
    for layer, block in enumerate(peer.blocks):
        handles.append(block.register_forward_hook(keep(layer, "out")))
        handles.append(peer.attention(block).register_forward_hook(keep(layer, "attention")))
        for part, module in enumerate(peer.projections(block)):
            handles.append(module.register_forward_hook(keep(layer, f"projection{part}")))
    final = peer.forward(images)
    for handle in handles:
        handle.remove()

    last = peer.norm(outputs[len(peer.blocks) - 1, "out"])
    assert torch.equal(final, last if final.dim() == 3 else last[:, 0]), (
        "the hooks captured something else than the output"
    )
    for layer in run.layers:
        if len(peer.projections(peer.blocks[layer])) == 3:
            facets = [outputs[layer, f"projection{part}"] for part in range(3)]
        else:
            facets = outputs[layer, "projection0"].chunk(3, dim=-1)
        attention = outputs[layer, "attention"]
        attention = attention[1] if isinstance(attention, tuple) else attention
        tokens = peer.norm(outputs[layer, "out"])
        features = {
            name: facet[:, peer.prefix :] for name, facet in zip(("query", "key", "value"), facets, strict=True)
        }
        features |= {"token": tokens[:, peer.prefix :], "cls": tokens[:, 0]}
        features["attention"] = attention[:, :, 0, peer.prefix :]
        if peer.prefix > 1:
            features["register"] = tokens[:, 1 : peer.prefix]
        for name, value in features.items():
            yield f"{layer}/{name}", value.numpy().astype(np.float32)


def golden(peer: Peer, seed: int) -> dict[str, np.ndarray]:
    """Return the arrays of one golden file."""
    content: dict[str, np.ndarray] = {}
    generator = torch.Generator().manual_seed(1000 + seed)
    for index, run in enumerate(peer.runs):
        images = torch.randn(run.batch, 3, run.rows * peer.patch, run.columns * peer.patch, generator=generator)
        images = on_grid(images, 1.0)
        set_stride(peer, run)
        content[f"run{index}/images"] = images.numpy()
        content |= {f"run{index}/{name}": value for name, value in record_features(peer, run, images)}
    if isinstance(peer.checkpoint, bytes):
        content["checkpoint.pth"] = np.frombuffer(peer.checkpoint, np.uint8)
    else:
        content |= {f"weights/{name}": value for name, value in peer.checkpoint.items()}
    facts = {
        "heads": peer.heads,
        "registers": peer.prefix - 1,
        "depth": len(peer.blocks),
        "runs": [{"stride": run.stride, "layers": run.layers} for run in peer.runs],
        "load": peer.load,
        "config.json": peer.config_json,
    }
    content["facts"] = np.array(json.dumps(facts))
    return content


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dino", type=pathlib.Path, required=True, help="checkout of facebookresearch/dino")
    parser.add_argument("--dinov2", type=pathlib.Path, required=True, help="checkout of facebookresearch/dinov2")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "vit")
    names = ", ".join(case.__name__ for case in CASES)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"all by default: {names}")
    paths = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    paths.out.mkdir(parents=True, exist_ok=True)
    for seed, case in enumerate(CASES):
        if paths.cases and case.__name__ not in paths.cases:
            continue
        file = paths.out / f"{case.__name__}.npz"
        torch.manual_seed(seed)
        np.savez_compressed(file, **golden(case(seed, paths), seed))
        print(f"{file.name:34}{file.stat().st_size:9,} bytes")


if __name__ == "__main__":
    main()
