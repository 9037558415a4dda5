"""k-means: hand-computed points, brute-force optima, degenerate inputs, and rows from every kind of source."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
import threadpoolctl
from hypothesis import given, settings
from hypothesis import strategies as st

from vitnp.clustering import chunks
from vitnp.clustering.kmeans import KMeans
from vitnp.clustering.kmeans_plusplus import kmeans_plusplus
from vitnp.clustering.lloyd import move_centroids
from vitnp.clustering.metric import Cosine, Euclidean
from vitnp.clustering.spherical import spherical_kmeans
from vitnp.clustering.step import partial_step, sum_partials
from vitnp.errors import UsageError


def on_circle(*degrees: float) -> np.ndarray:
    angle = np.deg2rad(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def unit(seed: int, n: int, d: int) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((n, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def cost(x: np.ndarray, labels: np.ndarray, clusters: int) -> float:
    """The smallest sum of 1 - cosine for given labels: the best centroid is the direction of the sum."""
    return len(x) - sum(np.linalg.norm(x[labels == j].sum(axis=0)) for j in range(clusters))


def same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    return len(set(zip(a.tolist(), b.tolist()))) == len(set(a.tolist())) == len(set(b.tolist()))


def test_three_groups_by_hand():
    found = spherical_kmeans(on_circle(0, 10, 90, 100, 200, 210), 3, np.random.default_rng(0), starts=5)
    assert same_partition(found.labels, np.array([0, 0, 1, 1, 2, 2]))
    # Each pair lies 5 degrees to either side of its centroid.
    assert found.inertia == pytest.approx(6 * (1 - np.cos(np.deg2rad(5))))
    expected = {(5, 2), (95, 2), (205, 2)}
    angles = np.rad2deg(np.arctan2(found.centroids[:, 1], found.centroids[:, 0])) % 360
    assert {(round(float(a)), int(c)) for a, c in zip(angles, found.counts)} == expected


@settings(derandomize=True, deadline=None, max_examples=15)
@given(seed=st.integers(0, 999), n=st.integers(3, 7), clusters=st.integers(2, 3))
def test_many_starts_reach_the_optimum_of_all_partitions(seed, n, clusters):
    x = unit(seed, n, 3)
    best = min(cost(x, np.array(labels), clusters) for labels in itertools.product(range(clusters), repeat=n))
    found = spherical_kmeans(x, clusters, np.random.default_rng(seed), starts=40)
    assert found.inertia == pytest.approx(best, abs=1e-9)
    assert found.inertia == pytest.approx(cost(x, found.labels, clusters), abs=1e-9)


@settings(derandomize=True, deadline=None, max_examples=25)
@given(seed=st.integers(0, 999), n=st.integers(1, 60), clusters=st.integers(1, 6), iterations=st.integers(1, 20))
def test_labels_counts_and_inertia_agree_with_the_centroids(seed, n, clusters, iterations):
    clusters = min(clusters, n)
    x = unit(seed, n, 5)
    found = spherical_kmeans(x, clusters, np.random.default_rng(0), max_iterations=iterations)
    cosine = x @ found.centroids.T
    np.testing.assert_array_equal(found.labels, cosine.argmax(axis=1))
    np.testing.assert_array_equal(found.counts, np.bincount(found.labels, minlength=clusters))
    np.testing.assert_allclose(np.linalg.norm(found.centroids, axis=1), 1)
    assert found.inertia == pytest.approx(float((1 - cosine.max(axis=1)).sum()), abs=1e-9)


def test_more_iterations_never_cost_more():
    x = unit(3, 200, 8)
    inertia = [spherical_kmeans(x, 7, np.random.default_rng(1), max_iterations=i).inertia for i in range(1, 12)]
    assert all(later <= earlier + 1e-9 for earlier, later in itertools.pairwise(inertia))
    assert inertia[-1] < inertia[0]


def test_best_of_several_starts_is_no_worse():
    x = unit(5, 100, 4)
    one = spherical_kmeans(x, 8, np.random.default_rng(2), starts=1, max_iterations=3)
    ten = spherical_kmeans(x, 8, np.random.default_rng(2), starts=10, max_iterations=3)
    assert ten.inertia < one.inertia


def test_same_seed_gives_the_same_result_to_the_bit():
    x = unit(4, 300, 16).astype(np.float32)
    first, second = (spherical_kmeans(x, 6, np.random.default_rng(9), starts=2) for _ in range(2))
    np.testing.assert_array_equal(first.centroids, second.centroids)
    np.testing.assert_array_equal(first.labels, second.labels)


def test_identical_rows_leave_clusters_empty_rather_than_fail():
    x = np.tile(on_circle(30), (6, 1))
    found = spherical_kmeans(x, 3, np.random.default_rng(0))
    assert found.inertia == pytest.approx(0)
    assert sorted(found.counts.tolist()) == [0, 0, 6]
    np.testing.assert_array_equal(found.labels, 0)  # ties go to the lower cluster


def test_as_many_clusters_as_distinct_rows_gives_each_row_its_own():
    found = spherical_kmeans(on_circle(0, 90, 180, 270), 4, np.random.default_rng(0))
    assert found.counts.tolist() == [1, 1, 1, 1]
    assert found.inertia == pytest.approx(0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_an_error(bad):
    x = unit(0, 5, 3)
    x[2, 1] = bad
    with pytest.raises(ValueError, match="finite"):
        spherical_kmeans(x, 2, np.random.default_rng(0))


@pytest.mark.parametrize("clusters", [0, 6])
def test_more_clusters_than_rows_are_an_error(clusters):
    with pytest.raises(ValueError, match="clusters"):
        spherical_kmeans(unit(0, 5, 3), clusters, np.random.default_rng(0))


# KMeans: rows that come as arrays, memory maps or blocks.


def features(seed: int, n: int, d: int, clusters: int = 4, noise: float = 0.5) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centers = 3 * rng.standard_normal((clusters, d))
    return (centers[rng.integers(clusters, size=n)] + noise * rng.standard_normal((n, d))).astype(np.float16)


def losses(x: np.ndarray, centers: np.ndarray, metric: str) -> np.ndarray:
    """Loss of every row for every center in float64, from the definition."""
    x, centers = x.astype(float), centers.astype(float)
    if metric == "euclidean":
        return np.square(x[:, None] - centers[None]).sum(axis=2)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return 1 - x / np.where(length > 0, length, 1) @ centers.T


def same_model(a: KMeans, b: KMeans) -> None:
    np.testing.assert_array_equal(a.labels_, b.labels_)
    np.testing.assert_array_equal(a.cluster_centers_, b.cluster_centers_)
    assert a.inertia_history_ == b.inertia_history_


class Stream:
    """Blocks that are created again in each iteration."""

    def __init__(self, x, sizes):
        self.x, self.sizes, self.passes = x, sizes, 0

    def __iter__(self):
        self.passes += 1
        start = 0
        for size in itertools.cycle(self.sizes):
            if start >= len(self.x):
                return
            yield self.x[start : start + size].copy()
            start += size


class Slices:
    """An object that has only a shape and slices of rows."""

    def __init__(self, x):
        self.x, self.shape, self.largest = x, x.shape, 0

    def __getitem__(self, rows):
        part = self.x[rows]
        self.largest = max(self.largest, len(part))
        return part


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_attributes_agree_with_their_definition(metric):
    x = features(0, 500, 6)
    model = KMeans(4, metric=metric, n_init=3, random_state=1).fit(x)
    loss = losses(x, model.cluster_centers_, metric)
    np.testing.assert_array_equal(model.labels_, loss.argmin(axis=1))
    np.testing.assert_array_equal(model.counts_, np.bincount(model.labels_, minlength=4))
    assert model.inertia_ == pytest.approx(loss.min(axis=1).sum(), rel=1e-4)
    assert model.inertia_history_[-1] == model.inertia_
    assert model.cluster_centers_.dtype == np.float32 and model.labels_.dtype == np.int32
    np.testing.assert_array_equal(model.predict(x), model.labels_)
    # At the end every center is the mean (direction) of its rows.
    unit_rows = x.astype(float)
    if metric == "cosine":
        unit_rows /= np.linalg.norm(unit_rows, axis=1, keepdims=True)
    means = np.stack([unit_rows[model.labels_ == j].mean(axis=0) for j in range(4)])
    if metric == "cosine":
        means /= np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(model.cluster_centers_, means, atol=2e-5)


@settings(derandomize=True, deadline=None, max_examples=12)
@given(seed=st.integers(0, 999), n=st.integers(3, 7), clusters=st.integers(2, 3))
def test_euclidean_starts_reach_the_optimum_of_all_partitions(seed, n, clusters):
    x = np.random.default_rng(seed).standard_normal((n, 2)).astype(np.float32)

    def within(labels):
        groups = [x[labels == j].astype(float) for j in set(labels.tolist())]
        return sum(np.square(group - group.mean(axis=0)).sum() for group in groups)

    best = min(within(np.array(labels)) for labels in itertools.product(range(clusters), repeat=n))
    model = KMeans(clusters, metric="euclidean", n_init=40, random_state=seed, n_jobs=1).fit(x)
    assert model.inertia_ == pytest.approx(best, abs=1e-5)


@pytest.mark.slow(reason="many whole runs")
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_result_is_the_same_to_the_bit_for_every_kind_of_source(metric, tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 64)
    x = features(1, 1000, 9, clusters=6, noise=2.0)
    reference = KMeans(6, metric=metric, n_init=2, random_state=3, n_jobs=1).fit(x)
    assert reference.n_iter_ > 3
    mapped = np.memmap(tmp_path / "x.f16", np.float16, "w+", shape=x.shape)
    mapped[:] = x
    padded = np.empty((1001, 11), np.float32)  # neither contiguous nor aligned
    padded[1:, 1:-1] = x
    store = Slices(x)
    sources = {
        "memory map": mapped,
        "float32": x.astype(np.float32),
        "float64, by columns": np.asfortranarray(x.astype(float)),
        "view": padded[1:, 1:-1],
        "list of lists": x.tolist(),
        "list of blocks": np.array_split(x, 7),
        "single rows": Stream(x, [1]),
        "odd blocks": Stream(x, [37, 0, 64, 200]),
        "float32 blocks among float16": [x[:10], x[10:700].astype(np.float32), x[700:]],
        "store": store,
    }
    for source in sources.values():
        for n_threads in (1, 3):
            model = KMeans(6, metric=metric, n_init=2, random_state=3, n_jobs=n_threads).fit(source)
            same_model(model, reference)
            np.testing.assert_array_equal(model.predict(source), reference.labels_)
    assert store.largest == 64  # the whole is never loaded at once


def test_chunks_of_the_real_size_and_blas_threads_change_nothing():
    x = features(2, 3 * chunks.CHUNK_ROWS + 11, 24, clusters=5, noise=4.0)
    reference = KMeans(5, max_iter=4, n_jobs=1).fit(x)
    with threadpoolctl.threadpool_limits(limits=2, user_api="blas"):
        same_model(KMeans(5, max_iter=4, n_jobs=2).fit(Stream(x, [5000])), reference)


def test_chunks_change_only_the_rounding(monkeypatch):
    x = features(3, 700, 8, clusters=5, noise=1.0)
    whole = KMeans(5, random_state=2).fit(x)
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 50)
    parts = KMeans(5, random_state=2).fit(x)
    np.testing.assert_array_equal(parts.labels_, whole.labels_)
    np.testing.assert_allclose(parts.cluster_centers_, whole.cluster_centers_, atol=1e-6)
    assert parts.inertia_ == pytest.approx(whole.inertia_, rel=1e-6)


def test_mapper_gives_the_same_result_and_everything_can_be_pickled(monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 100)
    x = features(4, 950, 7, noise=2.0)
    sizes = []

    def remote_map(function, items):
        """Map as on other machines: function, item and result are pickled, and the last item is processed first."""
        tasks = [pickle.dumps((function, item)) for item in items]
        sizes.append(max(map(len, tasks)))
        results = []
        for task in reversed(tasks):
            unpickled, item = pickle.loads(task)
            results.append(pickle.dumps(unpickled(item)))
        return map(pickle.loads, reversed(results))

    reference = KMeans(4, n_init=2).fit(x)
    model = KMeans(4, n_init=2)
    same_model(model.fit(x, mapper=remote_map), reference)
    np.testing.assert_array_equal(model.predict(x, mapper=remote_map), reference.labels_)
    assert max(sizes) < 4000  # bytes: 100 rows of float16 and the centroids, not the whole array


@settings(derandomize=True, deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 999),
    n=st.integers(2, 40),
    size=st.integers(1, 9),
    clusters=st.integers(1, 5),
    levels=st.integers(1, 4),
)
def test_partial_steps_add_up_to_a_naive_step(seed, n, size, clusters, levels):
    """Few distinct values, so that ties and empty clusters are common; all sums are exact."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, levels, (n, 3)).astype(float)
    centroids = rng.integers(0, levels, (clusters, 3)).astype(float)
    plain = Euclidean(None)
    total = sum_partials(partial_step(rows[i : i + size], centroids, plain, i, 2) for i in range(0, n, size))
    loss = np.square(rows[:, None] - centroids).sum(axis=2)
    labels = [min(range(clusters), key=lambda j: (row[j], j)) for row in loss]
    counts = [labels.count(j) for j in range(clusters)]
    assert total.labels.tolist() == labels and total.counts.tolist() == counts
    assert total.inertia == sum(loss[i, label] for i, label in enumerate(labels))
    for j in range(clusters):
        np.testing.assert_array_equal(total.sums[j], sum((rows[i] for i in range(n) if labels[i] == j), np.zeros(3)))
    order = sorted(range(n), key=lambda i: (-loss[i, labels[i]], i))
    if 0 in counts:
        assert total.farthest.indices.tolist() == order[:clusters]
        np.testing.assert_array_equal(total.farthest.rows, rows[order[:clusters]])
    # Relocation by its definition: empty clusters take the farthest rows that are not the last of theirs.
    remaining, relocated, queue = list(counts), {}, order
    for cluster in [j for j in range(clusters) if counts[j] == 0]:
        while queue and remaining[labels[queue[0]]] == 1:
            queue.pop(0)
        if queue:
            relocated[queue[0]] = cluster
            remaining[labels[queue.pop(0)]] -= 1
    final = [relocated.get(i, labels[i]) for i in range(n)]
    moved = move_centroids(total, centroids, plain)
    for j in range(clusters):
        mine = [rows[i] for i in range(n) if final[i] == j]
        np.testing.assert_allclose(moved[j], np.mean(mine, axis=0) if mine else centroids[j], rtol=1e-12)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_an_empty_cluster_takes_the_farthest_row_of_any_chunk(metric):
    """Both centroids start at one point; the second takes the farthest row, in the last chunk, but no row of zeros."""
    x = np.array([[10.0, 0.0]] * 6 + [[10.0, 1.0]] * 3 + [[0.0, 7.0]], np.float32)
    geometry, start = Cosine(), np.array([[1.0, 0.0]] * 2, np.float32)
    if metric == "euclidean":
        geometry, start = Euclidean(np.array([1.0, 0.0], np.float32)), np.array([[9.0, 0.0]] * 2, np.float32)
    else:
        x[:2] = 0
    total = sum_partials(partial_step(x[i : i + 4], start, geometry, i) for i in (0, 4, 8))
    assert total.counts.tolist() == [10, 0]
    assert total.farthest.indices.tolist() == [9, 6]
    second = geometry.cluster_centers(move_centroids(total, start, geometry))[1]
    np.testing.assert_allclose(second, [0, 1] if metric == "cosine" else [0, 7], atol=1e-6)


def test_rows_of_zeros_are_never_candidates_for_empty_clusters():
    x = np.zeros((30, 2))
    x[[7, 20]] = [[1.0, 0.0], [0.0, 3.0]]
    total = sum_partials([partial_step(x, np.array([[1.0, 0.0]] * 4), Cosine())])
    assert total.farthest.indices.tolist() == [20, 7]
    np.testing.assert_array_equal(total.farthest.rows, [[0, 1], [1, 0]])


def test_more_clusters_than_distinct_rows_leave_some_empty():
    x = np.repeat(features(5, 3, 4), [3, 3, 3], axis=0)
    for metric in ("cosine", "euclidean"):
        model = KMeans(5, metric=metric).fit(x)
        assert model.inertia_ == pytest.approx(0, abs=1e-5)
        assert np.isfinite(model.cluster_centers_).all()
        assert same_partition(model.labels_, np.repeat(np.arange(3), 3))


def test_rows_of_zeros_have_no_direction_and_move_nothing():
    x = np.array([[0, 0], [2, 0], [0, 0], [0, 3], [5, 0.1]], np.float16)
    model = KMeans(2, n_init=8).fit(x)
    assert model.labels_[1] == model.labels_[4] != model.labels_[3]
    np.testing.assert_array_equal(model.labels_[[0, 2]], 0)
    np.testing.assert_allclose(np.linalg.norm(model.cluster_centers_, axis=1), 1, rtol=1e-6)
    zeros = KMeans(2).fit(np.zeros((4, 3)))
    assert zeros.inertia_ == 4 and np.isfinite(zeros.cluster_centers_).all()


def test_cosine_ignores_lengths_however_large_or_tiny():
    x = unit(6, 40, 5).astype(np.float32)
    plain = KMeans(3, n_init=3).fit(x)
    lengths = np.float32(10.0) ** np.random.default_rng(0).integers(-37, 19, (40, 1)).astype(np.float32)
    np.testing.assert_array_equal(KMeans(3, n_init=3).fit(x * lengths).labels_, plain.labels_)


def test_euclidean_far_from_the_origin():
    x = (features(7, 300, 3, noise=0.3).astype(np.float32) + np.float32(5000)).astype(np.float32)
    model = KMeans(4, metric="euclidean", n_init=4).fit(x)
    loss = losses(x, model.cluster_centers_, "euclidean")
    assert model.inertia_ == pytest.approx(loss.min(axis=1).sum(), rel=1e-2)
    assert np.mean(model.labels_ == loss.argmin(axis=1)) == 1


def test_inertia_falls_and_tolerance_stops_early():
    x = features(8, 2000, 10, clusters=30, noise=3.0)
    for metric in ("cosine", "euclidean"):
        full = KMeans(12, metric=metric, max_iter=100).fit(x)
        history = np.array(full.inertia_history_)
        assert (np.diff(history) <= 1e-6 * history[0]).all() and len(history) == full.n_iter_ + 1 > 8
        early = KMeans(12, metric=metric, max_iter=100, tol=0.01).fit(x)
        falls = -np.diff(history) / history[:-1]
        assert early.n_iter_ == int(np.argmax(falls <= 0.01)) + 1
        assert early.inertia_history_ == full.inertia_history_[: early.n_iter_ + 1]
    assert KMeans(12, max_iter=2).fit(x).n_iter_ == 2


def test_seed_and_n_init():
    x = features(9, 400, 5, clusters=9, noise=1.5)
    same_model(KMeans(7, random_state=5).fit(x), KMeans(7, random_state=5).fit(x))
    assert not np.array_equal(
        KMeans(7, random_state=5, max_iter=1).fit(x).labels_, KMeans(7, random_state=6, max_iter=1).fit(x).labels_
    )
    assert KMeans(7, random_state=(1, 2), n_init=10).fit(x).inertia_ <= KMeans(7, random_state=(1, 2)).fit(x).inertia_


def test_greedy_seeding_covers_planted_clusters():
    """Twelve tight groups: k-means++ must choose a row of each, which uniform draws hardly ever do."""
    x = features(10, 1200, 8, clusters=12, noise=0.02)
    hits = [
        len(set(KMeans(12, metric="euclidean", max_iter=1, random_state=seed).fit(x).labels_[:600].tolist()))
        for seed in range(5)
    ]
    assert hits == [12] * 5
    assert all(KMeans(12, metric="euclidean", max_iter=1, random_state=seed).fit(x).inertia_ < 12 for seed in range(5))


@settings(derandomize=True, deadline=None, max_examples=25)
@given(seed=st.integers(0, 999), n=st.integers(2, 60), size=st.integers(1, 20), clusters=st.integers(1, 12))
def test_greedy_seeding_follows_its_definition(seed, n, size, clusters):
    """Distances are whole numbers, so that no sum depends on how the rows are grouped."""
    x = np.random.default_rng(seed).integers(0, 30, (n, 2)).astype(float)
    clusters = min(clusters, n)

    def min_distances(candidates, nearest):
        for i in range(0, n, size):
            distance = np.square(x[i : i + size, None] - candidates).sum(axis=2)
            yield distance if nearest is None else np.minimum(distance, nearest[i // size][:, None])

    found = kmeans_plusplus(n, clusters, np.random.default_rng(seed), x.__getitem__, min_distances)
    rng = np.random.default_rng(seed)
    chosen = [int(rng.integers(n))]
    while len(chosen) < clusters:
        distance = [min(sum((row - x[c]) ** 2) for c in chosen) for row in x]
        drawn = []
        for chance in rng.random(2 + int(np.log(clusters))):
            target, row = chance * sum(distance), 0
            while row < n - 1 and sum(distance[: row + 1]) <= target:
                row += 1
            drawn.append(row)
        potential = [sum(min(d, sum((row - x[r]) ** 2)) for d, row in zip(distance, x)) for r in drawn]
        chosen.append(drawn[potential.index(min(potential))])
    np.testing.assert_array_equal(found, x[chosen])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_rows_that_are_not_finite_are_named_by_number(bad, metric, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 16)
    x = features(11, 50, 3).astype(float)
    x[[37, 41], 1] = bad
    for rows in (x, np.array_split(x, 3)):
        with pytest.raises(UsageError, match="row 37 of the features is not finite"):
            KMeans(2, metric=metric).fit(rows)
    model = KMeans(2, metric=metric).fit(x[:30])
    with pytest.raises(UsageError, match="row 37"):
        model.predict(x)


def test_unreadable_features_are_an_error():
    x = features(12, 20, 3)
    with pytest.raises(UsageError, match="read only once"):
        KMeans(2).fit(iter([x, x]))
    with pytest.raises(UsageError, match="read only once"):
        KMeans(2).fit(block for block in (x, x))
    with pytest.raises(UsageError, match="must have 3 numbers, got 2"):
        KMeans(2).fit([x, x[:, :2]])
    with pytest.raises(UsageError, match=r"\(N, D\)"):
        KMeans(2).fit(x[0])
    with pytest.raises(UsageError, match=r"\(N, D\)"):
        KMeans(2).fit([x[None]])
    with pytest.raises(UsageError, match="real numbers"):
        KMeans(2).fit(x.astype(complex))
    with pytest.raises(UsageError, match="got int"):
        KMeans(2).fit(5)
    with pytest.raises(UsageError, match="at most the number of rows, got 21 with n_samples = 20"):
        KMeans(21).fit(np.array_split(x, 3))
    for empty in ([], [x[:0]]):
        with pytest.raises(UsageError, match="number of rows, got 1 with n_samples = 0"):
            KMeans(1).fit(empty)
    with pytest.raises(UsageError, match="0 sample"):
        KMeans(1).fit(x[:0])
    with pytest.raises(UsageError, match="call fit first"):
        KMeans(2).predict(x)
    for metric in ("cosine", "euclidean"):
        for narrow in (x[:, :2], [x[:, :2]]):
            with pytest.raises(UsageError, match="has 2 features.*expecting 3|must have 3 numbers, got 2"):
                KMeans(2, metric=metric).fit(x).predict(narrow)


@pytest.mark.parametrize("change", [-1, 1])
def test_blocks_that_change_between_passes_are_an_error(change):
    class Changing(Stream):
        def __iter__(self):
            for block in super().__iter__():
                self.yielded += len(block)
                yield block
            # All rows were yielded once more, or once less, than the first time.
            if (self.yielded == len(self.x)) == (change < 0):
                yield self.x[:1]

    blocks = Changing(features(13, 30, 3), [30])
    blocks.yielded = -30  # Chunks looks at the first block once before the first pass
    with pytest.raises(UsageError, match="same rows each time"):
        KMeans(2).fit(blocks)


@pytest.mark.parametrize(
    "options",
    [{"n_clusters": 0}, {"n_init": 0}, {"max_iter": 0}, {"metric": "manhattan"}, {"tol": -1.0}, {"tol": np.nan}],
)
def test_parameters_out_of_range_are_named(options):
    with pytest.raises(UsageError, match=f"{next(iter(options))} must be"):
        KMeans(**{"n_clusters": 2, **options}).fit(features(0, 9, 3))
