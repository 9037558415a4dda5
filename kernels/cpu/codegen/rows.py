"""Building blocks of k-means and similarity for rows of features: read, normalize and sum rows, find the maximum.

Kernels receive memory as addresses, because rows may be float16, float32 or float64, and compiling a kernel for each
type would take three times as long. A few rows at a time (ROWS) are converted to float32 in a workspace, where all
further steps happen: the features themselves are read once.
"""

from __future__ import annotations

from collections.abc import Callable

import llvmlite.binding
import numpy as np
from llvmlite import ir
from vitnp.kernels.cpu.codegen import types
from vitnp.kernels.cpu.codegen.jit import intrinsic, kernel
from vitnp.kernels.cpu.codegen.simd import FEATURES, FLOAT, HALF, I32, I64, LANES, Vectors, loop
from vitnp.kernels.cpu.codegen.stack import stack_array

# Rows that are converted at a time.
ROWS = 24

# Distance of prefetching in bytes: memory that is requested this far ahead is in the L2 cache when it is read.
FAR_AHEAD = 16_384

# Rows with a smaller sum of squares are scaled up first, because their squares underflow.
TINY = np.float32(1e-30)

# Codes of the dtypes that kernels can read, by NumPy's character.
DTYPE_CODES = {"f": 0, "d": 1, "e": 2}
# Converting half precision takes an instruction that old x86 processors lack: there NumPy converts the rows first.
HAS_HALF = not llvmlite.binding.get_default_triple().startswith("x86") or "f16c" in FEATURES

# numba types of a workspace, and of a matrix that is read.
WORKSPACE = types.Array(types.float32, 1, "C")
MATRIX_IN = types.Array(types.float32, 2, "C", readonly=True)


def round_up_to_vectors(n: int) -> int:
    """Return the next multiple of LANES."""
    return (n + LANES - 1) // LANES * LANES


new_row_numbers = stack_array(ROWS)  # one number per row that is held

round_up = kernel(round_up_to_vectors)


def workspace_size(n_rows: int, width: int, n_products: int, n_others: int) -> int:
    """Return the size of a workspace that :func:`divide_workspace` divides, in float32 numbers.

    Parameters
    ----------
    n_rows : int
        Rows that are held in it.
    width : int
        Numbers of a row, a multiple of LANES.
    n_products : int
        Products of a row, a multiple of LANES.
    n_others : int
        Numbers behind the shift, for whatever the rows are multiplied by.
    """
    return 16 + n_rows * width + ROWS * n_products + width + n_others


@kernel
def divide_workspace(work, n_rows, width, n_products):
    """Divide a workspace into rows (n_rows, width), products (ROWS, n_products), a shift (width,) and the rest.

    Rows and shift are set to zero. Returns the index of the first number of each part.
    """
    rows = -(work.ctypes.data // 4) % 16  # at the start of a cache line
    products = rows + n_rows * width
    shift = products + ROWS * n_products
    rest = shift + width
    work[rows:products] = 0
    work[shift:rest] = 0
    return rows, products, shift, rest


def readable_rows(x: np.ndarray) -> tuple[np.ndarray, int]:
    """Return rows that kernels can read and their code in DTYPE_CODES: `x` itself if possible, else a float32 copy."""
    dtype_code = DTYPE_CODES.get(x.dtype.char)
    contiguous = x.strides[1] == x.itemsize or x.shape[1] == 1
    if dtype_code is not None and x.dtype.isnative and contiguous and (HAS_HALF or dtype_code != DTYPE_CODES["e"]):
        return x, dtype_code
    with np.errstate(over="ignore"):
        return np.array(x, np.float32, order="C"), DTYPE_CODES["f"]


def _fold_four(v: Vectors, sums: list[ir.Value]) -> ir.Value:
    """Return the sum of all lanes of four vectors."""
    add = v.builder.fadd
    return v.fold(add(add(sums[0], sums[1]), add(sums[2], sums[3])), add)


def _reader(element: ir.Type) -> Callable:
    """Generate ``read(target, row, shift, n, ahead)`` for rows of an element type.

    It converts a row to float32, subtracts the shift, and returns the sum of squares. Memory that is `ahead` bytes
    further on is prefetched.
    """

    @intrinsic
    def read(context, target, row, shift, n, ahead):
        def generate(context, builder, signature, arguments):
            target, row, shift, n, ahead = arguments
            v = Vectors(builder)
            target, shift, row = v.pointer(target), v.pointer(shift), v.pointer(row, element)
            size = {HALF: 2, FLOAT: 4}.get(element, 8)

            def to_single(value, result_type):
                if element is HALF:
                    return builder.fpext(value, result_type)
                return value if element is FLOAT else builder.fptrunc(value, result_type)

            def vectors(count):
                def body(index, squares):
                    updated = []
                    for u in range(count):
                        at = builder.add(index, I64(u * LANES))
                        v.prefetch(builder.add(builder.ptrtoint(v.at(row, at), I64), ahead), cache=2)
                        value = builder.load(builder.bitcast(v.at(row, at), ir.VectorType(element, LANES).as_pointer()))
                        value.align = size
                        value = builder.fsub(to_single(value, v.type), v.load(v.at(shift, at)))
                        v.store(value, v.at(target, at))
                        updated.append(v.fma(value, value, squares[u]))
                    return updated

                return body

            index, squares = loop(builder, 0, n, 4 * LANES, [v.constant(0.0)] * 4, vectors(4))
            index, first = loop(builder, index, n, LANES, squares[:1], vectors(1))
            total = _fold_four(v, first + squares[1:])

            def last(index, total):
                value = builder.fsub(to_single(builder.load(v.at(row, index)), FLOAT), builder.load(v.at(shift, index)))
                builder.store(value, v.at(target, index))
                return [builder.fadd(builder.fmul(value, value), total[0])]

            return loop(builder, index, n, 1, [total], last)[1][0]

        return types.float32(*[types.int64] * 5), generate

    return read


_read_single, _read_double = _reader(FLOAT), _reader(ir.DoubleType())
_read_half = _reader(HALF) if HAS_HALF else _read_single  # never called then, see `readable_rows`


@kernel(*[types.int64] * 6, shared=True)
def read_row(target, row, dtype_code, shift, n, ahead):
    """Convert a row of n numbers to float32, subtract the shift, and return the sum of squares.

    `target`, `row` and `shift` are addresses, `dtype_code` is one of DTYPE_CODES, and memory that is `ahead` bytes
    further on is prefetched.
    """
    if dtype_code == 0:
        return _read_single(target, row, shift, n, ahead)
    if dtype_code == 1:
        return _read_double(target, row, shift, n, ahead)
    return _read_half(target, row, shift, n, ahead)


# Without fastmath, because square roots would be approximated.
@kernel(WORKSPACE, types.int64, types.int64, types.float32, fastmath=False, shared=True)
def row_norm(work, at, n, squares):
    """Return the norm of the row in ``work[at : at + n]``, given its sum of squares.

    It is infinite for a row of zeros, which therefore stays zero when it is divided by its norm, and NaN for a row with
    NaN or infinity. A tiny row is scaled up in place, and the norm is that of the scaled row.
    """
    if squares < TINY:
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


@intrinsic
def argmax(context, row, bias, n):
    """Return the index of the maximum of ``row + bias``, the lowest one on ties; n is a multiple of LANES.

    The index is in range even if the row contains NaN.
    """

    def generate(context, builder, signature, arguments):
        row, bias, n = arguments
        v = Vectors(builder)
        row, bias = v.pointer(row), v.pointer(bias)
        integers = ir.VectorType(I32, LANES)
        lanes = ir.Constant(integers, list(range(LANES)))

        def body(index, carried):
            best, position, current = carried
            value = builder.fadd(v.load(v.at(row, index)), v.load(v.at(bias, index)))
            better = builder.fcmp_ordered(">", value, best)
            following = builder.add(current, ir.Constant(integers, [LANES] * LANES))
            return [builder.select(better, value, best), builder.select(better, current, position), following]

        start = [v.constant(-np.inf), ir.Constant(integers, [0] * LANES), lanes]
        _, (best, position, _) = loop(builder, 0, n, LANES, start, body)
        maximum = v.splat(v.fold(best, v.larger))
        out_of_range = ir.Constant(integers, [2**31 - 1] * LANES)
        position = builder.select(builder.fcmp_ordered("==", best, maximum), position, out_of_range)
        first = v.fold(position, lambda a, b: builder.select(builder.icmp_signed("<", a, b), a, b))
        return builder.sext(first, I64)

    return types.int64(*[types.int64] * 3), generate


def _adder(with_distance: bool) -> Callable:
    """Generate ``add(row, sums, n, scale, ahead)`` or, with distances, ``add(row, sums, n, centroid, ahead)``.

    The former adds a row times `scale` to `sums`. The latter adds the row unscaled, and returns its squared distance to
    the centroid. n is a multiple of LANES; memory at `ahead` is prefetched.
    """

    @intrinsic
    def add(context, row, sums, n, other, ahead):
        def generate(context, builder, signature, arguments):
            row, sums, n, other, ahead = arguments
            v = Vectors(builder)
            row, sums = v.pointer(row), v.pointer(sums)
            other = v.pointer(other) if with_distance else v.splat(other)

            def unrolled(count):
                def body(index, carried):
                    updated = []
                    for u in range(count):
                        at = builder.add(index, I64(u * LANES))
                        v.prefetch(builder.add(ahead, builder.mul(at, I64(4))), cache=1)
                        value, before = v.load(v.at(row, at)), v.load(v.at(sums, at))
                        if with_distance:
                            v.store(builder.fadd(before, value), v.at(sums, at))
                            difference = builder.fsub(value, v.load(v.at(other, at)))
                            updated.append(v.fma(difference, difference, carried[u]))
                        else:
                            v.store(v.fma(value, other, before), v.at(sums, at))
                    return updated

                return body

            squares = [v.constant(0.0)] * 4 if with_distance else []
            index, squares = loop(builder, 0, n, 4 * LANES, squares, unrolled(4))
            _, first = loop(builder, index, n, LANES, squares[:1], unrolled(1))
            if not with_distance:
                return ir.Constant(FLOAT, 0.0)
            return _fold_four(v, first + squares[1:])

        last = types.int64 if with_distance else types.float32
        return types.float32(types.int64, types.int64, types.int64, last, types.int64), generate

    return add


add_scaled, add_and_distance = _adder(False), _adder(True)


@intrinsic
def add_to_float64(context, sums, n, totals):
    """Add n float32 numbers to n float64 numbers."""

    def generate(context, builder, signature, arguments):
        sums, n, totals = arguments
        v = Vectors(builder)
        double = ir.DoubleType()
        doubles = ir.VectorType(double, LANES)
        sums, totals = v.pointer(sums), v.pointer(totals, double)

        def vector(index, _):
            total = builder.bitcast(v.at(totals, index), doubles.as_pointer())
            before = builder.load(total)
            before.align = 8
            builder.store(builder.fadd(before, builder.fpext(v.load(v.at(sums, index)), doubles)), total).align = 8
            return []

        def one(index, _):
            total = v.at(totals, index)
            builder.store(
                builder.fadd(builder.load(total), builder.fpext(builder.load(v.at(sums, index)), double)), total
            )
            return []

        index, _ = loop(builder, 0, n, LANES, [], vector)
        loop(builder, index, n, 1, [], one)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), generate


@intrinsic
def distance(context, row, other, n):
    """Return the squared distance of two rows, to the bit as :func:`add_and_distance`; n is a multiple of LANES."""

    def generate(context, builder, signature, arguments):
        row, other, n = arguments
        v = Vectors(builder)
        row, other = v.pointer(row), v.pointer(other)

        def unrolled(count):
            def body(index, carried):
                updated = []
                for u in range(count):
                    at = builder.add(index, I64(u * LANES))
                    difference = builder.fsub(v.load(v.at(row, at)), v.load(v.at(other, at)))
                    updated.append(v.fma(difference, difference, carried[u]))
                return updated

            return body

        index, squares = loop(builder, 0, n, 4 * LANES, [v.constant(0.0)] * 4, unrolled(4))
        _, first = loop(builder, index, n, LANES, squares[:1], unrolled(1))
        return _fold_four(v, first + squares[1:])

    return types.float32(*[types.int64] * 3), generate
