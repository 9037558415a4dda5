"""Tables of addresses from which the kernel of :mod:`vitnp.kernels.cpu.blocks` takes weights, features and memory.

Every number is an int64: an address, a length, or 0 for an array that there is none of. Whoever fills a table keeps its
arrays alive.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from vitnp.kernels.cpu.attention import KVCache
from vitnp.kernels.cpu.linear import PackedInt8, PackedLinear


def _integers(*names: str) -> np.dtype:
    return np.dtype([(name, np.int64) for name in names])


NORM = _integers("weight", "bias")

# A linear layer: the arrays of PackedLinear or PackedInt8, where panels are (n_panels, depth, PANEL), and LayerScale.
LINEAR = _integers(
    "panels", "n_panels", "depth", "totals", "scales", "bias", "gamma", "gelu", "n_inputs", "n_outputs"
)  # fmt: skip

# A block. A gated MLP has two inputs of SwiGLU side by side as outputs of fc1.
BLOCK = np.dtype(
    [("norm1", NORM), *((name, LINEAR) for name in ("query", "key", "value", "proj")), ("norm2", NORM),
     ("fc1", LINEAR), ("fc2", LINEAR)]
)  # fmt: skip

# A KVCache: keys (n_images, heads, panels, depth, PANEL), values (n_images, heads, length, padded).
KV = _integers("keys", "values", "panels", "depth", "length", "padded", "pairs")

# What is computed of the last block: the first n_query_rows and n_output_rows tokens of each image.
LAST = _integers("index", "query", "key", "value", "token", "n_query_rows", "n_output_rows")

# A forward pass: addresses of tables of FUNCTIONS, blocks and n_kv caches; x and queries (n_images, n_tokens, width);
# rotation (n_tokens, width / heads). The final norm of the first n_prefix tokens is prefix_norm. Step i counts its
# claimed rows at cursors + CACHE_LINE i.
PASS = np.dtype(
    [(name, np.int64) for name in
     ("functions", "blocks", "kv", "n_kv", "x", "queries", "rotation", "cursors",
      "n_images", "n_tokens", "width", "heads", "n_prefix", "int8", "pairs", "swiglu")]
    + [("eps", np.float64), ("last", LAST), ("norm", NORM), ("prefix_norm", NORM)]
)  # fmt: skip
CACHE_LINE = 64  # bytes

# Compiled kernels.
FUNCTIONS = _integers(
    "layernorm",
    "layernorm_int8",
    "quantize",
    "linear",
    "linear_bf16",
    "linear_int8",
    "swiglu",
    "write",
    "write_pairs",
    "attend",
    "attend_bf16",
)

# One thread: its PASS, its team, memory for the rows of a claim, and workspaces of the kernels.
THREAD = _integers(
    "at_pass", "barrier", "n_workers",
    "normed", "key", "value", "attn_out", "hidden", "gated", "bytes", "row_scales", "zeros",
    "sums", "pairs", "rotated", "pairs_of_keys", "group", "scores", "attention_sums", "softmax",
)  # fmt: skip


def table(dtype: np.dtype, **values: Any) -> np.ndarray:
    """Return a table of one row; fields without a value are 0."""
    result = np.zeros(1, dtype)
    for name, value in values.items():
        result[name] = value
    return result


def offset(name: str) -> int:
    """Return the bytes from the address of a block to that of one of its parts."""
    fields = BLOCK.fields
    assert fields is not None
    return fields[name][1]


def address(array: np.ndarray | None) -> int:
    """Return the address of a contiguous array, or 0 for None."""
    if array is None:
        return 0
    if not array.flags.c_contiguous:
        raise ValueError("arrays in tables must be contiguous")
    return array.ctypes.data


def norm_entry(weight: np.ndarray, bias: np.ndarray) -> tuple[int, int]:
    """Return the entry of a LayerNorm."""
    return address(weight), address(bias)


def linear_entry(
    packed: PackedLinear | PackedInt8, bias: np.ndarray | None, gamma: np.ndarray | None, gelu: bool
) -> tuple[int, ...]:
    """Return the entry of a linear layer: LayerScale multiplies its outputs by gamma, or GELU follows it."""
    totals, scales = (packed.totals, packed.scales) if isinstance(packed, PackedInt8) else (None, None)
    addresses = (address(array) for array in (totals, scales, bias, gamma))
    return address(packed.panels), *packed.panels.shape[:2], *addresses, int(gelu), packed.inputs, packed.outputs


def kv_entry(cache: KVCache) -> tuple[int, ...]:
    """Return the entry of a cache of keys and values."""
    keys, values = cache.keys, cache.values
    return address(keys), address(values), *keys.shape[2:4], *values.shape[2:4], int(cache.pairs)
