"""Instructions on bytes: four products of an unsigned and a signed byte per lane, added to a 32-bit integer.

The sums are integers, so that they are the same for every instruction, vector width and order. A *quad* is four
consecutive bytes in the space of one float32.
"""

from __future__ import annotations

import llvmlite.binding
from llvmlite import ir
from vitnp.kernels.cpu.codegen import types
from vitnp.kernels.cpu.codegen.jit import intrinsic
from vitnp.kernels.cpu.codegen.simd import (
    FEATURES,
    FLOAT,
    I16,
    I32,
    I64,
    LANES,
    ROUNDER,
    Vectors,
    declare,
    loop,
    single,
    splat,
)
from vitnp.kernels.reference.int8 import STEPS

I8 = ir.IntType(8)
TINY = 2.0**-126  # the smallest normal float


def _instruction() -> str | None:
    """Return the instruction for products of bytes: "vpdpbusd" and "pmaddwd" of x86, "sdot" of ARM, or None."""
    if {"avx512vnni", "avx512vl"} <= FEATURES or ("avxvnni" in FEATURES and LANES < 16):
        return "vpdpbusd"
    if "dotprod" in FEATURES and LANES == 4:
        return "sdot"
    if ("avx2" in FEATURES and LANES <= 8) or ("sse2" in FEATURES and LANES == 4) or "avx512bw" in FEATURES:
        return "pmaddwd"
    return None


INSTRUCTION = _instruction()
HAS_INT8 = INSTRUCTION is not None

# ARM multiplies signed bytes with signed bytes, so that activations are stored minus 128 there.
OFFSET = -128 if INSTRUCTION == "sdot" else 0


def add_products_of_quads(v: Vectors, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    """Compute ``c + a0 b0 + a1 b1 + a2 b2 + a3 b3`` for quads of activations a and of weights b, by INSTRUCTION."""
    builder = v.builder
    a, b = builder.bitcast(a, v.integers), builder.bitcast(b, v.integers)
    if INSTRUCTION == "vpdpbusd":
        return _call(builder, f"llvm.x86.avx512.vpdpbusd.{32 * v.lanes}", c, a, b)
    if INSTRUCTION == "sdot":
        octets = ir.VectorType(I8, 4 * v.lanes)
        a, b = builder.bitcast(a, octets), builder.bitcast(b, octets)
        return _call(builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", c, a, b)
    # Bytes become 16-bit numbers: those of even and those of odd index. pmaddubsw, which takes bytes, saturates.
    halves = ir.VectorType(I16, 2 * v.lanes)
    eight, low = (ir.Constant(halves, [number] * 2 * v.lanes) for number in (8, 255))
    a, b = builder.bitcast(a, halves), builder.bitcast(b, halves)
    name = {4: "llvm.x86.sse2.pmadd.wd", 8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}[v.lanes]
    even = _call(builder, name, builder.and_(a, low), builder.ashr(builder.shl(b, eight), eight), result=v.integers)
    odd = _call(builder, name, builder.lshr(a, eight), builder.ashr(b, eight), result=v.integers)
    return builder.add(builder.add(c, even), odd)


def _call(builder: ir.IRBuilder, name: str, *values: ir.Value, result: ir.Type | None = None) -> ir.Value:
    signature = ir.FunctionType(result or values[0].type, [value.type for value in values])
    return builder.call(declare(builder.module, signature, name), values)


@intrinsic
def quantize_row(context, source, inputs, target, padded):
    """Quantize `inputs` floats at one address to `padded` bytes at another, and return their scale and zero point.

    `padded` is a multiple of LANES. OFFSET is added to the bytes and to the zero point. The bits are those of
    :func:`vitnp.kernels.reference.quantize_rows`, if the kernel that calls this is compiled without fastmath.
    """

    def generate(context, builder, signature, arguments):
        source, inputs, target, padded = arguments
        v = Vectors(builder)
        source, target = v.pointer(source), v.pointer(target, I8)
        low, high, nothing = _row_range(v, source, inputs)
        one, steps, tiny = (ir.Constant(FLOAT, single(number)) for number in (1.0, STEPS, TINY))
        step = builder.fsub(builder.fdiv(high, steps), builder.fdiv(low, steps))
        scale = builder.select(builder.fcmp_ordered(">", step, tiny), step, tiny)
        inverse = builder.fdiv(one, scale)
        rounder = ir.Constant(FLOAT, ROUNDER)
        zero = builder.fsub(builder.fadd(builder.fmul(builder.fneg(low), inverse), rounder), rounder)
        shifted = builder.fadd(builder.fadd(zero, ir.Constant(FLOAT, float(OFFSET))), rounder)
        inverses, rounders = v.splat(inverse), v.splat(shifted)

        def each(load):
            def body(index, carried):
                rounded = builder.fadd(builder.fmul(load(index), inverses), rounders)
                narrow = builder.trunc(builder.bitcast(rounded, v.integers), ir.VectorType(I8, LANES))
                v.store(narrow, v.at(target, index), 1)
                return carried

            return body

        index, _ = loop(builder, 0, inputs, LANES, [], each(lambda index: v.load(v.at(source, index))))
        loop(builder, index, padded, LANES, [], each(lambda index: _load_part(v, source, index, inputs)))
        # The bits of a number shifted by ROUNDER differ from those of ROUNDER by that number.
        offset = builder.sub(builder.bitcast(shifted, I32), builder.bitcast(rounder, I32))
        return context.make_tuple(builder, signature.return_type, [builder.fadd(scale, nothing), offset])

    result = types.Tuple((types.float32, types.int32))
    return result(*[types.int64] * 4), generate


def _row_range(v: Vectors, source: ir.Value, n: ir.Value) -> list[ir.Value]:
    """Return the least and the greatest of n floats and 0, and 0, or NaN if there is NaN or infinity among them."""
    builder, zero = v.builder, v.constant(0.0)

    def extend(
        values: list[ir.Value], low: list[ir.Value], high: list[ir.Value], nothing: list[ir.Value]
    ) -> list[ir.Value]:
        return [
            *map(v.smaller, values, low), *map(v.larger, values, high),
            *(builder.fadd(a, builder.fmul(value, zero)) for a, value in zip(nothing, values)),
        ]  # fmt: skip

    def iteration(count):
        def body(index, carried):
            values = [v.load(v.at(source, builder.add(index, I64(u * LANES)))) for u in range(count)]
            return extend(values, carried[:count], carried[count:-count], carried[-count:])

        return body

    index, pairs = loop(builder, 0, n, 2 * LANES, [zero] * 6, iteration(2))
    first = [v.smaller(*pairs[:2]), v.larger(*pairs[2:4]), builder.fadd(*pairs[4:])]
    index, whole = loop(builder, index, n, LANES, first, iteration(1))
    result = extend([_load_part(v, source, index, n)], *([value] for value in whole))
    return [v.fold(value, combine) for value, combine in zip(result, (v.smaller, v.larger, builder.fadd))]


def _load_part(v: Vectors, pointer: ir.Value, start: ir.Value, stop: ir.Value) -> ir.Value:
    """Load the elements from `start` to before `stop`, with zeros for those that a vector has more."""
    b, lanes = v.builder, ir.Constant(ir.VectorType(I64, v.lanes), list(range(v.lanes)))
    mask = b.icmp_signed("<", lanes, splat(b, b.sub(stop, start), v.lanes))
    address = b.bitcast(v.at(pointer, start), v.type.as_pointer())
    # LLVM before 15 names the type that the pointer points to.
    kind = "p0" if llvmlite.binding.llvm_version_info[0] >= 15 else f"p0v{v.lanes}f32"
    values = (address, I32(4), mask, v.constant(0.0))
    return _call(b, f"llvm.masked.load.v{v.lanes}f32.{kind}", *values, result=v.type)
