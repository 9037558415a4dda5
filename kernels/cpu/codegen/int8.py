"""Instructions on bytes: four products of an unsigned and a signed byte per lane, added to a 32-bit integer.

The sums are integers, so that they are the same for every instruction, vector width and order. A *quad* is four
consecutive bytes in the space of one float32.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from vitnp.kernels.cpu.codegen.jit import intrinsic
from vitnp.kernels.cpu.codegen.simd import FEATURES, I16, I32, LANES, ROUNDER, Vectors, loop

I8 = ir.IntType(8)


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
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), values)


@intrinsic
def row_to_bytes(context, source, target, n, inverse, zero):
    """Write ``round(x inverse) + zero`` of n floats at one address to n bytes at another; n is a multiple of LANES.

    The results must fit into a byte. The product and the sum are rounded separately, as in the reference.
    """

    def generate(context, builder, signature, arguments):
        source, target, n, inverse, zero = arguments
        v = Vectors(builder)
        source, target = v.pointer(source), builder.inttoptr(target, I8.as_pointer())
        narrow = ir.VectorType(I8, LANES)
        inverse, rounder = v.splat(inverse), builder.fadd(v.constant(ROUNDER), v.splat(zero))

        def body(index, carried):
            rounded = builder.fadd(builder.fmul(v.load(v.at(source, index)), inverse), rounder)
            slot = builder.bitcast(builder.gep(target, [index]), narrow.as_pointer())
            builder.store(builder.trunc(builder.bitcast(rounded, v.integers), narrow), slot).align = 1
            return carried

        loop(builder, 0, n, LANES, [], body)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.float32, types.float32), generate
