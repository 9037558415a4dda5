"""Compiled kernels against float64, on sizes around the edges of tiles and numbers that are difficult in float32."""

from __future__ import annotations

import os
import stat
import subprocess
import sys

import numpy as np
import pytest
import random_vit
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import erf
from vitnp.kernels.threads import pool

from vitnp import ViT, ViTConfig, kernels
from vitnp.errors import UsageError

k = kernels.for_device("cpu")
pytestmark = pytest.mark.skipif(
    not kernels.describe().startswith("compiled"), reason="there are no compiled kernels here"
)
steady = settings(derandomize=True, deadline=None, max_examples=40)

# A product of C terms of float32 rounds by about sqrt(C) half-units; this is generous and far below any wrong index.
EPS = np.finfo(np.float32).eps


def random(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def double(*arrays: np.ndarray) -> list[np.ndarray]:
    return [array.astype(np.float64) for array in arrays]


def exact_gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + erf(x / np.sqrt(2)))


def check_linear(x, weight, **options):
    x64, w64 = double(x, weight)
    exact = x64 @ w64.T
    bound = np.abs(x64) @ np.abs(w64).T  # what cancels in the sum still rounds
    if options.get("bias") is not None:
        exact, bound = exact + options["bias"], bound + np.abs(options["bias"])
    if options.get("activation"):
        exact, bound = exact_gelu(exact), bound + 4
    if options.get("scale") is not None:
        exact, bound = exact * options["scale"], bound * np.abs(options["scale"])
    if options.get("residual") is not None:
        exact, bound = exact + options["residual"], bound + np.abs(options["residual"])
    for packed in (weight, k.pack_linear(weight)):
        found = k.linear(x, packed, **options)
        assert found.dtype == np.float32 and found.shape == exact.shape
        assert (np.abs(found - exact) <= 8 * EPS * bound + 1e-44).all()


@steady
@given(
    n=st.integers(1, 20), c=st.integers(1, 200), e=st.integers(1, 110), seed=st.integers(0, 99),
    bias=st.booleans(), gelu=st.booleans(), scale=st.booleans(), residual=st.booleans(),
)  # fmt: skip
def test_linear_and_its_epilogue(n, c, e, seed, bias, gelu, scale, residual):
    check_linear(
        random(seed, n, c), random(seed + 1, e, c, scale=c**-0.5),
        bias=random(seed + 2, e) if bias else None, activation="gelu" if gelu else None,
        scale=random(seed + 3, e) if scale else None, residual=random(seed + 4, n, e) if residual else None,
    )  # fmt: skip


@pytest.mark.parametrize("width", [192, 384, 768, 1024, 1536, 1000])
@pytest.mark.parametrize("rows", [95, 97, 193])
def test_linear_of_the_widths_of_networks(width, rows):
    check_linear(random(0, rows, width), random(1, 100, width, scale=width**-0.5), bias=random(2, 100))
    check_linear(random(0, 9, 70), random(1, width, 70, scale=0.1), residual=random(3, 9, width))


@pytest.mark.parametrize("number", [1e-42, 1e-30, 1e18, 3.0, 0.0])
def test_linear_of_faint_huge_and_constant_numbers(number):
    check_linear(np.full((11, 53), number, np.float32), random(1, 50, 53))
    check_linear(random(0, 11, 53) * np.float32(number), random(1, 50, 53))


def test_linear_writes_where_it_is_told_and_adds_in_place():
    x, weight, residual = random(0, 13, 40), random(1, 60, 40), random(2, 13, 60)
    expected = k.linear(x, weight, residual=residual)
    whole = np.full((3, 13, 60), 7, np.float32)
    assert k.linear(x, weight, residual=residual, out=whole[1]) is not None
    np.testing.assert_array_equal(whole[1], expected)
    assert (whole[[0, 2]] == 7).all()
    k.linear(x, weight, residual=residual, out=residual)
    np.testing.assert_array_equal(residual, expected)


def test_a_row_of_a_product_does_not_depend_on_its_neighbors():
    x, weight = random(0, 200, 300), k.pack_linear(random(1, 130, 300))
    whole = k.linear(x, weight)
    for start, stop in ((0, 1), (3, 12), (90, 200)):
        np.testing.assert_array_equal(k.linear(x[start:stop], weight), whole[start:stop])


@steady
@given(n=st.integers(1, 30), d=st.integers(1, 150), seed=st.integers(0, 99), exponent=st.integers(-6, 6))
def test_layernorm(n, d, seed, exponent):
    x, weight, bias = (
        random(seed, n, d) * np.float32(10.0**exponent) + np.float32(1),
        random(seed + 1, d),
        random(seed + 2, d),
    )
    x64 = x.astype(np.float64)
    centered = x64 - x64.mean(axis=1, keepdims=True)
    exact = centered / np.sqrt(np.square(centered).mean(axis=1, keepdims=True) + 1e-6) * weight + bias
    # Where numbers of a row hardly differ, their mean's rounding is what is left.
    lost = (
        EPS * np.abs(x64).max(axis=1, keepdims=True) / np.sqrt(np.square(centered).mean(axis=1, keepdims=True) + 1e-6)
    )
    assert (
        np.abs(k.layernorm(x, weight, bias, 1e-6) - exact)
        <= (8 * EPS + 2 * lost) * (np.abs(weight) * 4 + np.abs(bias) + 4)
    ).all()


def test_layernorm_of_constant_and_faint_rows_is_the_bias():
    bias = random(0, 37)
    for number in (0, 5, 1e-40, -3e20):
        found = k.layernorm(np.full((2, 37), number, np.float32), np.ones(37, np.float32), bias, 1e-6)
        assert np.isfinite(found).all()
        if abs(number) < 1e10:
            np.testing.assert_allclose(found, [bias, bias], atol=2e-3)


@pytest.mark.parametrize("count", [1, 15, 16, 17, 1000])
def test_gelu_and_swiglu(count):
    x = np.linspace(-12, 12, count, dtype=np.float32)
    np.testing.assert_allclose(k.gelu(x), exact_gelu(x.astype(np.float64)), atol=1e-6, rtol=1e-6)
    both = np.stack([np.r_[x, x[::-1]], np.r_[x * 20, x]])
    gate, value = double(both[:, :count], both[:, count:])
    with np.errstate(over="ignore"):
        exact = gate / (1 + np.exp(-gate)) * value
    np.testing.assert_allclose(k.swiglu(both), exact, atol=2e-6, rtol=2e-6)


def exact_attention(query, key, value, heads):
    query, key, value = double(query, key, value)
    batch, rows, width = query.shape
    size = width // heads
    q, kk, v = (a.reshape(batch, -1, heads, size).transpose(0, 2, 1, 3) for a in (query, key, value))
    scores = q @ kk.transpose(0, 1, 3, 2) / np.sqrt(size)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return (weights @ v).transpose(0, 2, 1, 3).reshape(batch, rows, width)


@steady
@given(
    b=st.integers(1, 2), m=st.integers(1, 30), n=st.integers(1, 120), heads=st.integers(1, 3),
    size=st.sampled_from([1, 3, 16, 32, 64, 65, 80]), seed=st.integers(0, 99), sharp=st.sampled_from([0.1, 1.0, 30.0]),
)  # fmt: skip
def test_attention(b, m, n, heads, size, seed, sharp):
    query, key, value = (
        random(seed, b, m, heads * size) * np.float32(sharp),
        random(seed + 1, b, n, heads * size),
        random(seed + 2, b, n, heads * size),
    )
    # A score's rounding is the weight's relative error.
    scores = np.abs(query).astype(np.float64).max() * np.abs(key).max() * np.sqrt(size)
    tolerance = 8 * EPS * (1 + scores) * np.abs(value).max()
    assert np.abs(k.attention(query, key, value, heads) - exact_attention(query, key, value, heads)).max() <= tolerance


def random_rotation(seed, tokens, size):
    angles = np.random.default_rng(seed).uniform(-7, 7, (tokens, size // 2))
    angles[0] = 0  # CLS
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def exactly_rotated(x, rotation, heads):
    half = rotation.shape[1] // 2
    points = double(x)[0].reshape(*x.shape[:2], heads, 2, half)
    turned = (points[..., 0, :] + 1j * points[..., 1, :]) * (rotation[:, :half] + 1j * rotation[:, half:])[:, None]
    return np.stack([turned.real, turned.imag], axis=-2).reshape(x.shape)


@steady
@given(
    b=st.integers(1, 2), m=st.integers(1, 30), n=st.integers(1, 120), heads=st.integers(1, 3), seed=st.integers(0, 99),
    size=st.sampled_from([4, 12, 32, 64, 80, 128]), piece=st.integers(1, 130),
)  # fmt: skip
def test_attention_with_rotation(b, m, n, heads, size, seed, piece):
    m, rotation = min(m, n), random_rotation(seed, n, size)
    query, key, value = (random(seed + i, b, count, heads * size) for i, count in enumerate((m, n, n)))
    turned = exactly_rotated(key, rotation, heads)
    exact = exact_attention(exactly_rotated(query, rotation[:m], heads), turned, value, heads)
    np.testing.assert_allclose(k.attention(query, key, value, heads, rotation), exact, atol=1e-5)
    # Keys written in pieces, and queries of the last tokens instead of the first.
    cache = k.KVCache(b, n, heads * size, heads, rotation=rotation)
    for start in range(0, n, piece):
        cache.write(slice(0, b), start, key[:, start : start + piece], value[:, start : start + piece])
    exact = exact_attention(exactly_rotated(query, rotation[n - m :], heads), turned, value, heads)
    np.testing.assert_allclose(cache.attend(query, slice(0, b), start=n - m), exact, atol=1e-5)


def test_tokens_without_angles_are_not_changed_by_a_rotation():
    query, key, value = (random(i, 2, 70, 128) for i in range(3))
    still = np.concatenate([np.ones((70, 32)), np.zeros((70, 32))], axis=1).astype(np.float32)
    np.testing.assert_array_equal(k.attention(query, key, value, 2, still), k.attention(query, key, value, 2))


@pytest.mark.parametrize("tokens", [239, 240, 241, 481, 700])
def test_attention_over_several_stretches_of_keys_whose_maxima_rise_and_fall(tokens):
    query, key, value = random(0, 1, 50, 64, scale=2), random(1, 1, tokens, 64), random(2, 1, tokens, 64)
    for ramp in (np.linspace(-3, 3, tokens), np.linspace(3, -3, tokens)):
        steep = key * np.float32(1) + (ramp[:, None] * np.sign(query[0, 0])).astype(np.float32)
        np.testing.assert_allclose(
            k.attention(query, steep, value, 1), exact_attention(query, steep, value, 1), atol=2e-4, rtol=1e-4
        )


@pytest.mark.parametrize("scale", [1e-30, 1e4, 1e7])
def test_attention_of_faint_and_huge_scores(scale):
    query, key, value = random(0, 1, 20, 32) * np.float32(scale), random(1, 1, 60, 32), random(2, 1, 60, 32)
    found = k.attention(query, key, value, 1)
    if scale < 1:
        np.testing.assert_allclose(found, np.broadcast_to(value.mean(axis=1, keepdims=True), found.shape), atol=1e-6)
    else:  # all weight on the one best key, wherever it is clearly the best
        scores = (query[0].astype(float) @ key[0].T.astype(float)) / np.sqrt(32)
        top = np.sort(scores, axis=1)
        clear = top[:, -1] - top[:, -2] > 40 + 1e-5 * np.abs(top[:, -1])
        assert clear.mean() > 0.5
        np.testing.assert_allclose(found[0, clear], value[0, scores.argmax(axis=1)[clear]], rtol=1e-5)


def test_what_is_not_finite_crashes_no_kernel():
    bad = np.array([np.nan, np.inf, -np.inf, 1, 2] * 20, np.float32).reshape(2, 50)
    k.linear(bad, random(0, 60, 50), activation="gelu")
    k.layernorm(bad, random(0, 50), random(1, 50), 1e-6)
    k.gelu(bad), k.swiglu(bad)
    k.attention(bad[None], bad[None], bad[None], 2)


@steady
@given(
    batch=st.integers(1, 2), height=st.integers(1, 40), width=st.integers(1, 40), patch=st.sampled_from([1, 2, 8, 14]),
    seed=st.integers(0, 9),
)  # fmt: skip
def test_patch_embedding(batch, height, width, patch, seed):
    height, width = max(height, patch), max(width, patch)
    images, weight, bias = random(seed, batch, 3, height, width), random(1, 5, 3, patch, patch, scale=0.1), random(2, 5)
    for stride in {patch, max(1, patch // 2)}:
        rows, columns = (height - patch) // stride + 1, (width - patch) // stride + 1
        exact = np.empty((batch, rows * columns, 5))
        for number in range(rows * columns):
            i, j = number // columns * stride, number % columns * stride
            exact[:, number] = np.tensordot(
                images[:, :, i : i + patch, j : j + patch].astype(float), weight.astype(float), ([1, 2, 3],) * 2
            )
        np.testing.assert_allclose(k.patch_embedding(images, weight, bias, stride), exact + bias, atol=2e-4, rtol=1e-4)
        if rows * columns > 2:
            part = k.patch_embedding(images, weight, bias, stride, start=1, stop=rows * columns - 1)
            np.testing.assert_allclose(part, (exact + bias)[:, 1:-1], atol=2e-4, rtol=1e-4)


def network(**changes) -> tuple:
    config = ViTConfig(**({"width": 96, "depth": 3, "heads": 3, "patch": 8, "grid": (4, 4)} | changes))
    return config, random_vit.random_weights(config, seed=1, hidden=200, class_position=True, dtype=np.float32)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"registers": 4, "layerscale": True},
        {"swiglu": True},
        {"width": 90, "heads": 5},
        {"rotary": True, "registers": 4},
    ],
)
def test_the_network_gives_the_same_bits_for_any_number_of_threads_and_any_batch(changes):
    vit = ViT(*network(**changes))
    images = random(3, 3, 3, 64, 104)
    want = ("key", "query", "token", "cls", "attention")
    with pool.thread_limit(1):
        alone = vit(images, want)
        by_itself = vit(images[1:2], want)
    for name in want:
        np.testing.assert_array_equal(alone[name][1:2], by_itself[name])
    for count in (2, 4):
        with pool.thread_limit(count):
            for number in (1, 3):
                found = vit(images[:number], want)
                for name in want:
                    np.testing.assert_array_equal(found[name], alone[name][:number])


needs_bf16 = pytest.mark.skipif("bf16" not in k.precisions(), reason="this processor has no bfloat16 products")


@needs_bf16
@steady
@given(n=st.integers(1, 20), c=st.integers(1, 200), e=st.integers(1, 110), seed=st.integers(0, 99))
def test_linear_in_bfloat16(n, c, e, seed):
    def rounded(x):  # to 8 bits of mantissa, ties to even
        mantissa, exponent = np.frexp(x.astype(np.float64))
        return np.ldexp(np.round(mantissa * 256) / 256, exponent)

    x, weight, bias = random(seed, n, c), random(seed + 1, e, c), random(seed + 2, e)
    found = k.linear(x, k.pack_linear(weight, "bf16"), bias)
    exact = rounded(x) @ rounded(weight).T + bias
    assert (np.abs(found - exact) <= 8 * EPS * (np.abs(x).astype(float) @ np.abs(weight).T + np.abs(bias))).all()


@needs_bf16
@pytest.mark.parametrize("changes", [{}, {"width": 90, "heads": 2}, {"swiglu": True}, {"rotary": True}])
def test_a_network_in_bfloat16_is_near_and_the_same_for_any_number_of_threads(changes):
    exact = ViT(*network(**changes))
    vit = exact.to(precision="bf16")
    assert vit.precision == "bf16" and exact.precision == "fp32"
    images = random(3, 2, 3, 64, 104)
    key, near = (v(images, "key")["key"] for v in (exact, vit))
    assert 1e-4 < np.linalg.norm(key - near) / np.linalg.norm(key) < 2e-2
    for count in (1, 2, 4):
        with pool.thread_limit(count):
            np.testing.assert_array_equal(vit(images[:1], "key")["key"], near[:1])


def test_a_precision_that_is_not_there_is_refused_with_those_that_are():
    vit = ViT(*network())
    assert vit.to(precision="auto").precision == vit.to(precision="fp32").precision == "fp32"
    with pytest.raises(UsageError, match="fp16.*choose among auto, fp32"):
        vit.to(precision="fp16")


# --- in processes of their own
# ------------------------------------------------------------------------------------------------


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    settled = {
        name: value for name, value in os.environ.items() if not name.startswith(("VITNP_LANES", "VITNP_KERNELS"))
    }
    return subprocess.run(
        [sys.executable, "-c", code], env={**settled, **environment}, capture_output=True, text=True, timeout=280
    )


AGAINST_THE_REFERENCE = """
import numpy as np
from vitnp import kernels
from vitnp.kernels import reference
k, random = kernels.for_device(), np.random.default_rng(0)
x, w, b = (random.standard_normal(s).astype("f") for s in ((37, 75), (61, 75), 61))
near = lambda found, exact: np.testing.assert_allclose(found, exact, atol=3e-5, rtol=1e-5)
near(k.linear(x, w, b, activation="gelu"), reference.linear(x, w, b, activation="gelu"))
near(k.layernorm(x, w[0], w[1], 1e-6), reference.layernorm(x, w[0], w[1], 1e-6))
near(k.swiglu(x[:, :74]), reference.swiglu(x[:, :74]))
q, key, v = (random.standard_normal((1, 300, 96)).astype("f") for _ in range(3))
near(k.attention(q, key, v, 2), reference.attention(q, key, v, 2))
angles = random.uniform(-7, 7, (300, 24))
rotation = np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype("f")
near(k.attention(q, key, v, 2, rotation), reference.attention(q, key, v, 2, rotation))
print(kernels.describe())
"""


@pytest.mark.slow(reason="compiles the kernels for other processors")
@pytest.mark.parametrize("lanes", ["4", "8"])
def test_narrower_vectors_are_right_too(lanes):
    done = python(AGAINST_THE_REFERENCE, VITNP_LANES=lanes)
    assert done.returncode == 0, done.stderr
    assert f"{lanes} lanes" in done.stdout


def test_without_numba_the_reference_takes_over_with_one_line(tmp_path):
    done = python(f"import sys; sys.modules['numba'] = None\n{AGAINST_THE_REFERENCE}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("reference") and done.stderr.count("\n") == 1 and "numba" in done.stderr


def test_a_cache_that_cannot_be_written_falls_back_with_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    done = python(AGAINST_THE_REFERENCE, VITNP_CACHE=str(tmp_path / "file"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("reference")
    assert done.stderr.count("\n") == 1 and "VITNP_CACHE" in done.stderr and str(tmp_path / "file") in done.stderr


@pytest.mark.slow(reason="compiles kernels")
def test_kernels_are_compiled_once_and_that_is_logged_once(tmp_path):
    code = (
        "import logging; logging.basicConfig(level=logging.INFO)\n"
        "import numpy as np\nfrom vitnp import kernels\n"
        "x = np.ones((3, 20), 'f')\nkernels.for_device().layernorm(x, x[0], x[0], 1e-6)"
    )
    first, second = (python(code, VITNP_CACHE=str(tmp_path)) for _ in range(2))
    assert first.returncode == second.returncode == 0
    assert first.stderr.count("\n") == 1 and "compil" in first.stderr and second.stderr == ""


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_cache_falls_back(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    done = python(AGAINST_THE_REFERENCE, VITNP_CACHE=str(tmp_path))
    assert done.returncode == 0 and done.stdout.startswith("reference") and done.stderr.count("\n") == 1


def test_an_unknown_value_of_vitnp_kernels_is_refused():
    done = python("from vitnp import kernels; kernels.for_device()", VITNP_KERNELS="fast")
    assert done.returncode != 0 and "VITNP_KERNELS must be reference, compiled or unset, got 'fast'" in done.stderr
