"""Attention in CUDA against softmax(q k^T / sqrt(S)) v in float64: emulated, and on a GPU with ``pytest -m gpu``."""

from __future__ import annotations

import numpy as np
import pytest
from vitnp.kernels import reference

# Half precision rounds probabilities and the output, 2^-11 each, of values around 1; bfloat16 eight times as coarsely.
TOLERANCE = {np.float32: 3e-6, np.float16: 1.5e-3}


@pytest.fixture(autouse=True)
def by_warps(cupy):
    """Attention by warp groups has tests of its own; here a GPU that has it too computes the other form."""
    from vitnp.kernels.cuda import attention_wgmma

    with attention_wgmma.switched_off():
        yield


def random(seed: int, *shape: int, dtype=np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def expected(query, key, value, heads: int) -> np.ndarray:
    """Written out, in float64."""
    q, k, v = (x.astype(float).reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3) for x in (query, key, value))
    scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    out = weights / weights.sum(axis=-1, keepdims=True) @ v
    return out.transpose(0, 2, 1, 3).reshape(query.shape)


def attention(cupy, query, key, value, heads: int) -> np.ndarray:
    from vitnp.kernels.cuda.attention import attention

    return cupy.asnumpy(attention(*(cupy.asarray(x) for x in (query, key, value)), heads))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(
    "images, rows, tokens, heads",
    [(1, 1, 1, 1), (2, 3, 64, 2), (1, 129, 65, 1), (1, 17, 200, 2), (2, 65, 63, 1)],
    ids=["least", "whole tile", "tile and a bit", "several tiles", "short of a tile"],
)
def test_heads_of_64(cupy, dtype, images, rows, tokens, heads):
    query, key, value = (
        random(0, images, rows, 64 * heads, dtype=dtype),
        *random(1, 2, images, tokens, 64 * heads, dtype=dtype),
    )
    found = attention(cupy, query, key, value, heads)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected(query, key, value, heads), atol=TOLERANCE[dtype], rtol=0)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("size, tokens", [(1, 1), (5, 33), (32, 32), (80, 70)])
def test_heads_of_any_other_size(cupy, dtype, size, tokens):
    query, key, value = random(2, 2, 6, 2 * size, dtype=dtype), *random(3, 2, 2, tokens, 2 * size, dtype=dtype)
    np.testing.assert_allclose(
        attention(cupy, query, key, value, 2), expected(query, key, value, 2), atol=TOLERANCE[dtype], rtol=0
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("size", [64, 24])
def test_a_fused_product_is_read_where_it_lies(cupy, dtype, size):
    fused = cupy.asarray(random(4, 2, 70, 3 * 2 * size, dtype=dtype))
    width = 2 * size
    parts = [fused[:, :, i * width : (i + 1) * width] for i in range(3)]
    from vitnp.kernels.cuda import attention as module_
    from vitnp.kernels.cuda.attention import _readable

    assert size != 64 or all(_readable(part) is part for part in parts)
    found = cupy.asnumpy(module_.attention(*parts, 2))
    np.testing.assert_allclose(found, expected(*(cupy.asnumpy(p) for p in parts), 2), atol=TOLERANCE[dtype], rtol=0)


def test_rows_that_cannot_be_read_in_place_are_copied(cupy):
    wide = cupy.asarray(random(5, 1, 9, 3 * 64 + 1, dtype=np.float16))  # rows of 193 halves: not a multiple of 16 bytes
    parts = [wide[:, :, 64 * i + 1 : 64 * i + 65] for i in range(3)]
    from vitnp.kernels.cuda.attention import attention

    found = cupy.asnumpy(attention(*parts, 1))
    np.testing.assert_allclose(
        found, expected(*(cupy.asnumpy(p) for p in parts), 1), atol=TOLERANCE[np.float16], rtol=0
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("scale", [0.0, 20.0])
def test_flat_and_steep_softmax(cupy, dtype, scale):
    query = random(6, 1, 4, 64, dtype=dtype) * dtype(scale)
    key, value = random(7, 2, 1, 130, 64, dtype=dtype)
    # The largest score comes in the last tile for one row, in the first for another: the running maximum must follow.
    key[0, 129], key[0, 0] = np.sign(query[0, 0]) * dtype(4), np.sign(query[0, 1]) * dtype(4)
    # Scores reach 500, which float32 knows to 3e-5; so then are the probabilities.
    np.testing.assert_allclose(
        attention(cupy, query, key, value, 1), expected(query, key, value, 1), atol=max(TOLERANCE[dtype], 1e-4), rtol=0
    )


def test_scores_far_below_zero_do_not_vanish(cupy):
    query, key = np.full((1, 1, 64), 30, np.float16), np.full((1, 3, 64), -30, np.float16)  # scores of -7200
    value = random(8, 1, 3, 64, dtype=np.float16)
    np.testing.assert_allclose(
        attention(cupy, query, key, value, 1)[0, 0],
        value[0].astype(float).mean(axis=0),
        atol=TOLERANCE[np.float16],
        rtol=0,
    )


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """The upper halves of float32 numbers, rounded to nearest."""
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_bfloat16(x: np.ndarray) -> np.ndarray:
    return (x.astype(np.uint32) << 16).view(np.float32)


@pytest.mark.parametrize("size, tolerance", [(64, 1.2e-2), (8, 1.2e-2)])
def test_bfloat16(cupy, size, tolerance):
    """NumPy has no such type, so the arrays hold bits."""
    from vitnp.kernels.cuda import attention as module_

    bits = [to_bfloat16(random(seed, 1, n, 2 * size)) for seed, n in ((9, 40), (10, 70), (11, 70))]
    found = module_.attention(*map(cupy.asarray, bits), 2)
    wanted = expected(*map(from_bfloat16, bits), 2)
    np.testing.assert_allclose(from_bfloat16(cupy.asnumpy(found)), wanted, atol=tolerance, rtol=0)


def test_rounding_to_bfloat16(cupy):
    from vitnp.kernels.cuda import bfloat16

    halfway = np.array([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8 - 2**-20], np.float32)  # ties go to even
    x = np.concatenate([halfway, [0, -0.0, np.inf, 3.4e38, 1e-40], random(18, 1030)]).astype(np.float32)
    found = cupy.asnumpy(bfloat16.shorten(cupy.asarray(x)))
    np.testing.assert_array_equal(found, to_bfloat16(x))
    back = cupy.asnumpy(bfloat16.lengthen(cupy.asarray(found)))
    np.testing.assert_array_equal(back, from_bfloat16(found))
    assert back[:3].tolist() == [1, 1 + 2**-6, -1 - 2**-7] and back[6] == np.inf
    nothing = cupy.asarray(np.full(3, np.nan, np.float32))
    assert np.isnan(cupy.asnumpy(bfloat16.lengthen(bfloat16.shorten(nothing)))).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_attention_row(cupy, dtype):
    from vitnp.kernels.cuda.attention import attention_row

    query, key = random(12, 2, 1, 128, dtype=dtype), random(13, 2, 9, 128, dtype=dtype)
    found = cupy.asnumpy(attention_row(cupy.asarray(query), cupy.asarray(key), 2))
    np.testing.assert_allclose(found, reference.attention_row(query.astype(float), key.astype(float), 2), atol=1e-6)


PRECISIONS = [("fp32", 1e-5), ("fp16", 4e-3), ("bf16", 3e-2)]


def as_numbers(cupy, found, precision: str) -> np.ndarray:
    assert found.dtype == {"fp32": np.float32, "fp16": np.float16, "bf16": np.uint16}[precision]
    found = cupy.asnumpy(found)
    return from_bfloat16(found) if precision == "bf16" else found


@pytest.mark.parametrize("precision, tolerance", PRECISIONS)
@pytest.mark.parametrize("width", [64, 40])
def test_a_fused_product_of_any_precision(cupy, precision, tolerance, width):
    from vitnp.kernels.cuda.attention import attend_fused

    qkv = random(14, 2, 10, 3 * width, dtype=np.float16 if precision == "fp16" else np.float32)
    found = attend_fused(cupy.asarray(qkv), 1, precision=precision)
    wanted = expected(*np.split(qkv, 3, axis=2), 1)
    np.testing.assert_allclose(as_numbers(cupy, found, precision), wanted, atol=tolerance, rtol=0)


def test_other_types_are_refused(cupy):
    with pytest.raises(TypeError, match="float32, float16 or bfloat16 .as uint16. arrays, got float64"):
        attention(cupy, *np.zeros((3, 1, 1, 64)), 1)


def test_the_same_bits_whatever_the_schedule(cupy):
    """The emulator shuffles threads anew for each launch."""
    arrays = random(17, 3, 1, 70, 64, dtype=np.float16)
    first = attention(cupy, *arrays, 1)
    np.testing.assert_array_equal(attention(cupy, *arrays, 1), first)


def test_two_blocks_of_half_precision_have_room(cupy, monkeypatch):
    """They take more shared memory than a driver may set aside of its own accord."""
    import importlib

    module, asked = importlib.import_module("vitnp.kernels.cuda.attention"), {}
    compile_kernel = module.kernel

    def noted(file, name, *options, **further):
        asked[name] = further.get("carveout")
        return compile_kernel(file, name, *options, **further)

    monkeypatch.setattr(module, "kernel", noted)
    for dtype in (np.float16, np.float32):
        x = random(0, 1, 70, 64, dtype=dtype)
        attention(cupy, x, x, x, 1)
    assert asked == {"attention_half": 100, "attention_float": None}


# --- Rotary position embeddings -------------------------------------------------------------------------------------


def rotation_of(seed: int, tokens: int, size: int) -> np.ndarray:
    """Random angles; the first token isn't rotated."""
    angles = np.random.default_rng(seed).uniform(-7, 7, (tokens, size // 2))
    angles[0] = 0
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def rotated(x, rotation: np.ndarray, heads: int) -> np.ndarray:
    """Written out with complex numbers, in float64."""
    half = rotation.shape[1] // 2
    points = x.astype(float).reshape(*x.shape[:2], heads, 2, half)
    turned = (points[..., 0, :] + 1j * points[..., 1, :]) * (rotation[:, :half] + 1j * rotation[:, half:])[:, None]
    return np.stack([turned.real, turned.imag], axis=-2).reshape(x.shape)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("size, heads, tokens", [(64, 2, 3), (80, 1, 5), (4, 3, 2), (12, 12, 1)])
def test_rotation(cupy, dtype, size, heads, tokens):
    from vitnp.kernels.cuda.attention import rotate

    x, rotation = random(20, 2, tokens, heads * size, dtype=dtype), rotation_of(21, tokens, size)
    found = cupy.asnumpy(rotate(cupy.asarray(x), cupy.asarray(rotation), heads))
    assert found.dtype == dtype
    np.testing.assert_allclose(found, rotated(x, rotation, heads), atol=1e-6 if dtype == np.float32 else 2e-3, rtol=0)
    np.testing.assert_array_equal(found[:, 0], x[:, 0])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(
    "images, rows, tokens, size, heads",
    [(2, 1, 5, 64, 2), (1, 130, 131, 64, 1), (2, 70, 70, 64, 1), (1, 5, 40, 80, 2), (2, 3, 9, 128, 1)],
)
def test_attention_with_rotation(cupy, dtype, images, rows, tokens, size, heads):
    from vitnp.kernels.cuda.attention import attention

    width, rotation = heads * size, rotation_of(22, tokens, size)
    query = random(23, images, rows, width, dtype=dtype)
    key, value = random(24, 2, images, tokens, width, dtype=dtype)
    arrays = [cupy.asarray(x) for x in (query, key, value)]
    found = cupy.asnumpy(attention(*arrays, heads, cupy.asarray(rotation)))
    wanted = expected(rotated(query, rotation[:rows], heads), rotated(key, rotation, heads), value, heads)
    np.testing.assert_allclose(found, wanted, atol=2 * TOLERANCE[dtype], rtol=0)


@pytest.mark.parametrize("precision, tolerance", PRECISIONS)
@pytest.mark.parametrize("size", [64, 20])
def test_keys_of_a_fused_product_are_rotated_where_they_lie(cupy, precision, tolerance, size):
    from vitnp.kernels.cuda.attention import attend, attend_fused

    heads, tokens, width = 2, 10, 2 * size
    rotation = rotation_of(25, tokens, size)
    qkv = random(26, 2, tokens, 3 * width, dtype=np.float16 if precision == "fp16" else np.float32)
    query, key, value = np.split(qkv, 3, axis=2)
    wanted = expected(rotated(query, rotation, heads), rotated(key, rotation, heads), value, heads)
    parts = [cupy.asarray(np.ascontiguousarray(x)) for x in (query[:, :3], key, value)]
    found = attend(*parts, heads, cupy.asarray(rotation), precision=precision)
    np.testing.assert_allclose(as_numbers(cupy, found, precision), wanted[:, :3], atol=tolerance, rtol=0)
    np.testing.assert_array_equal(cupy.asnumpy(parts[1]), key)
    found = attend_fused(cupy.asarray(qkv), heads, cupy.asarray(rotation), precision=precision)
    np.testing.assert_allclose(as_numbers(cupy, found, precision), wanted, atol=tolerance, rtol=0)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_attention_row_with_rotation(cupy, dtype):
    from vitnp.kernels.cuda.attention import attention_row

    query, key, rotation = (
        random(28, 2, 1, 128, dtype=dtype),
        random(29, 2, 9, 128, dtype=dtype),
        rotation_of(30, 9, 64),
    )
    found = cupy.asnumpy(attention_row(*map(cupy.asarray, (query, key)), 2, cupy.asarray(rotation)))
    wanted = reference.attention_row(query.astype(float), rotated(key, rotation, 2), 2)
    np.testing.assert_allclose(found, wanted, atol=1e-6 if dtype == np.float32 else 2e-3)
