"""Runs of Lloyd's algorithm in one kernel, compared with NumPy and with separate passes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vitnp.kernels import reference
from vitnp.kernels.cpu import lloyd as lloyd_kernel
from vitnp.kernels.threads import pool, team

from vitnp import kernels
from vitnp.clustering.kmeans import KMeans
from vitnp.clustering.kmeans_plusplus import draw_numbers, kmeans_plusplus
from vitnp.errors import UsageError

k = kernels.for_device("cpu")


def blobs(seed: int, count: int, width: int, clusters: int, noise: float = 0.4) -> tuple[np.ndarray, np.ndarray]:
    """Rows around `clusters` places, and a start at rows of different ones: no cluster becomes empty."""
    rng = np.random.default_rng(seed)
    places = rng.standard_normal((clusters, width))
    x = places[np.arange(count) % clusters] + noise * rng.standard_normal((count, width))
    return x.astype(np.float32), x[:clusters].astype(np.float32)


def started(start: np.ndarray, metric: str) -> np.ndarray:
    return reference.kmeans_rows(start, metric=metric)


def by_hand(x: np.ndarray, centroids: np.ndarray, metric: str, most: int) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Lloyd's algorithm in float64, in as few words as possible; centroids, labels, inertia of each pass."""
    x, centroids = x.astype(float), centroids.astype(float)
    if metric == "cosine":
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
    labels, history = None, []
    for move in range(most + 1):
        square = np.square(x[:, None] - centroids).sum(axis=2)
        new = square.argmin(axis=1)
        history.append(square.min(axis=1).sum() / (2 if metric == "cosine" else 1))
        if move == most or (labels is not None and (new == labels).all()):
            break
        labels = new
        centroids = np.stack([x[labels == cluster].mean(axis=0) for cluster in range(len(centroids))])
        if metric == "cosine":
            centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    return centroids, new, history


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 999), count=st.integers(12, 700), width=st.sampled_from([1, 2, 15, 16, 17, 33, 64, 100]),
    clusters=st.integers(1, 12), metric=st.sampled_from(["cosine", "euclidean"]),
    block=st.sampled_from([None, 1, 64, 256, 5000]), most=st.integers(1, 12), n_threads=st.integers(1, 4),
)  # fmt: skip
def test_every_move_is_that_of_the_definition(seed, count, width, clusters, metric, block, most, n_threads):
    if width == 1 and metric == "cosine":
        width = 2  # in one dimension there are two directions, and ties everywhere
    x, start = blobs(seed, count, width, clusters)
    start = started(start, metric)
    with pool.thread_limit(n_threads):
        found = k.kmeans_moves(x, start, most, metric=metric, block=block)
    centroids, labels, history = by_hand(x, start, metric, most)
    if not found.ended:  # a cluster has lost its last row: so far everything has to be right
        assert len(np.unique(by_hand(x, start, metric, len(found.history))[1])) < clusters
        np.testing.assert_allclose(found.history, history[: len(found.history)], rtol=2e-4, atol=1e-5)
        return
    # Rows on the very border may fall either way in float32, and from then on runs may part: inertia is what has to
    # agree.
    np.testing.assert_allclose(found.history[:2], history[:2], rtol=1e-4, atol=1e-5)
    assert found.history[-1] == pytest.approx(history[-1], rel=2e-2, abs=1e-4)
    if len(found.history) == len(history) and np.array_equal(found.labels, labels):
        np.testing.assert_allclose(found.centroids, centroids, atol=2e-5)
    assert found.counts.tolist() == np.bincount(found.labels, minlength=clusters).tolist()


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("clusters", [2, 9, 27, 64])
def test_threads_and_single_passes_change_nothing(metric, clusters):
    x, start = blobs(3, 1500, 48, clusters, noise=1.5)
    start = started(start, metric)
    runs = []
    for n_threads in (1, 2, 3, 4):
        with pool.thread_limit(n_threads):
            runs.append(k.kmeans_moves(x, start, 20, metric=metric, block=200))
    assert runs[0].ended and len(runs[0].history) > 2
    # The same by single steps, each through Python.
    centroids, history, before = start, [], None
    while True:
        step = k.kmeans_step(x, centroids, metric=metric, block=200)
        total, inertia = np.zeros(centroids.shape), 0.0
        for part, loss in zip(step.sums, step.inertia.tolist()):
            total, inertia = total + part, inertia + loss
        history.append(inertia)
        if len(history) > 20 or (
            before is not None and (np.array_equal(before, step.labels) or inertia >= history[-2])
        ):
            break
        before, centroids = step.labels, k.kmeans_move(total, step.counts, centroids, metric=metric)
    for run in runs:
        assert run.centroids.tobytes() == centroids.tobytes()
        assert run.labels.tobytes() == step.labels.tobytes() and run.sums.tobytes() == total.tobytes()
        assert run.history == history


def test_it_stops_before_a_pass_that_leaves_a_cluster_empty():
    x = np.array([[0.0], [1.0], [10.0], [11.0]], np.float32)
    found = k.kmeans_moves(x, np.array([[0.5], [100.0], [10.5]], np.float32), 9, metric="euclidean")
    assert not found.ended and found.history == [] and found.labels is None
    # (3, 3) and (11, 7) are the first centroid's until it has moved to their middle, (7, 5), and the others nearer to
    # them.
    x = np.array([[11, 10], [6, 9], [4, 1], [3, 3], [7, 8], [11, 7]], np.float32)
    for kind in (k, reference):
        found = kind.kmeans_moves(x, np.array([[8, 6], [3, -4], [7, 8]], np.float32), 9, metric="euclidean")
        assert not found.ended and found.history == [92.0] and found.labels.tolist() == [2, 2, 1, 0, 2, 0]
        assert found.centroids.tolist() == [[7, 5], [4, 1], [8, 9]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e30])
def test_it_stops_before_a_pass_over_rows_that_are_not_finite(bad):
    x, start = blobs(1, 300, 8, 3)
    x[200, 5] = bad
    for metric in ("cosine", "euclidean"):
        with pool.thread_limit(2):
            found = k.kmeans_moves(x, started(start, metric), 5, metric=metric, block=50)
        if metric == "cosine" and np.isfinite(bad):
            continue  # long, but it has a direction
        assert not found.ended and found.history == []


def test_tolerance_ends_it_early():
    x, start = blobs(5, 2000, 6, 9, noise=2.0)
    full = k.kmeans_moves(x, start, 30, metric="euclidean")
    early = k.kmeans_moves(x, start, 30, 0.02, metric="euclidean")
    falls = -np.diff(full.history) / np.array(full.history[:-1])
    assert len(early.history) == int(np.argmax(falls <= 0.02)) + 2 < len(full.history)


def test_where_centroids_move():
    sums = np.array([[0.0, 6.0], [3.0, 4.0], [0.0, 0.0], [5.0, 5.0]])
    counts = np.array([3, 1, 2, 0])
    former = np.array([[1, 0], [1, 0], [0.6, 0.8], [0, 1]], np.float32)
    mean = [[0, 2], [3, 4], [0, 0], [0, 1]]
    direction = [[0, 1], [0.6, 0.8], [0.6, 0.8], [0, 1]]
    for kind in (k, reference):
        np.testing.assert_allclose(kind.kmeans_move(sums, counts, former, metric="euclidean"), mean, atol=1e-7)
        np.testing.assert_allclose(kind.kmeans_move(sums, counts, former, metric="cosine"), direction, atol=1e-7)
    assert former.tolist()[3] == [0, 1]  # what was given stays as it was


def test_a_model_of_few_rows_is_that_of_the_same_rows_in_blocks():
    """Blocks come one by one, so that nothing is done in one go."""
    x, _ = blobs(8, 1100, 20, 11, noise=2.0)
    for metric in ("cosine", "euclidean"):
        for clusters in (2, 7, 40):
            whole = KMeans(clusters, metric=metric, random_state=3).fit(x)
            blocks = KMeans(clusters, metric=metric, random_state=3).fit(np.array_split(x, 5))
            assert whole.cluster_centers_.tobytes() == blocks.cluster_centers_.tobytes()
            assert whole.labels_.tobytes() == blocks.labels_.tobytes()
            assert whole.inertia_history_ == blocks.inertia_history_ and whole.n_iter_ == blocks.n_iter_


def test_empty_clusters_are_filled_all_the_same():
    x = np.repeat(np.eye(6, dtype=np.float32), 20, axis=0)
    start = np.stack([*np.eye(6)[:2], *-np.eye(6)[:4]]).astype(np.float32)
    whole, blocks = (KMeans(6, init=start, max_iter=20).fit(rows) for rows in (x, np.array_split(x, 4)))
    assert sorted(whole.counts_.tolist()) == [20] * 6 and whole.inertia_ == pytest.approx(0, abs=1e-5)
    assert whole.labels_.tobytes() == blocks.labels_.tobytes() and whole.n_iter_ == blocks.n_iter_


# --- Starts of one's own ----------------------------------------------------------------------------------------------


def test_own_centroids_are_where_it_starts():
    x, start = blobs(2, 400, 10, 5)
    for metric in ("cosine", "euclidean"):
        centroids, _, history = by_hand(x, started(start, metric), metric, 3)
        model = KMeans(5, metric=metric, init=start.tolist(), max_iter=3).fit(x)
        np.testing.assert_allclose(model.cluster_centers_, centroids, atol=1e-4)
        assert model.inertia_history_[0] == pytest.approx(history[0], rel=1e-4)


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"init": "random"}, "init must be 'k-means\\+\\+' or an array of centroids, got 'random'"),
        ({"init": np.ones((2, 4))}, r"\(n_clusters, D\) = \(3, D\), got float64 of shape \(2, 4\)"),
        ({"init": np.ones(3)}, r"init must be .* \(n_clusters, D\) = \(3, D\)"),
        ({"init": np.full((3, 4), "a")}, r"init must be .* \(n_clusters, D\) = \(3, D\)"),
        ({"init": np.ones((3, 4)), "n_init": 2}, "n_init must be 1 if init is an array of centroids, got 2"),
        ({"init": np.ones((3, 5))}, "init must have 4 numbers per centroid as the rows have, got 5"),
        ({"init": np.full((3, 4), np.nan)}, "init must be finite, but contains NaN"),
        ({"init": np.full((3, 4), 1e300)}, "init must be finite, but contains NaN, infinity, or values too large"),
    ],
)
def test_starts_that_make_no_sense_are_refused(options, sentence):
    with pytest.raises(UsageError, match=sentence):
        KMeans(3, **options).fit(np.random.default_rng(0).standard_normal((9, 4)))


# --- Members that wait for each other inside
# ----------------------------------------------------------------------------


def test_an_error_in_one_thread_ends_the_wait_of_the_others():
    from vitnp.kernels.cpu.codegen.barrier import spin_wait

    results = []

    def work(worker):
        if worker.rank == 0:
            raise ZeroDivisionError("here")
        results.append(spin_wait(worker.barrier_address, worker.size))

    for _ in range(20):
        with pool.thread_limit(3), pytest.raises(ZeroDivisionError, match="here"):
            team.run_team(work)
    assert results == [False] * 40


def test_spin_wait_can_be_used_repeatedly():
    from vitnp.kernels.cpu.codegen.barrier import spin_wait

    seen = np.zeros((4, 300), np.int64)
    wrong = []

    def work(worker):
        for turn in range(300):
            seen[worker.rank, turn] = turn + 1
            if not spin_wait(worker.barrier_address, worker.size) or not (seen[:, turn] == turn + 1).all():
                wrong.append((worker.rank, turn))

    with pool.thread_limit(4):  # more than there are cores, as on a busy machine
        team.run_team(work)
    assert wrong == []


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 999), count=st.integers(1, 300), width=st.sampled_from([2, 16, 31, 32, 48, 192, 600]),
    clusters=st.integers(1, 9), copies=st.integers(1, 3), tiny=st.booleans(),
)  # fmt: skip
def test_initial_centroids_are_those_of_separate_passes(seed, count, width, clusters, copies, tiny):
    """To the bit, also among equal rows, rows of zeros and rows whose squares underflow."""
    x = np.repeat(blobs(seed, count, width, clusters)[0], copies, axis=0)
    x[:: len(x) // 2 + 1] *= np.float32(1e-20 if tiny else 1)
    x[1::50] = 0
    clusters = min(clusters, len(x))

    def closer(candidates: np.ndarray, nearest: list[np.ndarray] | None) -> list[np.ndarray]:
        return [k.kmeans_closer(x, candidates, None if nearest is None else nearest[0])]

    expected = kmeans_plusplus(len(x), clusters, np.random.default_rng(seed), x.__getitem__, closer)
    draws = draw_numbers(np.random.default_rng(seed), len(x), clusters)
    np.testing.assert_array_equal(x[k.kmeans_plusplus(x, clusters, draws)], expected)
    in_64_bits = reference.kmeans_plusplus(x.astype(float), clusters, draws)
    np.testing.assert_array_equal(k.kmeans_plusplus(x.astype(float), clusters, draws), in_64_bits)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("width", [32, 47, 192])
def test_rows_that_are_multiplied_where_they_are_give_the_same_bits(metric, width, monkeypatch):
    x, start = blobs(5, 777, width, 5, noise=1.5)
    start = started(start, metric)
    found = k.kmeans_moves(x, start, 9, metric=metric, block=256)
    monkeypatch.setattr(lloyd_kernel, "inverse_norms_in_place", lambda x: lloyd_kernel.EMPTY)
    copied = k.kmeans_moves(x, start, 9, metric=metric, block=256)
    for one, other in zip(found, copied):
        np.testing.assert_array_equal(one, other)
    assert len(found.history) >= 2
