"""k-means with bounds gives the same bits as without: labels, centroids, sums and inertia."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vitnp.kernels import reference
from vitnp.kernels.reference import Moves
from vitnp.kernels.threads import pool

from vitnp import kernels
from vitnp.clustering.kmeans import KMeans
from vitnp.clustering.spherical import spherical_kmeans

k = kernels.for_device("cpu")

if k is reference:
    pytest.skip("there are no compiled kernels here", allow_module_level=True)

lloyd = importlib.import_module("vitnp.kernels.cpu.lloyd")


@pytest.fixture(autouse=True, scope="module")
def bounds_for_any_number_of_centroids():
    """Few centroids have most ties and empty clusters, and the tests are short."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitnp.kernels.cpu.bounds.MIN_CLUSTERS", 1)
        yield


def run(x: np.ndarray, start: np.ndarray, bounds: bool, *, n_threads: int = 1, most: int = 40, **options) -> Moves:
    with pytest.MonkeyPatch.context() as patch, pool.thread_limit(n_threads):
        if not bounds:
            patch.setattr(lloyd, "bounds_per_row", lambda *_: 0)
        return k.kmeans_moves(x, start, most, **options)


def assert_same(a: Moves, b: Moves) -> None:
    assert a.history == b.history and a.ended == b.ended
    for name in ("centroids", "sums", "counts") if a.history else ("centroids",):
        assert getattr(a, name).tobytes() == getattr(b, name).tobytes(), name
    assert (a.labels is None) == (b.labels is None)
    np.testing.assert_array_equal(a.labels, b.labels)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 999), rows=st.integers(1, 600), width=st.sampled_from([16, 32, 48, 64, 128, 208]),
    clusters=st.sampled_from([1, 2, 3, 7, 8, 9, 16, 17, 33, 49, 100]), spread=st.sampled_from([0.0, 0.3, 1.0, 3.0]),
    metric=st.sampled_from(["cosine", "euclidean"]), block=st.sampled_from([None, 64, 97, 256]),
    kind=st.sampled_from([np.float16, np.float32, np.float64]), n_threads=st.integers(1, 3), whole=st.booleans(),
    offset=st.sampled_from([0.0, 30.0]),
)  # fmt: skip
def test_bounds_change_nothing(seed, rows, width, clusters, spread, metric, block, kind, n_threads, whole, offset):
    """`whole` numbers have exact ties and identical rows; `offset` lets rounding errors grow."""
    rng = np.random.default_rng(seed)
    x = spread * rng.standard_normal((5, width))[rng.integers(0, 5, rows)] + rng.standard_normal((rows, width)) + offset
    if whole:
        x = np.round(x)
        x[:, 3:] = 0
    x = x.astype(kind)
    start = reference.kmeans_rows(x[rng.integers(0, rows, clusters)], metric=metric)
    shift = x.mean(axis=0).astype(np.float32) if metric == "euclidean" and seed % 2 else None
    if shift is not None:
        start = start - shift
    options = {"metric": metric, "shift": shift, "block": block}
    assert_same(run(x, start, True, n_threads=n_threads, **options), run(x, start, False, **options))


def hard_rows() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    plain = rng.standard_normal((400, 32))
    far = np.full((400, 1), 1.0)
    far[::50] = 1e15
    lattice = np.stack(np.meshgrid(*[np.arange(4.0)] * 4), axis=-1).reshape(-1, 4)
    return {
        "constant": np.full((400, 32), 0.3),
        "zeros": np.zeros((400, 32)),
        "zeros among others": plain * (np.arange(400) % 3 > 0)[:, None],
        "two rows": plain[np.arange(400) % 2],
        "nearly the same": 1 + 1e-6 * plain,
        "denormal": plain * 1e-41,
        "tiny": plain * 1e-19,
        "huge": plain * 1e17,
        "overflowing": plain * 1e25,
        "one far away": plain * far,
        "tiny and huge": plain * 10.0 ** rng.integers(-38, 17, (400, 1)),
        "points of a lattice": np.pad(np.tile(lattice, (2, 1)), ((0, 0), (0, 28))),
        "not finite": np.where(rng.random((400, 32)) < 1e-4, np.nan, plain),
    }


@pytest.mark.parametrize("name", hard_rows())
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_bounds_change_nothing_for_hard_rows(name, metric):
    x = hard_rows()[name].astype(np.float32)
    for clusters in (2, 8, 20, 40):
        with np.errstate(all="ignore"):
            start = reference.kmeans_rows(x[np.arange(clusters) * 7], metric=metric)
        assert_same(run(x, start, True, metric=metric, block=100), run(x, start, False, metric=metric, block=100))


def rows_whose_products_round_alike(width: int, metric: str, rng: np.random.Generator) -> np.ndarray:
    """Return rows of nearly the same number: errors of one product have one sign and add up, those of others differ."""
    x = np.repeat(1 + (0.05 if metric == "euclidean" else 0.01) * rng.random((600, 1)), width, axis=1)
    if metric == "cosine":  # else all rows have one direction
        x[:, :: width // 4] *= 1 + 0.2 * rng.random((600, 4))
    return x


def rows_far_from_zero(width: int, metric: str, rng: np.random.Generator) -> np.ndarray:
    """Return rows whose products are a million times as large as the distances between rows."""
    return rng.standard_normal((5, width))[rng.integers(0, 5, 600)] + rng.standard_normal((600, width)) + 1000


@pytest.mark.parametrize(
    ("rows", "width", "clusters", "metrics"),
    [
        (rows_whose_products_round_alike, 192, 20, ("cosine", "euclidean")),
        (rows_whose_products_round_alike, 2048, 3, ("cosine", "euclidean")),
        (rows_whose_products_round_alike, 2048, 16, ("euclidean",)),
        (rows_far_from_zero, 192, 20, ("cosine", "euclidean")),
        (rows_far_from_zero, 2048, 16, ("cosine", "euclidean")),
    ],
)
def test_rows_that_rounding_assigns_to_another_centroid(rows, width, clusters, metrics):
    """Exact bounds would keep labels that the products in float32 change: only the margin finds these rows.

    Without the margin each case fails; with a fiftieth of it, those of rows whose products round alike.
    """
    for metric in metrics:
        rounded = 0
        for seed in range(4):
            x = rows(width, metric, np.random.default_rng(seed)).astype(np.float32)
            start = reference.kmeans_rows(x[:clusters], metric=metric)
            plain = run(x, start, False, metric=metric)
            assert_same(run(x, start, True, metric=metric), plain)
            centroids = plain.centroids.astype(np.float64)
            scores = reference.kmeans_rows(x, metric=metric, dtype=np.float64) @ centroids.T
            if metric == "euclidean":
                scores -= np.square(centroids).sum(axis=1) / 2
            if plain.labels is not None:
                rounded += int((plain.labels != scores.argmax(axis=1)).sum())
        assert rounded > 0  # else these rows would test nothing


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("clusters", [3, 20, 70])
def test_many_rows_in_place_and_in_several_calls(metric, clusters, monkeypatch):
    """More rows than are copied, in memory of any alignment, and kernels that return after every third pass."""
    rng = np.random.default_rng(clusters)
    x = np.empty(9000 * 64 + 1, np.float32)[1:].reshape(9000, 64)
    x[:] = rng.standard_normal((6, 64))[rng.integers(0, 6, 9000)] + rng.standard_normal((9000, 64))
    monkeypatch.setattr("vitnp.kernels.cpu.bounds.MIN_CLUSTERS_IN_MEMORY", 1)
    start = reference.kmeans_rows(x[:clusters], metric=metric)
    options = {"metric": metric, "block": 1024, "most": 15}
    plain = run(x, start, False, **options)
    monkeypatch.setattr(lloyd, "WORK_PER_CALL", 3 * x.size * clusters)
    assert_same(run(x, start, True, n_threads=2, **options), plain)
    assert_same(run(x, start, False, n_threads=2, **options), plain)


def test_bounds_are_used_only_where_they_pay():
    from vitnp.kernels.cpu.bounds import FEW_ROWS, MIN_CLUSTERS_IN_MEMORY, bounds_per_row

    assert bounds_per_row(3600, 8, 384) >= 8 and bounds_per_row(3600, 8, 383) == 0
    assert bounds_per_row(FEW_ROWS + 1, MIN_CLUSTERS_IN_MEMORY - 1, 384) == 0
    assert bounds_per_row(FEW_ROWS + 1, MIN_CLUSTERS_IN_MEMORY, 384) >= MIN_CLUSTERS_IN_MEMORY
    assert bounds_per_row(3600, 1000, 384) == 96  # centroids share bounds, which stay a quarter of the rows' size


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_models_of_arrays_and_of_blocks_agree(metric):
    """Blocks are assigned without bounds; centroids end at the means of float64."""
    rng = np.random.default_rng(4)
    x = (rng.standard_normal((12, 64))[rng.integers(0, 12, 9000)] + rng.standard_normal((9000, 64))).astype(np.float32)
    whole = KMeans(24, metric=metric, max_iter=200).fit(x)
    blocks = KMeans(24, metric=metric, max_iter=200).fit(np.array_split(x, 3))
    assert whole.labels_.tobytes() == blocks.labels_.tobytes()
    assert whole.cluster_centers_.tobytes() == blocks.cluster_centers_.tobytes()
    assert whole.inertia_history_ == blocks.inertia_history_ and len(whole.inertia_history_) > 10
    rows = reference.kmeans_rows(x, metric=metric, dtype=np.float64)
    means = np.stack([rows[whole.labels_ == cluster].mean(axis=0) for cluster in range(24)])
    if metric == "cosine":
        means /= np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(whole.cluster_centers_, means, atol=1e-5)
    distances = np.square(rows[:, None] - means).sum(axis=2)
    nearest = np.take_along_axis(distances, whole.labels_[:, None], axis=1)[:, 0]
    assert (nearest <= distances.min(axis=1) + 1e-3).all()


def test_spherical_kmeans_of_a_photograph_s_size():
    rng = np.random.default_rng(1)
    x = reference.kmeans_rows(rng.standard_normal((900, 192)) + 2 * rng.standard_normal((4, 192))[np.arange(900) % 4])
    found = spherical_kmeans(x, 10, np.random.default_rng(0))
    cosine = x.astype(float) @ found.centroids.astype(float).T
    assert (cosine.max(axis=1) - cosine[np.arange(900), found.labels] < 1e-6).all()
    assert found.inertia == pytest.approx((1 - cosine.max(axis=1)).sum(), rel=1e-5)
