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
from vitnp.kernels.cpu.codegen.calls import array_at, caller
from vitnp.kernels.cpu.codegen.gil import enter_kernel, leave_kernel
from vitnp.kernels.cpu.codegen.jit import kernel
from vitnp.kernels.cpu.codegen.microkernels import PANEL, TILE_ROWS
from vitnp.kernels.cpu.codegen.simd import LANES

# Bounds of the rows that a thread claims at a time: more don't stay in its caches, fewer use each weight too rarely.
SHORTEST, LONGEST = 48, 256

BLOCK, PASS, FUNCTIONS, MEMORY = map(
    from_dtype, (block_tables.BLOCK, block_tables.PASS, block_tables.FUNCTIONS, block_tables.MEMORY)
)
FLOAT, INT, BYTE, PAIR = types.float32, types.int32, types.uint8, types.uint16

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


@kernel
def _quantized(m, first, n, inputs):
    """Return n rows of bytes, from `first` on, that were written for a layer of some inputs, and their scales and zeros."""
    padded = -(-inputs // (int8.QUAD * LANES)) * int8.QUAD * LANES
    values = array_at(m.bytes + first * padded, (n, padded), BYTE)
    return values, array_at(m.row_scales + 4 * first, (n,), FLOAT), array_at(m.zeros + 4 * first, (n,), INT)


@kernel
def _normalize(p, f, m, norm, eps, x, n):
    """Normalize n rows at x for linear layers: into m.normed, or in int8 as bytes."""
    rows = array_at(x, (n, p.width), FLOAT)
    weight, bias = array_at(norm.weight, (p.width,), FLOAT), array_at(norm.bias, (p.width,), FLOAT)
    if p.int8:
        values, scales, zeros = _quantized(m, 0, n, p.width)
        row = array_at(m.normed, (p.width,), FLOAT)
        _layernorm_int8(f.layernorm_int8, (rows, weight, bias, eps, values, scales, zeros, row))
    else:
        _layernorm(f.layernorm, (rows, weight, bias, eps, array_at(m.normed, (n, p.width), FLOAT)))


@kernel
def _apply(p, f, m, layer, x, first, n, gelu, residual, out):
    """Apply a linear layer to n rows, from `first` of those at x on, or in int8 of those that were quantized last."""
    outputs = layer.n_outputs
    panels = array_at(layer.panels, (layer.n_panels, layer.depth, PANEL), FLOAT)
    bias = array_at(layer.bias, (outputs if layer.bias else 0,), FLOAT)
    gamma = array_at(layer.gamma, (outputs if layer.gamma else 0,), FLOAT)
    added = array_at(residual, (n if residual else 0, outputs), FLOAT)
    result = array_at(out, (n, outputs), FLOAT)
    if p.int8:
        values, row_scales, zeros = _quantized(m, first, n, layer.n_inputs)
        totals = array_at(layer.totals, (layer.n_panels * PANEL,), INT)
        scales = array_at(layer.scales, (layer.n_panels * PANEL,), FLOAT)
        sums = array_at(m.sums, (int8.ROWS + TILE_ROWS, PANEL), INT)
        _linear_int8(
            f.linear_int8,
            (values, row_scales, zeros, panels, totals, scales, bias, gelu, gamma, added, result, sums),
        )  # fmt: skip
    else:
        rows = array_at(x + 4 * first * layer.n_inputs, (n, layer.n_inputs), FLOAT)
        sums = array_at(m.sums, (linear.ROWS + TILE_ROWS, PANEL), FLOAT)
        pairs_shape = (linear.ROWS if p.pairs else 0, -(-layer.n_inputs // (2 * LANES)) * LANES)
        pairs = array_at(m.pairs, pairs_shape, FLOAT)
        _linear(f.linear, (rows, panels, bias, gelu, gamma, added, result, sums, pairs))


@kernel
def _quantize_for(p, f, m, layer, x, n):
    """In int8, quantize the n rows at x, which are the inputs of a layer."""
    if p.int8:
        values, scales, zeros = _quantized(m, 0, n, layer.n_inputs)
        _quantize(f.quantize, (array_at(x, (n, layer.n_inputs), FLOAT), values, scales, zeros))


@kernel
def _arrays_of_image(p, kv, image):
    """Return the keys and values of an image in the cache."""
    keys = kv.keys + 4 * image * p.heads * kv.panels * kv.depth * PANEL
    values = kv.values + 4 * image * p.heads * kv.length * kv.padded
    return keys, values


@kernel
def _write_kv(p, f, m, kv, key, value, start, n):
    """Copy n rows of keys and values to the cache; row 0 is token `start` of the batch."""
    size, done = p.width // p.heads, 0
    while done < n:
        image, token = divmod(start + done, p.n_tokens)
        count = min(n - done, p.n_tokens - token)
        keys, values = _arrays_of_image(p, kv, image)
        k = array_at(key + 4 * done * p.width, (count, p.width), FLOAT)
        v = array_at(value + 4 * done * p.width, (count, p.width), FLOAT)
        turned = array_at(p.rotation + 4 * token * size, (count if p.rotation else 0, size), FLOAT)
        rotated = array_at(m.rotated, (LANES if p.rotation else 0, size), FLOAT)
        if kv.pairs:
            keys_array = array_at(keys, (p.heads, kv.panels, kv.depth, 2 * PANEL), PAIR)
            values_array = array_at(values, (p.heads, kv.length, 2 * kv.padded), PAIR)
            _write_pairs(f.write_pairs, (k, v, keys_array, values_array, turned, rotated, size, token))
        else:
            keys_array = array_at(keys, (p.heads, kv.panels, kv.depth, PANEL), FLOAT)
            values_array = array_at(values, (p.heads, kv.length, kv.padded), FLOAT)
            _write(f.write, (k, v, keys_array, values_array, turned, rotated, token))
        done += count


@kernel
def _attend_to(p, f, m, kv, queries, image, token, n, out):
    """Compute the attention of n queries, those from `token` of an image on."""
    size = p.width // p.heads
    keys, values = _arrays_of_image(p, kv, image)
    _attend(
        f.attend,
        (
            array_at(queries + 4 * (image * p.n_tokens + token) * p.width, (n, p.width), FLOAT),
            array_at(keys, (p.heads, kv.panels, kv.depth, PANEL), FLOAT),
            array_at(values, (p.heads, kv.length, kv.padded), FLOAT),
            array_at(out, (n, p.width), FLOAT),
            array_at(p.rotation + 4 * token * size, (n if p.rotation else 0, size), FLOAT),
            p.n_tokens,
            kv.pairs != 0,
            array_at(m.group, (attention.GROUP, -(-size // (2 * LANES)) * 2 * LANES), FLOAT),
            array_at(m.scores, (attention.GROUP + TILE_ROWS, attention.CHUNK), FLOAT),
            array_at(m.attention_sums, (attention.GROUP + attention.VALUE_ROWS, kv.padded), FLOAT),
            array_at(m.softmax, (2, attention.GROUP), FLOAT),
        ),
    )  # fmt: skip


@kernel
def _first_half(p, f, m, block, kv, eps, start, stop, last):
    """Compute queries, keys and values of the rows of a claim; in the last block only what the features need."""
    n, row = stop - start, 4 * p.width
    _normalize(p, f, m, block.norm1, eps, p.x + start * row, n)
    key = p.last.key + start * row if last else m.key
    value = p.last.value + start * row if last else m.value
    if not last or p.last.key:
        _apply(p, f, m, block.key, m.normed, 0, n, False, 0, key)
    if not last or p.last.value:
        _apply(p, f, m, block.value, m.normed, 0, n, False, 0, value)
    if not last or p.last.n_output_rows:
        _write_kv(p, f, m, kv, key, value, start, n)
    if not last:
        _apply(p, f, m, block.query, m.normed, 0, n, False, 0, p.queries + start * row)
        return
    done = 0
    while done < n:  # queries of the first tokens of each image
        image, token = divmod(start + done, p.n_tokens)
        count = min(n - done, p.n_tokens - token)
        needed = min(count, p.last.n_query_rows - token)
        if needed > 0:
            _apply(p, f, m, block.query, m.normed, done, needed, False, 0, p.last.query + (start + done) * row)
        done += count


@kernel
def _second_half(p, f, m, block, eps, x, n, out):
    """Compute ``out = x + mlp(norm(x))`` of n rows, after ``x + proj(attn_out)``; out may be x."""
    _quantize_for(p, f, m, block.proj, m.attn_out, n)
    _apply(p, f, m, block.proj, m.attn_out, 0, n, False, x, out)
    _normalize(p, f, m, block.norm2, eps, out, n)
    _apply(p, f, m, block.fc1, m.normed, 0, n, p.swiglu == 0, 0, m.hidden)
    hidden = m.hidden
    if p.swiglu:
        hidden, width = m.gated, block.fc2.n_inputs
        _swiglu(f.swiglu, (array_at(m.hidden, (n, 2 * width), FLOAT), array_at(hidden, (n, width), FLOAT)))
    _quantize_for(p, f, m, block.fc2, hidden, n)
    _apply(p, f, m, block.fc2, hidden, 0, n, False, out, out)


@kernel
def _finish_block(p, f, m, block, kv, eps, start, stop):
    """Take the rows of a claim through the second half of a block that is not the last."""
    row, done = 4 * p.width, start
    while done < stop:
        image, token = divmod(done, p.n_tokens)
        count = min(stop - done, p.n_tokens - token)
        _attend_to(p, f, m, kv, p.queries, image, token, count, m.attn_out + (done - start) * row)
        done += count
    _second_half(p, f, m, block, eps, p.x + start * row, stop - start, p.x + start * row)


@kernel
def _finish_pass(p, f, m, block, kv, eps, start, stop):
    """Take the first tokens of the images, whose rows are numbered without the others, through the rest of a pass."""
    while start < stop:
        image, token = divmod(start, p.last.n_output_rows)
        count = min(stop - start, p.last.n_output_rows - token)
        out = p.last.token + 4 * start * p.width
        _attend_to(p, f, m, kv, p.last.query, image, token, count, m.attn_out)
        _second_half(p, f, m, block, eps, p.x + 4 * (image * p.n_tokens + token) * p.width, count, out)
        n_prefix = max(0, min(count, p.n_prefix - token))
        _final_norm(p, f, p.prefix_norm, eps, out, n_prefix)
        _final_norm(p, f, p.norm, eps, out + 4 * n_prefix * p.width, count - n_prefix)
        start += count


@kernel
def _final_norm(p, f, norm, eps, x, n):
    """Normalize n rows in place."""
    rows = array_at(x, (n, p.width), FLOAT)
    weight, bias = array_at(norm.weight, (p.width,), FLOAT), array_at(norm.bias, (p.width,), FLOAT)
    _layernorm(f.layernorm, (rows, weight, bias, eps, rows))


@kernel(*[types.int64] * 8, types.float64)
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
    p = array_at(passes, (1,), PASS)[0]
    f, m = array_at(functions, (1,), FUNCTIONS)[0], array_at(memory, (1,), MEMORY)[0]
    blocks = array_at(tables, (p.last.index + 1,), BLOCK)
    complete = first > 0 or spin_wait(barrier, n_workers)  # until all tokens are there
    for step in range(first, stop):
        before, after = (step - 1, step) if p.n_kv == 2 else ((step - 1) // 2 if step % 2 else -1,
                                                               -1 if step % 2 else step // 2)
        ends = before == p.last.index
        n_rows = p.n_images * (p.last.n_output_rows if ends else p.n_tokens)
        while complete:
            start, end = claim_rows(p.cursors + block_tables.CACHE_LINE * step, n_rows, n_workers, SHORTEST, LONGEST)
            if start == end:
                break
            if ends:
                _finish_pass(p, f, m, blocks[before], p.kv[before % p.n_kv], eps, start, end)
            elif before >= 0:
                _finish_block(p, f, m, blocks[before], p.kv[before % p.n_kv], eps, start, end)
            if 0 <= after <= p.last.index:
                _first_half(p, f, m, blocks[after], p.kv[after % p.n_kv], eps, start, end, after == p.last.index)
        complete = complete and spin_wait(barrier, n_workers)
    leave_kernel()
    return complete
