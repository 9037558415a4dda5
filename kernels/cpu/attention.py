"""Attention of groups of queries to chunks of keys, without storing the whole matrix of scores.

For each group of GROUP queries and each chunk of up to 960 keys, a micro-kernel computes the scores and their powers
2^(score - shift), see :mod:`vitnp.kernels.cpu.codegen.softmax`; another multiplies these weights with the values. The
weights of a group (184 KB, in bfloat16 half of that) stay in the L2 cache, and a panel of keys (12 KB with AVX-512) in
the L1 cache.

The quotient of two sums of weights does not depend on the shift, which keeps them in the range of float32. For scores
up to about 100 no shift is necessary: rows are computed without one first, and if sums overflow or nearly vanish,
again with the row's maximum as the shift. The maximum is rounded to an integer, which changes exponents alone.

Keys are stored transposed, in panels of PANEL columns, and values per head, so that both are read contiguously, see
:mod:`vitnp.kernels.cpu.pack_kv`. Rotary position embeddings are applied where keys and queries are copied anyway: to
keys on the way into the cache, to queries on the way into their group.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike
from vitnp.kernels import reference
from vitnp.kernels.cpu.codegen import types
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
from vitnp.kernels.cpu.codegen.reductions import row_maximum, row_sum, row_times_zero
from vitnp.kernels.cpu.codegen.simd import HAS_BF16, LANES, LOG2_E
from vitnp.kernels.cpu.codegen.softmax import weights_tile
from vitnp.kernels.cpu.codegen.workspace import workspace
from vitnp.kernels.cpu.pack_kv import write, write_pairs
from vitnp.kernels.cpu.rotation import rotate_rows

# Tiles of the second product are as wide as a head of 64, or with narrower vectors a quarter or an eighth of it.
VALUE_ROWS, VALUE_VECTORS = (6, 4) if LANES == 16 else (4, 2)
VALUE_PANEL = VALUE_VECTORS * LANES
GROUP = 48  # a multiple of the rows of both tiles
CHUNK_PANELS = 960 // PANEL  # panels of a chunk of keys, at most
CHUNK = CHUNK_PANELS * PANEL
CACHE_LINE = 64  # bytes
MASKED = np.float32(-1e30)
# Sums of weights between these are neither near overflow, times values of any usual size, nor lack small weights.
LEAST_SUM, LARGEST_SUM = np.float32(2.0**-60), np.float32(2.0**100)
_NONE = np.empty((0, 0), np.float32)  # without rotary position embeddings

_scores_tile = product_tile(TILE_ROWS, TILE_VECTORS)
_weights_tile = weights_tile(TILE_ROWS, TILE_VECTORS)
_values_tile = product_tile(VALUE_ROWS, VALUE_VECTORS, cache=2)
_scores_tile_of_pairs = product_tile(TILE_ROWS, TILE_VECTORS, packed=2)
_weights_tile_of_pairs = weights_tile(TILE_ROWS, TILE_VECTORS, packed=2)
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
        weights = workspace("attention weights", GROUP + TILE_ROWS, CHUNK)
        sums = workspace("attention sums", GROUP + VALUE_ROWS, self.values.shape[-1])
        queries = workspace("queries", GROUP, -(-self.size // (2 * LANES)) * 2 * LANES)
        state = workspace("softmax state", 3 + GROUP + TILE_ROWS, max(PANEL, GROUP + TILE_ROWS))
        for image, (q, o) in enumerate(zip(query, out), images.start):
            keys, values = self.keys[image], self.values[image]
            if self.pairs:
                _attend_bf16(q, keys, values, o, rotation, self.tokens, True, queries, weights, sums, state)
            else:
                _attend(q, keys, values, o, rotation, self.tokens, None, queries, weights, sums, state)
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


@kernel
def _scale_queries(query, rotation, row, count, column, size, scale, pairs, queries):
    """Copy the queries of a group and a head, rotated and times `scale`; in bfloat16 if `pairs` is True, not None."""
    step = queries.shape[1]
    evenly = size // LANES * LANES
    if len(rotation):
        rotate_rows(
            query[row, column:].ctypes.data, query.strides[0] // 4, rotation[row].ctypes.data, rotation.strides[0] // 4,
            queries.ctypes.data, step, count, size // 2, scale,
        )  # fmt: skip
    for i in range(count):
        if len(rotation) == 0:
            row_times(query[row + i, column:].ctypes.data, queries[i].ctypes.data, evenly, scale)
            for d in range(evenly, size):
                queries[i, d] = query[row + i, column + d] * scale
        if pairs is not None:
            queries[i, size:] = np.float32(0)
            row_to_pairs(queries[i].ctypes.data, queries[i].ctypes.data, step)


@kernel
def _shift_by_maxima(queries, count, keys, tokens, pairs, scores, shift):
    """Replace shifts that are not zero by the largest score of the row, rounded up to an integer."""
    panels, depth = keys.shape[:2]
    step = queries.shape[1]
    for i in range(0, count, TILE_ROWS):
        rows = min(TILE_ROWS, count - i)
        for j in range(rows):
            if shift[i + j] != 0:
                shift[i + j] = MASKED
        for panel in range(panels):
            a, b, c = queries[i].ctypes.data, keys[panel].ctypes.data, scores.ctypes.data
            if pairs is not None:
                _scores_tile_of_pairs(a, rows, step, b, PANEL, c, CHUNK, depth, 0, b, CACHE_LINE)
            else:
                _scores_tile(a, rows, step, b, PANEL, c, CHUNK, depth, 0, b, CACHE_LINE)
            length = min(PANEL, tokens - panel * PANEL)
            for j in range(rows):
                scores[j, length:PANEL] = MASKED
                if shift[i + j] != 0:
                    shift[i + j] = row_maximum(scores[j].ctypes.data, PANEL, shift[i + j])
        for j in range(rows):
            shift[i + j] = np.ceil(shift[i + j])


@kernel
def _weigh(queries, count, keys, values, tokens, pairs, weights, sums, state):
    """Compute the weights of a group of queries and a head, and sums of weighted values; see :func:`_attend_rows`."""
    panels, depth = keys.shape[:2]
    padded, step = values.shape[1], queries.shape[1]
    packed = 1 if pairs is None else 2
    # Chunks of about equal length: 501 keys make two chunks of 288 and 213, not 480 and 21.
    chunk = -(-panels // -(-panels // CHUNK_PANELS)) * PANEL
    totals = state[3].ctypes.data
    state[3:] = np.float32(0)
    for start in range(0, tokens, chunk):
        length = min(chunk, tokens - start)
        for panel in range(start // PANEL, -(-(start + length) // PANEL)):
            b, bias = keys[panel].ctypes.data, state[2 if panel == panels - 1 else 1].ctypes.data
            ahead = b + 4 * depth * PANEL  # the next panel
            for i in range(0, count, TILE_ROWS):
                a, c = queries[i].ctypes.data, weights[i, (panel * PANEL - start) // packed :].ctypes.data
                rows, shift, total = count - i, state[0, i:].ctypes.data, totals + 4 * LANES * i
                if pairs is not None:
                    _weights_tile_of_pairs(
                        a, rows, step, b, PANEL, c, CHUNK, depth, bias, shift, total, ahead, CACHE_LINE
                    )
                else:
                    _weights_tile(a, rows, step, b, PANEL, c, CHUNK, depth, bias, shift, total, ahead, CACHE_LINE)
                ahead += CACHE_LINE * depth
        inner = -(-length // packed)
        for first in range(0, padded, VALUE_PANEL):
            b = values[start // packed, first:].ctypes.data
            ahead = b + 4 * inner * padded  # the next chunk
            for i in range(0, count, VALUE_ROWS):
                a, c = weights[i].ctypes.data, sums[i, first:].ctypes.data
                if pairs is not None:
                    _values_tile_of_pairs(a, count - i, CHUNK, b, padded, c, padded, inner, start, ahead, CACHE_LINE)
                else:
                    _values_tile(a, count - i, CHUNK, b, padded, c, padded, inner, start, ahead, CACHE_LINE)
                ahead += CACHE_LINE * inner


def _attend_rows(query, keys, values, out, rotation, tokens, pairs, queries, weights, sums, state):
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
    pairs : None or True
        True if keys and values are pairs of bfloat16 numbers.
    queries : (GROUP, D/H or more) float32, OUT
        Workspace for scaled queries.
    weights : (GROUP + TILE_ROWS, CHUNK) float32, OUT
        Workspace for the weights of values.
    sums : (GROUP + VALUE_ROWS, padded D/H) float32, OUT
        Workspace for sums of weighted values.
    state : (3 + GROUP + TILE_ROWS, max(PANEL, GROUP + TILE_ROWS)) float32, OUT
        Workspace: shifts of the scores of each row; what is added to the scores of a panel, and of the last panel; sums
        of the weights of each row, LANES of them.
    """
    enter_kernel()
    heads, panels = keys.shape[:2]
    size, padded = query.shape[1] // heads, values.shape[2]
    # exp(x) is computed as 2^(x log2(e)); scaling the queries is cheaper than scaling the scores.
    scale = np.float32(LOG2_E / np.sqrt(size))
    evenly = size // LANES * LANES
    state[1:3] = np.float32(0)
    state[2, tokens - (panels - 1) * PANEL : PANEL] = MASKED
    totals = state[3].ctypes.data
    for head in range(heads):
        column = head * size
        for row in range(0, len(query), GROUP):
            count = min(GROUP, len(query) - row)
            _scale_queries(query, rotation, row, count, column, size, scale, pairs, queries)
            state[0] = np.float32(0)
            for attempt in range(2):
                _weigh(queries, count, keys[head], values[head], tokens, pairs, weights, sums, state)
                failures = 0
                for i in range(count):
                    weight = row_sum(totals + 4 * LANES * i, LANES, np.float32(0))
                    share = np.float32(1) / weight
                    row_times(sums[i].ctypes.data, out[row + i, column:].ctypes.data, evenly, share)
                    for d in range(evenly, size):
                        out[row + i, column + d] = sums[i, d] * share
                    finite = row_times_zero(sums[i].ctypes.data, padded, np.float32(0)) == 0
                    usual = finite and LEAST_SUM <= weight <= LARGEST_SUM
                    state[0, i] = np.float32(0) if usual else np.float32(1)
                    failures += not usual
                if failures == 0 or attempt == 1:
                    break
                # The other rows are computed again with the same result.
                _shift_by_maxima(queries, count, keys[head], tokens, pairs, weights, state[0])
    leave_kernel()


_ARGUMENTS, _WORKSPACES = (IN(2), IN(4), IN(3), OUT(2), IN(2), types.int64), [OUT(2, layout="C")] * 4
_attend, _attend_bf16 = (
    kernel(*_ARGUMENTS, pairs, *_WORKSPACES)(_attend_rows) for pairs in (types.none, types.boolean)
)
