"""Small pictures and small networks for the tests of training."""

from __future__ import annotations

import numpy as np
from PIL import Image


def picture(index: int, height: int = 260, width: int = 340) -> np.ndarray:
    """Return an image that is different for each index: smooth blobs of color."""
    coarse = np.random.default_rng(index).integers(0, 256, (5, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


FORMS = {
    "plain": {},
    "without class position": {"class_position": False},
    "registers, gated, scaled": {"registers": 2, "swiglu": True, "layerscale": True, "pos_embed": "antialias"},
    "offset": {"pos_embed": "offset"},
    "rotary": {"registers": 4, "layerscale": True, "rotary": True},
}


def network(depth: int = 4, width: int = 32, patch: int = 32, class_position: bool = True, **form):
    """Return a random network whose features differ between tokens."""
    from vitnp.vit.config import ViTConfig
    from vitnp.vit.model import ViT

    form = {"pos_embed": "exact", **form}
    config = ViTConfig(
        width=width, depth=depth, heads=2, patch=patch, grid=(7, 7), mean=(0.5,) * 3, std=(0.25,) * 3, **form
    )
    rng = np.random.default_rng(7)

    def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    weights = {
        "cls_token": normal(1, 1, width),
        "pos_embed": normal(1, 49 + class_position, width),
        "patch_embed.proj.weight": normal(width, 3, patch, patch, scale=0.02),
        "patch_embed.proj.bias": normal(width, scale=0.1),
        "norm.weight": 1 + normal(width, scale=0.1),
        "norm.bias": normal(width, scale=0.1),
    }
    if config.rotary:
        del weights["pos_embed"]
        weights["rope_embed.periods"] = np.array([1, 3, 10, 30], np.float32)
    if config.registers:
        weights["register_tokens"] = normal(1, config.registers, width)
    linear = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    if config.swiglu:
        linear |= {"mlp.w12": (6 * width, width), "mlp.w3": (width, 3 * width)}
    else:
        linear |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    for index in range(depth):
        name = f"blocks.{index}"
        for part, (outputs, inputs) in linear.items():
            weights[f"{name}.{part}.weight"] = normal(outputs, inputs, scale=inputs**-0.5)
            weights[f"{name}.{part}.bias"] = normal(outputs, scale=0.1)
        for part in ("norm1", "norm2"):
            weights[f"{name}.{part}.weight"] = 1 + normal(width, scale=0.1)
            weights[f"{name}.{part}.bias"] = normal(width, scale=0.1)
        if config.layerscale:
            weights[f"{name}.ls1.gamma"], weights[f"{name}.ls2.gamma"] = normal(width), normal(width)
    return ViT(config, weights, name="toy", sha256="0" * 64)
