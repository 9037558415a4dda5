"""A vision transformer on one page: images in, features of any block out.

Runs DINO (Caron et al. 2021, arXiv 2104.14294), DINOv2 with and without registers (Oquab et al. 2023, arXiv 2304.07193;
Darcet et al. 2023, arXiv 2309.16588) and any other ViT of the same shapes (Dosovitskiy et al. 2021, arXiv 2010.11929).

Letters: B images, N patches, R registers, T = 1 + R + N tokens in the order CLS, registers, patches; D width, H heads, P patch;
b images and n rows of a block of tokens. Weights are a plain mapping with the key names of DINO's own files.

Tokens meet only in attention. So each thread takes its own blocks of rows through the whole network, and waits for the others
once a layer, until all keys and values are there.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vitnp import kernels
from vitnp.io.mmap import forget_pages
from vitnp.kernels.threads import blas, team
from vitnp.options import FACETS
from vitnp.vit.config import ViTConfig
from vitnp.vit.pos_embed import resample_positions

# Of all images together, from which on one set of keys and values does.
SHARED_KV_TOKENS = 2048


class PackedWeights:
    """Weights as the kernels want them: matrices packed when they are first used, all else as it is.

    Attributes
    ----------
    kernels : module
        The operations.
    precision : str
        Of products' operands.
    device : {"cpu", "cuda"}
        Where they lie.
    xp : module
        NumPy's functions for arrays there.
    dtype : numpy.dtype
        Of what a layer takes and gives.
    """

    def __init__(self, weights: Mapping[str, np.ndarray], precision: str, device: str = "cpu"):
        single = weights["cls_token"].dtype == np.float32
        self.kernels, self.precision = (
            kernels.for_device("reference" if device == "cpu" and not single else device),
            precision,
        )
        self.device, self.xp = device, kernels.array_module(kernels.to_device(np.empty(0), device))
        on_gpu = np.dtype(np.float16 if precision == "fp16" else np.float32)
        self.dtype = on_gpu if device == "cuda" else weights["cls_token"].dtype
        self._weights, self._packed, self._lock = weights, {}, threading.Lock()
        self.places: tuple[tuple[int, ...], tuple[np.ndarray, np.ndarray]] | None = (
            None  # of the last grid, see places()
        )

    def __getitem__(self, name: str) -> Any:
        """An entry by its name in the file; "NAME:query", ":key" and ":value" are thirds of the fused projection."""
        found = self._packed.get(name)
        return self._pack(name) if found is None else found

    def get(self, name: str) -> Any:
        """An entry, or None where the network has none of the name."""
        return self[name] if name.partition(":")[0] in self._weights else None

    def original(self, name: str) -> np.ndarray:
        """An entry as the file has it, in the host's memory."""
        return self._weights[name]

    def exclusive(self) -> contextlib.AbstractContextManager:
        """What to hold during a forward pass: on a GPU they go one after the other, each with its own arithmetic of products; where
        BLAS computes it has one thread; compiled kernels need nothing.
        """
        if self.device != "cpu":
            return self.kernels.products(self.precision)
        return blas.one_blas_thread() if self.kernels.BLOCK is None else contextlib.nullcontext()

    def _pack(self, name: str) -> Any:
        with self._lock:
            if name not in self._packed:
                whole, _, part = name.partition(":")
                weight = self._weights[whole]
                if part:
                    weight = np.split(weight, 3)[("query", "key", "value").index(part)]
                if self.device != "cpu":
                    weight = kernels.to_device(np.ascontiguousarray(weight, self.dtype), self.device)
                if whole.endswith(".weight") and weight.ndim in (2, 4):
                    weight = self.kernels.pack_linear(weight.reshape(len(weight), -1), self.precision)
                    # From here on nobody reads the matrix itself.
                    forget_pages(self._weights[whole])
                elif self.device == "cpu":
                    # To read a few numbers of a mapped file brings whole stretches of it back into memory.
                    weight = np.array(weight)
                self._packed[name] = weight
            return self._packed[name]

    def temporary(self, name: str, *shape: int) -> np.ndarray:
        """Memory for what is used up before the same thread asks by the same name again."""
        return self.kernels.temporary(name, *shape, dtype=self.dtype)


class ForwardPass:
    """One forward pass: what its threads share, and what each of them does.

    Parameters
    ----------
    weights : Packed
    config : ViTConfig
    images : (B, 3, height, width) float
    stride, layer : int
    want : sequence of str
        As :meth:`ViT.__call__` takes them, checked.
    """

    def __init__(
        self,
        weights: PackedWeights,
        config: ViTConfig,
        images: np.ndarray,
        stride: int,
        layer: int,
        features: tuple[str, ...],
    ):
        c, k = config, weights.kernels
        self.weights, self.config, self.images, self.stride, self.layer, self.features = (
            weights,
            c,
            images,
            stride,
            layer,
            features,
        )
        self.prefix_tokens, self.positions = prefix_and_pos_embed(
            weights, c, tuple((side - c.patch) // stride + 1 for side in images.shape[2:])
        )
        self.first = 1 + c.registers  # the first patch among the tokens
        batch, tokens = len(images), self.first + len(self.positions)
        self.x, self.queries = (
            weights.temporary(name, batch, tokens, c.width) for name in ("tokens", "queries")
        )  # (B, T, D)
        # With two a thread may begin the next layer while others still read this one; for many tokens waiting is cheaper.
        slots = 2 if weights.device == "cpu" and batch * tokens < SHARED_KV_TOKENS else 1
        self.kv = [
            k.KVCache(batch, tokens, c.width, c.heads, weights.dtype, slot=slot, precision=weights.precision)
            for slot in range(slots)
        ]
        # Rows of the last block's output that somebody asks for: all of them, the leading ones, CLS, or none.
        self.rows = (
            tokens if "token" in features else self.first if "register" in features else 1 if "cls" in features else 0
        )
        by_cls = "attention" in features or "cls_state" in features
        self.query_rows = tokens if "query" in features else max(self.rows, int(by_cls))
        wanted = {
            "query": self.query_rows > 0,
            "key": "key" in features or by_cls or self.rows > 0,
            "value": "value" in features or "cls_state" in features or self.rows > 0,
        }
        self.out = {facet: weights.xp.empty(self.x.shape, self.x.dtype) for facet, there in wanted.items() if there}
        if self.rows:
            self.out["token"] = weights.xp.empty((batch, self.rows, c.width), self.x.dtype)
        # More threads than this have nothing worth their while; without blocks a thread takes whole images, for a GPU one takes all.
        self.most = 1 if weights.device == "cuda" else batch if k.BLOCK is None else -(-batch * tokens // 32)

    def run(self, worker: team.Worker) -> None:
        """The pass as one thread sees it."""
        weights, c, x = self.weights, self.config, self.x
        mine = list(self.blocks(worker))
        for images, rows in mine:
            self.embed(images, rows)
        for index in range(self.layer):
            kv = self.kv[index % len(self.kv)]
            for images, rows in mine:
                y = norm(weights, c, x[images, rows], f"blocks.{index}.norm1")  # (b, n, D)
                key, value = (
                    project(weights, y, index, part, weights.temporary(part, *y.shape)) for part in ("key", "value")
                )
                kv.write(images, rows.start, key, value)
                project(weights, y, index, "query", self.queries[images, rows])
            worker.wait()
            for images, rows in mine:
                here = x[images, rows]
                attn_out = kv.attend(self.queries[images, rows], images, weights.temporary("gathered", *here.shape))
                block_tail(weights, c, here, attn_out, index, out=here)
            if len(self.kv) == 1:
                worker.wait()
        self.read(worker, mine)

    def read(self, worker: team.Worker, mine: Sequence[tuple[slice, slice]]) -> None:
        """What is wanted of the last block, and nothing else of it."""
        weights, c, index, out = self.weights, self.config, self.layer, self.out
        kv = self.kv[index % len(self.kv)]
        for images, rows in mine:
            y = norm(weights, c, self.x[images, rows], f"blocks.{index}.norm1")
            for facet in [name for name in ("query", "key", "value") if name in out]:
                here = slice(rows.start, min(rows.stop, self.query_rows)) if facet == "query" else rows
                if here.start < here.stop:
                    out[facet][images, here] = project(weights, y[:, : here.stop - here.start], index, facet)
            if self.rows:
                kv.write(images, rows.start, out["key"][images, rows], out["value"][images, rows])
        if not self.rows:
            return
        worker.wait()
        for images, rows in mine:
            rows = slice(rows.start, min(rows.stop, self.rows))
            if rows.start < rows.stop:
                attn_out = kv.attend(out["query"][images, rows], images)
                y = block_tail(weights, c, self.x[images, rows], attn_out, index)
                out["token"][images, rows] = norm(weights, c, y, "norm")

    def found(self) -> dict[str, np.ndarray]:
        """The features that were asked for, once all threads are through."""
        first, got, xp = self.first, dict(self.out), self.weights.xp
        if "attention" in self.features:
            with blas.one_blas_thread():
                row = self.weights.kernels.attention_row(
                    got["query"][:, :1], got["key"], self.config.heads
                )  # (B, H, T)
            got["attention"] = row[:, :, first:]
        if "cls_state" in self.features:
            got["cls_state"] = xp.stack(
                [part[:, 0] for part in (self.x, got["query"], got["key"], got["value"])], axis=1
            )
        if self.rows:
            got |= {"cls": got["token"][:, 0], "register": got["token"][:, 1:first]}
        got |= {facet: got[facet][:, first:] for facet in FACETS if facet in got}
        return {name: xp.ascontiguousarray(got[name], self.images.dtype) for name in self.features}

    def blocks(self, worker: team.Worker) -> Iterator[tuple[slice, slice]]:
        """A thread's blocks of tokens: images and rows, a slice each."""
        batch, tokens, _ = self.x.shape
        longest = self.weights.kernels.BLOCK
        if self.weights.device == "cuda":
            yield slice(0, batch), slice(0, tokens)
            return
        if longest is None:
            for image in range(*worker.share(batch)):
                yield slice(image, image + 1), slice(0, tokens)
            return
        start, stop = worker.share(batch * tokens, 8)
        while start < stop:
            image, row = divmod(start, tokens)
            left = min(stop - start, tokens - row)
            # Of about equal lengths, in multiples of 8: 200 rows are 104 and 96.
            rows = min(left, -(-left // -(-left // longest) // 8) * 8)
            yield slice(image, image + 1), slice(row, row + rows)
            start += rows

    def embed(self, images: slice, rows: slice) -> None:
        """Tokens of a block as they enter the network: CLS and registers, and patches with their positions."""
        w, first = self.weights, self.first
        if rows.start < first:
            self.x[images, rows.start : min(first, rows.stop)] = self.prefix_tokens[rows.start : rows.stop]
        start, stop = max(rows.start, first) - first, rows.stop - first
        if start < stop:
            weight, bias = w["patch_embed.proj.weight"], w["patch_embed.proj.bias"]
            patches = w.kernels.patch_embedding(
                self.images[images], weight, bias, self.stride, patch=self.config.patch, start=start, stop=stop
            )
            w.xp.add(patches, self.positions[start:stop], out=self.x[images, first + start : first + stop])


def prefix_and_pos_embed(
    weights: PackedWeights, config: ViTConfig, grid: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """The leading tokens (1 + R, D), CLS with its position and registers without; the positions of the patches (N, D).

    Those of the last grid are kept: the images of a collection are often of one size.
    """
    kept = weights.places
    if kept is not None and kept[0] == grid:
        return kept[1]
    table = weights.original("pos_embed")[0]  # (1 + N0, D), or (N0, D) where CLS has no position
    first = len(table) - config.grid[0] * config.grid[1]
    with blas.one_blas_thread():
        positions = resample_positions(table[first:].reshape(*config.grid, config.width), grid, config.pos_embed)
    prefix_tokens = weights.original("cls_token")[0] + table[:first].sum(axis=0)  # (1, D)
    if config.registers:
        prefix_tokens = np.concatenate([prefix_tokens, weights.original("register_tokens")[0]])  # (1 + R, D)
    found = prefix_tokens, positions.reshape(-1, config.width)
    if weights.device != "cpu":
        found = tuple(kernels.to_device(part.astype(weights.dtype), weights.device) for part in found)
    weights.places = grid, found
    return found


def project(weights: PackedWeights, y: np.ndarray, index: int, part: str, out: np.ndarray | None = None) -> np.ndarray:
    """Query, key or value (b, n, D) of normed tokens: a third of the fused projection."""
    name = f"blocks.{index}.attn.qkv"
    return weights.kernels.linear(y, weights[f"{name}.weight:{part}"], weights.get(f"{name}.bias:{part}"), out=out)


def block_tail(
    weights: PackedWeights,
    config: ViTConfig,
    x: np.ndarray,
    attn_out: np.ndarray,
    index: int,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """What a block does once its tokens (b, n, D) have gathered from all others: projection and MLP, each on a residual branch."""
    k, name = weights.kernels, f"blocks.{index}"

    def layer(y: np.ndarray, which: str, **further: Any) -> np.ndarray:
        return k.linear(y, weights[f"{name}.{which}.weight"], weights.get(f"{name}.{which}.bias"), **further)

    x = layer(attn_out, "attn.proj", scale=weights.get(f"{name}.ls1.gamma"), residual=x, out=out)
    y = norm(weights, config, x, f"{name}.norm2")
    if config.swiglu:
        y, last = k.swiglu(layer(y, "mlp.w12")), "mlp.w3"  # (b, n, 2 E) -> (b, n, E)
    else:
        hidden = weights.temporary("hidden", *y.shape[:-1], len(weights[f"{name}.mlp.fc1.bias"]))
        y, last = layer(y, "mlp.fc1", activation="gelu", out=hidden), "mlp.fc2"  # (b, n, 4 D)
    return layer(y, last, scale=weights.get(f"{name}.ls2.gamma"), residual=x, out=out)


def norm(weights: PackedWeights, config: ViTConfig, x: np.ndarray, name: str) -> np.ndarray:
    """LayerNorm of the last axis, in memory that the next one takes again."""
    out = weights.temporary("normed", *x.shape)
    return weights.kernels.layernorm(x, weights[f"{name}.weight"], weights[f"{name}.bias"], config.eps, out)
