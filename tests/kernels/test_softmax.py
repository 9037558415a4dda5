"""Weights of attention far from the usual range, and functions that are coarse where results are rounded to 8 bits."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import erf

from vitnp import kernels

k = kernels.for_device("cpu")
pytestmark = pytest.mark.skipif(
    not kernels.describe().startswith("compiled"), reason="there are no compiled kernels here"
)
needs_bf16 = pytest.mark.skipif("bf16" not in k.precisions(), reason="this processor has no bfloat16 products")
precisions = pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=needs_bf16)])


def random(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def rounded(x: np.ndarray) -> np.ndarray:
    """Round to the 8 bits of a bfloat16's significand, ties to even."""
    mantissa, exponent = np.frexp(x.astype(np.float64))
    return np.ldexp(np.round(mantissa * 256) / 256, exponent)


def cache(key: np.ndarray, value: np.ndarray, precision: str):
    tokens, width = key.shape
    kv = k.KVCache(1, tokens, width, 1, slot=3, precision=precision)
    kv.write(slice(0, 1), 0, key[None], value[None])
    return lambda query: kv.attend(query[None], slice(0, 1))[0].copy()


def exact(query: np.ndarray, key: np.ndarray, value: np.ndarray, precision: str) -> np.ndarray:
    query = query * np.float32(np.log2(np.e) / np.sqrt(query.shape[1]))
    if precision == "bf16":
        query, key, value = map(rounded, (query, key, value))
    scores = query.astype(np.float64) @ key.T.astype(np.float64)
    weights = np.exp2(scores - scores.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True) @ value.astype(np.float64)


@precisions
@pytest.mark.parametrize("tokens", [1, 47, 48, 130, 1000])
@pytest.mark.parametrize("offset", [-400, -90, 0, 90, 400])
def test_scores_of_any_size_are_right(precision, tokens, offset):
    # The first feature adds about `offset` to all scores of a row.
    query, key, value = random(0, 60, 64), random(1, tokens, 64), random(2, tokens, 64)
    query[:, 0], key[:, 0] = 8, offset
    found = cache(key, value, precision)(query)
    tolerance = 1.5e-2 if precision == "bf16" else 1e-5 * (1 + abs(offset))
    np.testing.assert_allclose(found, exact(query, key, value, precision), atol=tolerance)


@precisions
def test_a_row_does_not_depend_on_whether_its_neighbors_need_a_shift(precision):
    query, key, value = random(0, 70, 64), random(1, 300, 64), random(2, 300, 64)
    query[::3] *= 300
    attend = cache(key, value, precision)
    together = attend(query)
    for start, stop in ((0, 1), (1, 2), (1, 3), (5, 55), (69, 70)):
        np.testing.assert_array_equal(attend(query[start:stop]), together[start:stop])


@precisions
def test_values_near_the_largest_float_do_not_overflow(precision):
    query, key, value = random(0, 30, 64, scale=5), random(1, 90, 64), random(2, 90, 64)
    found = cache(key, value * np.float32(1e37), precision)(query)
    np.testing.assert_allclose(found / np.float32(1e37), exact(query, key, value, precision), atol=2e-2)


@needs_bf16
def test_weights_in_bfloat16_err_by_their_rounding():
    query, key, value = random(0, 40, 64), random(1, 64, 64), np.eye(64, dtype=np.float32)
    found, weights = cache(key, value, "bf16")(query), exact(query, key, value, "bf16")
    assert np.abs(found / weights - 1).max() < 2.0**-8 + 2e-4  # half a unit, and a tenth of it for the power


@needs_bf16
def test_powers_for_bfloat16_err_by_less_than_a_tenth_of_its_rounding():
    from vitnp.kernels.cpu.codegen.softmax import EXP2_BFLOAT

    x = np.linspace(0, 1, 100_001)
    powers = np.polynomial.Polynomial(EXP2_BFLOAT)(x)
    assert np.abs(powers / np.exp2(x) - 1).max() < 1e-4 < 0.1 * 2.0**-8


@needs_bf16
def test_gelu_in_bfloat16_is_within_1e_4():
    x = rounded(np.linspace(-40, 40, 64 * 50).astype(np.float32)).astype(np.float32).reshape(50, 64)
    found = k.linear(x, k.pack_linear(np.eye(64, dtype=np.float32), "bf16"), activation="gelu")
    gelu = x * 0.5 * (1 + erf(x.astype(np.float64) / np.sqrt(2)))
    assert np.abs(found - gelu).max() < 1e-4
