"""Vector instructions for numba: the one place where LLVM's intermediate representation (IR) is written by hand.

numba turns Python into LLVM IR, and LLVM turns IR into machine code. Left alone, LLVM vectorizes simple loops well and matrix
products badly: it doesn't keep a block of results in registers. So the innermost loops of vitnp are given to it ready-made.

IR in one minute: a function consists of *basic blocks*, straight runs of instructions that end in a jump. Every value is
assigned once; what changes from turn to turn of a loop is a *phi*, "the value from before the loop on the first turn, the one
computed below on the others". A vector is a value like any other: ``<16 x float>`` is one AVX-512 register, and
``llvm.fma`` of three of them one instruction. Python code here runs while a kernel is *compiled*, and each call appends an
instruction to it: a Python loop ``for row in range(8)`` writes eight instructions, :func:`loop` writes one loop of the machine.

:class:`Vectors` offers the instructions under readable names; :func:`product_tile` builds the micro-kernel below all matrix
products; :func:`row_maximum` and :func:`row_exponentials` are the two passes of a softmax.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

FLOAT, HALF, I16, I32, I64 = ir.FloatType(), ir.HalfType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)


def _lanes_of_this_machine() -> int:
    """Floats in the widest vector register: 16 with AVX-512, 8 with AVX2, else 4 (SSE2, NEON)."""
    features = llvmlite.binding.get_host_cpu_features()
    if features.get("avx512f"):
        return 16
    return 8 if features.get("avx2") and features.get("fma") else 4


# VITNP_LANES narrows the vectors, so that the code for smaller machines can be tested on a large one.
LANES = int(os.environ.get("VITNP_LANES") or _lanes_of_this_machine())
if LANES not in (4, 8, 16):
    raise ValueError(f"VITNP_LANES is {LANES}; choose 4, 8 or 16")

# Whether two bfloat16 products can be added to a float in one instruction. LLVM before 17 knows it by other types.
HAS_BF16 = (
    LANES == 16
    and bool(llvmlite.binding.get_host_cpu_features().get("avx512bf16"))
    and llvmlite.binding.llvm_version_info[0] >= 17
)

_PREFETCH = "llvm.prefetch.p0" if llvmlite.binding.llvm_version_info[0] >= 15 else "llvm.prefetch.p0i8"

# A tile of results lives in registers: rows x vectors accumulators, a vector of B for each column of vectors, one of A. AVX-512
# has 32 registers, as has NEON; AVX2 and SSE2 have 16. More rows for a column of B mean fewer loads for each multiplication.
TILE_ROWS = 8 if LANES == 16 else 4
TILE_VECTORS = 3
PANEL = TILE_VECTORS * LANES  # columns of a tile

# 2^r for r in -1/2..1/2, lowest power first: a fit of degree 5, relative error 2e-7.
EXP2 = (
    1.0000001192092896,
    0.6931469440460205,
    0.24022121727466583,
    0.05550742521882057,
    0.009675459936261177,
    0.0013266970636323094,
)

# exp(a^2 / 2) Phi(-a) for a in 0..GELU_END as a polynomial in 2 a / GELU_END - 1, lowest power first: fitted for the least
# maximum error of a Phi(-a), which is 7e-8. Beyond the end the product is below 3e-8.
GELU_END = 5.75
GELU = (
    0.12596027553081512, -0.1058252677321434, 0.08337810635566711, -0.06082525849342346, 0.04622729495167732, -0.03704679012298584,
    -0.009154792875051498, -0.03135902062058449, 0.049354188144207, 0.07048085331916809, 0.03965897113084793,
)  # fmt: skip
LOG2_E = 1.4426950408889634


class BFloat(ir.Type):
    """bfloat16, the upper half of a float32, which llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BFloat)

    def __hash__(self) -> int:
        return hash(BFloat)


class Vectors:
    """Instructions on vectors of floats, appended to a function that numba is compiling.

    Parameters
    ----------
    builder : llvmlite.ir.IRBuilder
        Where the function stands.
    lanes : int
        Floats in a vector.
    """

    def __init__(self, builder: ir.IRBuilder, lanes: int = LANES):
        self.builder, self.lanes = builder, lanes
        self.type = ir.VectorType(FLOAT, lanes)

    def pointer(self, address: ir.Value, element: ir.Type = FLOAT) -> ir.Value:
        """An address, as a number of bytes, made a pointer to elements."""
        return self.builder.inttoptr(address, element.as_pointer())

    def at(self, pointer: ir.Value, offset: ir.Value | int) -> ir.Value:
        """The pointer moved on by so many elements."""
        return self.builder.gep(pointer, [integer(offset)])

    def load(self, pointer: ir.Value) -> ir.Value:
        """A vector from memory, wherever it begins."""
        value = self.builder.load(self.builder.bitcast(pointer, self.type.as_pointer()))
        value.align = 4
        return value

    def store(self, value: ir.Value, pointer: ir.Value) -> None:
        """A vector to memory."""
        self.builder.store(value, self.builder.bitcast(pointer, value.type.as_pointer())).align = 4

    def prefetch(self, address: ir.Value, cache: int) -> None:
        """Ask for the line of memory at an address, a number of bytes, to be brought to the first or second cache meanwhile.

        It does no harm where there is no memory.
        """
        byte = ir.IntType(8).as_pointer()
        signature = ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32])
        function = cgutils.get_or_insert_function(self.builder.module, signature, _PREFETCH)
        reading, data = I32(0), I32(1)
        self.builder.call(function, [self.builder.inttoptr(address, byte), reading, I32(4 - cache), data])

    def splat(self, scalar: ir.Value) -> ir.Value:
        """A vector with the same number in all lanes."""
        return splat(self.builder, scalar, self.lanes)

    def constant(self, number: float) -> ir.Value:
        """A vector with a number known now in all lanes."""
        return ir.Constant(self.type, [single(number)] * self.lanes)

    def call(self, name: str, *values: ir.Value) -> ir.Value:
        """One of LLVM's own functions of vectors: ``llvm.NAME.v16f32``."""
        signature = ir.FunctionType(self.type, [self.type] * len(values))
        function = cgutils.get_or_insert_function(self.builder.module, signature, f"llvm.{name}.v{self.lanes}f32")
        return self.builder.call(function, values)

    def fma(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        """A b + c, rounded once."""
        return self.call("fma", a, b, c)

    def add_products_of_pairs(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        """C + a0 b0 + a1 b1, where each lane of a and b holds two bfloat16 numbers."""
        pairs = ir.VectorType(BFloat(), 2 * self.lanes)
        signature = ir.FunctionType(self.type, [self.type, pairs, pairs])
        name = "llvm.x86.avx512bf16.dpbf16ps.512"
        function = cgutils.get_or_insert_function(self.builder.module, signature, name)
        return self.builder.call(function, [c, self.builder.bitcast(a, pairs), self.builder.bitcast(b, pairs)])

    def larger(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """The larger of two vectors, lane by lane; b where a is not a number."""
        return self.builder.select(self.builder.fcmp_ordered(">", a, b), a, b)

    def smaller(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """The smaller of two vectors, lane by lane; b where a is not a number."""
        return self.builder.select(self.builder.fcmp_ordered("<", a, b), a, b)

    def polynomial(self, coefficients: Sequence[float], x: ir.Value) -> ir.Value:
        """By Horner's rule; the lowest power's coefficient first."""
        value = self.constant(coefficients[-1])
        for coefficient in coefficients[-2::-1]:
            value = self.fma(value, x, self.constant(coefficient))
        return value

    def exp2(self, x: ir.Value) -> ir.Value:
        """2^x for x up to 127: x = n + r with whole n and |r| <= 1/2; 2^r is a polynomial and n goes into the exponent's bits.

        Below -126 the answer is about 1e-38 instead of something smaller.
        """
        b = self.builder
        x = self.larger(x, self.constant(-126.0))
        whole = self.call("rint", x)
        mantissa = self.polynomial(EXP2, b.fsub(x, whole))
        integers = ir.VectorType(I32, self.lanes)
        exponent = b.shl(b.fptosi(whole, integers), ir.Constant(integers, [23] * self.lanes))
        return b.bitcast(b.add(b.bitcast(mantissa, integers), exponent), self.type)

    def gelu(self, x: ir.Value) -> ir.Value:
        """X Phi(x) = max(x, 0) - |x| Phi(-|x|), and Phi(-a) = exp(-a^2 / 2) times a polynomial. Error below 4e-7."""
        b = self.builder
        positive = self.larger(x, self.constant(0.0))
        size = self.call("fabs", x)
        a = self.smaller(size, self.constant(GELU_END))
        scaled = self.fma(a, self.constant(2 / GELU_END), self.constant(-1.0))
        bell = self.exp2(b.fmul(b.fmul(a, self.constant(-0.5 * LOG2_E)), a))
        tail = b.fmul(b.fmul(bell, self.polynomial(GELU, scaled)), size)
        return b.fsub(positive, tail)

    def sigmoid_times(self, x: ir.Value) -> ir.Value:
        """X / (1 + exp(-x)), also called silu or swish."""
        b = self.builder
        # Beyond -87 exp(-x) is near the largest float; the quotient is 0 to the last bit that matters.
        power = self.exp2(b.fmul(self.larger(x, self.constant(-87.0)), self.constant(-LOG2_E)))
        return b.fdiv(x, b.fadd(self.constant(1.0), power))

    def fold(self, value: ir.Value, combine: Callable[[ir.Value, ir.Value], ir.Value]) -> ir.Value:
        """One number of a vector: halves are combined until one lane is left, always in the same order."""
        b, lanes = self.builder, self.lanes
        while lanes > 1:
            lanes //= 2
            undefined = ir.Constant(value.type, ir.Undefined)
            indices = ir.VectorType(I32, lanes)
            low = b.shuffle_vector(value, undefined, ir.Constant(indices, list(range(lanes))))
            high = b.shuffle_vector(value, undefined, ir.Constant(indices, list(range(lanes, 2 * lanes))))
            value = combine(low, high)
        return b.extract_element(value, I32(0))


def integer(value: ir.Value | int) -> ir.Value:
    """A 64-bit number of the machine, if it isn't one yet."""
    return I64(value) if isinstance(value, int) else value


def single(number: float) -> float:
    """The nearest float32, which IR wants for a constant of that type."""
    return float(types.float32.cast_python_value(number))


def splat(builder: ir.IRBuilder, scalar: ir.Value, lanes: int) -> ir.Value:
    """A vector with the same element in all lanes."""
    undefined = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
    first = builder.insert_element(undefined, scalar, I32(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))


def loop(
    builder: ir.IRBuilder,
    start: ir.Value | int,
    stop: ir.Value | int,
    step: int,
    carried: Sequence[ir.Value],
    body: Callable[[ir.Value, list[ir.Value]], Sequence[ir.Value]],
) -> tuple[ir.Value, list[ir.Value]]:
    """``while index + step <= stop``: a loop of the machine, with values handed on from turn to turn.

    Parameters
    ----------
    builder : llvmlite.ir.IRBuilder
    start, stop : 64-bit integer
    step : int
        The last turn is the last that fits as a whole.
    carried : sequence of values
        Before the first turn.
    body : callable
        ``body(index, carried)`` appends the instructions of a turn and returns what the next turn is handed.

    Returns
    -------
    index : 64-bit integer
        The first that didn't fit.
    carried : list of values
        After the last turn; those given where there was none.
    """
    before = builder.block
    head, turn, after = (builder.append_basic_block(name) for name in ("loop.head", "loop.turn", "loop.after"))
    builder.branch(head)
    builder.position_at_end(head)
    index = builder.phi(I64)
    index.add_incoming(integer(start), before)
    values = [builder.phi(value.type) for value in carried]
    for value, first in zip(values, carried):
        value.add_incoming(first, before)
    fits = builder.icmp_signed("<=", builder.add(index, I64(step)), integer(stop))
    builder.cbranch(fits, turn, after)
    builder.position_at_end(turn)
    following = body(index, values)
    index.add_incoming(builder.add(index, I64(step)), builder.block)
    for value, next_value in zip(values, following):
        value.add_incoming(next_value, builder.block)
    builder.branch(head)
    builder.position_at_end(after)
    return index, values


def product_tile(rows: int, vectors: int, pairs: bool = False, cache: int = 1) -> Callable:
    """The micro-kernel of matrix products: a tile of C = A B, or C + A B, held in registers all along.

    For each k a row of B is loaded once (`vectors` vectors) and each A[i, k] once, copied to all lanes; each is used `vectors`,
    or `rows`, times. Every C[i, j] is the sum over k in its order, whatever the tile, so that results don't depend on how work is
    split.

    Parameters
    ----------
    rows, vectors : int
        Shape of the tile.
    pairs : bool
        Whether elements of A and B are two bfloat16 numbers each, neighbors along k, in the space of one float32. On a machine
        without the instruction there is nothing behind the name.
    cache : int
        Where to bring what is asked for ahead: to the first or the second.

    Returns
    -------
    callable
        For kernels: ``tile(a, rows_a, ld_a, b, ld_b, c, ld_c, inner, add, ahead, every)``. Addresses in bytes, the rest in elements: A is
        (rows_a, inner) with a step of ld_a from row to row, B (inner, vectors * LANES), C (rows, vectors * LANES). Where A has
        fewer rows than the tile its last one is repeated: C must have room for them all. With `add` C is added to. While it
        computes it asks for what later tiles will read: in turn k for the memory at ``ahead + every k``.
    """

    @intrinsic
    def tile(context, a, rows_a, ld_a, b, ld_b, c, ld_c, inner, add, ahead, every):
        def generate(context, builder, signature, arguments):
            a, rows_a, ld_a, b, ld_b, c, ld_c, inner, add, ahead, every = arguments
            v = Vectors(builder)
            a_rows = _row_pointers(v, a, rows_a, ld_a, rows)
            b, c = v.pointer(b), v.pointer(c)
            slots = [
                v.at(c, builder.add(builder.mul(ld_c, I64(i)), I64(j * LANES)))
                for i in range(rows)
                for j in range(vectors)
            ]
            multiply_add = v.add_products_of_pairs if pairs and HAS_BF16 else v.fma
            zero = v.constant(0.0)

            def turn(k, sums):
                v.prefetch(builder.add(ahead, builder.mul(k, every)), cache)
                row = v.at(b, builder.mul(k, ld_b))
                columns = [v.load(v.at(row, j * LANES)) for j in range(vectors)]
                following = []
                for i in range(rows):
                    scalar = v.splat(builder.load(v.at(a_rows[i], k)))
                    following += [multiply_add(scalar, columns[j], sums[i * vectors + j]) for j in range(vectors)]
                return following

            _, sums = loop(builder, 0, inner, 1, [zero] * (rows * vectors), turn)
            adding = builder.icmp_signed("!=", add, I64(0))
            with builder.if_else(adding) as (then, otherwise):
                with then:
                    for value, slot in zip(sums, slots):
                        v.store(builder.fadd(v.load(slot), value), slot)
                with otherwise:
                    for value, slot in zip(sums, slots):
                        v.store(value, slot)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 11), generate

    return tile


def _row_pointers(v: Vectors, base: ir.Value, count: ir.Value, step: ir.Value, rows: int) -> list[ir.Value]:
    """Pointers to `rows` rows of which `count` exist; the last one stands in for those that don't."""
    b, base = v.builder, v.pointer(base)
    last = b.sub(count, I64(1))
    pointers = []
    for row in range(rows):
        there = b.icmp_signed("<", I64(row), count)
        pointers.append(v.at(base, b.mul(b.select(there, I64(row), last), step)))
    return pointers


@intrinsic
def as_bfloat(context, x):
    """The 16 bits of the nearest bfloat16, ties to the even one. Infinity stays; of what is not a number it may be made."""

    def generate(context, builder, signature, arguments):
        bits = builder.bitcast(arguments[0], I32)
        odd = builder.and_(builder.lshr(bits, I32(16)), I32(1))
        rounded = builder.add(bits, builder.add(odd, I32(0x7FFF)))
        return builder.trunc(builder.lshr(rounded, I32(16)), I16)

    return types.uint16(types.float32), generate


@intrinsic
def row_to_pairs(context, source, target, n):
    """N floats at one address as n bfloat16 numbers at another; n is a multiple of LANES."""

    def generate(context, builder, signature, arguments):
        source, target, n = arguments
        v = Vectors(builder)
        source, target = v.pointer(source), v.pointer(target, I16)
        wide, narrow = ir.VectorType(I32, LANES), ir.VectorType(I16, LANES)

        def constant(number):
            return ir.Constant(wide, [number] * LANES)

        def turn(index, carried):
            bits = builder.bitcast(v.load(v.at(source, index)), wide)
            odd = builder.and_(builder.lshr(bits, constant(16)), constant(1))
            rounded = builder.lshr(builder.add(bits, builder.add(odd, constant(0x7FFF))), constant(16))
            place = builder.bitcast(v.at(target, index), narrow.as_pointer())
            builder.store(builder.trunc(rounded, narrow), place).align = 2
            return carried

        loop(builder, 0, n, LANES, [], turn)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), generate


@intrinsic
def transpose_tile(context, source, ld_source, target, ld_target):
    """LANES x LANES floats at one address, rows ld_source apart, mirrored to another, rows ld_target apart.

    Blocks off the diagonal change places, first halves of the tile, then halves of the halves: two vectors exchange what the
    mask of a shuffle says.
    """

    def generate(context, builder, signature, arguments):
        source, ld_source, target, ld_target = arguments
        v = Vectors(builder)
        source, target = v.pointer(source), v.pointer(target)
        rows = [v.load(v.at(source, builder.mul(ld_source, I64(i)))) for i in range(LANES)]

        def mix(a, b, lanes):
            return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, LANES), lanes))

        half = LANES // 2
        while half:
            for i in range(LANES):
                if not i & half:
                    a, b = rows[i], rows[i + half]
                    rows[i] = mix(a, b, [lane + LANES - half if lane & half else lane for lane in range(LANES)])
                    rows[i + half] = mix(a, b, [lane + LANES if lane & half else lane + half for lane in range(LANES)])
            half //= 2
        for i, row in enumerate(rows):
            v.store(row, v.at(target, builder.mul(ld_target, I64(i))))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), generate


@intrinsic
def row_times(context, source, target, n, factor):
    """N floats at one address times a factor, to another address or the same; n is a multiple of LANES."""

    def generate(context, builder, signature, arguments):
        source, target, n, factor = arguments
        v = Vectors(builder)
        source, target, factor = v.pointer(source), v.pointer(target), v.splat(factor)

        def turn(index, carried):
            v.store(builder.fmul(v.load(v.at(source, index)), factor), v.at(target, index))
            return carried

        loop(builder, 0, n, LANES, [], turn)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.float32), generate


def _over_row(unrolled: int, first: Callable, combine: Callable, each: Callable) -> Callable:
    """``f(p, n, x)``: one number of the n floats at address p: `combine` of `each` of them, `unrolled` vectors at a time.

    `first(v, x)` is where every lane starts, `each(v, pointer, x)` gives a vector's contribution and may store something.
    Numbers beyond the last whole vector are left to the caller: n is a multiple of LANES.
    """

    @intrinsic
    def over(context, p, n, x):
        def generate(context, builder, signature, arguments):
            p, n, x = arguments
            v = Vectors(builder)
            p, x = v.pointer(p), v.splat(x)
            start = first(v, x)

            def turn(vectors):
                def body(index, held):
                    found = [each(v, v.at(p, builder.add(index, I64(u * LANES))), x) for u in range(vectors)]
                    return [combine(v, a, b) for a, b in zip(held, found)]

                return body

            index, held = loop(builder, 0, n, unrolled * LANES, [start] * unrolled, turn(unrolled))
            index, rest = loop(builder, index, n, LANES, held[:1], turn(1))
            for other in held[1:]:
                rest = [combine(v, rest[0], other)]
            return v.fold(rest[0], lambda a, b: combine(v, a, b))

        return types.float32(types.int64, types.int64, types.float32), generate

    return over


# Added to a number of moderate size it leaves the nearest whole number in the last bits.
ROUNDER = 1.5 * 2**23


def _exponential(v: Vectors, pointer: ir.Value, x: ir.Value) -> ir.Value:
    """As :meth:`Vectors.exp2`, of a vector less a whole number x: that need not be subtracted, for it goes into the rounding."""
    b, integers = v.builder, ir.VectorType(I32, v.lanes)
    rounder = b.fsub(v.constant(ROUNDER), x)
    value = v.larger(v.load(pointer), b.fsub(x, v.constant(126.0)))
    shifted = b.fadd(value, rounder)
    mantissa = v.polynomial(EXP2, b.fsub(value, b.fsub(shifted, rounder)))
    exponent = b.shl(b.bitcast(shifted, integers), ir.Constant(integers, [23] * v.lanes))
    power = b.bitcast(b.add(b.bitcast(mantissa, integers), exponent), v.type)
    v.store(power, pointer)
    return power


def _squared_deviation(v: Vectors, pointer: ir.Value, x: ir.Value) -> ir.Value:
    off = v.builder.fsub(v.load(pointer), x)
    return v.builder.fmul(off, off)


def _plus(v: Vectors, a: ir.Value, b: ir.Value) -> ir.Value:
    return v.builder.fadd(a, b)


# Each takes an address, a multiple of LANES, and a number x.
row_maximum = _over_row(4, lambda v, x: x, Vectors.larger, lambda v, pointer, x: v.load(pointer))  # of x and the row
row_exponentials = _over_row(
    4, lambda v, x: v.constant(0.0), _plus, _exponential
)  # row = 2^(row - x), x whole; their sum
row_sum = _over_row(4, lambda v, x: v.constant(0.0), _plus, lambda v, pointer, x: v.load(pointer))  # x isn't used
row_squares = _over_row(4, lambda v, x: v.constant(0.0), _plus, _squared_deviation)  # sum of (row - x)^2
