"""Kernels that build the permutohedral lattice: simplices of points, numbering of vertices, neighbors.

The lattice is built from chunks of points, each with a hash table of its own. Then the vertices of all chunks are
numbered one chunk after the other, which is the order in which a single pass over the points would have found them.
"""

from __future__ import annotations

import numpy as np
from vitnp.kernels.cpu.codegen import types
from vitnp.kernels.cpu.codegen.jit import array_in, array_out, kernel
from vitnp.kernels.cpu.codegen.workspace import workspace

# Points whose simplices are computed together, so that loops over them are vectorized.
BLOCK = 128
# Slots of an empty hash table.
MIN_SLOTS = 1 << 12
# Fibonacci hashing: the highest bits of a product with 2^64 over the golden ratio are well distributed for any keys.
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@kernel
def _shift(slots):
    """Return the shift that leaves as many of 64 bits as the index of a slot has."""
    shift = 64
    while (len(slots) >> (64 - shift)) > 1:
        shift -= 1
    return np.uint64(shift)


@kernel
def _find(key, keys, slots, shift):
    """Return the slot of a key, or the empty slot for it."""
    slot = np.int64((np.uint64(key) * GOLDEN) >> shift)
    while slots[slot] >= 0 and keys[slots[slot]] != key:
        slot = (slot + 1) & (len(slots) - 1)
    return slot


@kernel(
    array_in(1, types.int64),
    array_out(1, types.int64),
    array_out(1, types.int32),
    types.int64,
    array_out(1, types.int32),
    shared=True,
)
def number_keys(new_keys, keys, slots, count, numbers):
    """Look up the numbers of keys in a hash table; keys that are not in it get the next numbers.

    Parameters
    ----------
    new_keys : (n,) int64, IN
    keys : (S / 2,) int64, IN and OUT
        Key of each number.
    slots : (S,) int32, IN and OUT
        The hash table: numbers, or -1. S is a power of two; all keys fit into half of it, see :func:`enlarged`.
    count : int
        Number of keys in the table.
    numbers : (n,) int32, OUT
        Number of each of `new_keys`.

    Returns
    -------
    int
        Number of keys in the table now.
    """
    shift = _shift(slots)
    for i in range(len(new_keys)):
        slot = _find(new_keys[i], keys, slots, shift)
        if slots[slot] < 0:
            slots[slot] = count
            keys[count] = new_keys[i]
            count += 1
        numbers[i] = slots[slot]
    return count


@kernel(array_in(1, types.int64), types.int64, array_out(1, types.int64), array_out(1, types.int32))
def _copy_keys(keys, count, larger, slots):
    """Enter the keys of a hash table into a larger one."""
    shift = _shift(slots)
    for number in range(count):
        larger[number] = keys[number]
        slots[_find(keys[number], larger, slots, shift)] = number


def enlarged(keys: np.ndarray, slots: np.ndarray, count: int, more: int) -> tuple[np.ndarray, np.ndarray]:
    """Return keys and slots of a hash table with room for `more` keys: the same arrays, or larger ones."""
    size = len(slots)
    while size < 2 * (count + more):
        size *= 2
    if size == len(slots):
        return keys, slots
    larger, larger_slots = new_table(size)
    _copy_keys(keys, count, larger, larger_slots)
    return larger, larger_slots


def new_table(size: int = MIN_SLOTS) -> tuple[np.ndarray, np.ndarray]:
    """Return keys and slots of an empty hash table."""
    return np.empty(size // 2, np.int64), np.full(size, -1, np.int32)


# Without contraction to fused multiply-adds: the operations are rounded as in the reference, so that both find the same
# simplices.
@kernel(fastmath=False)
def _simplices(features, scale, stride, origin, first, size, floats, ordered, rank, step, corner, weight):
    """Compute keys of the corners and barycentric coordinates of up to BLOCK points; the reference explains each step.

    Parameters
    ----------
    features, scale, stride, origin, weight
        As for :func:`embed`.
    first, size : int
        First point, and number of points.
    floats : (4, D + 1, BLOCK) float32, ordered : (D + 1,) float32, rank : (D + 1, BLOCK) int32, OUT
    step : (D + 1,) int64, OUT
        Workspaces.
    corner : (BLOCK (D + 1),) int64, OUT
        Keys of the corners.
    """
    axes = len(stride)
    elevated, nearest, rest = floats[0], floats[1], floats[2]
    above, excess = floats[3, 0], floats[3, 1]
    one, side = np.float32(1), np.float32(axes)
    shrink = one / side
    for t in range(size):
        above[t] = excess[t] = 0
    for axis in range(axes - 1, 0, -1):
        factor, times = scale[axis - 1], np.float32(axis)
        for t in range(size):
            scaled = features[axis - 1, first + t] * factor
            elevated[axis, t] = above[t] - times * scaled
            above[t] += scaled
    for t in range(size):
        elevated[0, t] = above[t]
    for axis in range(axes):
        for t in range(size):
            rank[axis, t] = 0
            rounded = np.rint(elevated[axis, t] * shrink)
            excess[t] += rounded
            nearest[axis, t] = rounded * side
            rest[axis, t] = elevated[axis, t] - nearest[axis, t]
    for i in range(axes):
        for j in range(i + 1, axes):
            for t in range(size):
                less = np.int32(rest[i, t] < rest[j, t])
                rank[i, t] += less
                rank[j, t] += np.int32(1) - less
    for axis in range(axes):
        for t in range(size):
            moved = rank[axis, t] + np.int32(excess[t])
            wrap = np.int32(axes) * (np.int32(moved < 0) - np.int32(moved >= axes))
            rank[axis, t] = moved + wrap
            nearest[axis, t] += np.float32(wrap)
            rest[axis, t] = (elevated[axis, t] - nearest[axis, t]) * shrink
    whole = np.int64(0)
    for axis in range(axes):
        whole += stride[axis]
    for t in range(size):
        key = np.int64(0)
        for axis in range(axes):
            ordered[rank[axis, t]] = rest[axis, t]
            step[rank[axis, t]] = whole - axes * stride[axis]
            key += stride[axis] * (np.int64(nearest[axis, t]) - origin[axis])
        corner[t * axes] = key
        weight[first + t, 0] = (one + ordered[axes - 1]) - ordered[0]
        for r in range(1, axes):
            key += step[axes - r]
            corner[t * axes + r] = key
            weight[first + t, r] = ordered[axes - 1 - r] - ordered[axes - r]


@kernel(
    array_in(2), array_in(1), array_in(1, types.int64), array_in(1, types.int64), types.int64, types.int64,
    array_out(1, types.int64), array_out(1, types.int32), types.int64, array_out(1, types.int64), array_out(3),
    array_out(1), array_out(2, types.int32), array_out(1, types.int64), array_out(1, types.int64),
    array_out(1, types.int32), array_out(2),
)  # fmt: skip
def _embed(
    features, scale, stride, origin, first, last, keys, slots, count, progress, floats, ordered, rank, step, corner,
    flat, weight,
):  # fmt: skip
    """Compute the corners of points until a chunk ends, or the hash table is full.

    Parameters
    ----------
    first, last : int
        Range of points.
    keys, slots, count
        See :func:`number_keys`.
    progress : (2,) int64, OUT
        First point that is not done, and number of keys in the table.
    floats, ordered, rank, step, corner
        Workspaces of :func:`_simplices`.
    features, scale, stride, origin, weight
        As for :func:`embed`.
    flat : (N (D + 1),) int32, OUT
        The numbers of vertices.
    """
    axes = len(stride)
    while first < last:
        size = min(BLOCK, last - first)
        if len(slots) < 2 * (count + size * axes):
            break
        _simplices(features, scale, stride, origin, first, size, floats, ordered, rank, step, corner, weight)
        begin, end = first * axes, (first + size) * axes
        count = number_keys(corner[: size * axes], keys, slots, count, flat[begin:end])
        first += size
    progress[0], progress[1] = first, count


def embed(
    features: np.ndarray,
    scale: np.ndarray,
    stride: np.ndarray,
    origin: np.ndarray,
    first: int,
    last: int,
    vertex: np.ndarray,
    weight: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the corners of a chunk of points, with vertex numbers that are local to the chunk.

    Parameters
    ----------
    features : (D, N) float32, IN
    scale : (D,) float32, stride, origin : (D + 1,) int64, IN
        See lattice_geometry in :mod:`vitnp.kernels.reference`.
    first, last : int
        Range of points.
    vertex : (N, D + 1) int32, weight : (N, D + 1) float32, OUT

    Returns
    -------
    keys : (m,) int64
        Key of each local number.
    degree : (m,) int64
        Number of points that have each vertex as a corner.
    """
    axes = len(stride)
    floats, ordered = workspace("lattice floats", 4, axes, BLOCK), workspace("lattice order", axes)
    rank = workspace("lattice ranks", axes, BLOCK, dtype=np.int32)
    step, corner = (workspace(f"lattice {name}", n, dtype=np.int64) for name, n in (("s", axes), ("c", BLOCK * axes)))
    (keys, slots), count, progress = new_table(), 0, np.zeros(2, np.int64)
    start, flat = first, vertex.reshape(-1)
    while start < last:
        keys, slots = enlarged(keys, slots, count, BLOCK * axes)
        _embed(
            features, scale, stride, origin, start, last, keys, slots, count, progress, floats, ordered, rank, step,
            corner, flat, weight,
        )  # fmt: skip
        start, count = progress.tolist()
    return keys[:count].copy(), np.bincount(vertex[first:last].reshape(-1), minlength=count)


@kernel(array_in(1, types.int32), array_in(1, types.int64), array_out(1, types.int64))
def add_at(indices, amounts, total):
    """Compute ``total[indices] += amounts``, with int32 indices and int64 numbers."""
    for i in range(len(indices)):
        total[indices[i]] += amounts[i]


@kernel(
    types.int64, types.int64, array_in(1, types.int32), array_out(1, types.int64), array_out(2, types.int32),
    array_in(2),
    array_out(1, types.int32), array_out(1),
)  # fmt: skip
def transpose(first, last, number, cursor, vertex, weight, point, share):
    """Replace the local vertex numbers of a chunk by global ones, and list its points by vertex.

    Parameters
    ----------
    first, last : int
        Points of the chunk.
    number : (m,) int32, IN
        Global number of each local one.
    cursor : (m,) int64, IN and OUT
        Index in `point` and `share` for the next point of each vertex.
    vertex : (N, D + 1) int32, IN and OUT
    weight : (N, D + 1) float32, IN
    point : (N (D + 1),) int32, share : (N (D + 1),) float32, OUT
        See :class:`vitnp.kernels.cpu.lattice.Lattice`.
    """
    for p in range(first, last):
        for r in range(vertex.shape[1]):
            own = vertex[p, r]
            vertex[p, r] = number[own]
            point[cursor[own]] = p
            share[cursor[own]] = weight[p, r]
            cursor[own] += 1


@kernel(
    array_in(1, types.int64),
    array_in(1, types.int32),
    array_in(1, types.int64),
    types.int64,
    types.int64,
    array_out(3, types.int32),
)
def link_neighbors(keys, slots, ahead, first, last, neighbor):
    """Find the next vertex along each axis for a range of vertices, and enter both as neighbors of each other.

    Parameters
    ----------
    keys : (S / 2,) int64, slots : (S,) int32, IN
        The hash table of :func:`number_keys`.
    ahead : (D + 1,) int64, IN
        Difference of keys for one step along each axis.
    first, last : int
        Range of vertices.
    neighbor : (D + 1, M, 2) int32, OUT
    """
    shift = _shift(slots)
    for axis in range(len(ahead)):
        for e in range(first, last):
            other = slots[_find(keys[e] + ahead[axis], keys, slots, shift)]
            if other >= 0:
                neighbor[axis, e, 1] = other
                neighbor[axis, other, 0] = e


@kernel(
    array_in(2),
    array_in(1),
    array_in(1, types.int32),
    array_in(2),
    types.int64,
    types.int64,
    array_out(2),
    array_out(1),
)
def scale_weights(weight, share, point, factor, first, last, scaled_weight, scaled_share):
    """Multiply the weights of a range of points, and as many shares, by the factor (N, 1) of their point."""
    axes = weight.shape[1]
    for p in range(first, last):
        for r in range(axes):
            scaled_weight[p, r] = weight[p, r] * factor[p, 0]
    for k in range(first * axes, last * axes):
        scaled_share[k] = share[k] * factor[point[k], 0]
