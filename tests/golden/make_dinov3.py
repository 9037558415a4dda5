"""Make the golden files of DINOv3: features of small random networks with rotary positions, computed by their own code.

    python tests/golden/make_dinov3.py [--out tests/golden/dinov3] [CASE ...]

It needs torch, timm and transformers; the tests need none of them. Each file holds one case: a checkpoint as its own
code writes it, the JSON files beside it, and every feature of some blocks for images that aren't square.

timm and transformers are run themselves. DINOv3's own code is no package: dinov3_anew.py stands for it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterator

import numpy as np
import torch
from dinov3_anew import DEPTH, HEADS, HIDDEN, PATCH, REGISTERS, WIDTH, Official
from make_vit import Run, arrays, on_grid, pth, randomize
from torch import nn

HERE = pathlib.Path(__file__).resolve().parent
RUNS = (Run(3, 5, layers=(0, DEPTH - 1)), Run(4, 2, layers=(DEPTH - 1,)))
TRAINED = 24  # pixels
SAT = {"mean": (0.430, 0.411, 0.296), "std": (0.213, 0.156, 0.143)}


# ---- the peers --------------------


@dataclasses.dataclass
class Peer:
    """A network of another code base, and its checkpoint.

    `rotated_keys` is a context in which a list is filled with the key of each block after its rotation (B, H, N, d).
    """

    model: nn.Module
    forward: Callable[[torch.Tensor], torch.Tensor]  # images -> (B, T, D) after the final norm
    final: Callable[[torch.Tensor], torch.Tensor]
    blocks: list[nn.Module]
    projections: Callable[[nn.Module], list[nn.Module]]
    attention: Callable[[nn.Module], nn.Module]
    rotated_keys: Callable[[], contextlib.AbstractContextManager[list[torch.Tensor]]]
    checkpoint: dict[str, np.ndarray] | bytes
    files: dict[str, dict] = dataclasses.field(default_factory=dict)  # JSON beside it
    heads: int = HEADS
    runs: tuple[Run, ...] = RUNS
    in_bias: Callable[[nn.Module], torch.Tensor | None] = lambda block: None  # of query, key and value, if it is apart


def official_peer(seed: int, *, container: str = "safetensors", runs: tuple[Run, ...] = RUNS, **options) -> Peer:
    model = Official(**options)
    randomize(model, seed)
    state = model.state_dict()
    if container == "pth":  # as in the published files
        state["rope_embed.periods"] = state["rope_embed.periods"].to(torch.bfloat16)

    @contextlib.contextmanager
    def rotated_keys() -> Iterator[list[torch.Tensor]]:
        keys: list[torch.Tensor] = []
        handles = [
            block.attn.rotated_key.register_forward_hook(lambda _m, _i, key: keys.append(key[:, :, 1 + REGISTERS :]))
            for block in model.blocks
        ]
        yield keys
        for handle in handles:
            handle.remove()

    return Peer(
        model=model,
        forward=model,
        final=model.final,
        blocks=list(model.blocks),
        projections=lambda block: [block.attn.qkv],
        attention=lambda block: block.attn.weights,
        rotated_keys=rotated_keys,
        checkpoint=pth(state) if container == "pth" else arrays(model),
        heads=options.get("heads", HEADS),
        runs=runs,
    )


def official(seed: int) -> Peer:
    """ViT-S, B and L: GELU, and a bias whose mask hides that of the keys."""
    return official_peer(seed, container="pth")


def official_plus(seed: int) -> Peer:
    """ViT-S+ and H+: SwiGLU of three layers aligned to 8, and a mask of zeros only, as in the published files."""
    return official_peer(seed, mask=(0.0, 0.0, 0.0), align_to=8)


def official_7b(seed: int) -> Peer:
    """ViT-7B: no bias of query, key and value, SwiGLU aligned to 64, a norm of CLS in local crops; one head."""
    options = {"mask": None, "align_to": 64, "local": True, "width": 32, "heads": 1, "depth": 1}
    return official_peer(seed, runs=(Run(3, 4, layers=(0,)),), **options)


def official_untied(seed: int) -> Peer:
    """Untied final norms: one for CLS and registers, one for the patches."""
    return official_peer(seed, untied=True, local=True)


def timm_peer(architecture: str, seed: int, **arguments) -> Peer:
    import timm
    from safetensors.numpy import load_file
    from timm.models import eva, save_for_hf

    defaults = {"img_size": TRAINED, "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
    arguments = {**defaults, "mlp_ratio": 2, **arguments}
    model = timm.create_model(architecture, num_classes=0, **arguments)
    randomize(model, seed)
    for block in model.blocks:
        block.attn.fused_attn = False  # the fused kernel has no attention matrix to hook
    with tempfile.TemporaryDirectory() as folder:
        save_for_hf(model, folder, model_args=arguments, safe_serialization=True)
        weights = load_file(pathlib.Path(folder) / "model.safetensors")
        config = json.loads((pathlib.Path(folder) / "config.json").read_text())

    @contextlib.contextmanager
    def rotated_keys() -> Iterator[list[torch.Tensor]]:
        own, calls, keys = eva.apply_rot_embed_cat, [], []

        def apply(x: torch.Tensor, *others, **options) -> torch.Tensor:
            calls.append(own(x, *others, **options))
            if len(calls) % 2 == 0:  # each block rotates its query, then its key
                keys.append(calls[-1])
            return calls[-1]

        eva.apply_rot_embed_cat = apply
        yield keys
        eva.apply_rot_embed_cat = own

    def bias(block: nn.Module) -> torch.Tensor | None:
        attn = block.attn
        return None if attn.q_bias is None else torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])

    return Peer(
        model=model,
        forward=model.forward_features,
        final=model.norm,
        blocks=list(model.blocks),
        projections=lambda block: [block.attn.qkv],
        attention=lambda block: block.attn.attn_drop,
        rotated_keys=rotated_keys,
        checkpoint=weights,
        files={"config.json": config},
        in_bias=bias,
    )


def timm(seed: int) -> Peer:
    return timm_peer("vit_small_patch16_dinov3.lvd1689m", seed)


def timm_qkvb(seed: int) -> Peer:
    """With a bias of query and value, and the mean and std of satellite photographs."""
    return timm_peer("vit_large_patch16_dinov3_qkvb.sat493m", seed)


def timm_plus(seed: int) -> Peer:
    """SwiGLU of three layers called fc1_g, fc1_x and fc2."""
    return timm_peer("vit_small_plus_patch16_dinov3.lvd1689m", seed)


def transformers_peer(seed: int, *, preprocessor: dict | None = None, **options) -> Peer:
    from safetensors.numpy import load_file
    from transformers import DINOv3ViTConfig, DINOv3ViTModel
    from transformers.models.dinov3_vit import modeling_dinov3_vit as code

    config = DINOv3ViTConfig(
        hidden_size=WIDTH, intermediate_size=HIDDEN, num_hidden_layers=DEPTH, num_attention_heads=HEADS,
        num_register_tokens=REGISTERS, patch_size=PATCH, image_size=TRAINED, attn_implementation="eager", **options,
    )  # fmt: skip
    model = DINOv3ViTModel(config)
    randomize(model, seed)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        weights = load_file(pathlib.Path(folder) / "model.safetensors")
        files = {"config.json": json.loads((pathlib.Path(folder) / "config.json").read_text())}
    if preprocessor:
        files["preprocessor_config.json"] = preprocessor

    @contextlib.contextmanager
    def rotated_keys() -> Iterator[list[torch.Tensor]]:
        own, keys = code.apply_rotary_pos_emb, []

        def apply(*tensors, **others) -> tuple[torch.Tensor, torch.Tensor]:
            query, key = own(*tensors, **others)
            keys.append(key[:, :, 1 + REGISTERS :])
            return query, key

        code.apply_rotary_pos_emb = apply
        yield keys
        code.apply_rotary_pos_emb = own

    return Peer(
        model=model,
        forward=lambda images: model(images).last_hidden_state,
        final=model.norm,
        blocks=list(model.model.layer),
        projections=lambda block: [block.attention.q_proj, block.attention.k_proj, block.attention.v_proj],
        attention=lambda block: block.attention,
        rotated_keys=rotated_keys,
        checkpoint=weights,
        files=files,
    )


def transformers(seed: int) -> Peer:
    return transformers_peer(seed)


def transformers_plus(seed: int) -> Peer:
    """SwiGLU called gate_proj, up_proj and down_proj, as in ViT-S+ and H+; mean and std of satellite photographs."""
    preprocessor = {"image_mean": SAT["mean"], "image_std": SAT["std"], "do_resize": False, "rescale_factor": 1 / 255}
    return transformers_peer(seed, use_gated_mlp=True, hidden_act="silu", preprocessor=preprocessor)


def transformers_7b(seed: int) -> Peer:
    """No bias of query, key and value; another base and another epsilon, which only config.json holds."""
    options = {"query_bias": False, "value_bias": False, "rope_theta": 30.0, "layer_norm_eps": 1e-4}
    return transformers_peer(seed, use_gated_mlp=True, hidden_act="silu", **options)


def transformers_key_bias(seed: int) -> Peer:
    """A bias of the key, which no published DINOv3 has."""
    return transformers_peer(seed, key_bias=True, value_bias=False)


CASES = (
    official, official_plus, official_7b, official_untied, timm, timm_qkvb, timm_plus,
    transformers, transformers_plus, transformers_7b, transformers_key_bias,
)  # fmt: skip
PEERS = {case.__name__: case for case in CASES}


# ---- features ------------------------


def heads_side_by_side(x: torch.Tensor) -> torch.Tensor:
    """(B, H, N, d) to (B, N, H d)."""
    return x.transpose(1, 2).flatten(2)


def record_features(peer: Peer, layers: tuple[int, ...], images: torch.Tensor) -> Iterator[tuple[str, np.ndarray]]:
    """Run the peer once and generate ("layer/feature", array) for the blocks asked for."""
    outputs: dict[tuple[int, str], torch.Tensor | tuple] = {}

    def keep(layer: int, what: str) -> Callable:
        def hook(_module, _inputs, output):
            outputs[layer, what] = output

        return hook

    handles = []
    for layer, block in enumerate(peer.blocks):
        handles.append(block.register_forward_hook(keep(layer, "out")))
        handles.append(peer.attention(block).register_forward_hook(keep(layer, "attention")))
        # timm adds the bias by itself and calls no module, so its projection is computed from what norm1 returns.
        handles.append(block.norm1.register_forward_hook(keep(layer, "normed")))
    with peer.rotated_keys() as rotated:
        final = peer.forward(images)
    for handle in handles:
        handle.remove()
    assert torch.equal(final, peer.final(outputs[len(peer.blocks) - 1, "out"])), "the hooks captured something else"

    patches = slice(1 + REGISTERS, None)
    for layer in layers:
        block, normed = peer.blocks[layer], outputs[layer, "normed"]
        facets = [projection(normed) for projection in peer.projections(block)]
        if len(facets) == 1:
            bias = peer.in_bias(block)
            facets = (facets[0] if bias is None else facets[0] + bias).chunk(3, dim=-1)
        attention = outputs[layer, "attention"]
        attention = attention[1] if isinstance(attention, tuple) else attention
        tokens = peer.final(outputs[layer, "out"])
        features = {name: facet[:, patches] for name, facet in zip(("query", "key", "value"), facets, strict=True)}
        features |= {"key_rotated": heads_side_by_side(rotated[layer]), "token": tokens[:, patches]}
        features |= {"cls": tokens[:, 0], "register": tokens[:, 1 : 1 + REGISTERS]}
        features["attention"] = attention[:, :, 0, patches]
        for name, value in features.items():
            yield f"{layer}/{name}", value.numpy().astype(np.float32)


def pictures(peer: Peer, seed: int) -> list[torch.Tensor]:
    """Return the images of each run, normalized already."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return [
        on_grid(torch.randn(run.batch, 3, run.rows * PATCH, run.columns * PATCH, generator=generator), 1.0)
        for run in peer.runs
    ]


def as_float16(array: np.ndarray) -> np.ndarray:
    """Return numbers as float16 where it holds them, as it does those on a coarse grid."""
    half = array.astype(np.float16)
    return half if np.array_equal(half, array) else array


def golden(peer: Peer, seed: int) -> dict[str, np.ndarray]:
    """Return the arrays of one golden file."""
    content: dict[str, np.ndarray] = {}
    for index, (run, images) in enumerate(zip(peer.runs, pictures(peer, seed), strict=True)):
        content[f"run{index}/images"] = images.numpy().astype(np.float16)  # on a coarse grid: exact
        content |= {f"run{index}/{name}": value for name, value in record_features(peer, run.layers, images)}
    if isinstance(peer.checkpoint, bytes):
        content["checkpoint.pth"] = np.frombuffer(peer.checkpoint, np.uint8)
    else:
        content |= {f"weights/{name}": as_float16(value) for name, value in peer.checkpoint.items()}
    facts = {"heads": peer.heads, "depth": len(peer.blocks), "layers": [run.layers for run in peer.runs]}
    content["facts"] = np.array(json.dumps({**facts, "files": peer.files}))
    return content


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "dinov3")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"all by default: {', '.join(PEERS)}")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for seed, (name, case) in enumerate(PEERS.items()):
        if arguments.cases and name not in arguments.cases:
            continue
        path = arguments.out / f"{name}.npz"
        torch.manual_seed(seed)
        np.savez_compressed(path, **golden(case(seed), seed))
        print(f"{path.name:30}{path.stat().st_size:9,} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
