"""Vectors of RGB pixels: three bytes per pixel in memory, a vector per channel in registers."""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir
from vitnp.kernels.cpu.codegen.simd import I32, LANES, Vectors

_I8 = ir.IntType(8)


def load_pixels(v: Vectors, address: ir.Value) -> list[ir.Value]:
    """Load LANES pixels at an address, and return red, green and blue as vectors of floats."""
    packed = v.builder.load(v.builder.inttoptr(address, ir.VectorType(_I8, 3 * LANES).as_pointer()))
    packed.align = 1
    return [v.builder.uitofp(_picked(v, packed, packed, range(channel, 3 * LANES, 3)), v.type) for channel in range(3)]


def store_pixels(v: Vectors, channels: Sequence[ir.Value], address: ir.Value) -> None:
    """Store LANES pixels at an address, of three vectors of 32-bit integers from 0 to 255."""
    red, green, blue = (v.builder.trunc(channel, ir.VectorType(_I8, LANES)) for channel in channels)
    red_green = _picked(v, red, green, range(2 * LANES))
    padded = _picked(v, blue, blue, [lane % LANES for lane in range(2 * LANES)])
    order = [start + lane for lane in range(LANES) for start in (0, LANES, 2 * LANES)]
    packed = _picked(v, red_green, padded, order)
    v.builder.store(packed, v.builder.inttoptr(address, packed.type.as_pointer())).align = 1


def weighted_channels(v: Vectors, weights: Sequence[ir.Value], channels: Sequence[ir.Value]) -> ir.Value:
    """Return ``w0 r + w1 g + w2 b``, rounded after each operation as NumPy does."""
    b = v.builder
    red, green, blue = (b.fmul(weight, channel) for weight, channel in zip(weights, channels))
    return b.fadd(b.fadd(red, green), blue)


def load_splats(v: Vectors, address: ir.Value, count: int) -> list[ir.Value]:
    """Load `count` floats at an address, each to all lanes of a vector."""
    numbers = v.pointer(address)
    return [v.splat(v.builder.load(v.at(numbers, index))) for index in range(count)]


def _picked(v: Vectors, one: ir.Value, other: ir.Value, lanes: Sequence[int]) -> ir.Value:
    return v.builder.shuffle_vector(one, other, ir.Constant(ir.VectorType(I32, len(lanes)), list(lanes)))
