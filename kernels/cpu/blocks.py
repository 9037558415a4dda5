"""All blocks of a transformer in one kernel call per thread: between two layers nothing returns to Python.

Threads claim rows of tokens, and take them through the second half of one block and the first half of the next, up to
the keys and values, which the rows of all threads need. Then they wait for each other, inside the kernel. A row gets
the same bits in whatever claim it is.

The kernels of the layers are those that are called from Python too. They are called through their addresses, and get
their arrays from tables of addresses (:mod:`vitnp.kernels.cpu.block_tables`), so that a pass begins at once for any
number of blocks.
"""

from __future__ import annotations

from numba import from_dtype, types
from vitnp.kernels.cpu import activations, attention, block_tables, int8, layernorm, linear, pack_kv
from vitnp.kernels.cpu.codegen.barrier import claim_rows, spin_wait
from vitnp.kernels.cpu.codegen.calls import caller, record_at
from vitnp.kernels.cpu.codegen.gil import enter_kernel, leave_kernel
from vitnp.kernels.cpu.codegen.jit import kernel
from vitnp.kernels.cpu.codegen.microkernels import PANEL, TILE_ROWS
from vitnp.kernels.cpu.codegen.simd import LANES

# Bounds of the rows that a thread claims at a time: more don't stay in its caches, fewer use each weight too rarely.
SHORTEST, LONGEST = 64, 256

# Kernels by their names in the table of addresses.
KERNELS = {
    "layernorm": layernorm._layernorm,
    "layernorm_int8": int8._layernorm_int8,
    "quantize": int8._quantize,
    "linear": linear._linear,
    "linear_int8": int8._linear_int8,
    "swiglu": activations._swiglu,
    "write": pack_kv.write,
    "write_pairs": pack_kv.write_pairs,
    "attend": attention._attend,
}
_layernorm, _layernorm_int8, _quantize, _linear, _linear_int8, _swiglu, _write, _write_pairs, _attend = map(
    caller, KERNELS.values()
)

NORM, LINEAR, BLOCK, KV, PASS, FUNCTIONS, MEMORY = (
    from_dtype(getattr(block_tables, name)) for name in ("NORM", "LINEAR", "BLOCK", "KV", "PASS", "FUNCTIONS", "MEMORY")
)
INT = types.int64
BLOCK_BYTES, KV_BYTES, CACHE_LINE = block_tables.BLOCK.itemsize, block_tables.KV.itemsize, block_tables.CACHE_LINE

# All arrays lie in tables, so that none is counted; and Python calls only the last of these kernels.
OPTIONS = {"_nrt": False, "no_cfunc_wrapper": True}
PART = {"shared": True, "no_cpython_wrapper": True} | OPTIONS


@kernel(PASS, FUNCTIONS, MEMORY, NORM, types.float64, INT, INT, **PART)
def _normalize(p, f, m, norm, eps, x, n):
    """Normalize n rows at x for linear layers: into m.normed, or in int8 as quantized rows."""
    weight, bias = (norm.weight, p.width), (norm.bias, p.width)
    if p.int8:
        padded = -(-p.width // (int8.QUAD * LANES)) * int8.QUAD * LANES
        _layernorm_int8(
            f.layernorm_int8,
            ((x, n, p.width), weight, bias, eps, (m.bytes, n, padded), (m.row_scales, n), (m.zeros, n),
             (m.normed, p.width)),
        )  # fmt: skip
    else:
        _layernorm(f.layernorm, ((x, n, p.width), weight, bias, eps, (m.normed, n, p.width)))


@kernel(PASS, FUNCTIONS, MEMORY, LINEAR, *[INT] * 5, **PART)
def _apply(p, f, m, layer, x, first, n, residual, out):
    """Apply a linear layer to n rows, from `first` of those at x on, or in int8 of those that were quantized last."""
    inputs, outputs = layer.n_inputs, layer.n_outputs
    panels = (layer.panels, layer.n_panels, layer.depth, PANEL)
    bias, gamma = (layer.bias, outputs if layer.bias else 0), (layer.gamma, outputs if layer.gamma else 0)
    added, gelu = (residual, n if residual else 0, outputs), layer.gelu != 0
    if p.int8:
        padded = -(-inputs // (int8.QUAD * LANES)) * int8.QUAD * LANES
        columns = layer.n_panels * PANEL
        _linear_int8(
            f.linear_int8,
            ((m.bytes + first * padded, n, padded), (m.row_scales + 4 * first, n), (m.zeros + 4 * first, n), panels,
             (layer.totals, columns), (layer.scales, columns), bias, gelu, gamma, added, (out, n, outputs),
             (m.sums, int8.ROWS + TILE_ROWS, PANEL)),
        )  # fmt: skip
    else:
        _linear(
            f.linear,
            ((x + 4 * first * inputs, n, inputs), panels, bias, gelu, gamma, added, (out, n, outputs),
             (m.sums, linear.ROWS + TILE_ROWS, PANEL),
             (m.pairs, linear.ROWS if p.pairs else 0, -(-inputs // (2 * LANES)) * LANES)),
        )  # fmt: skip


@kernel(PASS, FUNCTIONS, MEMORY, LINEAR, *[INT] * 4, **PART)
def _quantize_and_apply(p, f, m, layer, x, n, residual, out):
    """Apply a linear layer to n rows at x that are not quantized."""
    if p.int8:
        padded = -(-layer.n_inputs // (int8.QUAD * LANES)) * int8.QUAD * LANES
        _quantize(
            f.quantize, ((x, n, layer.n_inputs), (m.bytes, n, padded), (m.row_scales, n), (m.zeros, n))
        )  # fmt: skip
    _apply(p, f, m, layer, x, 0, n, residual, out)


@kernel(PASS, FUNCTIONS, MEMORY, BLOCK, KV, types.float64, INT, INT, types.boolean, **PART)
def _first_half(p, f, m, block, kv, eps, start, stop, last):
    """Compute queries, keys and values of tokens from `start` to `stop`; in the last block only what is needed."""
    size, row, n = p.width // p.heads, 4 * p.width, stop - start
    queries, key, value, n_query_rows = p.queries, m.key, m.value, p.n_tokens
    if last:
        queries, key, value = p.last.query, p.last.key + start * row, p.last.value + start * row
        n_query_rows = p.last.n_query_rows
    _normalize(p, f, m, block.norm1, eps, p.x + start * row, n)
    if not last or p.last.key:
        _apply(p, f, m, block.key, m.normed, 0, n, 0, key)
    if not last or p.last.value:
        _apply(p, f, m, block.value, m.normed, 0, n, 0, value)
    done = 0
    while done < n:
        image, token = divmod(start + done, p.n_tokens)
        count = min(n - done, p.n_tokens - token)
        needed = min(count, n_query_rows - token)
        if needed > 0:
            _apply(p, f, m, block.query, m.normed, done, needed, 0, queries + (start + done) * row)
        if not last or p.last.n_output_rows:
            keys = kv.keys + 4 * image * p.heads * kv.panels * kv.depth * PANEL
            values = kv.values + 4 * image * p.heads * kv.length * kv.padded
            new = (key + done * row, count, p.width), (value + done * row, count, p.width)
            turns = (p.rotation + 4 * token * size, count if p.rotation else 0, size)
            rotated = (m.rotated, LANES if p.rotation else 0, size)
            if kv.pairs:
                _write_pairs(
                    f.write_pairs,
                    (new[0], new[1], (keys, p.heads, kv.panels, kv.depth, 2 * PANEL),
                     (values, p.heads, kv.length, 2 * kv.padded), turns, rotated, size, token),
                )  # fmt: skip
            else:
                _write(
                    f.write,
                    (new[0], new[1], (keys, p.heads, kv.panels, kv.depth, PANEL),
                     (values, p.heads, kv.length, kv.padded), turns, rotated, token),
                )  # fmt: skip
        done += count


@kernel(PASS, FUNCTIONS, MEMORY, BLOCK, KV, types.float64, INT, INT, types.boolean, **PART)
def _second_half(p, f, m, block, kv, eps, start, stop, last):
    """Compute attention, output projection and MLP of tokens from `start` to `stop`.

    In the last block these numbers count only the first tokens of each image, those that are needed.
    """
    size, row, n = p.width // p.heads, 4 * p.width, stop - start
    queries, out, n_rows = p.queries, p.x + start * row, p.n_tokens
    if last:
        queries, out, n_rows = p.last.query, p.last.token + start * row, p.last.n_output_rows
    done = 0
    while done < n:
        image, token = divmod(start + done, n_rows)
        count, at = min(n - done, n_rows - token), (image * p.n_tokens + token) * row
        keys = kv.keys + 4 * image * p.heads * kv.panels * kv.depth * PANEL
        values = kv.values + 4 * image * p.heads * kv.length * kv.padded
        _attend(
            f.attend,
            ((queries + at, count, p.width), (keys, p.heads, kv.panels, kv.depth, PANEL),
             (values, p.heads, kv.length, kv.padded), (m.attn_out, count, p.width),
             (p.rotation + 4 * token * size, count if p.rotation else 0, size), p.n_tokens, kv.pairs != 0,
             (m.group, attention.GROUP, -(-size // (2 * LANES)) * 2 * LANES),
             (m.scores, attention.GROUP + TILE_ROWS, attention.CHUNK),
             (m.attention_sums, attention.GROUP + attention.VALUE_ROWS, kv.padded), (m.softmax, 2, attention.GROUP)),
        )  # fmt: skip
        _quantize_and_apply(p, f, m, block.proj, m.attn_out, count, p.x + at, out + done * row)
        done += count
    _normalize(p, f, m, block.norm2, eps, out, n)
    _apply(p, f, m, block.fc1, m.normed, 0, n, 0, m.hidden)
    hidden, inputs = m.hidden, block.fc2.n_inputs
    if p.swiglu:
        hidden = m.gated
        _swiglu(f.swiglu, ((m.hidden, n, 2 * inputs), (hidden, n, inputs)))
    _quantize_and_apply(p, f, m, block.fc2, hidden, n, out, out)
    done = 0
    while last and done < n:
        token = (start + done) % n_rows
        prefix = token < p.n_prefix
        norm = p.prefix_norm if prefix else p.norm
        count = min(n - done, (p.n_prefix if prefix else n_rows) - token)
        rows = (out + done * row, count, p.width)
        _layernorm(f.layernorm, (rows, (norm.weight, p.width), (norm.bias, p.width), eps, rows))
        done += count


@kernel(*[INT] * 8, types.float64, **OPTIONS)
def run_blocks(tables, functions, memory, passes, barrier, n_workers, first, stop, eps):
    """Do the steps from `first` to `stop` of a forward pass, in every thread; return False if one has failed.

    With two K/V buffers, step i is the second half of block i - 1 and the first half of block i. With one, which all
    have to have read before it is written, each half is a step.

    Parameters
    ----------
    tables, functions, memory, passes : int
        Addresses of the tables of blocks, compiled kernels, this thread's memory, and the pass.
    barrier, n_workers : int
        Address of the barrier's numbers, and number of threads.
    first, stop : int
    eps : float
    """
    enter_kernel()
    p, f, m = record_at(passes, PASS), record_at(functions, FUNCTIONS), record_at(memory, MEMORY)
    complete = first > 0 or spin_wait(barrier, n_workers)  # until all tokens are there
    for step in range(first, stop):
        if p.n_kv == 2:
            second, other = step - 1, step
        elif step % 2 == 0:
            second, other = -1, step // 2
        else:
            second, other = step // 2, -1
        ends = second == p.last.index
        n_rows = p.n_images * (p.last.n_output_rows if ends else p.n_tokens)
        while complete:
            start, end = claim_rows(
                p.cursors + CACHE_LINE * step, n_rows, n_workers, SHORTEST, LONGEST
            )  # fmt: skip
            if start == end:
                break
            if second >= 0:
                block = record_at(tables + BLOCK_BYTES * second, BLOCK)
                kv = record_at(p.kv + KV_BYTES * (second % p.n_kv), KV)
                _second_half(p, f, m, block, kv, eps, start, end, ends)
            if 0 <= other <= p.last.index:
                block = record_at(tables + BLOCK_BYTES * other, BLOCK)
                kv = record_at(p.kv + KV_BYTES * (other % p.n_kv), KV)
                _first_half(p, f, m, block, kv, eps, start, end, other == p.last.index)
        complete = complete and spin_wait(barrier, n_workers)
    leave_kernel()
    return complete
