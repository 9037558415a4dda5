"""One forward pass of a vision transformer on several threads: images in, features of one block out.

:mod:`vitnp.vit.plain` is the same computation written to be read. This module computes only what the requested features
need, and spreads it over threads. Tokens interact in attention alone, so each thread takes its own chunks of rows
through the whole network and waits for the others once per block, until all keys and values are there.
:mod:`vitnp.vit.forward_gpu` is the same pass on a GPU.

Letters in shapes: B images, N patches, R register tokens, T = 1 + R + N tokens in the order CLS, registers, patches;
D width, H heads, d = D / H, b images and n rows of a chunk.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vitnp.kernels.threads import blas, team
from vitnp.options import FACETS
from vitnp.vit.weights import PackedWeights

# Images and rows of tokens.
Chunk = tuple[slice, slice]


class ForwardPass:
    """State that the threads of one forward pass share, and the work of each of them.

    Parameters
    ----------
    weights : PackedWeights
    images : (B, 3, height, width) float
        On the device of the weights.
    stride : int
        Pixels between patches.
    layer : int
        Block to read, from 0.
    features : tuple of str
        Names among :data:`vitnp.options.FEATURES`.

    Attributes
    ----------
    x : (B, T, D) float
        Tokens, overwritten block by block.
    rotation : (T, d) float, or None
        Rotary position embeddings.
    out : dict of str to (B, T, D) float
        Query, key, value and output of the last block as far as the features need them; query and key before rotation.
    max_threads : int
        More threads than this would have too little work.
    """

    def __init__(self, weights: PackedWeights, images: np.ndarray, stride: int, layer: int, features: tuple[str, ...]):
        self.weights, self.config, self.images = weights, weights.config, images
        self.stride, self.layer, self.features = stride, layer, features
        height, width = images.shape[2:]
        grid = self.config.patch_grid(height, width, stride)
        self.prefix_tokens, self.pos_embed = weights.prefix_and_pos_embed(grid)
        self.rotation = weights.rotation(grid, stride)
        self.n_prefix = self.config.num_prefix_tokens
        batch, n_tokens = len(images), self.n_prefix + grid[0] * grid[1]
        self.x = weights.temporary("tokens", batch, n_tokens, self.config.width)
        self.max_threads = batch
        self._allocate_outputs(batch, n_tokens)

    def _allocate_outputs(self, batch: int, n_tokens: int) -> None:
        """Work out which rows of the last block the features need, and allocate memory for them."""
        features, shape, xp = self.features, self.x.shape, self.weights.xp
        # Rows of the block's output, from the first token: all, the prefix tokens, CLS, or none.
        self.n_output_rows = 0
        if "token" in features:
            self.n_output_rows = n_tokens
        elif "register" in features:
            self.n_output_rows = self.n_prefix
        elif "cls" in features:
            self.n_output_rows = 1
        needs_cls_row = "attention" in features or "cls_state" in features
        self.n_query_rows = n_tokens if "query" in features else max(self.n_output_rows, int(needs_cls_row))
        needed = {
            "query": self.n_query_rows > 0,
            "key": not {"key", "key_rotated"}.isdisjoint(features) or needs_cls_row or self.n_output_rows > 0,
            "value": "value" in features or "cls_state" in features or self.n_output_rows > 0,
        }
        self.out = {facet: xp.empty(shape, self.x.dtype) for facet in needed if needed[facet]}
        if self.n_output_rows:
            self.out["token"] = xp.empty((batch, self.n_output_rows, self.config.width), self.x.dtype)

    def run(self, worker: team.Worker) -> None:
        """Take one thread's images through the network."""
        for image in range(*worker.share(len(self.images))):
            self.forward(slice(image, image + 1))

    def forward(self, images: slice) -> None:
        """Take images through the network."""
        w, x = self.weights, self.x[images]
        self.prepare_tokens(images, slice(0, x.shape[1]))
        for index in range(self.layer):
            y = operand(w, x, f"blocks.{index}.norm1")
            block_tail(w, x, self.self_attention(y, index), index, out=x)
        self.read_last_block(images)

    def self_attention(self, y: Any, index: int) -> np.ndarray:
        """Compute the attention (b, T, D) of normalized tokens to each other in a block that isn't the last."""
        return self.attend(*(project(self.weights, y, index, facet) for facet in ("query", "key", "value")))

    def attend(self, query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
        """Compute the attention (b, M, D) of the first M tokens to all tokens."""
        return self.weights.kernels.attention(query, key, value, self.config.heads, self.rotation)

    def read_last_block(self, images: slice) -> None:
        """Compute those rows of the last block that the features need, and nothing else of it."""
        w, index, n_output = self.weights, self.layer, self.n_output_rows
        x, out = self.x[images], {name: rows[images] for name, rows in self.out.items()}
        y = operand(w, x, f"blocks.{index}.norm1")
        for facet in [name for name in ("query", "key", "value") if name in out]:
            n_rows = self.n_query_rows if facet == "query" else x.shape[1]
            project(w, y[:, :n_rows], index, facet, out[facet][:, :n_rows])
        if n_output:
            attn_out = self.attend(out["query"][:, :n_output], out["key"], out["value"])
            final_norm(w, block_tail(w, x[:, :n_output], attn_out, index), self.n_prefix, out["token"])

    def prepare_tokens(self, images: slice, rows: slice) -> None:
        """Write the tokens of a chunk as they enter the first block: prefix tokens, and patches with positions."""
        w, n_prefix = self.weights, self.n_prefix
        if rows.start < n_prefix:
            self.x[images, rows.start : min(n_prefix, rows.stop)] = self.prefix_tokens[rows.start : rows.stop]
        start, stop = max(rows.start, n_prefix) - n_prefix, rows.stop - n_prefix
        if start < stop:
            weight, bias = w["patch_embed.proj.weight"], w["patch_embed.proj.bias"]
            patches = w.kernels.patch_embedding(
                self.images[images], weight, bias, self.stride, patch=self.config.patch, start=start, stop=stop
            )
            tokens = self.x[images, n_prefix + start : n_prefix + stop]
            if self.pos_embed is None:
                tokens[...] = patches
            else:
                w.xp.add(patches, self.pos_embed[start:stop], out=tokens)

    def result(self) -> dict[str, np.ndarray]:
        """Return the features by name, after every thread has finished."""
        n_prefix, out, xp = self.n_prefix, self.out, self.weights.xp
        result = {facet: out[facet][:, n_prefix:] for facet in FACETS if facet in out}
        if "key_rotated" in self.features and self.rotation is not None:
            rotation = self.rotation[n_prefix:]
            result["key_rotated"] = self.weights.kernels.rotate(result["key"], rotation, self.config.heads)
        if self.n_output_rows:
            result |= {"cls": out["token"][:, 0], "register": out["token"][:, 1:n_prefix]}
        if "attention" in self.features:
            with blas.one_blas_thread():
                attention = self.weights.kernels.attention_row(
                    out["query"][:, :1], out["key"], self.config.heads, self.rotation
                )
            result["attention"] = attention[:, :, n_prefix:]  # of (B, H, T)
        if "cls_state" in self.features:
            parts = (self.x, out["query"], out["key"], out["value"])
            result["cls_state"] = xp.stack([part[:, 0] for part in parts], axis=1)
        return {name: xp.ascontiguousarray(result[name], self.images.dtype) for name in self.features}


def project(weights: PackedWeights, y: Any, index: int, facet: str, out: np.ndarray | None = None) -> np.ndarray:
    """Compute "query", "key" or "value" (b, n, D) of normalized tokens: one third of the fused projection."""
    return weights.kernels.linear(y, *weights.layer(f"blocks.{index}.attn.qkv:{facet}"), out=out)


def block_tail(
    weights: PackedWeights, x: np.ndarray, attn_out: np.ndarray, index: int, out: np.ndarray | None = None
) -> np.ndarray:
    """Apply the second half of a block: output projection, MLP, residuals.

    Parameters
    ----------
    weights : PackedWeights
    x, attn_out : (b, n, D) float
        Tokens as they enter the block, and the output of its attention.
    index : int
        Block, from 0.
    out : (b, n, D) float, optional
        Memory for the result; may be `x`.

    Returns
    -------
    (b, n, D) float
    """
    kernels, name = weights.kernels, f"blocks.{index}"

    def linear(y: np.ndarray, layer: str, **options: Any) -> np.ndarray:
        return kernels.linear(y, *weights.layer(f"{name}.{layer}"), **options)

    x = linear(attn_out, "attn.proj", scale=weights.get(f"{name}.ls1.gamma"), residual=x, out=out)
    y = operand(weights, x, f"{name}.norm2")
    if weights.config.swiglu:
        y, last_layer = kernels.swiglu(linear(y, "mlp.w12")), "mlp.w3"
    else:
        hidden = weights.temporary("hidden", *y.shape[:-1], weights.n_outputs(f"{name}.mlp.fc1"))
        y, last_layer = linear(y, "mlp.fc1", activation="gelu", out=hidden), "mlp.fc2"
    return linear(y, last_layer, scale=weights.get(f"{name}.ls2.gamma"), residual=x, out=out)


def operand(weights: PackedWeights, x: np.ndarray, name: str) -> Any:
    """Apply LayerNorm as :func:`norm`, for linear layers alone: in int8 the result is quantized."""
    if weights.precision != "int8":
        return norm(weights, x, name)
    eps = weights.config.eps
    return weights.kernels.layernorm_int8(x, weights[f"{name}.weight"], weights[f"{name}.bias"], eps)


def norm(weights: PackedWeights, x: np.ndarray, name: str) -> np.ndarray:
    """Apply LayerNorm over the last axis; the next call of the same thread overwrites the result."""
    out = weights.temporary("normed", *x.shape)
    return weights.kernels.layernorm(x, weights[f"{name}.weight"], weights[f"{name}.bias"], weights.config.eps, out)


def final_norm(weights: PackedWeights, x: np.ndarray, n_prefix: int, out: np.ndarray) -> None:
    """Write the final norm of tokens (b, n, D) to `out`; the first `n_prefix` of them may have one of their own."""
    out[...] = norm(weights, x, "norm")
    if n_prefix and weights.has("cls_norm.weight"):
        out[:, :n_prefix] = norm(weights, x[:, :n_prefix], "cls_norm")
