"""A vision transformer in plain float64 NumPy, written for reading: what vitnp's answers are held against.

It shares no code with vitnp. One image at a time, one head at a time, everything computed, nothing saved.
"""

from __future__ import annotations

import math

import numpy as np


def features(weights: dict, config, image: np.ndarray, layer: int, stride: int) -> dict[str, np.ndarray]:
    """Every feature of block `layer` for one image (3, height, width)."""
    w = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    first = 1 + config.registers
    x = embed(w, config, np.asarray(image, np.float64), stride)
    for index in range(layer + 1):
        x, facets, attention = block(w, config, x, f"blocks.{index}.")
    normed = layernorm(x, w["norm.weight"], w["norm.bias"], config.eps)
    return {
        "query": facets[0][first:],
        "key": facets[1][first:],
        "value": facets[2][first:],
        "token": normed[first:],
        "cls": normed[0],
        "register": normed[1:first],
        "attention": np.stack([matrix[0, first:] for matrix in attention]),
    }


def embed(w: dict, config, image: np.ndarray, stride: int) -> np.ndarray:
    patch = config.patch
    rows = range(0, image.shape[1] - patch + 1, stride)
    columns = range(0, image.shape[2] - patch + 1, stride)
    patches = [image[:, top : top + patch, left : left + patch] for top in rows for left in columns]
    x = [(w["patch_embed.proj.weight"] * p).sum(axis=(1, 2, 3)) + w["patch_embed.proj.bias"] for p in patches]

    table = w["pos_embed"][0]
    cls = w["cls_token"][0]
    if len(table) == config.grid[0] * config.grid[1] + 1:
        cls, table = cls + table[:1], table[1:]
    table = table.reshape(*config.grid, -1)
    x = np.array(x) + resize(table, len(rows), len(columns), config.pos_embed).reshape(len(x), -1)
    return np.concatenate([cls, *([w["register_tokens"][0]] if config.registers else []), x])


def resize(table: np.ndarray, rows: int, columns: int, convention: str) -> np.ndarray:
    if table.shape[:2] == (rows, columns):
        return table
    down = [bicubic_taps(row, rows, table.shape[0], convention) for row in range(rows)]
    across = [bicubic_taps(column, columns, table.shape[1], convention) for column in range(columns)]
    out = np.zeros((rows, columns, table.shape[2]))
    for row in range(rows):
        for column in range(columns):
            for y, weight_y in down[row]:
                for x, weight_x in across[column]:
                    out[row, column] += weight_y * weight_x * table[y, x]
    return out


def bicubic_taps(index: int, new: int, old: int, convention: str) -> list[tuple[int, float]]:
    """Which of the `old` samples make up sample `index` of `new`, and with what weight."""
    if convention == "antialias":
        center = (index + 0.5) * old / new
        widening = max(1.0, old / new)
        weights = [(i, cubic((i + 0.5 - center) / widening, -0.5)) for i in range(old)]
        total = sum(weight for _, weight in weights)
        return [(i, weight / total) for i, weight in weights]
    scale = old / (new + 0.1) if convention == "offset" else old / new
    position = (index + 0.5) * scale - 0.5
    nearby = range(math.floor(position) - 1, math.floor(position) + 3)
    return [(min(max(i, 0), old - 1), cubic(position - i, -0.75)) for i in nearby]


def cubic(t: float, a: float) -> float:
    t = abs(t)
    if t < 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0


def block(w: dict, config, x: np.ndarray, name: str) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """Tokens after the block; its query, key and value; its attention matrix for each head."""
    y = layernorm(x, w[name + "norm1.weight"], w[name + "norm1.bias"], config.eps)
    query, key, value = np.split(linear(w, y, name + "attn.qkv"), 3, axis=1)
    size = config.width // config.heads
    attention, attn_out = [], []
    for head in range(config.heads):
        part = slice(head * size, (head + 1) * size)
        weights = np.exp(query[:, part] @ key[:, part].T / math.sqrt(size))
        weights /= weights.sum(axis=1, keepdims=True)
        attention.append(weights)
        attn_out.append(weights @ value[:, part])
    y = linear(w, np.concatenate(attn_out, axis=1), name + "attn.proj")
    x = x + (y * w[name + "ls1.gamma"] if config.layerscale else y)

    y = layernorm(x, w[name + "norm2.weight"], w[name + "norm2.bias"], config.eps)
    if config.swiglu:
        gate, y = np.split(linear(w, y, name + "mlp.w12"), 2, axis=1)
        y = linear(w, gate / (1 + np.exp(-gate)) * y, name + "mlp.w3")
    else:
        y = linear(w, y, name + "mlp.fc1")
        y = y * 0.5 * (1 + np.vectorize(math.erf)(y / math.sqrt(2)))
        y = linear(w, y, name + "mlp.fc2")
    x = x + (y * w[name + "ls2.gamma"] if config.layerscale else y)
    return x, [query, key, value], attention


def linear(w: dict, x: np.ndarray, name: str) -> np.ndarray:
    return x @ w[name + ".weight"].T + w[name + ".bias"]


def layernorm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    mean = x.mean(axis=1, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=1, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * weight + bias
