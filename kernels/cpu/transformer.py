"""Forward passes through the blocks of a transformer on the CPU, see :mod:`vitnp.kernels.cpu.blocks`."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
from vitnp.kernels.cpu import block_tables
from vitnp.kernels.cpu.attention import CHUNK, GROUP, VALUE_ROWS, KVCache
from vitnp.kernels.cpu.block_tables import address, linear_entry, norm_entry, table
from vitnp.kernels.cpu.blocks import KERNELS, LONGEST, STATE_COLUMNS, STATE_ROWS, run_blocks
from vitnp.kernels.cpu.codegen.microkernels import PANEL, TILE_ROWS
from vitnp.kernels.cpu.codegen.simd import LANES
from vitnp.kernels.cpu.codegen.workspace import temporary, workspace
from vitnp.kernels.cpu.int8 import QUAD
from vitnp.kernels.cpu.linear import ROWS, PackedInt8, PackedLinear
from vitnp.kernels.threads.team import Worker

# From this many tokens per batch on, use one K/V buffer instead of two: waiting is cheaper than the memory.
SINGLE_KV_BUFFER_TOKENS = 2048

# Rows times the square of the width that one call takes through blocks, about a tenth of a second on two cores. Python
# notices Ctrl-C between calls.
MAX_WORK = 1_000_000_000

Norm = tuple[np.ndarray, np.ndarray]


class BlockWeights:
    """Packed weights of the blocks of a network, as a table of their addresses.

    Parameters
    ----------
    depth, width, heads : int
    eps : float
        Of LayerNorm.
    precision : {"fp32", "bf16", "int8"}
        That of the packed weights.
    swiglu : bool
        Whether the MLP is gated.
    """

    def __init__(self, depth: int, width: int, heads: int, eps: float, precision: str, *, swiglu: bool = False):
        self.width, self.heads, self.eps, self.precision, self.swiglu = width, heads, eps, precision, swiglu
        self.table = np.zeros(depth, block_tables.BLOCK)
        self._arrays: list[Any] = []  # those whose addresses are in the table

    def set_norm(self, index: int, name: str, weight: np.ndarray, bias: np.ndarray) -> None:
        """Set a LayerNorm of a block, "norm1" or "norm2"."""
        self._arrays.append((weight, bias))
        self.table[index][name] = norm_entry(weight, bias)

    def set_linear(
        self,
        index: int,
        name: str,
        packed: PackedLinear | PackedInt8,
        bias: np.ndarray | None,
        gamma: np.ndarray | None,
    ) -> None:
        """Set a linear layer of a block with its LayerScale: "query", "key", "value", "proj", "fc1" or "fc2"."""
        self._arrays.append((packed, bias, gamma))
        self.table[index][name] = linear_entry(packed, bias, gamma, gelu=name == "fc1" and not self.swiglu)


class BlocksPass:
    """A forward pass through blocks, which the threads of a team do together.

    Parameters
    ----------
    weights : BlockWeights
    x : (B, T, D) float32
        Tokens as they enter the first block; afterwards as they enter the last one.
    last : int
        Last block, from 0.
    out : dict of str to (B, T, D) float32
        Memory for those of "query", "key" and "value" of the last block that are needed, and (B, M, D) for "token", the
        first M tokens of each image after the final norm, which needs the others.
    n_query_rows : int
        Tokens of each image, from the first on, whose query is needed; at least M.
    norm, prefix_norm : (weight, bias)
        Final norm of the patches, and of the first `n_prefix` tokens.
    rotation : (T, d) float32, optional
        Rotary position embeddings.
    """

    def __init__(
        self,
        weights: BlockWeights,
        x: np.ndarray,
        last: int,
        out: Mapping[str, np.ndarray],
        *,
        n_query_rows: int,
        norm: Norm | None = None,
        prefix_norm: Norm | None = None,
        n_prefix: int = 0,
        rotation: np.ndarray | None = None,
    ):
        n_images, n_tokens, width = x.shape
        self.weights, self.n_rows = weights, n_images * n_tokens
        n_output_rows = out["token"].shape[1] if "token" in out else 0
        n_kv = 2 if self.n_rows < SINGLE_KV_BUFFER_TOKENS else 1
        self.kv = [
            KVCache(n_images, n_tokens, width, weights.heads, slot=slot, precision=weights.precision, rotation=rotation)
            for slot in range(n_kv)
        ]
        self.n_steps = (last if n_kv == 2 else 2 * last) + 1 + (n_output_rows > 0)
        self.steps_per_call = max(1, MAX_WORK // max(1, self.n_rows * width**2))
        queries, cursors = temporary("queries", *x.shape), np.zeros(self.n_steps * block_tables.CACHE_LINE, np.uint8)
        caches = np.array([block_tables.kv_entry(cache) for cache in self.kv], block_tables.KV)
        functions = table(
            block_tables.FUNCTIONS, **{name: KERNELS[name].address for name in _needed_kernels(weights, self.kv[0])}
        )
        # Tables contain addresses of all these.
        self._arrays = weights, x, out, norm, prefix_norm, rotation, queries, cursors, caches, functions
        facets = [address(out.get(name)) for name in ("query", "key", "value", "token")]
        self.table = table(
            block_tables.PASS,
            functions=address(functions), blocks=address(weights.table), kv=address(caches), n_kv=n_kv,
            x=address(x), queries=address(queries), rotation=address(rotation), cursors=address(cursors),
            n_images=n_images, n_tokens=n_tokens, width=width, heads=weights.heads, n_prefix=n_prefix,
            int8=weights.precision == "int8", pairs=weights.precision == "bf16", swiglu=weights.swiglu,
            eps=weights.eps, last=(last, *facets, n_query_rows, n_output_rows),
            norm=norm_entry(*norm) if norm else (0, 0), prefix_norm=norm_entry(*prefix_norm) if prefix_norm else (0, 0),
        )  # fmt: skip

    def run(self, worker: Worker) -> None:
        """Do one thread's part of the pass, after all threads have written their tokens.

        Raises
        ------
        threading.BrokenBarrierError
            If another thread has failed.
        """
        arrays = self._memory()
        thread = table(
            block_tables.THREAD,
            at_pass=address(self.table), barrier=worker.barrier_address, n_workers=worker.size,
            **{name: address(array) for name, array in arrays.items()},
        )  # fmt: skip
        for first in range(0, self.n_steps, self.steps_per_call):
            if not run_blocks(address(thread), first, min(self.n_steps, first + self.steps_per_call)):
                raise threading.BrokenBarrierError

    def _memory(self) -> dict[str, np.ndarray]:
        """Return this thread's memory by the names in its table."""
        weights, kv = self.weights, self.kv[0]
        n, width, size = min(LONGEST, -(-self.n_rows // 8) * 8), weights.width, kv.size
        fc1, fc2 = weights.table["fc1"]["n_outputs"].max(), weights.table["fc2"]["n_inputs"].max()
        longest = max(width, int(fc2))
        n_int8, n_pairs = (n if weights.precision == "int8" else 0), (ROWS if weights.precision == "bf16" else 0)
        return {name: temporary(name, n, width) for name in ("normed", "key", "value", "attn_out")} | {
            "hidden": temporary("hidden", n, int(fc1)),
            "gated": temporary("gated", n if weights.swiglu else 0, int(fc2)),
            "bytes": workspace("rows bytes", n_int8, -(-longest // (QUAD * LANES)) * QUAD * LANES, dtype=np.uint8),
            "row_scales": workspace("rows scales", n_int8),
            "zeros": workspace("rows zeros", n_int8, dtype=np.int32),
            "sums": workspace("linear sums", ROWS + TILE_ROWS, PANEL),
            "pairs": workspace("linear pairs", n_pairs, -(-longest // (2 * LANES)) * LANES),
            "rotated": workspace("rotated keys", LANES, size),
            "pairs_of_keys": workspace("keys in pairs", LANES, size // (2 * LANES) * LANES),
            "group": workspace("queries", GROUP, -(-size // (2 * LANES)) * 2 * LANES),
            "scores": workspace("scores", GROUP + TILE_ROWS, CHUNK),
            "attention_sums": workspace("attention sums", GROUP + VALUE_ROWS, kv.values.shape[-1]),
            "softmax": workspace("softmax state", STATE_ROWS, STATE_COLUMNS),
        }


def _needed_kernels(weights: BlockWeights, kv: KVCache) -> list[str]:
    """Return the names of the kernels that passes call; the others need not be compiled."""
    needed = ["layernorm", *(["attend_bf16", "write_pairs"] if kv.pairs else ["attend", "write"])]
    needed += {
        "fp32": ["linear"],
        "bf16": ["linear_bf16"],
        "int8": ["layernorm_int8", "quantize", "linear_int8"],
    }[weights.precision]
    return needed + ["swiglu"] * weights.swiglu
