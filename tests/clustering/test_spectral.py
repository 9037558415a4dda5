"""Spectral clustering: brute-force neighbors and dense eigenvectors as oracles, non-convex shapes, degenerate data."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import block_diag, csr_matrix

from vitnp.clustering import neighbors as neighbors_module
from vitnp.clustering import spectral
from vitnp.clustering.kmeans import KMeans
from vitnp.clustering.neighbors import nearest_neighbors
from vitnp.clustering.spectral import neighbor_graph, spectral_clusters, spectral_embedding
from vitnp.errors import UsageError


def same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    return len(set(zip(a.tolist(), b.tolist()))) == len(set(a.tolist())) == len(set(b.tolist()))


def planted(n: int, clusters: int, width: int = 32, noise: float = 0.8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(clusters, size=n)
    return rng.standard_normal((clusters, width))[truth] + noise * rng.standard_normal((n, width)), truth


def as_directions(points: np.ndarray) -> np.ndarray:
    """Map points of the plane to directions: near points have near directions."""
    return np.concatenate([points, np.full((len(points), 1), 4.0)], axis=1)


def moons(n: int, noise: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    angle, truth = rng.uniform(0, np.pi, n), np.arange(n) % 2
    x = np.where(truth, 1 - np.cos(angle), np.cos(angle))
    y = np.where(truth, 0.5 - np.sin(angle), np.sin(angle))
    return as_directions(np.stack([x, y], axis=1) + noise * rng.standard_normal((n, 2))), truth


def small_blocks(monkeypatch, queries: int = 5, others: int = 7) -> None:
    monkeypatch.setattr(neighbors_module, "QUERY_ROWS", queries)
    blocks = importlib.import_module("vitnp.kernels.reference.similarity")
    monkeypatch.setattr(blocks, "QUERY_ROWS", queries)
    monkeypatch.setattr(blocks, "OTHER_ROWS", others)


# Neighbors.


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    n=st.integers(2, 40), m=st.integers(0, 12), count=st.integers(1, 9), seed=st.integers(0, 999), own=st.booleans(),
    n_threads=st.integers(1, 3),
)  # fmt: skip
def test_neighbors_are_those_of_the_full_matrix_with_ties_to_the_lower_row(n, m, count, seed, own, n_threads):
    """Axis-parallel rows have cosines -1, 0 and 1 exactly, so ties are everywhere."""
    rng = np.random.default_rng(seed)
    x = np.eye(3)[rng.integers(3, size=n)] * rng.choice([-2.0, 0.0, 1.0, 3.0], size=(n, 1))
    queries = x if own else np.eye(3)[rng.integers(3, size=m)]
    count = min(count, n - own)
    with pytest.MonkeyPatch.context() as patch:
        small_blocks(patch)
        index, cosine = nearest_neighbors(queries, x, count, exclude_self=own, n_threads=n_threads)
    full = np.sign(queries) @ np.sign(x).T
    if own:
        np.fill_diagonal(full, -9)
    expected = np.argsort(-full, axis=1, kind="stable")[:, :count]
    np.testing.assert_array_equal(index, expected)
    np.testing.assert_array_equal(cosine, np.take_along_axis(full, expected, axis=1))
    assert index.dtype == np.int64 and cosine.dtype == np.float32


@pytest.mark.parametrize("ordered", [False, True])
def test_neighbors_in_general_position(ordered, monkeypatch):
    small_blocks(monkeypatch, 64, 100)
    x, truth = planted(700, 5, noise=1.5)
    if ordered:
        x = x[np.argsort(truth)]
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    full = unit @ unit.T
    np.fill_diagonal(full, -9)
    index, cosine = nearest_neighbors(x, x, 30, exclude_self=True)
    np.testing.assert_array_equal(np.sort(index), np.sort(np.argsort(-full, axis=1)[:, :30]))
    np.testing.assert_allclose(cosine, -np.sort(-full, axis=1)[:, :30], atol=1e-6)
    assert (np.diff(cosine, axis=1) <= 0).all()


def test_more_neighbors_than_rows_are_an_error():
    with pytest.raises(UsageError, match="n_neighbors must be between 1 and .* 4, got 5"):
        nearest_neighbors(np.eye(5), np.eye(5), 5, exclude_self=True)
    with pytest.raises(UsageError, match="got 0"):
        nearest_neighbors(np.eye(5), np.eye(5), 0)


# Graph and eigenvectors.


def test_graph_is_the_mean_of_the_directed_graph_and_its_transpose():
    x, _ = planted(60, 3)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    full = unit @ unit.T
    np.fill_diagonal(full, -9)
    directed = np.zeros((60, 60))
    np.put_along_axis(directed, np.argsort(-full, axis=1)[:, :4], 1.0, axis=1)
    np.testing.assert_array_equal(neighbor_graph(x, 4).toarray(), (directed + directed.T) / 2)


def test_graph_of_fewer_rows_than_neighbors_is_complete():
    np.testing.assert_array_equal(neighbor_graph(np.eye(4), 30).toarray(), 1 - np.eye(4))


def laplacian(graph: csr_matrix) -> np.ndarray:
    """The normalized Laplacian I - D^-1/2 A D^-1/2."""
    dense = graph.toarray()
    degree = dense.sum(axis=1)
    return np.eye(len(dense)) - dense / np.sqrt(np.outer(degree, degree))


@pytest.mark.slow(reason="dense eigenvectors for comparison")
@pytest.mark.parametrize("solver", ["dense", "block", "lanczos"])
@pytest.mark.parametrize("n_parts", [1, 3])
def test_embedding_spans_the_smallest_eigenvectors_of_the_laplacian(solver, n_parts, monkeypatch):
    monkeypatch.setattr(spectral, "DENSE_ROWS", 10_000 if solver == "dense" else 10)
    monkeypatch.setattr(spectral, "BLOCK_VECTORS", 0 if solver == "lanczos" else 64)
    seeds = {1: [0], 3: [1, 3, 4]}[n_parts]
    parts = [neighbor_graph(planted(600 // n_parts, 6 // n_parts, width=8, noise=0.6, seed=i)[0], 12) for i in seeds]
    graph = block_diag(parts, format="csr")
    values, vectors = np.linalg.eigh(laplacian(graph))
    assert np.sum(values < 1e-9) == n_parts
    n_components = 6
    assert values[n_components] - values[n_components - 1] > 0.1  # the span is well defined
    found = spectral_embedding(graph, n_components)
    np.testing.assert_allclose(found.T @ found, np.eye(n_components), atol=1e-5)
    assert np.linalg.svd(vectors[:, :n_components].T @ found, compute_uv=False).min() > 1 - 1e-4
    np.testing.assert_allclose(np.diag(found.T @ laplacian(graph) @ found), values[:n_components], atol=1e-4)
    for column in found.T:
        assert column[np.argmax(np.abs(column) > 0.999 * np.abs(column).max())] > 0
    np.testing.assert_array_equal(found, spectral_embedding(graph, n_components))


@pytest.mark.parametrize("dense", [True, False])
def test_multiple_eigenvalues_are_found_completely(dense, monkeypatch):
    """A ring's eigenvalues are cos(2 pi k / n), each twice but the first."""
    monkeypatch.setattr(spectral, "DENSE_ROWS", 10_000 if dense else 10)
    n = 120
    ring = csr_matrix(np.roll(np.eye(n), 1, axis=1) + np.roll(np.eye(n), -1, axis=1))
    found = spectral_embedding(ring, 5)
    np.testing.assert_allclose(
        np.diag(found.T @ (ring @ found)) / 2, np.cos(2 * np.pi * np.array([0, 1, 1, 2, 2]) / n), atol=1e-5
    )


# Clusters.


def test_planted_clusters_are_found_and_sorted_by_size():
    x, truth = planted(500, 4)
    truth = np.where(np.arange(500) < 150, 0, truth)
    x[:150] += 20 * np.eye(32)[0]
    labels = spectral_clusters(x, 4, neighbors=10)
    sizes = np.bincount(labels)
    assert len(sizes) == 4 and (np.diff(sizes) <= 0).all() and labels.dtype == np.int64
    x, truth = planted(400, 7, noise=0.4)
    assert same_partition(spectral_clusters(x, 7), truth)


def test_two_moons_are_separated_where_k_means_fails():
    x, truth = moons(600)
    assert same_partition(spectral_clusters(x, 2, neighbors=10), truth)
    assert not same_partition(KMeans(2, metric="euclidean", n_init=5).fit(x).labels_, truth)


def test_two_moons_with_the_iterative_solver():
    x, truth = moons(spectral.DENSE_ROWS + 500)
    graph = neighbor_graph(x, 30)
    assert graph.shape[0] > spectral.DENSE_ROWS
    assert same_partition(spectral_clusters(x, 2), truth)


@pytest.mark.parametrize("clusters", [2, 3, 4, 6])
def test_disconnected_graph(clusters):
    """Four far-off groups, the first two near each other, the last two as well; neighbors never cross."""
    rng = np.random.default_rng(1)
    centers = np.array([[10, 1, 0, 0], [10, -1, 0, 0], [0, 0, 10, 1], [0, 0, 10, -1.0]])
    group = np.repeat(np.arange(4), [30, 25, 20, 15])
    x = centers[group] + 0.02 * rng.standard_normal((90, 4))
    labels = spectral_clusters(x, clusters, neighbors=5)
    if clusters <= 4:
        expected = {2: [0, 0, 1, 1], 4: [0, 1, 2, 3]}
        if clusters in expected:
            np.testing.assert_array_equal(labels, np.array(expected[clusters])[group])
        assert all(len(set(labels[group == g].tolist())) == 1 for g in range(4))  # a component is never split
    else:
        assert all(len(set(group[labels == label].tolist())) == 1 for label in range(clusters))  # nor two of them mixed
    assert len(set(labels.tolist())) == clusters


def test_many_more_components_than_clusters():
    """Forty tight groups in four regions of the sphere: regions are what four clusters must be."""
    rng = np.random.default_rng(2)
    region = np.repeat(np.arange(4), 10)
    centers = 5 * np.eye(8)[region] + rng.uniform(-1, 1, (40, 8))
    group = np.repeat(np.arange(40), 12)
    x = centers[group] + 0.001 * rng.standard_normal((480, 8))
    assert same_partition(spectral_clusters(x, 4, neighbors=6), region[group])


def test_identical_rows_get_one_label():
    x, truth = planted(50, 3)
    x, truth = np.repeat(x, 20, axis=0), np.repeat(truth, 20)
    order = np.random.default_rng(0).permutation(1000)
    assert same_partition(spectral_clusters(x[order], 3, neighbors=8), truth[order])
    np.testing.assert_array_equal(spectral_clusters(np.ones((9, 4)), 3), 0)
    # Two kinds of rows for three clusters, zero and minus zero being the same.
    labels = spectral_clusters(np.array([[1.0, 0.0], [0.0, 1.0], [2.0, -0.0], [1.0, 0.0]]), 3)
    np.testing.assert_array_equal(labels, [0, 1, 0, 0])


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_tiny_sets(n):
    x = np.random.default_rng(n).standard_normal((n, 6))
    for clusters in range(1, n + 1):
        labels = spectral_clusters(x, clusters)
        assert labels.shape == (n,) and len(set(labels.tolist())) == clusters
    np.testing.assert_array_equal(spectral_clusters(x, n), np.arange(n))


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    n=st.integers(1, 30), clusters=st.integers(1, 6), neighbors=st.integers(1, 8), seed=st.integers(0, 99),
    kind=st.sampled_from(["gaussian", "grid", "zeros"]),
)  # fmt: skip
def test_labels_are_sorted_by_size_and_reproducible(n, clusters, neighbors, seed, kind):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 3)) if kind == "gaussian" else rng.integers(-1, 2, (n, 3)).astype(np.float16)
    if kind == "zeros":
        x[: n // 2] = 0
    clusters = min(clusters, n)
    labels = spectral_clusters(x, clusters, neighbors=neighbors, starts=2, n_threads=1)
    sizes = np.bincount(labels)
    assert len(sizes) <= clusters and sizes.min() > 0 and (np.diff(sizes) <= 0).all()
    again = spectral_clusters(x, clusters, neighbors=neighbors, starts=2, n_threads=2)
    np.testing.assert_array_equal(labels, again)


def test_lengths_and_float16_change_nothing():
    x = planted(300, 5)[0].astype(np.float16)
    reference = spectral_clusters(x, 5, neighbors=10)
    np.testing.assert_array_equal(spectral_clusters(x.astype(np.float64), 5, neighbors=10), reference)
    scaled = x.astype(np.float32) * np.float32(2.0) ** np.arange(300)[:, None].clip(0, 20)
    np.testing.assert_array_equal(spectral_clusters(scaled, 5, neighbors=10), reference)


@pytest.mark.parametrize("rows", [400, spectral.DENSE_ROWS + 300])
def test_same_labels_over_runs_and_thread_counts(rows):
    x = planted(rows, 6, width=16, noise=1.2)[0]
    reference = spectral_clusters(x, 6, seed=4, n_threads=1)
    for n_threads in (1, 2, 3):
        np.testing.assert_array_equal(spectral_clusters(x, 6, seed=4, n_threads=n_threads), reference)


def test_dense_and_iterative_solvers_agree_on_clusters(monkeypatch):
    x, truth = planted(900, 8, noise=0.6)
    dense = spectral_clusters(x, 8)
    monkeypatch.setattr(spectral, "DENSE_ROWS", 10)
    np.testing.assert_array_equal(spectral_clusters(x, 8), dense)
    assert same_partition(dense, truth)


@pytest.mark.parametrize("clusters", [0, 6])
def test_more_clusters_than_rows_are_an_error(clusters):
    with pytest.raises(UsageError, match=f"n_clusters must be between 1 and the number of rows, 5, got {clusters}"):
        spectral_clusters(np.eye(5), clusters)


def test_bad_input_is_named():
    x = np.eye(5)
    x[3, 0] = np.nan
    with pytest.raises(UsageError, match="row 3"):
        spectral_clusters(x, 2)
    with pytest.raises(UsageError, match=r"\(N, D\)"):
        spectral_clusters(np.ones(4), 2)
    with pytest.raises(UsageError, match="neighbors must be at least 1, got 0"):
        spectral_clusters(np.eye(5), 2, neighbors=0)
    with pytest.raises(UsageError, match="starts must be at least 1, got 0"):
        spectral_clusters(np.eye(5), 2, starts=0)
