"""Attention by online softmax: rows of queries against stretches of keys, never the whole matrix of scores.

For a group of GROUP queries and a stretch of up to 240 keys: scores by the micro-kernel of all products, their row maxima, 2^(score - maximum)
and row sums, and the weighted values added up by the micro-kernel again. When a later stretch brings a larger maximum, what was
gathered so far is scaled down (Milakov and Gimelshein 2018; Dao et al. 2022, algorithm 1). Scores of a group (23 KB) and a
panel of keys (12 KB with AVX-512) stay in the first cache.

Keys are kept transposed, in panels of PANEL columns, and values a head at a time, so that both are read in one piece.
"""

from __future__ import annotations

import numpy as np
from numba import types
from vitnp.kernels import reference
from vitnp.kernels.cpu.codegen.gil import lay_down, take_up
from vitnp.kernels.cpu.codegen.jit import IN, OUT, kernel
from vitnp.kernels.cpu.codegen.simd import (
    LANES,
    LOG2_E,
    PANEL,
    TILE_ROWS,
    TILE_VECTORS,
    as_bfloat,
    product_tile,
    row_exponentials,
    row_maximum,
    row_times,
    row_to_pairs,
    transpose_tile,
)
from vitnp.kernels.cpu.codegen.workspace import scratch

# Tiles of the second product are as wide as a head of 64, or a fourth or an eighth of it on narrower machines.
VALUE_ROWS, VALUE_VECTORS = (6, 4) if LANES == 16 else (4, 2)
VALUE_PANEL = VALUE_VECTORS * LANES
GROUP = 96  # a multiple of the rows of both tiles
STRETCH_PANELS = 240 // PANEL  # at most
STRETCH = STRETCH_PANELS * PANEL
LINE = 64  # bytes of memory that travel together
MASKED = np.float32(-1e30)
LARGE = np.float32(2**20)  # what row_exponentials can take

_scores_tile = product_tile(TILE_ROWS, TILE_VECTORS)
_values_tile = product_tile(VALUE_ROWS, VALUE_VECTORS, cache=2)
_scores_tile_of_pairs = product_tile(TILE_ROWS, TILE_VECTORS, pairs=True)
_values_tile_of_pairs = product_tile(VALUE_ROWS, VALUE_VECTORS, pairs=True, cache=2)


class KVCache:
    # The docstring is the reference's.

    def __init__(
        self,
        images: int,
        tokens: int,
        width: int,
        heads: int,
        dtype: type = np.float32,
        *,
        slot: int = 0,
        precision: str = "fp32",
    ):
        self.heads, self.size, self.tokens, self.pairs = heads, width // heads, tokens, precision == "bf16"
        panels, padded = -(-tokens // PANEL), -(-self.size // VALUE_PANEL) * VALUE_PANEL
        # Two bfloat16 numbers take the place of one float32: neighbors along the head in keys, along the tokens in values.
        depth, length = (-(-self.size // 2), -(-tokens // 2)) if self.pairs else (self.size, tokens)
        self.keys = scratch(f"keys {slot}", images, heads, panels, depth, PANEL)
        self.values = scratch(f"values {slot}", images, heads, length, padded)
        # What lies beyond the last token, or the last number of a head, is multiplied too. It must be a number.
        self.keys[:, :, -1] = 0
        self.values[:, :, -1] = 0
        self.values[..., self.size :] = 0
        if self.pairs and self.size % 2:
            self.keys[..., -1, :] = 0

    def write(self, images: slice, start: int, key: np.ndarray, value: np.ndarray) -> None:
        for image, (k, v) in enumerate(zip(key, value), images.start):
            keys, values = self.keys[image], self.values[image]
            if self.pairs:
                _put_pairs(k, v, keys.view(np.uint16), values.view(np.uint16), self.size, start)
            else:
                _put(k, v, keys, values, start)

    def attend(self, query: np.ndarray, images: slice, out: np.ndarray | None = None) -> np.ndarray:
        out = np.empty(query.shape, np.float32) if out is None else out
        scores = scratch("scores", GROUP + TILE_ROWS, STRETCH)
        gathered = scratch("gathered", GROUP + VALUE_ROWS, self.values.shape[-1])
        queries = scratch("queries", GROUP, -(-self.size // (2 * LANES)) * 2 * LANES)
        state = scratch("softmax state", 2, GROUP)
        for image, (q, o) in enumerate(zip(query, out), images.start):
            _attend(
                q, self.keys[image], self.values[image], o, self.tokens, self.pairs, queries, scores, gathered, state
            )
        return out


def attention(query: np.ndarray, key: np.ndarray, value: np.ndarray, heads: int) -> np.ndarray:
    if query.dtype != np.float32:
        return reference.attention(query, key, value, heads)
    everything = slice(0, len(key))
    held = KVCache(*key.shape, heads, slot=2)
    held.write(everything, 0, key, value)
    return held.attend(query, everything)


@kernel(IN(2), IN(2), OUT(4, layout="C"), OUT(3, layout="C"), types.int64)
def _put(key, value, keys, values, start):
    """Rows of keys and values to their places.

    Parameters
    ----------
    key, value : (n, D) float32, IN
        Numbers of a row side by side.
    keys : (H, panels, D/H, PANEL) float32, OUT
    values : (H, N, padded D/H) float32, OUT
    start : int
        Place of the first row among the N.
    """
    lay_down()
    heads, size = keys.shape[0], keys.shape[2]
    evenly = size // LANES * LANES
    for head in range(heads):
        column = head * size
        for i in range(len(value)):
            into = values[head, start + i]
            row_times(value[i, column:].ctypes.data, into.ctypes.data, evenly, np.float32(1))
            for d in range(evenly, size):
                into[d] = value[i, column + d]
        i = 0
        while i < len(key):
            panel, place = divmod(start + i, PANEL)
            count = min(PANEL - place, len(key) - i)
            done = 0
            while done + LANES <= count:
                for d in range(0, evenly, LANES):
                    source, target = key[i + done, column + d :], keys[head, panel, d, place + done :]
                    transpose_tile(source.ctypes.data, key.strides[0] // 4, target.ctypes.data, PANEL)
                done += LANES
            for j in range(count):
                for d in range(evenly if j < done else 0, size):
                    keys[head, panel, d, place + j] = key[i + j, column + d]
            i += count
    take_up()


@kernel(IN(2), IN(2), OUT(4, types.uint16), OUT(3, types.uint16), types.int64, types.int64)
def _put_pairs(key, value, keys, values, size, start):
    """As _put, in bfloat16: keys (H, panels, ceil(D/H / 2), 2 PANEL) and values (H, ceil(N / 2), 2 padded D/H) uint16, OUT."""
    lay_down()
    for head in range(keys.shape[0]):
        column = head * size
        for i in range(len(value)):
            half, odd = divmod(start + i, 2)
            for d in range(size):
                values[head, half, 2 * d + odd] = as_bfloat(value[i, column + d])
        for i in range(len(key)):
            panel, place = divmod(start + i, PANEL)
            for d in range(size):
                keys[head, panel, d // 2, 2 * place + d % 2] = as_bfloat(key[i, column + d])
    take_up()


@kernel(
    IN(2), IN(4), IN(3), OUT(2), types.int64, types.boolean,
    *[OUT(2, layout="C")] * 4,
)  # fmt: skip
def _attend(query, keys, values, out, tokens, pairs, queries, scores, gathered, state):
    """Rows of `out` from rows of `query`, all heads of one image.

    Parameters
    ----------
    query : (M, D) float32, IN
        Numbers of a row side by side, as in `out`.
    keys : (H, panels, D/H, PANEL) float32, IN
    values : (H, N, padded D/H) float32, IN
    out : (M, D) float32, OUT
    tokens : int
        N.
    pairs : bool
        Whether keys and values hold pairs of bfloat16 numbers.
    queries : (GROUP, D/H or more), scores : (GROUP + TILE_ROWS, STRETCH), gathered : (GROUP + VALUE_ROWS, padded D/H), state : (2, GROUP) float32, OUT
        Scratch: scaled queries; scores; sums of weighted values; maximum and sum of each row's weights so far.
    """
    lay_down()
    heads, panels, depth = keys.shape[:3]
    padded, size = values.shape[2], query.shape[1] // heads
    # Into the exponent of 2, at the small end of the product.
    scale = np.float32(LOG2_E / np.sqrt(size))
    # Stretches of about equal length: 197 keys are one of 240, not 192 and 5.
    stretch = -(-panels // -(-panels // STRETCH_PANELS)) * PANEL
    largest, weight = state[0], state[1]
    step = queries.shape[1]
    evenly = size // LANES * LANES
    for head in range(heads):
        column = head * size
        for row in range(0, len(query), GROUP):
            count = min(GROUP, len(query) - row)
            for i in range(count):
                largest[i], weight[i] = MASKED, np.float32(0)
                row_times(query[row + i, column:].ctypes.data, queries[i].ctypes.data, evenly, scale)
                for d in range(evenly, size):
                    queries[i, d] = query[row + i, column + d] * scale
                if pairs:
                    queries[i, size:] = np.float32(0)
                    row_to_pairs(queries[i].ctypes.data, queries[i].ctypes.data, step)
            gathered[:count] = np.float32(0)
            for start in range(0, tokens, stretch):
                length = min(stretch, tokens - start)
                whole = -(-length // LANES) * LANES
                for panel in range(start // PANEL, -(-(start + length) // PANEL)):
                    b = keys[head, panel].ctypes.data
                    ahead = b + 4 * depth * PANEL  # the next panel
                    for i in range(0, count, TILE_ROWS):
                        a, into = queries[i].ctypes.data, scores[i, panel * PANEL - start :].ctypes.data
                        if pairs:
                            _scores_tile_of_pairs(a, count - i, step, b, PANEL, into, STRETCH, depth, 0, ahead, LINE)
                        else:
                            _scores_tile(a, count - i, step, b, PANEL, into, STRETCH, depth, 0, ahead, LINE)
                        ahead += LINE * depth
                for i in range(count):
                    for j in range(length, whole):
                        scores[i, j] = MASKED
                    line = scores[i].ctypes.data
                    maximum = row_maximum(line, whole, largest[i])
                    if maximum > largest[i]:
                        # Any number near the maximum will do, and a whole one saves work.
                        maximum = np.ceil(maximum)
                        shrink = np.exp2(largest[i] - maximum)
                        largest[i] = maximum
                        weight[i] *= shrink
                        row_times(gathered[i].ctypes.data, gathered[i].ctypes.data, padded, shrink)
                    base = maximum
                    if abs(maximum) > LARGE:
                        for j in range(whole):
                            scores[i, j] -= maximum
                        base = np.float32(0)
                    weight[i] += row_exponentials(line, whole, base)
                    if pairs:
                        row_to_pairs(line, line, whole)
                for first in range(0, padded, VALUE_PANEL):
                    rows, at = ((length + 1) // 2, start // 2) if pairs else (length, start)
                    b = values[head, at, first:].ctypes.data
                    ahead = b + 4 * rows * padded  # the next stretch
                    for i in range(0, count, VALUE_ROWS):
                        a, into = scores[i].ctypes.data, gathered[i, first:].ctypes.data
                        if pairs:
                            _values_tile_of_pairs(a, count - i, STRETCH, b, padded, into, padded, rows, 1, ahead, LINE)
                        else:
                            _values_tile(a, count - i, STRETCH, b, padded, into, padded, rows, 1, ahead, LINE)
                        ahead += LINE * rows
            for i in range(count):
                share = np.float32(1) / weight[i]
                row_times(gathered[i].ctypes.data, out[row + i, column:].ctypes.data, evenly, share)
                for d in range(evenly, size):
                    out[row + i, column + d] = gathered[i, d] * share
    take_up()
