"""What k-means and similarity do to rows of features: read them, multiply them by centroids, find the largest, add them up.

Kernels here know memory by address: rows are float16, float32 or float64, and a kernel compiled for each type would take three
times as long to compile. A few rows at a time (ROWS) are converted into scratch memory, where all the rest happens: the features
themselves are read once.

Two forms of product. *By columns*: a vector holds the products of one row with LANES
centroids. *By dots*: a vector holds LANES parts of one product, added up at the end; for few centroids, where columns would
leave most lanes idle.
"""

from __future__ import annotations

from collections.abc import Callable

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from vitnp.kernels.cpu.codegen.jit import kernel
from vitnp.kernels.cpu.codegen.simd import FLOAT, HALF, I32, I64, LANES, Vectors, loop

# Tiles by columns, rows x vectors: accumulators, columns and one row's number fill the registers. Any number of vectors from 2
# on is a sum of these twos and threes, and ROWS is a multiple of both numbers of rows.
WIDE = LANES == 16
TWO_ROWS, THREE_ROWS = (12, 8) if WIDE else (6, 4)
ROWS = 24
# Fewer, where there is little to do with each, so that the next ones can be brought to the first cache meanwhile: of NARROW
# numbers at most, or wider ones.
FEW_ROWS, FEW_WIDE_ROWS, NARROW = 8, 4, 512
DEPTH = 192  # numbers of a row that are multiplied at a time: 192 x 48 centroids' numbers are 37 KB, and stay in the first cache

# Tiles by dots, rows x centroids: as many sums as a vector has lanes, so that added up they make one vector.
PAIR_ROWS = LANES // 2
QUAD_ROWS = {16: 4, 8: 2, 4: 1}[LANES]
DOTS = LANES  # up to so many centroids dots are faster

FAR_AHEAD = 16_384  # bytes: what is asked for so long before it is read has come to the second cache by then

FAINT = np.float32(
    1e-30
)  # rows whose squares add up to less are scaled first, or their squares would be rounded to nothing

KINDS = {"f": 0, "d": 1, "e": 2}
# Half precision takes an instruction that old x86 processors lack: there NumPy converts the rows first.
HAS_HALF = not llvmlite.binding.get_default_triple().startswith("x86") or bool(
    llvmlite.binding.get_host_cpu_features().get("f16c")
)


def rows_of(x: np.ndarray) -> tuple[np.ndarray, int]:
    """The rows as kernels can read them, and the number of their type in KINDS: `x` itself if possible, else a copy as float32."""
    kind = KINDS.get(x.dtype.char)
    readable = kind is not None and x.dtype.isnative and (x.strides[1] == x.itemsize or x.shape[1] == 1)
    if not readable or (kind == KINDS["e"] and not HAS_HALF):
        with np.errstate(over="ignore"):
            return np.array(x, np.float32, order="C"), KINDS["f"]
    return x, kind


def _fold_four(v: Vectors, sums: list[ir.Value]) -> ir.Value:
    """The sum over all lanes of four vectors."""
    add = v.builder.fadd
    return v.fold(add(add(sums[0], sums[1]), add(sums[2], sums[3])), add)


def _prefetch(v: Vectors, address: ir.Value, cache: int) -> None:
    """Ask for the cache line at an address, of memory or not, to be brought to the first or second cache meanwhile."""
    byte = ir.IntType(8).as_pointer()
    signature = ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32])
    function = cgutils.get_or_insert_function(v.builder.module, signature, "llvm.prefetch.p0")
    reading, data = I32(0), I32(1)
    v.builder.call(function, [v.builder.inttoptr(address, byte), reading, I32(4 - cache), data])


def _reader(element: ir.Type) -> Callable:
    """``read(into, row, shift, n, ahead)``: converts a row to float32, less the shift; the sum of squares. The memory that lies
    `ahead` bytes behind it is asked for meanwhile.
    """

    @intrinsic
    def read(context, into, row, shift, n, ahead):
        def generate(context, builder, signature, arguments):
            into, row, shift, n, ahead = arguments
            v = Vectors(builder)
            into, shift, row = v.pointer(into), v.pointer(shift), v.pointer(row, element)
            size = {HALF: 2, FLOAT: 4}.get(element, 8)

            def single(value, target):
                if element is HALF:
                    return builder.fpext(value, target)
                return value if element is FLOAT else builder.fptrunc(value, target)

            def vectors(count):
                def body(index, squares):
                    following = []
                    for u in range(count):
                        at = builder.add(index, I64(u * LANES))
                        _prefetch(v, builder.add(builder.ptrtoint(v.at(row, at), I64), ahead), cache=2)
                        value = builder.load(builder.bitcast(v.at(row, at), ir.VectorType(element, LANES).as_pointer()))
                        value.align = size
                        value = builder.fsub(single(value, v.type), v.load(v.at(shift, at)))
                        v.store(value, v.at(into, at))
                        following.append(v.fma(value, value, squares[u]))
                    return following

                return body

            index, squares = loop(builder, 0, n, 4 * LANES, [v.constant(0.0)] * 4, vectors(4))
            index, first = loop(builder, index, n, LANES, squares[:1], vectors(1))
            total = _fold_four(v, first + squares[1:])

            def last(index, total):
                value = builder.fsub(single(builder.load(v.at(row, index)), FLOAT), builder.load(v.at(shift, index)))
                builder.store(value, v.at(into, index))
                return [builder.fadd(builder.fmul(value, value), total[0])]

            return loop(builder, index, n, 1, [total], last)[1][0]

        return types.float32(*[types.int64] * 5), generate

    return read


_read_single, _read_double, _read_half = _reader(FLOAT), _reader(ir.DoubleType()), _reader(HALF)


def _column_tile(rows: int, vectors: int) -> Callable:
    """``tile(a, ld, b, out, ld_out, n, add, ahead, every)``: products of `rows` rows with ``vectors * LANES`` others, whose
    numbers lie side by side in b.

    As :func:`vitnp.kernels.cpu.codegen.simd.product_tile`, and meanwhile it asks for what the next tiles will read: the memory at
    ``ahead + every k`` in turn k. It takes as long to arrive as products take to be computed.
    """

    @intrinsic
    def tile(context, a, ld, b, out, ld_out, n, add, ahead, every):
        def generate(context, builder, signature, arguments):
            a, ld, b, out, ld_out, n, add, ahead, every = arguments
            v = Vectors(builder)
            a, b, out = v.pointer(a), v.pointer(b), v.pointer(out)
            a_rows = [v.at(a, builder.mul(ld, I64(i))) for i in range(rows)]

            def turn(k, sums):
                _prefetch(v, builder.add(ahead, builder.mul(k, every)), cache=2)
                others = v.at(b, builder.mul(k, I64(vectors * LANES)))
                columns = [v.load(v.at(others, j * LANES)) for j in range(vectors)]
                following = []
                for i in range(rows):
                    number = v.splat(builder.load(v.at(a_rows[i], k)))
                    following += [v.fma(number, columns[j], sums[i * vectors + j]) for j in range(vectors)]
                return following

            zero = v.constant(0.0)
            _, sums = loop(builder, 0, n, 1, [zero] * (rows * vectors), turn)
            adding = builder.icmp_signed("!=", add, I64(0))
            for i in range(rows):
                for j in range(vectors):
                    slot = v.at(out, builder.add(builder.mul(ld_out, I64(i)), I64(j * LANES)))
                    before = builder.select(adding, v.load(slot), zero)
                    v.store(builder.fadd(sums[i * vectors + j], before), slot)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 9), generate

    return tile


def _dot_tile(rows: int, others: int, apart: bool) -> Callable:
    """``tile(a, b, ld, n, out, ld_out)``: products, or with `apart` squared distances, of `rows` rows with `others` others.

    Addresses in bytes, steps in elements; n is a multiple of LANES. The sums of all lanes of rows * others = LANES vectors are
    taken together: halves of two vectors are added into one until there is one left.
    """

    @intrinsic
    def tile(context, a, b, ld, n, out, ld_out):
        def generate(context, builder, signature, arguments):
            a, b, ld, n, out, ld_out = arguments
            v = Vectors(builder)
            a_rows = [v.at(v.pointer(a), builder.mul(ld, I64(i))) for i in range(rows)]
            b_rows = [v.at(v.pointer(b), builder.mul(ld, I64(j))) for j in range(others)]

            def turn(index, sums):
                right = [v.load(v.at(row, index)) for row in b_rows]
                following = []
                for i in range(rows):
                    left = v.load(v.at(a_rows[i], index))
                    for j in range(others):
                        if apart:
                            off = builder.fsub(left, right[j])
                            following.append(v.fma(off, off, sums[i * others + j]))
                        else:
                            following.append(v.fma(left, right[j], sums[i * others + j]))
                return following

            _, sums = loop(builder, 0, n, LANES, [v.constant(0.0)] * (rows * others), turn)
            sums = sum_lanes(v, sums)
            for i in range(rows):
                part = ir.Constant(ir.VectorType(I32, others), [i * others + j for j in range(others)])
                v.store(builder.shuffle_vector(sums, sums, part), v.at(v.pointer(out), builder.mul(ld_out, I64(i))))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), generate

    return tile


def sum_lanes(v: Vectors, values: list[ir.Value]) -> ir.Value:
    """LANES vectors to one: lane i is the sum over all lanes of vector i."""
    width = v.lanes
    indices = ir.VectorType(I32, v.lanes)
    while width > 1:
        # Vectors are made of runs of `width` lanes, one run a sum; here a run becomes half as long, a vector holds twice as many.
        half, runs = width // 2, v.lanes // width
        low, high = (
            ir.Constant(
                indices,
                [
                    part * half + run * width + lane + which * v.lanes
                    for which in (0, 1)
                    for run in range(runs)
                    for lane in range(half)
                ],
            )
            for part in (0, 1)
        )
        values = [
            v.builder.fadd(v.builder.shuffle_vector(a, b, low), v.builder.shuffle_vector(a, b, high))
            for a, b in zip(values[::2], values[1::2])
        ]
        width = half
    return values[0]


_two, _three = _column_tile(TWO_ROWS, 2), _column_tile(THREE_ROWS, 3)
_pair, _quad = _dot_tile(PAIR_ROWS, 2, False), _dot_tile(QUAD_ROWS, 4, False)
_apart = _dot_tile(QUAD_ROWS, 4, True)


@intrinsic
def largest(context, row, bias, n):
    """Index of the largest of ``row + bias``, the lowest of equal ones; n a multiple of LANES. In range whatever the numbers."""

    def generate(context, builder, signature, arguments):
        row, bias, n = arguments
        v = Vectors(builder)
        row, bias = v.pointer(row), v.pointer(bias)
        integers = ir.VectorType(I32, LANES)
        lanes = ir.Constant(integers, list(range(LANES)))

        def turn(index, carried):
            best, place, here = carried
            value = builder.fadd(v.load(v.at(row, index)), v.load(v.at(bias, index)))
            better = builder.fcmp_ordered(">", value, best)
            following = builder.add(here, ir.Constant(integers, [LANES] * LANES))
            return [builder.select(better, value, best), builder.select(better, here, place), following]

        start = [v.constant(-np.inf), ir.Constant(integers, [0] * LANES), lanes]
        _, (best, place, _) = loop(builder, 0, n, LANES, start, turn)
        top = v.splat(v.fold(best, v.larger))
        beyond = ir.Constant(integers, [2**31 - 1] * LANES)
        place = builder.select(builder.fcmp_ordered("==", best, top), place, beyond)
        first = v.fold(place, lambda a, b: builder.select(builder.icmp_signed("<", a, b), a, b))
        return builder.sext(first, I64)

    return types.int64(*[types.int64] * 3), generate


def _adder(apart: bool) -> Callable:
    """``add(row, sums, n, scale, ahead)`` adds a row times `scale` to `sums`; ``add(row, sums, n, centroid, ahead)`` adds it as it
    is, and gives its squared distance to the centroid. n is a multiple of LANES; the memory at `ahead` is asked for meanwhile.
    """

    @intrinsic
    def add(context, row, sums, n, other, ahead):
        def generate(context, builder, signature, arguments):
            row, sums, n, other, ahead = arguments
            v = Vectors(builder)
            row, sums = v.pointer(row), v.pointer(sums)
            other = v.pointer(other) if apart else v.splat(other)

            def turn(count):
                def body(index, carried):
                    following = []
                    for u in range(count):
                        at = builder.add(index, I64(u * LANES))
                        _prefetch(v, builder.add(ahead, builder.mul(at, I64(4))), cache=1)
                        value, held = v.load(v.at(row, at)), v.load(v.at(sums, at))
                        if apart:
                            v.store(builder.fadd(held, value), v.at(sums, at))
                            off = builder.fsub(value, v.load(v.at(other, at)))
                            following.append(v.fma(off, off, carried[u]))
                        else:
                            v.store(v.fma(value, other, held), v.at(sums, at))
                    return following

                return body

            squares = [v.constant(0.0)] * 4 if apart else []
            index, squares = loop(builder, 0, n, 4 * LANES, squares, turn(4))
            _, first = loop(builder, index, n, LANES, squares[:1], turn(1))
            if not apart:
                return ir.Constant(FLOAT, 0.0)
            return _fold_four(v, first + squares[1:])

        last = types.int64 if apart else types.float32
        return types.float32(types.int64, types.int64, types.int64, last, types.int64), generate

    return add


add_scaled, add_apart = _adder(False), _adder(True)


@intrinsic
def widen(context, sums, n, into):
    """Add n float32 numbers to as many of float64."""

    def generate(context, builder, signature, arguments):
        sums, n, into = arguments
        v = Vectors(builder)
        double = ir.DoubleType()
        doubles = ir.VectorType(double, LANES)
        sums, into = v.pointer(sums), v.pointer(into, double)

        def several(index, _):
            slot = builder.bitcast(v.at(into, index), doubles.as_pointer())
            held = builder.load(slot)
            held.align = 8
            builder.store(builder.fadd(held, builder.fpext(v.load(v.at(sums, index)), doubles)), slot).align = 8
            return []

        def one(index, _):
            slot = v.at(into, index)
            builder.store(
                builder.fadd(builder.load(slot), builder.fpext(builder.load(v.at(sums, index)), double)), slot
            )
            return []

        index, _ = loop(builder, 0, n, LANES, [], several)
        loop(builder, index, n, 1, [], one)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), generate


@intrinsic
def distance(context, row, other, n):
    """Squared distance of two rows; n is a multiple of LANES. To the bit what :func:`add_apart` gives."""

    def generate(context, builder, signature, arguments):
        row, other, n = arguments
        v = Vectors(builder)
        row, other = v.pointer(row), v.pointer(other)

        def turn(count):
            def body(index, carried):
                following = []
                for u in range(count):
                    at = builder.add(index, I64(u * LANES))
                    off = builder.fsub(v.load(v.at(row, at)), v.load(v.at(other, at)))
                    following.append(v.fma(off, off, carried[u]))
                return following

            return body

        index, squares = loop(builder, 0, n, 4 * LANES, [v.constant(0.0)] * 4, turn(4))
        _, first = loop(builder, index, n, LANES, squares[:1], turn(1))
        return _fold_four(v, first + squares[1:])

    return types.float32(*[types.int64] * 3), generate


@kernel
def aligned(array):
    """Index of the first element of a float32 array that stands at the start of a cache line."""
    return -(array.ctypes.data // 4) % 16


@kernel
def read_row(into, row, kind, shift, n, ahead):
    """Convert one row of a kind of KINDS to float32, less the shift; the sum of its squares.

    `ahead` is 0, or how many bytes farther on memory is asked for meanwhile.
    """
    if kind == 0:
        return _read_single(into, row, shift, n, ahead)
    if kind == 1:
        return _read_double(into, row, shift, n, ahead)
    return _read_half(into, row, shift, n, ahead)


@kernel(fastmath=False)  # or roots would be approximated
def length(work, at, n, squares):
    """Length of the row in ``work[at : at + n]``, given its sum of squares: infinite for a row of zeros, which so becomes one of
    zeros when it's divided by its length, NaN for one that isn't finite. A faint row is enlarged where it stands.
    """
    if squares < FAINT:
        peak = np.float32(0)
        for i in range(at, at + n):
            peak = max(peak, abs(work[i]))
        if peak == 0:
            return np.float32(np.inf)
        squares = np.float32(0)
        for i in range(at, at + n):
            work[i] /= peak
            squares += work[i] * work[i]
    return np.sqrt(squares) if squares < np.inf else np.float32(np.nan)


@kernel
def padded(count, n):
    """Columns that products of rows of n numbers with `count` others are given: whole vectors, and whole tiles."""
    if count <= 2 and n <= NARROW:
        return 2
    if count <= DOTS:
        return (count + 3) // 4 * 4
    return max((count + LANES - 1) // LANES, 2) * LANES


@kernel
def lay_out(others, work, at, rows, n):
    """Copy (K, D) numbers to ``work[at:]`` as `rows` x n, filled up with zeros."""
    count, width = others.shape
    work[at : at + rows * n] = 0
    for j in range(count):
        for d in range(width):
            work[at + j * n + d] = others[j, d]


@kernel
def pack(others, work, at, n):
    """Lay rows out for :func:`products`: copied into ``work[at:]``, ``padded(K, n) * n`` numbers. `others` is (K, D), D <= n."""
    count, width = others.shape
    columns = padded(count, n)
    if columns <= DOTS:
        lay_out(others, work, at, columns, n)
        return
    work[at : at + columns * n] = 0
    column = 0
    while column < columns:
        step = panel(columns - column) * LANES
        here = at + column * n
        for start in range(0, width, 2 * LANES):  # few lines of the target at a time, so that they stay near
            for j in range(min(step, count - column)):
                for d in range(start, min(start + 2 * LANES, width)):
                    work[here + d * step + j] = others[column + j, d]
        column += step


@kernel
def panel(columns):
    """Vectors of the next panel: twos while what is left is no multiple of three."""
    return 3 if columns % (3 * LANES) == 0 else 2


@kernel
def products(rows, count, n, packed, columns, out, step, ahead, bytes_ahead):
    """``out = rows others^T`` for `count` rows of n numbers.

    Addresses; from row to row of `out` it's `step` numbers. Both have room for whole tiles, a multiple of ROWS rows. By columns
    it takes long enough for `bytes_ahead` bytes of memory from `ahead` on to be brought near meanwhile.
    """
    if columns == 2:
        for i in range(0, count, PAIR_ROWS):
            _pair(rows + 4 * i * n, packed, n, n, out + 4 * i * step, step)
    elif columns <= DOTS:
        for i in range(0, count, QUAD_ROWS):
            for j in range(0, columns, 4):
                _quad(rows + 4 * i * n, packed + 4 * j * n, n, n, out + 4 * (i * step + j), step)
    else:
        panels = (columns + 2 * LANES) // (3 * LANES)
        every = bytes_ahead * TWO_ROWS // (count * n * panels) + 1
        column = 0
        while column < columns:
            vectors = panel(columns - column)
            wide = vectors * LANES
            for start in range(0, n, DEPTH):
                depth = min(DEPTH, n - start)
                part = packed + 4 * (column * n + start * wide)
                if vectors == 2:
                    for i in range(0, count, TWO_ROWS):
                        at, into = rows + 4 * (i * n + start), out + 4 * (i * step + column)
                        _two(at, n, part, into, step, depth, start, ahead, every)
                        ahead += depth * every
                else:
                    for i in range(0, count, THREE_ROWS):
                        at, into = rows + 4 * (i * n + start), out + 4 * (i * step + column)
                        _three(at, n, part, into, step, depth, start, ahead, every)
                        ahead += depth * every
            column += wide


@kernel
def distances(rows, count, n, others, columns, out, step):
    """Squared distances in place of products; `columns` is a multiple of 4, and the others are rows of n numbers."""
    for i in range(0, count, QUAD_ROWS):
        for j in range(0, columns, 4):
            _apart(rows + 4 * i * n, others + 4 * j * n, n, n, out + 4 * (i * step + j), step)


@kernel
def whole(n):
    """The next multiple of LANES."""
    return (n + LANES - 1) // LANES * LANES
