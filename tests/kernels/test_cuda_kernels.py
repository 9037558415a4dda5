"""k-means, similarity and the layers of a transformer in CUDA, against float64: emulated on the CPU in check mode, and
on a GPU under ``pytest -m gpu``."""

from __future__ import annotations

import concurrent.futures
import math
import types

import numpy as np
import pytest
from vitnp.kernels import reference

from vitnp.errors import UsageError

H200, SMALL, TINY, TURING = (
    ("90", 227),
    ("86", 99),
    ("80", 40),
    ("75", 64),
)  # compute capability, KiB of shared memory a block


@pytest.fixture
def device(cupy, monkeypatch):
    """Makes the GPU pass for a smaller one."""
    own = dict(cupy.cuda.Device().attributes)

    def become(model: tuple[str, int]) -> None:
        from vitnp.kernels.cuda import loader

        loader.shared_memory.cache_clear()
        loader._compiled.cache_clear()  # each kernel's limit depends on it
        attributes = {**own, "MaxSharedMemoryPerBlockOptin": min(own["MaxSharedMemoryPerBlockOptin"], model[1] * 1024)}
        monkeypatch.setattr(
            cupy.cuda,
            "Device",
            lambda *_: types.SimpleNamespace(id=0, compute_capability=model[0], attributes=attributes),
        )

    yield become
    become(H200)


@pytest.fixture
def operations(cupy):
    from vitnp.kernels.cuda import dispatch

    return dispatch


def rows(seed: int, n: int, width: int, dtype=np.float32) -> np.ndarray:
    """Rows well away from the origin and of all lengths, one of them zero."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((n, width)) + 0.5) * rng.uniform(0.1, 30, (n, 1))
    x[n // 2] = 0
    return x.astype(dtype)


def host(x) -> np.ndarray:
    """An array of the device, here."""
    return x.get() if hasattr(x, "get") else np.asarray(x)


def unit(x: np.ndarray) -> np.ndarray:
    x = x.astype(float)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(length > 0, length, 1)


# --- k-means ---------------------------------------------------------------------------------------------------------


def problem(n: int, clusters: int, width: int, dtype, metric: str):
    """x, centroids, shift, and in float64 the rows as the metric sees them and all losses."""
    x, rng = rows(0, n, width, dtype), np.random.default_rng(1)
    shift = None
    if metric == "cosine":
        centroids = unit(rng.standard_normal((clusters, width))).astype(np.float32)
        seen = unit(x)
        losses = 1 - seen @ centroids.astype(float).T
    else:
        shift = x.mean(axis=0, dtype=float).astype(np.float32)
        centroids = (rng.standard_normal((clusters, width)) * 5).astype(np.float32)
        seen = x.astype(float) - shift
        losses = np.square(seen[:, None] - centroids).sum(axis=-1)
    if clusters > 4:
        centroids[3], losses[:, 3] = centroids[1], losses[:, 1]  # a tie, wherever either is nearest
    return x, centroids, shift, seen, losses


def on_device(cupy, *arrays):
    return [None if array is None else cupy.asarray(array) for array in arrays]


STEPS = [
    (330, 8, 64, np.float32, "cosine", H200),
    (150, 27, 64, np.float16, "cosine", H200),
    (70, 27, 384, np.float32, "euclidean", SMALL),
    (70, 70, 32, np.float32, "euclidean", TINY),
    (133, 256, 64, np.float16, "euclidean", SMALL),
    (40, 3, 1536, np.float32, "cosine", H200),
    (40, 3, 1536, np.float16, "euclidean", H200),
    (40, 5, 1536, np.float32, "cosine", TINY),
    (45, 9, 50, np.float32, "euclidean", TURING),
    (70, 40, 51, np.float16, "cosine", H200),
    (33, 1, 1, np.float16, "cosine", H200),
    (1, 1, 16, np.float32, "euclidean", H200),
]


@pytest.mark.parametrize("n, clusters, width, dtype, metric, model", STEPS)
def test_kmeans_step(cupy, operations, device, n, clusters, width, dtype, metric, model):
    device(model)
    x, centroids, shift, seen, losses = problem(n, clusters, width, dtype, metric)
    there = on_device(cupy, x, centroids, shift)
    step = [host(part) for part in operations.kmeans_step(*there[:2], metric=metric, shift=there[2])]
    step = reference.Step(*step)
    labels = losses.argmin(axis=1)
    sums = np.zeros((clusters, width))
    np.add.at(sums, labels, seen)
    np.testing.assert_array_equal(step.labels, labels)
    np.testing.assert_allclose(step.losses, losses.min(axis=1), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(step.counts, np.bincount(labels, minlength=clusters))
    np.testing.assert_allclose(step.sums.sum(axis=0), sums, rtol=1e-5, atol=1e-6 * np.abs(seen).sum(axis=0).max())
    np.testing.assert_allclose(step.inertia.sum(), losses.min(axis=1).sum(), rtol=1e-6)
    again = operations.kmeans_step(*there[:2], metric=metric, shift=there[2])  # another schedule of threads and blocks
    for one, other in zip(step, again):
        np.testing.assert_array_equal(one, host(other))


@pytest.mark.parametrize(
    "n, clusters, width, dtype, metric, model",
    [
        (77, 8, 64, np.float32, "cosine", H200),
        (70, 70, 32, np.float16, "euclidean", H200),
        (40, 9, 50, np.float32, "euclidean", TURING),
    ],
)
def test_kmeans_assign_and_closer(cupy, operations, device, n, clusters, width, dtype, metric, model):
    device(model)
    x, centroids, shift, _, losses = problem(n, clusters, width, dtype, metric)
    x, centroids, shift = on_device(cupy, x, centroids, shift)
    labels, least = map(host, operations.kmeans_assign(x, centroids, metric=metric, shift=shift))
    np.testing.assert_array_equal(labels, losses.argmin(axis=1))
    np.testing.assert_allclose(least, losses.min(axis=1), rtol=1e-5, atol=1e-6)

    found = operations.kmeans_closer(x, centroids, None, metric=metric, shift=shift)
    np.testing.assert_allclose(host(found), losses, rtol=1e-5, atol=1e-6)
    nearest = np.median(losses, axis=1).astype(np.float32)
    found = operations.kmeans_closer(x, centroids, cupy.asarray(nearest), metric=metric, shift=shift)
    np.testing.assert_allclose(host(found), np.minimum(losses, nearest[:, None]), rtol=1e-5, atol=1e-6)


def test_blocks_of_rows_are_added_up_apart(cupy, operations):
    x, centroids, _, seen, losses = problem(77, 8, 64, np.float32, "cosine")
    step = reference.Step(*map(host, operations.kmeans_step(*on_device(cupy, x, centroids), block=30)))
    labels = losses.argmin(axis=1)
    np.testing.assert_array_equal(step.labels, labels)
    np.testing.assert_array_equal(step.counts, np.bincount(labels, minlength=8))
    for i, part in enumerate((slice(0, 30), slice(30, 60), slice(60, 77))):
        sums = (labels[part] == np.arange(8)[:, None]) @ seen[part]
        np.testing.assert_allclose(step.sums[i], sums, atol=1e-5)
        np.testing.assert_allclose(step.inertia[i], losses.min(axis=1)[part].sum(), rtol=1e-6)


def test_a_row_that_is_not_finite_has_no_loss(cupy, operations):
    for metric in ("cosine", "euclidean"):
        x, centroids, shift, _, _ = problem(77, 8, 64, np.float32, metric)
        x[4, 7], x[9, 0] = np.nan, np.inf
        x, centroids, shift = on_device(cupy, x, centroids, shift)
        labels, least = map(host, operations.kmeans_assign(x, centroids, metric=metric, shift=shift))
        assert np.flatnonzero(np.isnan(least)).tolist() == [4, 9]
        assert labels.min() >= 0 and labels.max() < 8


@pytest.mark.parametrize(
    "clusters, width, dtype, model",
    [(8, 64, np.float32, H200), (70, 32, np.float16, H200), (9, 50, np.float32, TURING)],
)
def test_distances_of_near_rows_keep_their_digits(cupy, operations, device, clusters, width, dtype, model):
    """|x|^2 - 2 x.c + |c|^2 would leave none of them."""
    device(model)
    rng = np.random.default_rng(0)
    centroids = (rng.standard_normal((clusters, width)) * 5).astype(dtype).astype(np.float32)
    labels = np.arange(77) % clusters
    x = (centroids[labels] + 3 + rng.standard_normal((77, width)) * 0.01).astype(dtype)
    x[7] = centroids[7] + 3
    shift = np.full(width, 3, np.float32)
    losses = np.square(x.astype(float)[:, None] - 3 - centroids).sum(axis=-1)
    x, centroids, shift = on_device(cupy, x, centroids, shift)
    step = operations.kmeans_step(x, centroids, metric="euclidean", shift=shift)
    np.testing.assert_array_equal(host(step.labels), labels)
    np.testing.assert_allclose(host(step.losses), losses.min(axis=1), rtol=1e-5)
    np.testing.assert_allclose(host(step.inertia).sum(), losses.min(axis=1).sum(), rtol=1e-6)
    found = operations.kmeans_closer(x, centroids, None, metric="euclidean", shift=shift)
    np.testing.assert_allclose(host(found), losses, rtol=1e-5)


@pytest.mark.parametrize("width, clusters, model", [(64, 8, H200), (50, 9, TURING)])
def test_rows_too_short_to_be_squared_have_a_direction(cupy, operations, device, width, clusters, model):
    device(model)
    x, centroids, _, seen, losses = problem(77, clusters, width, np.float32, "cosine")
    x[4] *= 1e-18
    x[9] *= 1e-30
    labels = losses.argmin(axis=1)
    x, centroids = on_device(cupy, x, centroids)
    step = operations.kmeans_step(x, centroids)
    np.testing.assert_array_equal(host(step.labels), labels)
    np.testing.assert_allclose(host(step.losses), losses.min(axis=1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(host(step.sums)[0], (labels == np.arange(clusters)[:, None]) @ seen, atol=1e-5)
    np.testing.assert_allclose(host(operations.kmeans_closer(x, centroids, None)), losses, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(host(operations.similarity(x, centroids)), 1 - losses, atol=1e-6)


@pytest.mark.parametrize("clusters, metric", [(257, "cosine"), (0, "cosine"), (2, "manhattan")])
def test_kmeans_refuses(cupy, operations, clusters, metric):
    with pytest.raises(ValueError, match=str(clusters) if metric == "cosine" else metric):
        operations.kmeans_step(*on_device(cupy, rows(0, 4, 16), np.ones((clusters, 16), np.float32)), metric=metric)


# --- Similarity ------------------------------------------------------------------------------------------------------


@pytest.mark.slow(reason="large grids on the emulator")
@pytest.mark.parametrize(
    "n, others, width, dtype, count, model",
    [
        (110, 130, 64, np.float32, 5, H200),
        (130, 70, 64, np.float16, 70, SMALL),
        (20, 70, 50, np.float16, 1, TURING),
        (1, 1, 16, np.float32, 1, H200),
    ],
)
def test_similarity(cupy, operations, device, n, others, width, dtype, count, model):
    device(model)
    x, y = rows(2, n, width, dtype), rows(3, others, width, dtype)
    if others > 8:
        x[0] = y[5::8] = y[5]  # ties for the first places
    expected = unit(x) @ unit(y).T
    x, y = on_device(cupy, x, y)
    np.testing.assert_allclose(host(operations.similarity(x, y)), expected, atol=1e-6)
    values, indices = map(host, operations.similarity_top(x, y, count))
    # Equal values keep the lower index first; the zero row ties with all rows.
    order = np.argsort(-np.round(expected, 9), axis=1, kind="stable")[:, :count]
    np.testing.assert_array_equal(indices, order)
    np.testing.assert_allclose(values, np.take_along_axis(expected, order, axis=1), atol=1e-6)


def test_long_sums_are_not_cut_off(cupy, operations):
    """Of positive products: what a tensor core cuts off at each step is never made up for by a later one."""
    x, y = (np.abs(rows(seed, 40, 768)) for seed in (5, 6))
    found = operations.similarity(*on_device(cupy, x, y))
    np.testing.assert_allclose(host(found), unit(x) @ unit(y).T, atol=1e-6)


def test_rows_are_not_compared_with_themselves(cupy, operations):
    y = rows(4, 70, 64)
    expected = unit(y) @ unit(y).T
    np.fill_diagonal(expected, -2)
    values, indices = map(host, operations.similarity_top(*on_device(cupy, y[30:60], y), 4, own=30))
    order = np.argsort(-np.round(expected, 9), axis=1, kind="stable")[30:60, :4]
    np.testing.assert_array_equal(indices, order)
    np.testing.assert_allclose(values, np.take_along_axis(expected[30:60], order, axis=1), atol=1e-6)


def test_similarity_top_refuses_more_than_there_are(cupy, operations):
    with pytest.raises(ValueError, match="count must be between 1 and"):
        operations.similarity_top(*on_device(cupy, rows(0, 4, 16), rows(1, 4, 16)), 5)


# --- Layers ----------------------------------------------------------------------------------------------------------

TOLERANCE = {np.float32: 2e-6, np.float16: 2e-3}


def near(found: np.ndarray, expected: np.ndarray, dtype) -> None:
    assert found.dtype == dtype
    scale = np.abs(expected).max()
    np.testing.assert_allclose(
        host(found).astype(float), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * scale
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("width", [1, 33, 384, 1536, 2048])
def test_layernorm(cupy, operations, dtype, width):
    rng = np.random.default_rng(width)
    x = (rng.standard_normal((3, 7, width)) * 3 + 2).astype(dtype)
    weight, bias = (rng.standard_normal(width).astype(dtype) for _ in range(2))
    wide = x.astype(float)
    centered = wide - wide.mean(axis=-1, keepdims=True)
    expected = centered / np.sqrt(np.square(centered).mean(axis=-1, keepdims=True) + 1e-6) * weight.astype(
        float
    ) + bias.astype(float)
    x, weight, bias = on_device(cupy, x, weight, bias)
    near(operations.layernorm(x, weight, bias, 1e-6), expected, dtype)
    out = cupy.empty(x.shape, dtype)
    assert operations.layernorm(x, weight, bias, 1e-6, out) is out
    near(out, expected, dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_gelu_and_swiglu(cupy, operations, dtype):
    x = np.linspace(-9, 9, 304).astype(dtype)
    expected = np.array([v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x.astype(float)])
    near(operations.gelu(cupy.asarray(x)), expected, dtype)
    x = np.random.default_rng(0).standard_normal((5, 3, 36)).astype(dtype) * 4
    gate, value = np.split(x.astype(float), 2, axis=-1)
    near(operations.swiglu(cupy.asarray(x)), gate / (1 + np.exp(-gate)) * value, dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("given", [(), ("bias",), ("bias", "gelu"), ("bias", "scale", "residual"), ("residual",)])
def test_linear(cupy, operations, dtype, given):
    rng = np.random.default_rng(len(given))
    width = 16 if "scale" in given else 10  # 16 bytes at a time, or two numbers
    x, weight = rng.standard_normal((2, 7, 24)).astype(dtype), (rng.standard_normal((width, 24)) / 5).astype(dtype)
    bias, scale, residual = (rng.standard_normal(shape).astype(dtype) for shape in (width, width, (2, 7, width)))
    expected = x.astype(float) @ weight.astype(float).T
    further = {}
    if "bias" in given:
        further["bias"], expected = cupy.asarray(bias), expected + bias
    if "gelu" in given:
        further["activation"], expected = "gelu", reference.gelu(expected)
    if "scale" in given:
        further["scale"], expected = cupy.asarray(scale), expected * scale
    if "residual" in given:
        further["residual"], expected = cupy.asarray(residual), expected + residual
    there = on_device(cupy, x, weight)
    near(operations.linear(*there, **further), expected, dtype)
    out = further.get("residual", cupy.empty(expected.shape, dtype))  # the residual may be where the result goes
    assert operations.linear(*there, **further, out=out) is out
    near(out, expected, dtype)


@pytest.mark.parametrize("stride", [2, 4])
def test_patch_embedding(cupy, operations, stride):
    rng = np.random.default_rng(0)
    images, weight, bias = rng.standard_normal((2, 3, 12, 9)), rng.standard_normal((6, 3, 4, 4)), rng.standard_normal(6)
    expected = reference.patch_embedding(images, weight, bias, stride)
    there = on_device(cupy, *(array.astype(np.float32) for array in (images, weight, bias)))
    np.testing.assert_allclose(host(operations.patch_embedding(*there, stride)), expected, atol=2e-5)
    found = host(operations.patch_embedding(*there, stride, start=1, stop=5))
    np.testing.assert_allclose(found, expected[:, 1:5], atol=2e-5)


def test_precisions(cupy, operations, device):
    assert operations.precisions() == ("fp32", "tf32", "fp16", "bf16")
    assert operations.pack_linear(cupy.asarray(np.ones((2, 2))), "fp16").dtype == np.float16
    device(TURING)
    assert operations.precisions() == ("fp32", "fp16")
    with pytest.raises(UsageError, match="int8"):
        operations.pack_linear(cupy.asarray(np.ones((2, 2))), "int8")


def test_linear_in_bfloat16(cupy, operations):
    rng = np.random.default_rng(0)
    x, weight, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 7, 24), (10, 24), 10))
    packed = operations.pack_linear(cupy.asarray(weight), "bf16")
    found = host(operations.linear(*on_device(cupy, x), packed, cupy.asarray(bias), activation="gelu"))
    expected = reference.gelu(x.astype(float) @ weight.astype(float).T + bias)
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert found.dtype == np.float32 and 1e-4 < error < 1e-2  # eight bits of each number


@pytest.mark.parametrize("environment", ["0", "1"])
def test_products_are_as_exact_as_the_precision_says(cupy, operations, environment):
    settings, rng = cupy._core._routines_linalg, np.random.default_rng(0)
    before = settings.get_compute_type(np.float32)
    # What CUPY_TF32 leads to.
    users = settings.COMPUTE_TYPE_TF32 if environment == "1" else settings.COMPUTE_TYPE_DEFAULT
    settings.set_compute_type(np.float32, users)
    try:
        x, weight = (rng.standard_normal((256, 384)).astype(np.float32) for _ in range(2))
        expected = x.astype(float) @ weight.astype(float).T
        error = {}
        for precision in ("fp32", "tf32"):
            with operations.products(precision):
                found = operations.linear(*on_device(cupy, x), operations.pack_linear(cupy.asarray(weight), precision))
                assert settings.get_compute_type(np.float32) == users  # other threads' products stay what they were
            error[precision] = np.abs(host(found) - expected).max() / np.abs(expected).max()
        assert error["fp32"] < 2e-6 and 1e-5 < error["tf32"] < 1e-3
    finally:
        settings.set_compute_type(np.float32, before)


def test_another_thread_s_products_keep_their_own_arithmetic(cupy, operations):
    if "tf32" not in operations.precisions():
        pytest.skip("this GPU has no tf32")
    rng = np.random.default_rng(0)
    x, weight = on_device(cupy, *(rng.standard_normal((64, 384)).astype(np.float32) for _ in range(2)))
    exact = host(operations.linear(x, weight))
    with operations.products("tf32"), concurrent.futures.ThreadPoolExecutor(1) as pool:
        theirs = host(pool.submit(operations.linear, x, weight).result(60))
        mine = host(operations.linear(x, weight))
    np.testing.assert_array_equal(theirs, exact)
    assert (mine != exact).any()


def test_products_of_other_types_are_refused(cupy):
    from vitnp.kernels.cuda import gemm

    with pytest.raises(TypeError, match="got float32 and float16"):
        gemm.multiply(*on_device(cupy, np.ones((2, 3), np.float32), np.ones((4, 3), np.float16)))


def test_odd_widths_are_refused(cupy, operations):
    with pytest.raises(UsageError, match="must be even on a GPU, got 7"):
        operations.gelu(cupy.asarray(np.ones((2, 7), np.float32)))


def test_every_operation_named_is_there(operations):
    for name in [name for names in operations.MODULES.values() for name in names]:
        assert callable(getattr(operations, name))
    with pytest.raises(AttributeError, match="softmin"):
        _ = operations.softmin
