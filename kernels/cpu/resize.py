"""Pillow's antialiased bicubic resizing of photographs, to the same bytes, several times as fast.

Along a row a vector holds five pixels of three bytes, each multiplied by its weight; its lanes are summed by channel at
the end. Along columns a vector holds bytes side by side. Sums are integers, so their order does not matter.
"""

from __future__ import annotations

import functools

import numpy as np
from llvmlite import ir
from vitnp.kernels import reference
from vitnp.kernels.cpu.codegen import types
from vitnp.kernels.cpu.codegen.jit import array_in, intrinsic, kernel
from vitnp.kernels.cpu.codegen.simd import I32, I64, loop, splat
from vitnp.kernels.reference.resize import FIXED_POINT, filter_weights
from vitnp.kernels.threads import team

# Lanes of a vector of 32-bit integers, and the pixels that lie in it.
_LANES, _PIXELS = 16, 5

# Output pixels that are worth waking a thread.
_MIN_PIXELS_PER_THREAD = 1 << 16

_I8 = ir.IntType(8)
_BYTES, _INTEGERS = ir.VectorType(_I8, _LANES), ir.VectorType(I32, _LANES)


def resize(rgb: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    rgb, (height, width) = np.ascontiguousarray(rgb), size
    if width != rgb.shape[1]:
        table = _row_table(rgb.shape[1], width)
        if table is None or 3 * width < _LANES:
            return reference.resize(rgb, size)
        starts, weights = table
        narrow = np.empty((len(rgb), width, 3), np.uint8)
        # Vectors end with the first byte after their pixels, which the last row lacks.
        padded = np.append(rgb[-1], np.uint8(0))

        def along_rows(first: int, last: int) -> None:
            _resize_rows(rgb.ctypes.data, padded, first, last, starts, weights, narrow.ctypes.data, len(rgb))

        team.parallel_for(along_rows, len(rgb), max(1, _MIN_PIXELS_PER_THREAD // width))
        rgb = narrow
    if height != len(rgb):
        if 3 * width < _LANES:
            return reference.resize(rgb, size)
        firsts, weights = _column_table(len(rgb), height)
        result = np.empty((height, width, 3), np.uint8)

        def along_columns(first: int, last: int) -> None:
            _resize_columns(rgb.reshape(-1), 3 * width, firsts, weights, first, last, result.ctypes.data)

        team.parallel_for(along_columns, height, max(1, _MIN_PIXELS_PER_THREAD // width))
        rgb = result
    return rgb


# Photographs have few different sizes.


@functools.lru_cache(maxsize=64)
def _column_table(length: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first row of each output (size,) int64, and its weights (size, taps) int32."""
    first, weights = filter_weights(length, size)
    used = int(np.flatnonzero(weights.any(axis=0)).max(initial=0)) + 1
    # Weights of 0 beyond the last row are taken from a row inside.
    first = np.minimum(first, max(length - used, 0))
    return _shifted(length, size, used, first)


def _shifted(length: int, size: int, taps: int, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return weights that begin at other pixels: `first` (size,), at most as far as Pillow's own."""
    own, weights = filter_weights(length, size)
    shifted = np.zeros((size, max(taps, 1)), np.int32)
    output, tap = np.nonzero(weights)
    shifted[output, own[output] + tap - first[output]] = weights[output, tap]
    return first.astype(np.int64), shifted


@functools.lru_cache(maxsize=64)
def _row_table(length: int, size: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the first byte of each output (size,) int64, and weights (size, steps, _LANES) int32.

    None for a row that is shorter than the vectors of an output.
    """
    first, weights = filter_weights(length, size)
    used = int(np.flatnonzero(weights.any(axis=0)).max(initial=0)) + 1
    steps = -(-used // _PIXELS)
    last = length - _PIXELS * steps
    if last < 0:
        return None
    first, weights = _shifted(length, size, _PIXELS * steps, np.minimum(first, last))
    table = np.zeros((size, steps, _LANES), np.int32)
    table[..., : 3 * _PIXELS] = np.repeat(weights.reshape(size, steps, _PIXELS), 3, axis=2)
    return 3 * first, table


def _constant(number: int) -> ir.Constant:
    return ir.Constant(_INTEGERS, [number] * _LANES)


def _load(builder: ir.IRBuilder, address: ir.Value, vector: ir.VectorType, align: int) -> ir.Value:
    value = builder.load(builder.inttoptr(address, vector.as_pointer()))
    value.align = align
    return value


def _to_bytes(builder: ir.IRBuilder, sums: ir.Value) -> ir.Value:
    """Drop the fractional bits of sums, to which a half has been added, and clip them to 8 bits."""
    value = builder.ashr(sums, _constant(FIXED_POINT.bit_length() - 1))
    value = builder.select(builder.icmp_signed("<", value, _constant(0)), _constant(0), value)
    value = builder.select(builder.icmp_signed(">", value, _constant(255)), _constant(255), value)
    return builder.trunc(value, _BYTES)


@intrinsic
def _weighted_pixels(context, pixels, weights, steps):
    """Return the three bytes of an output of a row in an integer; of vectors of pixels and weights at two addresses."""

    def generate(context, builder, signature, arguments):
        pixels, weights, steps = arguments

        def body(index, sums):
            values = _load(builder, builder.add(pixels, builder.mul(index, I64(3 * _PIXELS))), _BYTES, 1)
            factors = _load(builder, builder.add(weights, builder.mul(index, I64(4 * _LANES))), _INTEGERS, 4)
            return [builder.add(sums[0], builder.mul(builder.zext(values, _INTEGERS), factors))]

        _, (sums,) = loop(builder, 0, steps, 1, [_constant(0)], body)

        def moved(value, lanes):
            indices = [min(lane + lanes, _LANES - 1) for lane in range(_LANES)]
            return builder.shuffle_vector(value, value, ir.Constant(_INTEGERS, indices))

        # Lanes 0 to 2 of pixels 0 and 2, 1 and 3; then of these pairs; and then of pixel 4, in lanes 12 to 14.
        pairs = builder.add(sums, moved(sums, 6))
        total = builder.add(builder.add(pairs, moved(pairs, 3)), moved(sums, 12))
        result = _to_bytes(builder, builder.add(total, _constant(FIXED_POINT // 2)))
        words = builder.bitcast(result, ir.VectorType(I32, _LANES // 4))
        return builder.extract_element(words, I32(0))

    return types.uint32(*[types.int64] * 3), generate


@intrinsic
def _weighted_rows(context, source, stride, weights, taps, out):
    """Write a vector of bytes of an output row: the weighted sum of `taps` rows, `stride` bytes apart."""

    def generate(context, builder, signature, arguments):
        source, stride, weights, taps, out = arguments

        def body(index, sums):
            values = _load(builder, builder.add(source, builder.mul(index, stride)), _BYTES, 1)
            weight = builder.load(builder.gep(builder.inttoptr(weights, I32.as_pointer()), [index]))
            product = builder.mul(builder.zext(values, _INTEGERS), splat(builder, weight, _LANES))
            return [builder.add(sums[0], product)]

        _, (sums,) = loop(builder, 0, taps, 1, [_constant(FIXED_POINT // 2)], body)
        builder.store(_to_bytes(builder, sums), builder.inttoptr(out, _BYTES.as_pointer())).align = 1
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), generate


@intrinsic
def _store_word(context, word, address):
    """Write four bytes to an address."""

    def generate(context, builder, signature, arguments):
        word, address = arguments
        builder.store(word, builder.inttoptr(address, I32.as_pointer())).align = 1
        return context.get_dummy_value()

    return types.void(types.uint32, types.int64), generate


@intrinsic
def _store_byte(context, byte, address):
    """Write a byte to an address."""

    def generate(context, builder, signature, arguments):
        byte, address = arguments
        builder.store(byte, builder.inttoptr(address, _I8.as_pointer()))
        return context.get_dummy_value()

    return types.void(types.uint8, types.int64), generate


@kernel(
    types.int64, array_in(1, types.uint8), types.int64, types.int64, array_in(1, types.int64),
    array_in(3, types.int32), types.int64, types.int64,
)  # fmt: skip
def _resize_rows(source, padded, first, last, starts, weights, out, height):
    """Resize the rows `first` to `last` of `height`; `source` and `out` are addresses, `padded` is the last row."""
    size, steps, lanes = weights.shape
    stride, table = len(padded) - 1, weights.ctypes.data
    for y in range(first, last):
        row, target = source + y * stride if y < height - 1 else padded.ctypes.data, out + 3 * y * size
        for x in range(size - 1):
            # The fourth byte is overwritten by the next pixel.
            _store_word(_weighted_pixels(row + starts[x], table + 4 * lanes * steps * x, steps), target + 3 * x)
        x = size - 1
        word = _weighted_pixels(row + starts[x], table + 4 * lanes * steps * x, steps)
        for channel in range(3):
            _store_byte(np.uint8(word >> np.uint32(8 * channel) & np.uint32(255)), target + 3 * x + channel)


@kernel(
    array_in(1, types.uint8), types.int64, array_in(1, types.int64), array_in(2, types.int32), types.int64,
    types.int64, types.int64,
)  # fmt: skip
def _resize_columns(source, stride, firsts, weights, first, last, out):
    """Resize along columns, the rows `first` to `last` of the result, whose address is `out`."""
    taps = weights.shape[1]
    for y in range(first, last):
        row, factors = source.ctypes.data + firsts[y] * stride, weights.ctypes.data + 4 * taps * y
        for at in range(0, stride - 16 + 1, 16):
            _weighted_rows(row + at, stride, factors, taps, out + y * stride + at)
        # The last vector ends with the row, and overlaps the one before it.
        at = stride - 16
        _weighted_rows(row + at, stride, factors, taps, out + y * stride + at)
