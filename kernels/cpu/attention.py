"""Attention by online softmax: groups of queries against chunks of keys, without storing the whole matrix of scores.

For each group of GROUP queries and each chunk of up to 480 keys, the micro-kernel of matrix products computes the
scores. Then follow their row maxima, 2^(score - maximum), row sums, and the products with the values, by the
micro-kernel again. If a later chunk contains a larger maximum, the sums so far are scaled down (Milakov and Gimelshein
2018; Dao et al. 2022, algorithm 1). The scores of a group (46 KB) stay in the L2 cache, and a panel of keys (12 KB with
AVX-512) in the L1 cache.

Keys are stored transposed, in panels of PANEL columns, and values per head, so that both are read contiguously, see
:mod:`vitnp.kernels.cpu.pack_kv`. Rotary position embeddings are applied where keys and queries are copied anyway: to
keys on the way into the cache, to queries on the way into their group.
"""

from __future__ import annotations

import numpy as np
from vitnp.kernels.cpu.codegen import types
from numpy.typing import DTypeLike
from vitnp.kernels import reference
from vitnp.kernels.cpu.codegen.gil import enter_kernel, leave_kernel
from vitnp.kernels.cpu.codegen.jit import IN, OUT, kernel
from vitnp.kernels.cpu.codegen.microkernels import (
    PANEL,
    TILE_ROWS,
    TILE_VECTORS,
    product_tile,
    row_times,
    row_to_pairs,
)
from vitnp.kernels.cpu.codegen.reductions import row_exponentials, row_exponentials_in_bfloat, row_maximum
from vitnp.kernels.cpu.codegen.simd import HAS_BF16, LANES, LOG2_E
from vitnp.kernels.cpu.codegen.workspace import workspace
from vitnp.kernels.cpu.pack_kv import write, write_pairs
from vitnp.kernels.cpu.rotation import rotate_rows

# Tiles of the second product are as wide as a head of 64, or with narrower vectors a quarter or an eighth of it.
VALUE_ROWS, VALUE_VECTORS = (6, 4) if LANES == 16 else (4, 2)
VALUE_PANEL = VALUE_VECTORS * LANES
GROUP = 24  # a multiple of the rows of both tiles
CHUNK_PANELS = 480 // PANEL  # panels of a chunk of keys, at most
CHUNK = CHUNK_PANELS * PANEL
CACHE_LINE = 64  # bytes
MASKED = np.float32(-1e30)
MAX_BASE = np.float32(2**20)  # the largest base of row_exponentials
_NONE = np.empty((0, 0), np.float32)  # without rotary position embeddings

_scores_tile = product_tile(TILE_ROWS, TILE_VECTORS)
_values_tile = product_tile(VALUE_ROWS, VALUE_VECTORS, cache=2)
_scores_tile_of_pairs = product_tile(TILE_ROWS, TILE_VECTORS, packed=2)
_values_tile_of_pairs = product_tile(VALUE_ROWS, VALUE_VECTORS, packed=2, cache=2)


class KVCache:
    # Documented in the reference.

    def __init__(
        self,
        images: int,
        tokens: int,
        width: int,
        heads: int,
        dtype: DTypeLike = np.float32,
        *,
        slot: int = 0,
        precision: str = "fp32",
        rotation: np.ndarray | None = None,
    ):
        self.rotation = _NONE if rotation is None else np.ascontiguousarray(rotation, np.float32)
        self.heads, self.size, self.tokens = heads, width // heads, tokens
        self.pairs = precision == "bf16" or (precision == "int8" and HAS_BF16)
        panels, padded = -(-tokens // PANEL), -(-self.size // VALUE_PANEL) * VALUE_PANEL
        # With bfloat16, each float32 element holds two numbers: consecutive features in keys, consecutive tokens in
        # values.
        depth, length = (-(-self.size // 2), -(-tokens // 2)) if self.pairs else (self.size, tokens)
        self.keys = workspace(f"keys {slot}", images, heads, panels, depth, PANEL)
        self.values = workspace(f"values {slot}", images, heads, length, padded)
        # The padding behind the last token, and behind the last feature of a head, is multiplied too: it must not be
        # NaN.
        self.keys[:, :, -1] = 0
        self.values[:, :, -1] = 0
        self.values[..., self.size :] = 0
        if self.pairs and self.size % 2:
            self.keys[..., -1, :] = 0

    def write(self, images: slice, start: int, key: np.ndarray, value: np.ndarray) -> None:
        rotation = self.rotation[start : start + key.shape[1]]
        rotated = workspace("rotated keys", LANES if len(rotation) else 0, self.size)
        for image, (k, v) in enumerate(zip(key, value), images.start):
            keys, values = self.keys[image], self.values[image]
            if self.pairs:
                keys, values = keys.view(np.uint16), values.view(np.uint16)
                block = workspace("keys in pairs", LANES, self.size // (2 * LANES) * LANES)
                write_pairs(k, v, keys, values, rotation, rotated, block, self.size, start)
            else:
                write(k, v, keys, values, rotation, rotated, start)

    def attend(self, query: np.ndarray, images: slice, out: np.ndarray | None = None, *, start: int = 0) -> np.ndarray:
        rotation = self.rotation[start : start + query.shape[1]]
        out = np.empty(query.shape, np.float32) if out is None else out
        scores = workspace("scores", GROUP + TILE_ROWS, CHUNK)
        sums = workspace("attention sums", GROUP + VALUE_ROWS, self.values.shape[-1])
        queries = workspace("queries", GROUP, -(-self.size // (2 * LANES)) * 2 * LANES)
        state = workspace("softmax state", 2, GROUP)
        for image, (q, o) in enumerate(zip(query, out), images.start):
            keys, values = self.keys[image], self.values[image]
            _attend(q, keys, values, o, rotation, self.tokens, self.pairs, queries, scores, sums, state)
        return out


def attention(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, heads: int, rotation: np.ndarray | None = None
) -> np.ndarray:
    if query.dtype != np.float32:
        return reference.attention(query, key, value, heads, rotation)
    images, tokens, width = key.shape
    all_images = slice(0, images)
    cache = KVCache(images, tokens, width, heads, slot=2, rotation=rotation)
    cache.write(all_images, 0, key, value)
    return cache.attend(query, all_images)


@kernel(
    IN(2), IN(4), IN(3), OUT(2), IN(2), types.int64, types.boolean,
    *[OUT(2, layout="C")] * 4,
)  # fmt: skip
def _attend(query, keys, values, out, rotation, tokens, pairs, queries, scores, sums, state):
    """Compute the attention of all queries and heads of one image.

    Parameters
    ----------
    query : (M, D) float32, IN
        Rows are contiguous, as in `out`.
    keys : (H, panels, D/H, PANEL) float32, IN
    values : (H, N, padded D/H) float32, IN
    out : (M, D) float32, OUT
    rotation : (M, D/H) or (0, 0) float32, IN
        Rotations of the queries, or none.
    tokens : int
        N.
    pairs : bool
        True if keys and values are pairs of bfloat16 numbers.
    queries : (GROUP, D/H or more) float32, OUT
        Workspace for scaled queries.
    scores : (GROUP + TILE_ROWS, CHUNK) float32, OUT
        Workspace for scores.
    sums : (GROUP + VALUE_ROWS, padded D/H) float32, OUT
        Workspace for sums of weighted values.
    state : (2, GROUP) float32, OUT
        Workspace for the maximum of the scores and the sum of the weights of each row so far.
    """
    enter_kernel()
    heads, panels, depth = keys.shape[:3]
    padded, size = values.shape[2], query.shape[1] // heads
    # exp(x) is computed as 2^(x log2(e)); scaling the queries is cheaper than scaling the scores.
    scale = np.float32(LOG2_E / np.sqrt(size))
    # Chunks of about equal length: 501 keys make two chunks of 288 and 213, not 480 and 21.
    chunk = -(-panels // -(-panels // CHUNK_PANELS)) * PANEL
    largest, weight = state[0], state[1]
    step = queries.shape[1]
    evenly = size // LANES * LANES
    for head in range(heads):
        column = head * size
        for row in range(0, len(query), GROUP):
            count = min(GROUP, len(query) - row)
            if len(rotation):
                rotate_rows(
                    query[row, column:].ctypes.data, query.strides[0] // 4,
                    rotation[row].ctypes.data, rotation.strides[0] // 4,
                    queries.ctypes.data, step, count, size // 2, scale,
                )  # fmt: skip
            for i in range(count):
                if len(rotation) == 0:
                    row_times(query[row + i, column:].ctypes.data, queries[i].ctypes.data, evenly, scale)
                    for d in range(evenly, size):
                        queries[i, d] = query[row + i, column + d] * scale
                if pairs:
                    queries[i, size:] = np.float32(0)
                    row_to_pairs(queries[i].ctypes.data, queries[i].ctypes.data, step)
            for start in range(0, tokens, chunk):
                length = min(chunk, tokens - start)
                whole = -(-length // LANES) * LANES
                for panel in range(start // PANEL, -(-(start + length) // PANEL)):
                    b = keys[head, panel].ctypes.data
                    ahead = b + 4 * depth * PANEL  # the next panel
                    for i in range(0, count, TILE_ROWS):
                        a, c = queries[i].ctypes.data, scores[i, panel * PANEL - start :].ctypes.data
                        if pairs:
                            _scores_tile_of_pairs(a, count - i, step, b, PANEL, c, CHUNK, depth, 0, ahead, CACHE_LINE)
                        else:
                            _scores_tile(a, count - i, step, b, PANEL, c, CHUNK, depth, 0, ahead, CACHE_LINE)
                        ahead += CACHE_LINE * depth
                for i in range(count):
                    for j in range(length, whole):
                        scores[i, j] = MASKED
                    line = scores[i].ctypes.data
                    maximum = row_maximum(line, whole, MASKED if start == 0 else largest[i])
                    if start == 0:
                        # Any number near the maximum will do, and row_exponentials takes an integer.
                        maximum = np.ceil(maximum)
                        largest[i], weight[i] = maximum, np.float32(0)
                    elif maximum > largest[i]:
                        maximum = np.ceil(maximum)
                        shrink = np.exp2(largest[i] - maximum)
                        largest[i] = maximum
                        weight[i] *= shrink
                        row_times(sums[i].ctypes.data, sums[i].ctypes.data, padded, shrink)
                    base = maximum
                    if abs(maximum) > MAX_BASE:
                        for j in range(whole):
                            scores[i, j] -= maximum
                        base = np.float32(0)
                    if pairs:
                        weight[i] += row_exponentials_in_bfloat(line, whole, base)
                    else:
                        weight[i] += row_exponentials(line, whole, base)
                for first in range(0, padded, VALUE_PANEL):
                    rows, at = ((length + 1) // 2, start // 2) if pairs else (length, start)
                    b = values[head, at, first:].ctypes.data
                    ahead = b + 4 * rows * padded  # the next chunk
                    for i in range(0, count, VALUE_ROWS):
                        a, c = scores[i].ctypes.data, sums[i, first:].ctypes.data
                        if pairs:
                            _values_tile_of_pairs(
                                a, count - i, CHUNK, b, padded, c, padded, rows, start, ahead, CACHE_LINE
                            )
                        else:
                            _values_tile(a, count - i, CHUNK, b, padded, c, padded, rows, start, ahead, CACHE_LINE)
                        ahead += CACHE_LINE * rows
            for i in range(count):
                share = np.float32(1) / weight[i]
                row_times(sums[i].ctypes.data, out[row + i, column:].ctypes.data, evenly, share)
                for d in range(evenly, size):
                    out[row + i, column + d] = sums[i, d] * share
    leave_kernel()
