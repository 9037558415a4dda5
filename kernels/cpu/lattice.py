"""The permutohedral lattice and mean-field inference on it, in float32.

Splatting and slicing are products of a sparse matrix and a dense one: a vertex is a weighted sum of points, a point one
of vertices. Both gather, so that each sum has one owner and one order, and no result depends on the number of threads.

The lattice is built in bands of points, each with a hash table of its own. Then the vertices of all bands are numbered
one band after the other, which is the order in which a single pass over the points would have met them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numba import types
from numba.extending import intrinsic
from vitnp.kernels import reference
from vitnp.kernels.cpu.codegen.jit import kernel
from vitnp.kernels.cpu.codegen.simd import I32, I64, LOG2_E, Vectors, loop
from vitnp.kernels.threads import team

# Floats of a row that are summed side by side, on any machine. Rows are padded to a multiple: 21 classes take 24.
WIDTH = 8
# Points whose simplices are found side by side.
BLOCK = 128
# Points whose marginals are updated at a time: their rows stay in the second cache from one kernel to the next.
STRIP = 4096
# A thread isn't woken to blur fewer floats than this.
GRAIN = 1 << 16
# Slots of an empty hash table.
SLOTS = 1 << 12
# Fibonacci hashing: the highest bits of a product with 2^64 over the golden ratio are spread well, whatever the keys.
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
# Marginals below 2^-60 of a point's largest become 0: no label depends on them, and floats near 1e-38 are slow.
LEAST = -60.0


def _in(dimensions: int, dtype: types.Type = types.float32) -> types.Array:
    """Type of an array in one piece that is read."""
    return types.Array(dtype, dimensions, "C", readonly=True)


def _out(dimensions: int, dtype: types.Type = types.float32) -> types.Array:
    """Type of an array in one piece that is written."""
    return types.Array(dtype, dimensions, "C")


@dataclasses.dataclass(frozen=True)
class Lattice(reference.Lattice):
    """A lattice that also knows its corners by vertex.

    Attributes
    ----------
    start : (M + 1,) int64
        Where each vertex's points begin in the other two.
    point : (N (D + 1),) int32
        The points around each vertex, in ascending order.
    share : (N (D + 1),) float32
        The weight of the vertex for each of them.
    """

    start: np.ndarray
    point: np.ndarray
    share: np.ndarray


def permutohedral_lattice(features: np.ndarray) -> reference.Lattice:
    if features.dtype != np.float32:
        return reference.permutohedral_lattice(features)
    features = np.ascontiguousarray(features)
    scale, stride, origin = reference.lattice_geometry(features)
    axes, points = len(stride), features.shape[1]
    vertex, weight = np.empty((points, axes), np.int32), np.empty((points, axes), np.float32)
    found = {}

    def embed(first: int, last: int) -> None:
        found[first, last] = _embed(features, scale, stride, origin, first, last, vertex, weight)

    team.parallel_for(embed, points, BLOCK)
    bands = sorted(found)
    keys, slots, count = np.empty(SLOTS // 2, np.int64), np.full(SLOTS, -1, np.int32), 0
    numbers = {}
    for band in bands:
        own, _ = found[band]
        numbers[band] = np.empty(len(own), np.int32)
        keys, slots, count = _enter(own, keys, slots, count, numbers[band])

    start = np.zeros(count + 1, np.int64)
    for band in bands:
        _add_at(numbers[band], found[band][1], start[1:])
    start.cumsum(out=start)
    place, cursors = start[:-1].copy(), {}
    for band in bands:
        cursors[band] = place[numbers[band]]
        _add_at(numbers[band], found[band][1], place)
    point, share = np.empty(vertex.size, np.int32), np.empty(vertex.size, np.float32)

    def transpose(first: int, last: int) -> None:
        for band in bands[first:last]:
            _transpose(*band, numbers[band], cursors[band], vertex, weight, point, share)

    team.parallel_for(transpose, len(bands))
    neighbor = np.full((axes, count, 2), count, np.int32)
    ahead = stride.sum() - axes * stride
    team.parallel_for(lambda first, last: _link(keys, slots, ahead, first, last, neighbor), count, BLOCK)
    return Lattice(vertex, weight, neighbor, start, point, share)


def lattice_filter(lattice: reference.Lattice, values: np.ndarray) -> np.ndarray:
    if not isinstance(lattice, Lattice) or values.dtype != np.float32:
        return reference.lattice_filter(lattice, values)
    points, channels = values.shape
    blur = _Blur([lattice], [1.0], _padded(values))
    result = np.zeros_like(blur.values)

    def work(worker: team.Worker) -> None:
        blur.run(worker)
        blur.add(result, *worker.share(points, BLOCK))

    team.run_team(work)
    return np.ascontiguousarray(result[:, :channels])


def normalize_lattice(lattice: reference.Lattice) -> reference.Lattice:
    if not isinstance(lattice, Lattice):
        return reference.normalize_lattice(lattice)
    points = len(lattice.weight)
    factor = 1 / np.sqrt(lattice_filter(lattice, np.ones((points, 1), np.float32)))
    weight, share = np.empty_like(lattice.weight), np.empty_like(lattice.share)

    def scale(first: int, last: int) -> None:
        _scale(lattice.weight, lattice.share, lattice.point, factor, first, last, weight, share)

    team.parallel_for(scale, points, BLOCK)
    return dataclasses.replace(lattice, weight=weight, share=share)


def mean_field(
    unary: np.ndarray, lattices: Sequence[reference.Lattice], compatibility: Sequence[float], steps: int
) -> np.ndarray:
    points, classes = unary.shape
    if unary.dtype != np.float32 or classes == 1 or not all(isinstance(lattice, Lattice) for lattice in lattices):
        return reference.mean_field(unary, lattices, compatibility, steps)
    if classes == 2:
        # The difference of the two marginals says it all: q1 - q0 = tanh((u0 - u1 + sum of gains K (q1 - q0)) / 2).
        energy, update = np.subtract(unary[:, :1], unary[:, 1:]), _to_differences
    else:
        energy, update = _padded(-unary, -np.inf), _to_marginals
    state = np.empty_like(energy)
    blur = _Blur(lattices, compatibility, state)

    def work(worker: team.Worker) -> None:
        start, stop = worker.share(points, STRIP)
        for step in range(steps + 1):
            if step:
                blur.run(worker)
            for first in range(start, stop, STRIP):
                last = min(first + STRIP, stop)
                state[first:last] = energy[first:last]
                if step:
                    blur.add(state, first, last)
                update(state, first, last)
            worker.wait()

    team.run_team(work)
    if classes == 2:
        return np.concatenate((0.5 - 0.5 * state, 0.5 + 0.5 * state), axis=1)
    return np.ascontiguousarray(state[:, :classes])


class _Blur:
    """Sums over all pairs of points on several lattices, each times a gain; what a team of threads does together.

    Parameters
    ----------
    lattices : sequence of Lattice
    gains : sequence of float
    values : (N, C) float32
        Read anew by every run.
    """

    def __init__(self, lattices: Sequence[Lattice], gains: Sequence[float], values: np.ndarray):
        points, self.width = values.shape
        self.values, self.lattices = values, lattices
        self.most = max((len(lattice.neighbor) for lattice in lattices), default=0)
        self.gains = [np.float32(gain / (1 + 2.0 ** (1 - len(each.neighbor)))) for gain, each in zip(gains, lattices)]
        # The last row stays 0, for neighbors that aren't there.
        shapes = [(len(lattice.start), self.width) for lattice in lattices]
        self.vertices = [[np.zeros(shape, np.float32) for _ in range(2)] for shape in shapes]

    def run(self, worker: team.Worker) -> None:
        """Splat and blur."""
        for lattice, gain, (ours, _) in zip(self.lattices, self.gains, self.vertices):
            first, last = worker.share(len(lattice.start) - 1, BLOCK)
            _splat(lattice.start, lattice.point, lattice.share, gain, self.values, first, last, ours)
        for axis in range(self.most):
            worker.wait()
            for lattice, vertices in zip(self.lattices, self.vertices):
                if axis < len(lattice.neighbor):
                    first, last = worker.share(len(lattice.start) - 1, GRAIN // self.width)
                    _blur(lattice.neighbor[axis], vertices[axis % 2], first, last, vertices[1 - axis % 2])
        worker.wait()

    def add(self, target: np.ndarray, first: int, last: int) -> None:
        """Slice: add to some rows what a run has found."""
        for lattice, vertices in zip(self.lattices, self.vertices):
            _slice(lattice.vertex, lattice.weight, vertices[len(lattice.neighbor) % 2], first, last, target)


def _padded(values: np.ndarray, filling: float = 0.0) -> np.ndarray:
    """Rows of one float, or of whole vectors."""
    points, channels = values.shape
    if channels == 1:
        return np.ascontiguousarray(values)
    rows = np.full((points, -(-channels // WIDTH) * WIDTH), filling, np.float32)
    rows[:, :channels] = values
    return rows


# --- building ---------------------------------------------------------------------------------------------------------


@kernel
def _shift(slots):
    """How far to shift a product of 64 bits so that as many are left as number the slots."""
    shift = 64
    while (len(slots) >> (64 - shift)) > 1:
        shift -= 1
    return np.uint64(shift)


@kernel
def _find(key, keys, slots, shift):
    """The slot of a key, or the empty one where it belongs."""
    slot = np.int64((np.uint64(key) * GOLDEN) >> shift)
    while slots[slot] >= 0 and keys[slots[slot]] != key:
        slot = (slot + 1) & (len(slots) - 1)
    return slot


@kernel(_in(1, types.int64), _out(1, types.int64), _out(1, types.int32), types.int64, _out(1, types.int32))
def _enter(wanted, keys, slots, count, numbers):
    """Number keys in the order in which they first occur.

    Parameters
    ----------
    wanted : (n,) int64, IN
    keys : (S / 2,) int64, OUT
        By number.
    slots : (S,) int32, OUT
        The hash table: numbers, or -1. S is a power of two.
    count : int
        Of keys so far.
    numbers : (n,) int32, OUT

    Returns
    -------
    keys, slots, count
        New ones where those given were too small to stay half empty.
    """
    size = len(slots)
    while size < 2 * (count + len(wanted)):
        size *= 2
    if size > len(slots):
        more, slots = np.empty(size // 2, np.int64), np.full(size, np.int32(-1))
        shift = _shift(slots)
        for number in range(count):
            more[number] = keys[number]
            slots[_find(keys[number], more, slots, shift)] = number
        keys = more
    shift = _shift(slots)
    for i in range(len(wanted)):
        slot = _find(wanted[i], keys, slots, shift)
        if slots[slot] < 0:
            slots[slot] = count
            keys[count] = wanted[i]
            count += 1
        numbers[i] = slots[slot]
    return keys, slots, count


# Without contraction: the operations of the reference, rounded like them, so that both find the same simplices.
@kernel(fastmath=False)
def _simplices(features, scale, stride, origin, first, size, floats, rank, corner, weight):
    """Keys of the corners, and barycentric coordinates, of up to BLOCK points; the reference has the comments.

    Parameters
    ----------
    features, scale, stride, origin, weight
        As for :func:`_embed`.
    first, size : int
    floats : (4, D + 1, BLOCK) float32, rank : (D + 1, BLOCK) int32, OUT
        Scratch.
    corner : (BLOCK (D + 1),) int64, OUT
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
    ordered, step = np.empty(axes, np.float32), np.empty(axes, np.int64)
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
    _in(2), _in(1), _in(1, types.int64), _in(1, types.int64), types.int64, types.int64, _out(2, types.int32), _out(2)
)  # fmt: skip
def _embed(features, scale, stride, origin, first, last, vertex, weight):
    """Corners of some points, numbered among themselves.

    Parameters
    ----------
    features : (D, N) float32, IN
    scale : (D,) float32, stride, origin : (D + 1,) int64, IN
        See :func:`vitnp.kernels.reference.lattice_geometry`.
    first, last : int
        Which points.
    vertex : (N, D + 1) int32, weight : (N, D + 1) float32, OUT

    Returns
    -------
    keys : (m,) int64
        By number.
    touched : (m,) int64
        How many points have each vertex as a corner.
    """
    axes = len(stride)
    floats, rank = np.empty((4, axes, BLOCK), np.float32), np.empty((axes, BLOCK), np.int32)
    corner = np.empty(BLOCK * axes, np.int64)
    keys, slots, count = np.empty(SLOTS // 2, np.int64), np.full(SLOTS, np.int32(-1)), 0
    flat = vertex.reshape(vertex.size)
    for start in range(first, last, BLOCK):
        size = min(BLOCK, last - start)
        _simplices(features, scale, stride, origin, start, size, floats, rank, corner, weight)
        begin, end = start * axes, (start + size) * axes
        keys, slots, count = _enter(corner[: size * axes], keys, slots, count, flat[begin:end])
    touched = np.zeros(count, np.int64)
    for i in range(first * axes, last * axes):
        touched[flat[i]] += 1
    return keys[:count].copy(), touched


@kernel(_in(1, types.int32), _in(1, types.int64), _out(1, types.int64))
def _add_at(places, amounts, total):
    """``total[places] += amounts``, with int32 and int64."""
    for i in range(len(places)):
        total[places[i]] += amounts[i]


@kernel(
    types.int64, types.int64, _in(1, types.int32), _out(1, types.int64), _out(2, types.int32), _in(2),
    _out(1, types.int32), _out(1),
)  # fmt: skip
def _transpose(first, last, number, cursor, vertex, weight, point, share):
    """Bring the numbers of one band into those of all, and enter its points with their vertices.

    Parameters
    ----------
    first, last : int
        The band's points.
    number : (m,) int32, IN
        Of the band's vertices among all.
    cursor : (m,) int64, OUT
        Where the band's first point of each of them goes; moved on.
    vertex : (N, D + 1) int32, OUT
    weight : (N, D + 1) float32, IN
    point : (N (D + 1),) int32, share : (N (D + 1),) float32, OUT
    """
    for p in range(first, last):
        for r in range(vertex.shape[1]):
            own = vertex[p, r]
            vertex[p, r] = number[own]
            point[cursor[own]] = p
            share[cursor[own]] = weight[p, r]
            cursor[own] += 1


@kernel(_in(1, types.int64), _in(1, types.int32), _in(1, types.int64), types.int64, types.int64, _out(3, types.int32))
def _link(keys, slots, ahead, first, last, neighbor):
    """Make some vertices known to those ahead of them, and these to them.

    Parameters
    ----------
    keys : (S / 2,) int64, slots : (S,) int32, IN
        The hash table of :func:`_enter`.
    ahead : (D + 1,) int64, IN
        What to add to a key for one step along each axis.
    first, last : int
        Which vertices.
    neighbor : (D + 1, M, 2) int32, OUT
    """
    shift = _shift(slots)
    for axis in range(len(ahead)):
        for e in range(first, last):
            found = slots[_find(keys[e] + ahead[axis], keys, slots, shift)]
            if found >= 0:
                neighbor[axis, e, 1] = found
                neighbor[axis, found, 0] = e


@kernel(_in(2), _in(1), _in(1, types.int32), _in(2), types.int64, types.int64, _out(2), _out(1))
def _scale(weight, share, point, factor, first, last, scaled_weight, scaled_share):
    """Multiply the weights of some points, and as many shares, by the factor (N, 1) of their point."""
    axes = weight.shape[1]
    for p in range(first, last):
        for r in range(axes):
            scaled_weight[p, r] = weight[p, r] * factor[p, 0]
    for k in range(first * axes, last * axes):
        scaled_share[k] = share[k] * factor[point[k], 0]


# --- filtering and inference ------------------------------------------------------------------------------------------


@intrinsic
def _gather(context, index, weight, entries, gain, values, add, target, width):
    """``target += gain * sum over k of weight[k] * values[index[k]]``, or without ``+`` where add is 0.

    Addresses in bytes; rows of `width` floats, a multiple of WIDTH.
    """

    def generate(context, builder, signature, arguments):
        index, weight, entries, gain, values, add, target, width = arguments
        v = Vectors(builder, WIDTH)
        index = builder.inttoptr(index, I32.as_pointer())
        weight, values, target = v.pointer(weight), v.pointer(values), v.pointer(target)
        gain, adding = v.splat(gain), builder.icmp_signed("!=", add, I64(0))

        def columns(column, _):
            def turn(k, total):
                row = builder.mul(builder.sext(builder.load(v.at(index, k)), I64), width)
                scalar = v.splat(builder.load(v.at(weight, k)))
                return [v.fma(scalar, v.load(v.at(values, builder.add(row, column))), total[0])]

            _, (total,) = loop(builder, 0, entries, 1, [v.constant(0.0)], turn)
            place = v.at(target, column)
            v.store(v.fma(gain, total, builder.select(adding, v.load(place), v.constant(0.0))), place)
            return []

        loop(builder, 0, width, WIDTH, [], columns)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.float32, *[types.int64] * 4), generate


@intrinsic
def _softmax(context, row, width):
    """A row, at an address in bytes, becomes its softmax. `width` is a multiple of WIDTH."""

    def generate(context, builder, signature, arguments):
        row, width = arguments
        v = Vectors(builder, WIDTH)
        row = v.pointer(row)

        def larger(a, b):
            return builder.select(builder.fcmp_ordered(">", a, b), a, b)

        def maximum(column, top):
            return [larger(v.load(v.at(row, column)), top[0])]

        def power(column, total):
            place = v.at(row, column)
            depth = builder.fmul(builder.fsub(v.load(place), top), v.constant(LOG2_E))
            value = builder.select(builder.fcmp_ordered(">", depth, v.constant(LEAST)), v.exp2(depth), v.constant(0.0))
            v.store(value, place)
            return [builder.fadd(total[0], value)]

        def scale(column, _):
            v.store(builder.fmul(v.load(v.at(row, column)), scaling), v.at(row, column))
            return []

        _, (top,) = loop(builder, 0, width, WIDTH, [v.constant(-np.inf)], maximum)
        top = v.splat(v.fold(top, larger))
        _, (total,) = loop(builder, 0, width, WIDTH, [v.constant(0.0)], power)
        scaling = builder.fdiv(v.constant(1.0), v.splat(v.fold(total, builder.fadd)))
        loop(builder, 0, width, WIDTH, [], scale)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def _tanh_of_half(context, row, width):
    """Each x of a row, at an address in bytes, becomes tanh(x / 2). `width` is a multiple of WIDTH."""

    def generate(context, builder, signature, arguments):
        row, width = arguments
        v = Vectors(builder, WIDTH)
        row, one = v.pointer(row), v.constant(1.0)

        def turn(column, _):
            place = v.at(row, column)
            x = v.load(place)
            power = v.exp2(builder.fmul(v.call("fabs", x), v.constant(-LOG2_E)))
            size = builder.fdiv(builder.fsub(one, power), builder.fadd(one, power))
            v.store(v.call("copysign", size, x), place)
            return []

        loop(builder, 0, width, WIDTH, [], turn)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@kernel(_in(1, types.int64), _in(1, types.int32), _in(1), types.float32, _in(2), types.int64, types.int64, _out(2))
def _splat(start, point, share, gain, values, first, last, vertices):
    """Some vertices become the weighted sums of their points.

    Parameters
    ----------
    start, point, share : IN
        See :class:`Lattice`.
    gain : float32
        Of all weights.
    values : (N, C) float32, IN
        C is 1 or a multiple of WIDTH, here and below.
    first, last : int
    vertices : (M + 1, C) float32, OUT
    """
    width = values.shape[1]
    if width == 1:
        for e in range(first, last):
            total = np.float32(0)
            for k in range(start[e], start[e + 1]):
                total += share[k] * values[point[k], 0]
            vertices[e, 0] = gain * total
        return
    points, shares, rows, targets = point.ctypes.data, share.ctypes.data, values.ctypes.data, vertices.ctypes.data
    for e in range(first, last):
        at = 4 * start[e]
        entries, target = start[e + 1] - start[e], targets + 4 * width * e
        _gather(points + at, shares + at, entries, gain, rows, np.int64(0), target, width)


@kernel(_in(2, types.int32), _in(2), _in(2), types.int64, types.int64, _out(2))
def _slice(vertex, weight, vertices, first, last, values):
    """To some points add the weighted sums of their corners.

    Parameters
    ----------
    vertex, weight : IN
        See :class:`Lattice`.
    vertices : (M + 1, C) float32, IN
    first, last : int
    values : (N, C) float32, OUT
    """
    axes, width = vertex.shape[1], vertices.shape[1]
    if width == 1:
        for p in range(first, last):
            total = values[p, 0]
            for r in range(axes):
                total += weight[p, r] * vertices[vertex[p, r], 0]
            values[p, 0] = total
        return
    corners, weights, rows, targets = vertex.ctypes.data, weight.ctypes.data, vertices.ctypes.data, values.ctypes.data
    for p in range(first, last):
        at = 4 * axes * p
        _gather(corners + at, weights + at, axes, np.float32(1), rows, np.int64(1), targets + 4 * width * p, width)


@kernel(_in(2, types.int32), _in(2), types.int64, types.int64, _out(2))
def _blur(neighbor, vertices, first, last, blurred):
    """Filter some vertices by [1/2 1 1/2] along one axis.

    Parameters
    ----------
    neighbor : (M, 2) int32, IN
    vertices : (M + 1, C) float32, IN
        The last row is 0.
    first, last : int
    blurred : (M + 1, C) float32, OUT
    """
    half, width = np.float32(0.5), vertices.shape[1]
    if width == 1:
        for e in range(first, last):
            blurred[e, 0] = vertices[e, 0] + half * (vertices[neighbor[e, 0], 0] + vertices[neighbor[e, 1], 0])
        return
    for e in range(first, last):
        back, ahead = neighbor[e, 0], neighbor[e, 1]
        for c in range(width):
            blurred[e, c] = vertices[e, c] + half * (vertices[back, c] + vertices[ahead, c])


@kernel(_out(2), types.int64, types.int64)
def _to_marginals(state, first, last):
    """Some rows of logits, (N, C) float32, become their softmax."""
    width = state.shape[1]
    for p in range(first, last):
        _softmax(state.ctypes.data + 4 * width * p, width)


@kernel(_out(2), types.int64, types.int64)
def _to_differences(state, first, last):
    """Some log-odds x, (N, 1) float32, become tanh(x / 2), the difference of the two probabilities."""
    whole = (last - first) // WIDTH * WIDTH
    _tanh_of_half(state[first:].ctypes.data, whole)
    rest = np.zeros(WIDTH, np.float32)
    for p in range(first + whole, last):
        rest[p - first - whole] = state[p, 0]
    _tanh_of_half(rest.ctypes.data, WIDTH)
    for p in range(first + whole, last):
        state[p, 0] = rest[p - first - whole]
