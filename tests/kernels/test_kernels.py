"""Every operation against its definition in float64, written as loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitnp import kernels

k = kernels.for_device("cpu")
steady = settings(derandomize=True, deadline=None, max_examples=25)
TOLERANCE = {np.float32: 2e-5, np.float64: 1e-12}


def random(seed: int, *shape: int, dtype=np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def near(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE[found.dtype.type], atol=TOLERANCE[found.dtype.type])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@steady
@given(n=st.integers(1, 9), c=st.integers(1, 40), e=st.integers(1, 20), seed=st.integers(0, 99))
def test_linear(dtype, n, c, e, seed):
    x, w, b = random(seed, n, c, dtype=dtype), random(seed + 1, e, c, dtype=dtype), random(seed + 2, e, dtype=dtype)
    expected = [
        [math.fsum(float(x[i, j]) * float(w[o, j]) for j in range(c)) + float(b[o]) for o in range(e)] for i in range(n)
    ]
    found = k.linear(x, w, b)
    assert found.dtype == dtype
    near(found, np.array(expected))
    near(k.linear(x, w), np.array(expected) - b)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_layernorm(dtype, scale):
    x = random(0, 5, 33, dtype=dtype) * dtype(scale)
    w, b = random(1, 33, dtype=dtype), random(2, 33, dtype=dtype)
    expected = np.empty((5, 33))
    for i, row in enumerate(x.astype(float)):
        mean = math.fsum(row) / 33
        variance = math.fsum((v - mean) ** 2 for v in row) / 33
        expected[i] = [(v - mean) / math.sqrt(variance + 1e-6) * float(g) + float(h) for v, g, h in zip(row, w, b)]
    near(k.layernorm(x, w, b, 1e-6), expected)


def test_layernorm_of_a_constant_row_is_the_bias():
    bias = np.arange(4, dtype=np.float32)
    np.testing.assert_array_equal(
        k.layernorm(np.full((1, 4), 7, np.float32), np.ones(4, np.float32), bias, 1e-6)[0], bias
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gelu_is_the_exact_form(dtype):
    x = np.linspace(-9, 9, 301, dtype=dtype)
    near(k.gelu(x), np.array([v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x.astype(float)]))


def test_swiglu_gates_with_the_first_half_and_never_overflows():
    x = np.array([[-1000.0, 0.0, 2.0, 1000.0, 3.0, 5.0, 7.0, 0.5]])
    expected = [0.0, 0.0, 2 / (1 + math.exp(-2)) * 7, 500.0]
    near(k.swiglu(x)[0], np.array(expected))


def test_softmax_of_huge_values():
    near(k.softmax(np.array([[1e30, 1e30, -1e30]])), np.array([[0.5, 0.5, 0.0]]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@steady
@given(
    batch=st.integers(1, 3), rows=st.integers(1, 5), tokens=st.integers(1, 7), heads=st.integers(1, 3),
    size=st.integers(1, 5), seed=st.integers(0, 99),
)  # fmt: skip
def test_attention(dtype, batch, rows, tokens, heads, size, seed):
    q = random(seed, batch, rows, heads * size, dtype=dtype)
    key, value = (random(seed + 1 + i, batch, tokens, heads * size, dtype=dtype) for i in range(2))
    expected = np.zeros(q.shape)
    weights = np.zeros((batch, rows, heads, tokens))
    for b in range(batch):
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            for r in range(rows):
                scores = [
                    math.fsum(q[b, r, part].astype(float) * key[b, t, part].astype(float)) / math.sqrt(size)
                    for t in range(tokens)
                ]
                exps = [math.exp(s - max(scores)) for s in scores]
                weights[b, r, h] = np.array(exps) / math.fsum(exps)
                expected[b, r, part] = weights[b, r, h] @ value[b, :, part].astype(float)
    near(k.attention(q, key, value, heads), expected)
    near(k.attention_row(q[:, :1], key, heads), weights[:, 0])


def test_attention_over_several_blocks_of_queries():
    q, key, value = (random(i, 1, k.QUERY_BLOCK + 3, 4) for i in range(3))
    whole = k.attention(q, key, value, 2)
    last = k.attention(q[:, -3:], key, value, 2)
    near(whole[:, -3:], last.astype(float))


@pytest.mark.parametrize(
    ("patch", "stride", "height", "width"), [(2, 2, 6, 4), (4, 2, 8, 12), (3, 1, 3, 6), (4, 4, 4, 4)]
)
def test_patch_embedding_is_a_convolution(patch, stride, height, width):
    x, w, b = random(0, 2, 3, height, width), random(1, 5, 3, patch, patch), random(2, 5)
    expected = []
    for image in x.astype(float):
        for top in range(0, height - patch + 1, stride):
            for left in range(0, width - patch + 1, stride):
                window = image[:, top : top + patch, left : left + patch]
                expected.append(
                    [math.fsum((window * filter_).ravel()) + float(bias) for filter_, bias in zip(w.astype(float), b)]
                )
    near(k.patch_embedding(x, w, b, stride), np.array(expected).reshape(2, -1, 5))


def test_normalize_rows_keeps_zero_rows_and_huge_and_tiny_ones():
    x = np.array([[3.0, 4.0], [0.0, 0.0], [3e18, 4e18], [3e-18, 4e-18]], np.float32)
    near(k.normalize_rows(x), np.array([[0.6, 0.8], [0, 0], [0.6, 0.8], [0.6, 0.8]]))


def test_kmeans_step_by_hand():
    x = np.array([[5, 0], [0.8, 0.6], [0, 1], [0.6, 0.8], [0, 0]])
    step = k.kmeans_step(x, np.array([[0.0, -1.0], [1, 0], [0, 1]]), block=2)
    np.testing.assert_array_equal(step.labels, [1, 1, 2, 2, 0])
    near(step.losses, np.array([0, 0.2, 0, 0.2, 1]))
    near(step.sums, np.array([[[0, 0], [1.8, 0.6], [0, 0]], [[0, 0], [0, 0], [0.6, 1.8]], [[0, 0], [0, 0], [0, 0]]]))
    near(step.inertia, np.array([0.2, 0.2, 1]))
    np.testing.assert_array_equal(step.counts, [1, 2, 2])
    step = k.kmeans_step(
        np.array([[11.0, 10], [10, 12]]), np.array([[0.0, 0], [0, 1]]), metric="euclidean", shift=np.full(2, 10.0)
    )
    np.testing.assert_array_equal(step.labels, [0, 1])
    near(step.losses, np.array([1.0, 1]))
    near(step.sums, np.array([[[1.0, 0], [0, 2]]]))


def test_exact_ties_go_to_the_lower_centroid():
    labels, _ = k.kmeans_assign(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]))
    assert labels.tolist() == [1]


def test_unknown_device_is_named():
    with pytest.raises(ValueError, match="tpu"):
        kernels.for_device("tpu")
