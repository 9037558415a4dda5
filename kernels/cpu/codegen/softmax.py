"""Micro-kernel of attention: products of queries and keys that become the weights of values in registers."""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir
from vitnp.kernels.cpu.codegen import types
from vitnp.kernels.cpu.codegen.jit import intrinsic
from vitnp.kernels.cpu.codegen.microkernels import add_products, row_pointers
from vitnp.kernels.cpu.codegen.simd import EXP2, I16, I32, I64, LANES, Vectors

# 2^r for r in 0..1, lowest power first: a fit of degree 3, relative error 8e-5, for results in bfloat16, which are
# rounded by up to 4e-3.
EXP2_BFLOAT = (0.9999251961708069, 0.6958335638046265, 0.22606715559959412, 0.07802452147006989)


def weights_tile(rows: int, vectors: int, packed: int = 1) -> Callable:
    """Generate a micro-kernel of attention: 2^(score - shift) of a tile of queries and keys.

    The scores are those of :func:`vitnp.kernels.cpu.codegen.microkernels.product_tile`. They never leave the registers.

    Parameters
    ----------
    rows, vectors : int
        Shape of the tile.
    packed : {1, 2}
        Numbers that each element of A and B consists of: one float32, or two bfloat16. With two, weights are stored in
        bfloat16 as well, consecutive keys side by side: the form of A in the product with the values.

    Returns
    -------
    callable
        For use in kernels: ``tile(a, rows_a, ld_a, b, ld_b, c, ld_c, inner, bias, shift, totals, ahead, every)``.
        Arguments are those of `product_tile`, and addresses of `bias` (vectors * LANES,), which is added to the scores
        of all rows, of `shift` (rows,), and of `totals` (rows, LANES), to which the weights are added lane by lane.
    """

    @intrinsic
    def tile(context, a, rows_a, ld_a, b, ld_b, c, ld_c, inner, bias, shift, totals, ahead, every):
        def generate(context, builder, signature, arguments):
            a, rows_a, ld_a, b, ld_b, c, ld_c, inner, bias, shift, totals, ahead, every = arguments
            v = Vectors(builder)
            bias, shift, totals = v.pointer(bias), v.pointer(shift), v.pointer(totals)
            c = v.pointer(c, I16) if packed == 2 else v.pointer(c)
            a_rows = row_pointers(v, a, rows_a, ld_a, rows)
            first = [v.load(v.at(bias, j * LANES)) for j in range(vectors)]
            scores = add_products(v, a_rows, (v.pointer(b), ld_b), inner, first * rows, packed, (ahead, every, 1))
            for i in range(rows):
                base = v.splat(builder.load(v.at(shift, i)))
                row = v.at(c, builder.mul(ld_c, I64(i * packed)))
                slot = v.at(totals, i * LANES)
                total = v.load(slot)
                for j in range(vectors):
                    x = builder.fsub(scores[i * vectors + j], base)
                    if packed == 2:
                        weight = _exp2_for_bfloat(v, x)
                        v.store(v.to_bfloat(weight), v.at(row, j * LANES), 2)
                    else:
                        weight = _exp2(v, x)
                        v.store(weight, v.at(row, j * LANES))
                    total = builder.fadd(total, weight)
                v.store(total, slot)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 13), generate

    return tile


def _exp2(v: Vectors, x: ir.Value) -> ir.Value:
    """Compute 2^x as :meth:`Vectors.exp2`; infinity for x from 128 on."""
    if v.lanes < 16:
        return v.exp2(v.smaller(x, v.constant(128.0)))
    whole = v.call("rint", x)
    return _instruction(v, "scalef.ps", v.polynomial(EXP2, v.builder.fsub(x, whole)), whole)


def _exp2_for_bfloat(v: Vectors, x: ir.Value) -> ir.Value:
    """Compute 2^x to the precision of bfloat16.

    x is a fraction, of which 2^x is a polynomial, plus an integer: instructions of AVX-512, which all processors with
    bfloat16 products have, return the one and multiply by a power of two of the other.
    """
    if v.lanes < 16:  # compiled with the kernel, though never called
        return _exp2(v, x)
    fraction = _instruction(v, "reduce.ps", x, I32(0b1001))  # x - floor(x), without an exception
    return _instruction(v, "scalef.ps", v.polynomial(EXP2_BFLOAT, fraction), x)


def _instruction(v: Vectors, name: str, *operands: ir.Value) -> ir.Value:
    """Call an instruction of AVX-512 for all lanes, rounding to the nearest number."""
    builder = v.builder
    lanes, rounding = ir.Constant(ir.IntType(16), -1), I32(4)
    values = (*operands, operands[0], lanes, rounding)
    signature = ir.FunctionType(v.type, [value.type for value in values])
    name = f"llvm.x86.avx512.mask.{name}.512"
    function = builder.module.globals.get(name) or ir.Function(builder.module, signature, name)
    return builder.call(function, values)
