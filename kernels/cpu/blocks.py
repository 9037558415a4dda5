"""All blocks of a transformer in one kernel call per thread: between two layers nothing returns to Python.

Threads claim rows of tokens, and take them through the second half of one block and the first half of the next, up to
the keys and values, which the rows of all threads need. Then they wait for each other, inside the kernel. A row gets
the same bits in whatever claim it is.

The kernels of the layers are those that are called from Python too. They are called through their addresses, and get
their arrays from tables of addresses (:mod:`vitnp.kernels.cpu.block_tables`), so that a pass begins at once for any
number of blocks.
"""

from __future__ import annotations

from vitnp.kernels.cpu import activations, attention, block_tables, int8, layernorm, linear, pack_kv
from vitnp.kernels.cpu.block_tables import CACHE_LINE
from vitnp.kernels.cpu.codegen import types
from vitnp.kernels.cpu.codegen.barrier import claim_rows, spin_wait
from vitnp.kernels.cpu.codegen.calls import caller, record_at
from vitnp.kernels.cpu.codegen.gil import enter_kernel, leave_kernel
from vitnp.kernels.cpu.codegen.jit import kernel
from vitnp.kernels.cpu.codegen.microkernels import PANEL, TILE_ROWS
from vitnp.kernels.cpu.codegen.simd import LANES

# Bounds of the rows that a thread claims at a time: more don't stay in its caches, fewer use each weight too rarely.
SHORTEST, LONGEST = 64, 256

# Shape of the workspace for the state of softmax, at least.
STATE_ROWS, STATE_COLUMNS = 3 + attention.GROUP + TILE_ROWS, max(PANEL, attention.GROUP + TILE_ROWS)

# Kernels by their names in the table of addresses.
KERNELS = {
    "layernorm": layernorm._layernorm,
    "layernorm_int8": int8._layernorm_int8,
    "quantize": int8._quantize,
    "linear": linear._linear,
    "linear_bf16": linear._linear_bf16,
    "linear_int8": int8._linear_int8,
    "swiglu": activations._swiglu,
    "write": pack_kv.write,
    "write_pairs": pack_kv.write_pairs,
    "attend": attention._attend,
    "attend_bf16": attention._attend_bf16,
}
(
    _layernorm, _layernorm_int8, _quantize, _linear, _linear_bf16, _linear_int8, _swiglu, _write, _write_pairs,
    _attend, _attend_bf16,
) = map(caller, KERNELS.values())  # fmt: skip

_pass, _functions, _layer, _norm, _cache, _thread = (
    record_at(getattr(block_tables, name)) for name in ("PASS", "FUNCTIONS", "LINEAR", "NORM", "KV", "THREAD")
)

# Bytes from the address of a block to those of its parts.
NORM1, QUERY, KEY, VALUE, PROJ, NORM2, FC1, FC2 = map(
    block_tables.offset, ("norm1", "query", "key", "value", "proj", "norm2", "fc1", "fc2")
)
BLOCK_BYTES, KV_BYTES = block_tables.BLOCK.itemsize, block_tables.KV.itemsize


@kernel
def _normalize(thread, norm, x, n):
    """Normalize n rows at x for linear layers: into `normed`, or in int8 as quantized rows."""
    t, norms = _thread(thread), _norm(norm)
    p = _pass(t.at_pass)
    f = _functions(p.functions)
    weight, bias = (norms.weight, p.width), (norms.bias, p.width)
    if p.int8:
        padded = -(-p.width // (int8.QUAD * LANES)) * int8.QUAD * LANES
        quantized = (t.bytes, n, padded), (t.row_scales, n), (t.zeros, n)
        _layernorm_int8(f.layernorm_int8, ((x, n, p.width), weight, bias, p.eps, *quantized, (t.normed, p.width)))
    else:
        _layernorm(f.layernorm, ((x, n, p.width), weight, bias, p.eps, (t.normed, n, p.width)))


@kernel
def _apply(thread, layer, x, first, n, quantized, residual, out):
    """Apply a linear layer to n rows, from row `first` at x on; in int8 they are quantized before, unless they are.

    Rows at `residual` are added to the result at `out`; 0 if there are none.
    """
    t, w = _thread(thread), _layer(layer)
    p = _pass(t.at_pass)
    f = _functions(p.functions)
    inputs, outputs = w.n_inputs, w.n_outputs
    panels = (w.panels, w.n_panels, w.depth, PANEL)
    bias, gamma = (w.bias, outputs if w.bias else 0), (w.gamma, outputs if w.gamma else 0)
    added, result, gelu = (residual, n if residual else 0, outputs), (out, n, outputs), w.gelu != 0
    rows = (x + 4 * first * inputs, n, inputs)
    if p.int8:
        padded, columns = -(-inputs // (int8.QUAD * LANES)) * int8.QUAD * LANES, w.n_panels * PANEL
        bytes_, scales, zeros = (
            (t.bytes + first * padded, n, padded), (t.row_scales + 4 * first, n), (t.zeros + 4 * first, n)
        )  # fmt: skip
        if not quantized:
            _quantize(f.quantize, (rows, bytes_, scales, zeros))
        _linear_int8(
            f.linear_int8,
            (bytes_, scales, zeros, panels, (w.totals, columns), (w.scales, columns), bias, gelu, gamma, added, result,
             (t.sums, int8.ROWS + TILE_ROWS, PANEL)),
        )  # fmt: skip
    else:
        sums = (t.sums, linear.ROWS + TILE_ROWS, PANEL)
        if p.pairs:
            pairs = (t.pairs, linear.ROWS, -(-inputs // (2 * LANES)) * LANES)
            _linear_bf16(f.linear_bf16, (rows, panels, bias, gelu, gamma, added, result, sums, pairs))
        else:
            _linear(f.linear, (rows, panels, bias, gelu, gamma, added, result, sums, None))


@kernel
def _first_half(thread, block, kv, start, stop, last):
    """Compute queries, keys and values of tokens from `start` to `stop`; in the last block only what is needed."""
    t, c = _thread(thread), _cache(kv)
    p = _pass(t.at_pass)
    f = _functions(p.functions)
    size, row, n = p.width // p.heads, 4 * p.width, stop - start
    queries, key, value, n_query_rows = p.queries, t.key, t.value, p.n_tokens
    if last:
        queries, key, value = p.last.query, p.last.key + start * row, p.last.value + start * row
        n_query_rows = p.last.n_query_rows
    _normalize(thread, block + NORM1, p.x + start * row, n)
    if not last or p.last.key:
        _apply(thread, block + KEY, t.normed, 0, n, True, 0, key)
    if not last or p.last.value:
        _apply(thread, block + VALUE, t.normed, 0, n, True, 0, value)
    done = 0
    while done < n:
        image, token = (start + done) // p.n_tokens, (start + done) % p.n_tokens
        count = min(n - done, p.n_tokens - token)
        needed = min(count, n_query_rows - token)
        if needed > 0:
            _apply(thread, block + QUERY, t.normed, done, needed, True, 0, queries + (start + done) * row)
        if not last or p.last.n_output_rows:
            keys = c.keys + 4 * image * p.heads * c.panels * c.depth * PANEL
            values = c.values + 4 * image * p.heads * c.length * c.padded
            new_keys, new_values = (key + done * row, count, p.width), (value + done * row, count, p.width)
            turns = (p.rotation + 4 * token * size, count if p.rotation else 0, size)
            rotated = (t.rotated, LANES if p.rotation else 0, size)
            if c.pairs:
                _write_pairs(
                    f.write_pairs,
                    (new_keys, new_values, (keys, p.heads, c.panels, c.depth, 2 * PANEL),
                     (values, p.heads, c.length, 2 * c.padded), turns, rotated,
                     (t.pairs_of_keys, LANES, size // (2 * LANES) * LANES), size, token),
                )  # fmt: skip
            else:
                _write(
                    f.write,
                    (new_keys, new_values, (keys, p.heads, c.panels, c.depth, PANEL),
                     (values, p.heads, c.length, c.padded), turns, rotated, token),
                )  # fmt: skip
        done += count


@kernel
def _second_half(thread, block, kv, start, stop, last):
    """Compute attention, output projection and MLP of tokens from `start` to `stop`.

    In the last block these numbers count only the first tokens of each image, those that are needed.
    """
    t, c = _thread(thread), _cache(kv)
    p = _pass(t.at_pass)
    f = _functions(p.functions)
    size, row, n = p.width // p.heads, 4 * p.width, stop - start
    queries, out, n_rows = p.queries, p.x + start * row, p.n_tokens
    if last:
        queries, out, n_rows = p.last.query, p.last.token + start * row, p.last.n_output_rows
    done = 0
    while done < n:
        image, token = (start + done) // n_rows, (start + done) % n_rows
        count, at = min(n - done, n_rows - token), (image * p.n_tokens + token) * row
        keys = c.keys + 4 * image * p.heads * c.panels * c.depth * PANEL
        values = c.values + 4 * image * p.heads * c.length * c.padded
        arrays = (
            (queries + at, count, p.width), (keys, p.heads, c.panels, c.depth, PANEL),
            (values, p.heads, c.length, c.padded), (t.attn_out, count, p.width),
            (p.rotation + 4 * token * size, count if p.rotation else 0, size),
        )  # fmt: skip
        workspaces = (
            (t.group, attention.GROUP, -(-size // (2 * LANES)) * 2 * LANES),
            (t.scores, attention.GROUP + TILE_ROWS, attention.CHUNK),
            (t.attention_sums, attention.GROUP + attention.VALUE_ROWS, c.padded),
            (t.softmax, STATE_ROWS, STATE_COLUMNS),
        )
        if c.pairs:
            _attend_bf16(f.attend_bf16, (*arrays, p.n_tokens, True, *workspaces))
        else:
            _attend(f.attend, (*arrays, p.n_tokens, None, *workspaces))
        _apply(thread, block + PROJ, t.attn_out, 0, count, False, p.x + at, out + done * row)
        done += count
    _normalize(thread, block + NORM2, out, n)
    _apply(thread, block + FC1, t.normed, 0, n, True, 0, t.hidden)
    hidden, inputs = t.hidden, _layer(block + FC2).n_inputs
    if p.swiglu:
        hidden = t.gated
        _swiglu(f.swiglu, ((t.hidden, n, 2 * inputs), (hidden, n, inputs)))
    _apply(thread, block + FC2, hidden, 0, n, False, out, out)
    done = 0
    while last and done < n:  # the final norms, in place
        token = (start + done) % n_rows
        count, norm = min(n - done, n_rows - token), p.norm
        if token < p.n_prefix:
            count, norm = min(count, p.n_prefix - token), p.prefix_norm
        rows = (out + done * row, count, p.width)
        _layernorm(f.layernorm, (rows, (norm.weight, p.width), (norm.bias, p.width), p.eps, rows))
        done += count


@kernel(types.int64, types.int64, types.int64)
def run_blocks(thread, first, stop):
    """Do the steps from `first` to `stop` of a forward pass, in every thread; return False if one has failed.

    With two K/V buffers, step i is the second half of block i - 1 and the first half of block i. With one, which all
    have to have read before it is written, each half is a step.

    Parameters
    ----------
    thread : int
        Address of the THREAD table.
    first, stop : int
    """
    enter_kernel()
    t = _thread(thread)
    p = _pass(t.at_pass)
    complete = first > 0 or spin_wait(t.barrier, t.n_workers)  # until all tokens are there
    for step in range(first, stop):
        # Blocks whose second half and whose first half follow, of which there may be none.
        second, other = step - 1, step
        if p.n_kv == 1:
            second, other = (step // 2, -1) if step % 2 else (-1, step // 2)
        ends = second == p.last.index
        n_rows = p.n_images * (p.last.n_output_rows if ends else p.n_tokens)
        while complete:
            start, end = claim_rows(p.cursors + CACHE_LINE * step, n_rows, t.n_workers, SHORTEST, LONGEST)
            if start == end:
                break
            if second >= 0:
                kv = p.kv + second % p.n_kv * KV_BYTES
                _second_half(thread, p.blocks + second * BLOCK_BYTES, kv, start, end, ends)
            if 0 <= other <= p.last.index:
                kv = p.kv + other % p.n_kv * KV_BYTES
                _first_half(thread, p.blocks + other * BLOCK_BYTES, kv, start, end, other == p.last.index)
        complete = complete and spin_wait(t.barrier, t.n_workers)
    leave_kernel()
    return complete
