"""One forward pass of a vision transformer on several threads: images in, features of one block out.

:mod:`vitnp.vit.plain` is the same computation written to be read. This module computes only what the requested features
need, and spreads it over threads. Tokens interact in attention alone, so each thread takes its own chunks of rows
through the whole network and waits for the others once per block, until all keys and values are there.
:mod:`vitnp.vit.forward_gpu` is the same pass on a GPU.

Letters in shapes: B images, N patches, R register tokens, T = 1 + R + N tokens in the order CLS, registers, patches;
D width, H heads, d = D / H, b images and n rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from vitnp.kernels.threads import blas, team
from vitnp.options import FACETS
from vitnp.vit.weights import PackedWeights

# From this many tokens per batch on, use one K/V buffer instead of two.
SINGLE_KV_BUFFER_TOKENS = 2048

# Smallest share of tokens that is worth a thread.
MIN_TOKENS_PER_THREAD = 32

# Images and rows of a chunk of tokens.
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
        Rotary position embeddings, by which the K/V cache rotates keys and queries.
    kv : list of KVCache
        Keys and values of the current block, and of the next one if there are two.
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
        self._allocate_buffers(batch, n_tokens)
        self._allocate_outputs(batch, n_tokens)
        if weights.kernels.BLOCK is None:
            self.max_threads = batch
        else:
            self.max_threads = -(-batch * n_tokens // MIN_TOKENS_PER_THREAD)

    def _allocate_buffers(self, batch: int, n_tokens: int) -> None:
        """Allocate queries, and two K/V buffers, so that a thread may begin a block while others read the last, or one.

        For many tokens waiting is cheaper than the memory.
        """
        w, c = self.weights, self.config
        self.queries = w.temporary("queries", batch, n_tokens, c.width)
        self.kv: list[Any] = [
            w.kernels.KVCache(
                batch, n_tokens, c.width, c.heads, w.dtype, slot=slot, precision=w.precision, rotation=self.rotation
            )
            for slot in range(2 if batch * n_tokens < SINGLE_KV_BUFFER_TOKENS else 1)
        ]

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
        """Take one thread's chunks through the network."""
        chunks = list(self.chunks(worker))
        for chunk in chunks:
            self.prepare_tokens(*chunk)
        for index in range(self.layer):
            kv = self.kv[index % len(self.kv)]
            for chunk in chunks:
                self.project_qkv(chunk, index, kv)
            worker.wait()  # until all keys and values of this block are written
            for chunk in chunks:
                attn_out = self.weights.temporary("attn_out", *self.x[chunk].shape)
                attn_out = kv.attend(self.queries[chunk], chunk[0], attn_out, start=chunk[1].start)
                block_tail(self.weights, self.x[chunk], attn_out, index, out=self.x[chunk])
            if len(self.kv) == 1:
                worker.wait()  # until all threads have read the only buffer
        self.read_last_block(worker, chunks)

    def chunks(self, worker: team.Worker) -> Iterator[Chunk]:
        """Split off one thread's share of the tokens, in chunks of a length that suits the kernels."""
        batch, n_tokens, _ = self.x.shape
        longest = self.weights.kernels.BLOCK
        if longest is None:
            for image in range(*worker.share(batch)):
                yield slice(image, image + 1), slice(0, n_tokens)
            return
        start, stop = worker.share(batch * n_tokens, 8)
        while start < stop:
            image, row = divmod(start, n_tokens)
            left = min(stop - start, n_tokens - row)
            # Lengths are about equal and multiples of 8: with BLOCK = 256, 400 rows become 200 and 200.
            n_rows = min(left, -(-left // -(-left // longest) // 8) * 8)
            yield slice(image, image + 1), slice(row, row + n_rows)
            start += n_rows

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

    def project_qkv(self, chunk: Chunk, index: int, kv: Any) -> None:
        """Compute query, key and value of a chunk in a block that isn't the last."""
        w, (images, rows) = self.weights, chunk
        y = operand(w, self.x[chunk], f"blocks.{index}.norm1")  # (b, n, D)
        key, value = (project(w, y, index, facet, w.temporary(facet, *y.shape)) for facet in ("key", "value"))
        kv.write(images, rows.start, key, value)
        project(w, y, index, "query", self.queries[chunk])

    def read_last_block(self, worker: team.Worker, chunks: list[Chunk]) -> None:
        """Compute those rows of the last block that the features need, and nothing else of it."""
        w, index, out = self.weights, self.layer, self.out
        kv = self.kv[index % len(self.kv)]
        for images, rows in chunks:
            y = operand(w, self.x[images, rows], f"blocks.{index}.norm1")
            for facet in [name for name in ("query", "key", "value") if name in out]:
                needed = slice(rows.start, min(rows.stop, self.n_query_rows)) if facet == "query" else rows
                if needed.start < needed.stop:
                    out[facet][images, needed] = project(w, y[:, : needed.stop - needed.start], index, facet)
            if self.n_output_rows:
                kv.write(images, rows.start, out["key"][images, rows], out["value"][images, rows])
        if not self.n_output_rows:
            return
        worker.wait()  # until all keys and values are written
        for images, rows in chunks:
            needed = slice(rows.start, min(rows.stop, self.n_output_rows))
            if needed.start < needed.stop:
                attn_out = kv.attend(out["query"][images, needed], images, start=needed.start)
                y = block_tail(w, self.x[images, needed], attn_out, index)
                n_prefix = max(0, self.n_prefix - needed.start)
                final_norm(w, y, n_prefix, out["token"][images, needed])

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
