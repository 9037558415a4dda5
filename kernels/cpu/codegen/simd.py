"""Vector instructions for numba: the one place where LLVM's intermediate representation (IR) is written by hand.

numba compiles Python to LLVM IR, and LLVM compiles IR to machine code. By itself, LLVM vectorizes simple loops well and
matrix products badly: it does not keep a block of results in registers. So the innermost loops of vitnp are written as
IR.

IR in one minute: a function consists of *basic blocks*, straight sequences of instructions that end in a jump. Every
value is assigned once; a value that changes from iteration to iteration of a loop is a *phi*: "the value from before
the loop in the first iteration, the one computed below in all others". A vector is a value like any other: ``<16 x
float>`` is one AVX-512 register, and ``llvm.fma`` of three of them is one instruction. The Python code here runs while
a kernel is *compiled*, and each call appends an instruction: a Python loop ``for row in range(8)`` writes eight
instructions, :func:`loop` writes one loop that the processor runs.

:class:`Vectors` offers the instructions under readable names. The loops made of them are in
:mod:`vitnp.kernels.cpu.codegen.microkernels`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import llvmlite.binding
import numpy as np
from llvmlite import ir
from vitnp.kernels.cpu.codegen import target

FLOAT, HALF, I16, I32, I64 = ir.FloatType(), ir.HalfType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)


# Not those of /proc/cpuinfo: code for instructions that the target lacks ends the process.
FEATURES = target.features()


def _widest_lanes() -> int:
    """Return the number of floats in the widest vector register: 16 with AVX-512, 8 with AVX2, else 4 (SSE2, NEON)."""
    if "avx512f" in FEATURES:
        return 16
    return 8 if {"avx2", "fma"} <= FEATURES else 4


# VITNP_LANES narrows the vectors, so that the code for older processors can be tested on a new one.
LANES = int(os.environ.get("VITNP_LANES") or _widest_lanes())
if LANES not in (4, 8, 16):
    raise ValueError(f"VITNP_LANES must be 4, 8 or 16, got {LANES}")

# Whether one instruction adds two bfloat16 products to a float. LLVM before 17 declares it with other types.
HAS_BF16 = LANES == 16 and "avx512bf16" in FEATURES and llvmlite.binding.llvm_version_info[0] >= 17

_PREFETCH = "llvm.prefetch.p0" if llvmlite.binding.llvm_version_info[0] >= 15 else "llvm.prefetch.p0i8"

# 2^r for r in -1/2..1/2, lowest power first: a fit of degree 5, relative error 2e-7.
EXP2 = (
    1.0000001192092896,
    0.6931469440460205,
    0.24022121727466583,
    0.05550742521882057,
    0.009675459936261177,
    0.0013266970636323094,
)

# exp(a^2 / 2) Phi(-a) for a in 0..GELU_END as a polynomial in 2 a / GELU_END - 1, lowest power first, fitted to
# minimize the maximum error of a Phi(-a), which is 7e-8. Beyond GELU_END this product is below 3e-8.
GELU_END = 5.75
GELU = (
    0.12596027553081512, -0.1058252677321434, 0.08337810635566711, -0.06082525849342346, 0.04622729495167732,
    -0.03704679012298584, -0.009154792875051498, -0.03135902062058449, 0.049354188144207, 0.07048085331916809,
    0.03965897113084793,
)  # fmt: skip

# Phi(x) - 1/2 for x in -COARSE_GELU_END..COARSE_GELU_END as x times a polynomial in x^2, lowest power first, fitted to
# minimize the maximum error of x Phi(x), which is 9e-5, among those that are 1/2 at the end.
COARSE_GELU_END = 4.25
COARSE_GELU = (
    0.3984200358390808, -0.06545353680849075, 0.00925784558057785, -0.0009404527372680604, 6.552769627887756e-05,
    -2.93884090751817e-06, 7.570959326130833e-08, -8.460576128577202e-10,
)  # fmt: skip
LOG2_E = 1.4426950408889634

# Adding this to a number of moderate size leaves the nearest integer in the last bits of the sum.
ROUNDER = 1.5 * 2**23


class BFloat(ir.Type):
    """The IR type bfloat16, the upper half of a float32, which llvmlite does not define."""

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
        Positioned where the instructions are inserted.
    lanes : int
        Number of floats in a vector.
    """

    def __init__(self, builder: ir.IRBuilder, lanes: int = LANES):
        self.builder, self.lanes = builder, lanes
        self.type, self.integers = ir.VectorType(FLOAT, lanes), ir.VectorType(I32, lanes)

    def pointer(self, address: ir.Value, element: ir.Type = FLOAT) -> ir.Value:
        """Convert an address, an integer, to a pointer to elements."""
        return self.builder.inttoptr(address, element.as_pointer())

    def at(self, pointer: ir.Value, offset: ir.Value | int) -> ir.Value:
        """Return the pointer advanced by a number of elements."""
        return self.builder.gep(pointer, [integer(offset)])

    def load(self, pointer: ir.Value) -> ir.Value:
        """Load a vector from memory of any alignment."""
        value = self.builder.load(self.builder.bitcast(pointer, self.type.as_pointer()))
        value.align = 4
        return value

    def store(self, value: ir.Value, pointer: ir.Value, align: int = 4) -> None:
        """Store a vector to memory, aligned to its elements."""
        self.builder.store(value, self.builder.bitcast(pointer, value.type.as_pointer())).align = align

    def prefetch(self, address: ir.Value, cache: int) -> None:
        """Prefetch the cache line at an address, which may be invalid, into the cache of level 1 or 2."""
        byte = ir.IntType(8).as_pointer()
        signature = ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32])
        function = declare(self.builder.module, signature, _PREFETCH)
        reading, data = I32(0), I32(1)
        self.builder.call(function, [self.builder.inttoptr(address, byte), reading, I32(4 - cache), data])

    def splat(self, scalar: ir.Value) -> ir.Value:
        """Return a vector with the same number in all lanes."""
        return splat(self.builder, scalar, self.lanes)

    def constant(self, number: float) -> ir.Value:
        """Return a vector with a compile-time constant in all lanes."""
        return ir.Constant(self.type, [single(number)] * self.lanes)

    def call(self, name: str, *values: ir.Value) -> ir.Value:
        """Call one of LLVM's vector intrinsics: ``llvm.NAME.v16f32``."""
        signature = ir.FunctionType(self.type, [self.type] * len(values))
        function = declare(self.builder.module, signature, f"llvm.{name}.v{self.lanes}f32")
        return self.builder.call(function, values)

    def fma(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        """Compute ``a b + c`` with a single rounding."""
        return self.call("fma", a, b, c)

    def add_products_of_pairs(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        """Compute ``c + a0 b0 + a1 b1``, where each lane of a and b consists of two bfloat16 numbers."""
        pairs = ir.VectorType(BFloat(), 2 * self.lanes)
        signature = ir.FunctionType(self.type, [self.type, pairs, pairs])
        name = "llvm.x86.avx512bf16.dpbf16ps.512"
        function = declare(self.builder.module, signature, name)
        return self.builder.call(function, [c, self.builder.bitcast(a, pairs), self.builder.bitcast(b, pairs)])

    def to_bfloat(self, value: ir.Value) -> ir.Value:
        """Round floats to the 16 bits of bfloat16, ties to even. Infinity stays infinity."""
        if HAS_BF16:
            return self.builder.bitcast(
                self.builder.fptrunc(value, ir.VectorType(BFloat(), self.lanes)), ir.VectorType(I16, self.lanes)
            )
        sixteen, one, half = (ir.Constant(self.integers, [number] * self.lanes) for number in (16, 1, 0x7FFF))
        b, bits = self.builder, self.builder.bitcast(value, self.integers)
        rounded = b.add(bits, b.add(b.and_(b.lshr(bits, sixteen), one), half))
        return b.trunc(b.lshr(rounded, sixteen), ir.VectorType(I16, self.lanes))

    def larger(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """Return the larger of two vectors, lane by lane; b where a is NaN."""
        return self.builder.select(self.builder.fcmp_ordered(">", a, b), a, b)

    def smaller(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """Return the smaller of two vectors, lane by lane; b where a is NaN."""
        return self.builder.select(self.builder.fcmp_ordered("<", a, b), a, b)

    def polynomial(self, coefficients: Sequence[float], x: ir.Value) -> ir.Value:
        """Evaluate a polynomial by Horner's rule; the coefficient of the lowest power comes first."""
        value = self.constant(coefficients[-1])
        for coefficient in coefficients[-2::-1]:
            value = self.fma(value, x, self.constant(coefficient))
        return value

    def exp2(self, x: ir.Value) -> ir.Value:
        """Compute 2^x for x up to 127; for x below -126 the result is about 1e-38 instead of a smaller number.

        x = n + r with an integer n and |r| <= 1/2: 2^r is a polynomial, and n is added to the bits of the exponent.
        """
        b = self.builder
        x = self.larger(x, self.constant(-126.0))
        whole = self.call("rint", x)
        mantissa = self.polynomial(EXP2, b.fsub(x, whole))
        exponent = b.shl(b.fptosi(whole, self.integers), ir.Constant(self.integers, [23] * self.lanes))
        return b.bitcast(b.add(b.bitcast(mantissa, self.integers), exponent), self.type)

    def gelu(self, x: ir.Value) -> ir.Value:
        """Compute ``x Phi(x) = max(x, 0) - |x| Phi(-|x|)``, with an error below 4e-7.

        Phi(-a) is exp(-a^2 / 2) times a polynomial.
        """
        b = self.builder
        positive = self.larger(x, self.constant(0.0))
        size = self.call("fabs", x)
        a = self.smaller(size, self.constant(GELU_END))
        scaled = self.fma(a, self.constant(2 / GELU_END), self.constant(-1.0))
        bell = self.exp2(b.fmul(b.fmul(a, self.constant(-0.5 * LOG2_E)), a))
        tail = b.fmul(b.fmul(bell, self.polynomial(GELU, scaled)), size)
        return b.fsub(positive, tail)

    def coarse_gelu(self, x: ir.Value) -> ir.Value:
        """Compute ``x Phi(x)`` with an error below 1e-4, for results that are rounded to 8 bits."""
        end = self.constant(COARSE_GELU_END)
        a = self.smaller(self.larger(x, self.constant(-COARSE_GELU_END)), end)
        polynomial = self.polynomial(COARSE_GELU, self.builder.fmul(a, a))
        return self.builder.fmul(x, self.fma(a, polynomial, self.constant(0.5)))

    def sigmoid_times(self, x: ir.Value) -> ir.Value:
        """Compute ``x / (1 + exp(-x))``, also called SiLU or swish."""
        b = self.builder
        # Below -87 exp(-x) approaches the largest float; there the quotient is practically 0.
        power = self.exp2(b.fmul(self.larger(x, self.constant(-87.0)), self.constant(-LOG2_E)))
        return b.fdiv(x, b.fadd(self.constant(1.0), power))

    def fold(self, value: ir.Value, combine: Callable[[ir.Value, ir.Value], ir.Value]) -> ir.Value:
        """Reduce a vector to a number: combine its halves until one lane is left, always in the same order."""
        b, lanes = self.builder, self.lanes
        while lanes > 1:
            lanes //= 2
            undefined = ir.Constant(value.type, ir.Undefined)
            indices = ir.VectorType(I32, lanes)
            low = b.shuffle_vector(value, undefined, ir.Constant(indices, list(range(lanes))))
            high = b.shuffle_vector(value, undefined, ir.Constant(indices, list(range(lanes, 2 * lanes))))
            value = combine(low, high)
        return b.extract_element(value, I32(0))


def declare(module: ir.Module, signature: ir.FunctionType, name: str) -> ir.Function:
    """Return a function of a module by its name; it is declared, with a signature, unless it is in the module."""
    known = module.globals.get(name)
    return ir.Function(module, signature, name) if known is None else known


def integer(value: ir.Value | int) -> ir.Value:
    """Convert a Python integer to a 64-bit constant; return other values unchanged."""
    return I64(value) if isinstance(value, int) else value


def single(number: float) -> float:
    """Round to float32, as IR requires for a constant of that type."""
    return float(np.float32(number))


def splat(builder: ir.IRBuilder, scalar: ir.Value, lanes: int) -> ir.Value:
    """Return a vector with the same element in all lanes."""
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
    """Append a loop, ``while index + step <= stop``, with values that are passed from iteration to iteration.

    Parameters
    ----------
    builder : llvmlite.ir.IRBuilder
    start, stop : 64-bit integer
    step : int
        Only whole steps are done.
    carried : sequence of values
        Values for the first iteration.
    body : callable
        ``body(index, carried)`` appends the instructions of one iteration and returns the values for the next one.

    Returns
    -------
    index : 64-bit integer
        First index that was not processed.
    carried : list of values
        Values after the last iteration; the initial ones if there was none.
    """
    before = builder.block
    head, iteration, after = (builder.append_basic_block(name) for name in ("loop.head", "loop.body", "loop.after"))
    builder.branch(head)
    builder.position_at_end(head)
    index = builder.phi(I64)
    index.add_incoming(integer(start), before)
    values = [builder.phi(value.type) for value in carried]
    for value, first in zip(values, carried):
        value.add_incoming(first, before)
    fits = builder.icmp_signed("<=", builder.add(index, I64(step)), integer(stop))
    builder.cbranch(fits, iteration, after)
    builder.position_at_end(iteration)
    following = body(index, values)
    index.add_incoming(builder.add(index, I64(step)), builder.block)
    for value, next_value in zip(values, following):
        value.add_incoming(next_value, builder.block)
    builder.branch(head)
    builder.position_at_end(after)
    return index, values
