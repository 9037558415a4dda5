"""The vision transformer, written to be read: the whole forward pass in plain NumPy, one image at a time.

It computes what DINO (Caron et al. 2021, arXiv 2104.14294), DINOv2 (Oquab et al. 2023, arXiv 2304.07193), DINOv2 with
registers (Darcet et al. 2023, arXiv 2309.16588), DINOv3 (Simeoni et al. 2025, arXiv 2508.10104) and any other plain ViT
(Dosovitskiy et al. 2021, arXiv 2010.11929) compute. :mod:`vitnp.vit.forward` gives the same numbers many times faster.
The tests compare the two, so they share no code: this module is the specification.

Letters in shapes: N patches, R register tokens, T = 1 + R + N tokens in the order CLS, registers, patches; D width,
H heads, d = D / H, P patch size in pixels. Everything is computed in the dtype of the weights and of the image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from vitnp.vit.config import ViTConfig


def features(
    weights: Mapping[str, np.ndarray], config: ViTConfig, image: np.ndarray, layer: int, stride: int
) -> dict[str, np.ndarray]:
    """Return every feature of one block for one image.

    Parameters
    ----------
    weights : mapping of str to float array
        As in DINO's files: ``"blocks.0.attn.qkv.weight"`` and so on. Linear weights are (outputs, inputs).
    config : ViTConfig
    image : (3, height, width) float
        Normalized with ``config.mean`` and ``config.std``.
    layer : int
        Block to read, from 0.
    stride : int
        Pixels between patches; ``config.patch``, or less for overlapping patches.

    Returns
    -------
    dict of str to float array
        "query", "key", "value" and "token" (N, D), "cls" (D,) and "register" (R, D), "attention" (H, N) from CLS to the
        patches. "token", "cls" and "register" are taken after the final norm. With rotary position embeddings "query"
        and "key" are those before the rotation, and there is "key_rotated" (N, D).

    Examples
    --------
    >>> from vitnp import load_vit
    >>> vit = load_vit("auto")
    >>> image = np.zeros((3, 32, 48), np.float32)
    >>> features(vit.weights, vit.config, image, layer=5, stride=16)["key"].shape
    (6, 192)
    """
    w = nest(weights)
    x = prepare_tokens(image, w, config, stride)  # (T, D)
    angles = rope_angles(image, w, config, stride)  # (T, d / 2), or None
    for index in range(layer):
        x = block(x, w["blocks"][str(index)], config, angles)

    last = w["blocks"][str(layer)]
    query, key, value = qkv(norm(x, **last["norm1"], eps=config.eps), last["attn"])
    attention = attention_weights(query, key, config.heads, angles)
    x = final_norm(block(x, last, config, angles), w, config)

    patches = slice(config.num_prefix_tokens, None)
    rotated = {}
    if angles is not None:
        rotated["key_rotated"] = merge_heads(rotate(split_heads(key, config.heads), angles))[patches]
    return {
        "query": query[patches],
        "key": key[patches],
        "value": value[patches],
        "token": x[patches],
        "cls": x[0],
        "register": x[1 : config.num_prefix_tokens],
        "attention": attention[:, 0, patches],
        **rotated,
    }


def block(x: np.ndarray, w: dict[str, Any], config: ViTConfig, angles: np.ndarray | None) -> np.ndarray:
    """Apply one pre-norm block to tokens (T, D), with LayerScale (Touvron et al. 2021) if the network has it."""
    scale1, scale2 = (w["ls1"]["gamma"], w["ls2"]["gamma"]) if config.layerscale else (1.0, 1.0)
    x = x + scale1 * attn(norm(x, **w["norm1"], eps=config.eps), w["attn"], config.heads, angles)
    x = x + scale2 * mlp(norm(x, **w["norm2"], eps=config.eps), w["mlp"])
    return x


def attn(x: np.ndarray, w: dict[str, Any], heads: int, angles: np.ndarray | None) -> np.ndarray:
    """Apply multi-head self-attention to tokens (T, D) (Vaswani et al. 2017, section 3.2)."""
    query, key, value = qkv(x, w)
    x = attention_weights(query, key, heads, angles) @ split_heads(value, heads)  # (H, T, d)
    return linear(merge_heads(x), **w["proj"])


def qkv(x: np.ndarray, w: dict[str, Any]) -> list[np.ndarray]:
    """Project tokens to query, key and value, (T, D) each, with the heads side by side."""
    return np.split(linear(x, **w["qkv"]), 3, axis=-1)


def attention_weights(query: np.ndarray, key: np.ndarray, heads: int, angles: np.ndarray | None) -> np.ndarray:
    """Return softmax(q k^T / sqrt(d)) for each head, (H, T, T): row i says how much token i attends to each token."""
    query, key = split_heads(query, heads), split_heads(key, heads)  # (H, T, d)
    if angles is not None:
        query, key = rotate(query, angles), rotate(key, angles)
    return softmax(query @ key.transpose(0, 2, 1) / math.sqrt(query.shape[-1]))


def split_heads(x: np.ndarray, heads: int) -> np.ndarray:
    """Turn (T, D) into (H, T, d)."""
    return np.stack(np.split(x, heads, axis=-1))


def merge_heads(x: np.ndarray) -> np.ndarray:
    """Turn (H, T, d) into (T, D), with the heads side by side."""
    return np.concatenate(list(x), axis=-1)


def rotate(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Rotate d / 2 points in each head of each token (H, T, d) by its angles (T, d / 2) (Su et al. 2021).

    The first half of a head holds one coordinate of each point, the second half the other.
    """
    a, b = np.split(x, 2, axis=-1)
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def rope_angles(image: np.ndarray, w: dict[str, Any], config: ViTConfig, stride: int) -> np.ndarray | None:
    """Return the angles (T, d / 2) by which positions rotate queries and keys; None if the network has no rotary ones.

    The first half of a token's angles is its row over d / 4 periods, the second half its column. Rows and columns are
    those of the center of the patch, from -1 at one edge of the image to 1 at the other. CLS and registers stay.
    """
    if not config.rotary:
        return None
    periods = w["rope_embed"]["periods"]
    rows, columns = (
        2 * (np.arange(0, side - config.patch + 1, stride) + config.patch / 2) / side - 1 for side in image.shape[1:]
    )
    centers = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)  # (N, 2)
    patches = 2 * math.pi * centers[:, :, None] / periods  # (N, 2, d / 4)
    prefix = np.zeros((config.num_prefix_tokens, 2 * len(periods)))
    return np.concatenate([prefix, patches.reshape(len(centers), -1)]).astype(image.dtype)


def mlp(x: np.ndarray, w: dict[str, Any]) -> np.ndarray:
    """Apply the two-layer perceptron to each token (T, D): with GELU, or gated with SiLU as in DINOv2 giant."""
    if "w12" in w:  # SwiGLU (Shazeer 2020, arXiv 2002.05202)
        gate, x = np.split(linear(x, **w["w12"]), 2, axis=-1)
        return linear(gate / (1 + np.exp(-gate)) * x, **w["w3"])
    return linear(gelu(linear(x, **w["fc1"])), **w["fc2"])


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | float = 0.0) -> np.ndarray:
    """Apply a linear layer: (T, inputs) to (T, outputs)."""
    return x @ weight.T + bias


def norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    """Apply LayerNorm over the last axis (Ba et al. 2016)."""
    mean, variance = x.mean(axis=-1, keepdims=True), x.var(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * weight + bias


def final_norm(x: np.ndarray, w: dict[str, Any], config: ViTConfig) -> np.ndarray:
    """Apply the final LayerNorm to tokens (T, D); CLS and registers may have one of their own."""
    prefix, patches = np.split(x, [config.num_prefix_tokens])
    prefix = norm(prefix, **w.get("cls_norm", w["norm"]), eps=config.eps)
    return np.concatenate([prefix, norm(patches, **w["norm"], eps=config.eps)])


def gelu(x: np.ndarray) -> np.ndarray:
    """Apply the exact GELU, x Phi(x) (Hendrycks and Gimpel 2016)."""
    erf = np.vectorize(math.erf, otypes=[x.dtype])
    return 0.5 * x * (1 + erf(x / math.sqrt(2)))


def softmax(x: np.ndarray) -> np.ndarray:
    """Apply softmax over the last axis."""
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def prepare_tokens(image: np.ndarray, w: dict[str, Any], config: ViTConfig, stride: int) -> np.ndarray:
    """Turn an image (3, height, width) into tokens (T, D): CLS, registers, and patches with position embeddings.

    Rotary position embeddings are not added here, but rotate queries and keys in each block.
    """
    x = patch_embed(image, **w["patch_embed"]["proj"], stride=stride)  # (rows, columns, D)
    cls_token = w["cls_token"][0]
    if not config.rotary:
        pos_embed = w["pos_embed"][0]
        if len(pos_embed) > math.prod(config.grid):  # the first position belongs to CLS
            cls_token, pos_embed = cls_token + pos_embed[:1], pos_embed[1:]
        x = x + resample_abs_pos_embed(pos_embed.reshape(*config.grid, -1), x.shape[:2], config.pos_embed)
    registers = w["register_tokens"][0] if config.registers else x[0, :0]  # (R, D), also for R = 0
    return np.concatenate([cls_token, registers, x.reshape(-1, config.width)])


def patch_embed(image: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int) -> np.ndarray:
    """Project each patch to D numbers, a convolution without padding: (3, height, width) to (rows, columns, D)."""
    # c channels, r rows and k columns of patches, y rows and x columns of pixels in a patch, d numbers.
    patches = np.lib.stride_tricks.sliding_window_view(image, weight.shape[2:], axis=(1, 2))[:, ::stride, ::stride]
    return np.einsum("crkyx,dcyx->rkd", patches, weight) + bias


def resample_abs_pos_embed(pos_embed: np.ndarray, grid: tuple[int, ...], convention: str) -> np.ndarray:
    """Resample position embeddings (rows, columns, D) from the trained grid to another number of rows and columns."""
    if pos_embed.shape[:2] == grid:
        return pos_embed
    vertical = bicubic_weights(pos_embed.shape[0], grid[0], convention)
    horizontal = bicubic_weights(pos_embed.shape[1], grid[1], convention)
    return np.einsum("rM,kN,MNd->rkd", vertical, horizontal, pos_embed).astype(pos_embed.dtype)


def bicubic_weights(old: int, new: int, convention: str) -> np.ndarray:
    """Return the weights (new, old) of bicubic interpolation along an axis, see :mod:`vitnp.vit.pos_embed`."""
    weights = np.zeros((new, old))
    for i in range(new):
        if convention == "antialias":
            center, stretch = (i + 0.5) * old / new, max(1.0, old / new)
            weights[i] = [cubic((j + 0.5 - center) / stretch, a=-0.5) for j in range(old)]
            weights[i] /= weights[i].sum()
        else:
            scale = old / (new + 0.1) if convention == "offset" else old / new
            position = (i + 0.5) * scale - 0.5
            for j in range(math.floor(position) - 1, math.floor(position) + 3):
                weights[i, min(max(j, 0), old - 1)] += cubic(position - j, a=-0.75)  # the edge repeats outside the grid
    return weights


def cubic(t: float, a: float) -> float:
    """Evaluate the cubic convolution kernel at distance t (Keys 1981), whose free parameter is a."""
    t = abs(t)
    if t < 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0


def nest(weights: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Turn dotted names into nested dicts: ``w["blocks"]["0"]["attn"]["qkv"]`` is ``{"weight": ..., "bias": ...}``."""
    nested: dict[str, Any] = {}
    for name, array in weights.items():
        *path, leaf = name.split(".")
        inner = nested
        for part in path:
            inner = inner.setdefault(part, {})
        inner[leaf] = array
    return nested
