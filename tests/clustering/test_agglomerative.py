"""Agglomerative clustering: the merging against a slow, obvious version, and clusters of very different sizes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, linkage

from vitnp.clustering import agglomerative
from vitnp.clustering.agglomerative import agglomerative_clusters, smooth_rows
from vitnp.clustering.linkage import merge_nearest
from vitnp.clustering.spectral import spectral_clusters
from vitnp.errors import UsageError


def same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    return len(set(zip(a.tolist(), b.tolist()))) == len(set(a.tolist())) == len(set(b.tolist()))


def planted(sizes: list[int], noise: float, seed: int = 0, width: int = 24) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return rng.standard_normal((len(sizes), width))[labels] + noise * rng.standard_normal((len(labels), width)), labels


def purity(found: np.ndarray, labels: np.ndarray) -> float:
    """Share of each true cluster in the found one that holds most of it and is mostly its own; mean over clusters."""
    table = np.zeros((labels.max() + 1, found.max() + 1))
    np.add.at(table, (labels, found), 1)
    overlap = table / (table.sum(axis=1, keepdims=True) + table.sum(axis=0) - table)
    return float(overlap.max(axis=1).mean())


# --- Merging ---------------------------------------------------------------------------------------------------------


def merge_oracle(points: np.ndarray, sizes: np.ndarray, n_clusters: int, size_weight: float) -> np.ndarray:
    """Compute all means and costs anew for each merge."""
    clusters = [[index] for index in range(len(points))]

    def cost(one: list[int], other: list[int]) -> float:
        a, b = sizes[one].sum(), sizes[other].sum()
        means = [np.average(points[each], axis=0, weights=sizes[each]) for each in (one, other)]
        return float((a * b / (a + b)) ** size_weight * np.square(means[0] - means[1]).sum())

    while len(clusters) > n_clusters:
        first, second = min(
            itertools.combinations(range(len(clusters)), 2), key=lambda p: cost(*(clusters[i] for i in p))
        )
        clusters[first] += clusters.pop(second)
    labels = np.empty(len(points), int)
    for label, members in enumerate(clusters):
        labels[members] = label
    return labels


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.integers(2, 14), st.integers(1, 14), st.sampled_from([0.0, 0.5, 1.0]), st.booleans(), st.integers(0, 999))
def test_merging_is_that_of_the_definition(n, n_clusters, size_weight, weighted, seed):
    rng = np.random.default_rng(seed)
    points, sizes = rng.standard_normal((n, 3)), rng.integers(1, 9, n) if weighted else np.ones(n)
    n_clusters = min(n, n_clusters)
    found = merge_nearest(points, n_clusters, sizes=sizes if weighted else None, size_weight=size_weight)
    assert found.dtype == np.int64
    assert same_partition(found, merge_oracle(points, sizes, n_clusters, size_weight))


def test_full_weight_of_sizes_is_ward():
    points = np.random.default_rng(0).standard_normal((120, 5))
    tree = linkage(points, "ward")
    for n_clusters in (2, 7, 40):
        assert same_partition(
            merge_nearest(points, n_clusters, size_weight=1.0), fcluster(tree, n_clusters, "maxclust")
        )


def test_arguments_are_not_changed():
    points, sizes = np.random.default_rng(0).standard_normal((9, 2)), np.arange(1.0, 10)
    copies = points.copy(), sizes.copy()
    merge_nearest(points, 3, sizes=sizes)
    np.testing.assert_array_equal(points, copies[0])
    np.testing.assert_array_equal(sizes, copies[1])


# --- Clusters --------------------------------------------------------------------------------------------------------


def test_smoothing_moves_rows_to_the_mean_of_their_neighborhood():
    unit = np.eye(3)[[0, 0, 1]] + 0.1 * np.eye(3)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    smooth = smooth_rows(unit, 1, 1)
    # The first two are neighbors of each other; one of them, at half weight, is a neighbor of the third.
    np.testing.assert_allclose(smooth[1] @ smooth[1], 1)
    expected = unit[0] + unit[1] + (0.5 * unit[2] if unit[0] @ unit[2] >= unit[1] @ unit[2] else 0)
    np.testing.assert_allclose(smooth[0], expected / np.linalg.norm(expected), rtol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_large_and_small_clusters_are_found_where_k_means_divides_and_joins_them(seed):
    x, labels = planted([160, 80, 40, 20, 10, 6, 5, 5], 0.75, seed)
    found = agglomerative_clusters(x, 8)
    spectral = spectral_clusters(x, 8)
    assert purity(found, labels) > 0.9 > 0.75 > purity(spectral, labels)
    assert (np.diff(np.bincount(found)) <= 0).all()


def test_more_rows_than_points_are_grouped_first(monkeypatch):
    x, labels = planted([200, 100, 50, 25], 0.5)
    exact = agglomerative_clusters(x, 4)
    monkeypatch.setattr(agglomerative, "MAX_POINTS", 60)
    assert same_partition(agglomerative_clusters(x, 4), exact) and same_partition(exact, labels)
    assert 40 < len(np.unique(agglomerative_clusters(x, 50))) <= 50


@pytest.mark.parametrize("limit", [2000, 100])
def test_same_labels_over_runs_seeds_and_thread_counts(limit, monkeypatch):
    monkeypatch.setattr(agglomerative, "MAX_POINTS", limit)
    x, _ = planted([90, 60, 30, 15, 5], 1.0)
    found = agglomerative_clusters(x, 5, n_threads=1)
    for n_threads in (1, 2, 3):
        np.testing.assert_array_equal(agglomerative_clusters(x, 5, n_threads=n_threads), found)
    if limit > len(x):
        np.testing.assert_array_equal(agglomerative_clusters(x, 5, seed=9), found)


def test_lengths_change_nothing():
    x, _ = planted([30, 20, 10], 0.5)
    scaled = x * 2.0 ** np.random.default_rng(1).integers(-3, 4, (len(x), 1))
    np.testing.assert_array_equal(agglomerative_clusters(scaled, 3), agglomerative_clusters(x, 3))


def test_identical_rows_get_one_label():
    x = np.repeat(np.random.default_rng(0).standard_normal((6, 4)), [9, 1, 5, 2, 7, 3], axis=0)
    for n_clusters in (3, 6, 9):
        found = agglomerative_clusters(x, n_clusters)
        assert len(np.unique(found)) == min(n_clusters, 6)
        assert all(len(set(found[(x == row).all(axis=1)])) == 1 for row in x)


@pytest.mark.parametrize("n", range(1, 6))
def test_tiny_sets(n):
    x = np.random.default_rng(n).standard_normal((n, 3))
    for n_clusters in range(1, n + 1):
        assert len(np.unique(agglomerative_clusters(x, n_clusters))) == n_clusters


def test_bad_input_is_named():
    x = np.ones((4, 2))
    for arguments, told in (
        ((x, 5), "between 1 and the number of rows, 4, got 5"),
        ((x[0], 1), r"\(N, D\)"),
        ((np.array([[1.0], [np.nan]]), 1), "row 1"),
    ):
        with pytest.raises(UsageError, match=told):
            agglomerative_clusters(*arguments)
    with pytest.raises(UsageError, match="neighbors must be at least 1"):
        agglomerative_clusters(x, 2, neighbors=0)
    with pytest.raises(UsageError, match="size_weight must be between 0 and 1"):
        agglomerative_clusters(x, 2, size_weight=1.5)
