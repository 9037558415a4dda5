"""Compiled k-means and similarity against float64: sizes around the edges of tiles, all dtypes, ties, threads."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vitnp.kernels import reference
from vitnp.kernels.threads import pool

from vitnp import kernels
from vitnp.clustering.kmeans import KMeans

k = kernels.for_device("cpu")

# Around 1, 2, LANES, a row of dots, a panel of two and of three vectors, several panels.
CLUSTERS = (1, 2, 3, 4, 5, 8, 9, 15, 16, 17, 27, 31, 32, 33, 47, 48, 49, 64, 65, 80, 97, 130)
WIDTHS = (1, 2, 7, 15, 16, 17, 63, 64, 65, 191, 192, 193, 384, 400)
ROWS = (1, 2, 7, 8, 9, 23, 24, 25, 48, 49, 120)


def kinds() -> dict[str, np.ndarray]:
    """Rows that are hard in some way, and K = 3 centroids among them."""
    rng = np.random.default_rng(7)
    plain = rng.standard_normal((60, 33))
    ragged = np.ones((61, 70))[1:, 2:68:2]
    ragged[:] = plain
    return {
        "plain": plain.astype(np.float32),
        "half": plain.astype(np.float16),
        "double": plain,
        "by columns": np.asfortranarray(plain.astype(np.float32)),
        "ragged": ragged,
        "whole numbers": (10 * plain).astype(np.int16),
        "constant": np.full((60, 33), 0.3, np.float32),
        "zeros among them": (plain * (np.arange(60) % 3 > 0)[:, None]).astype(np.float32),
        "denormal": (plain * 1e-41).astype(np.float32),
        "half, denormal": (plain * 1e-6).astype(np.float16),
        "tiny and huge": (plain * 10.0 ** rng.integers(-38, 17, (60, 1))).astype(np.float32),
        "huge": (plain * 1e17).astype(np.float32),
    }


def exact_losses(x: np.ndarray, centroids: np.ndarray, metric: str, shift: np.ndarray | None = None) -> np.ndarray:
    """(N, K) in float64, from the definition."""
    rows = x.astype(np.float32).astype(float)
    centroids = centroids.astype(float)
    if metric == "euclidean":
        rows = rows - (0 if shift is None else shift.astype(float))
        return np.square(rows[:, None] - centroids).sum(axis=2)
    return 1 - unit(rows) @ centroids.T


def unit(x: np.ndarray) -> np.ndarray:
    x = x.astype(float)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(length > 0, length, 1)


def check_step(x: np.ndarray, centroids: np.ndarray, metric: str, shift: np.ndarray | None, block: int | None) -> None:
    step = k.kmeans_step(x, centroids, metric=metric, shift=shift, block=block)
    losses = exact_losses(x, centroids, metric, shift)
    rows = np.arange(len(x))
    rounding = 4e-6 * (
        1 if metric == "cosine" else max(np.square(x.astype(float)).sum(axis=1).max(initial=0) * 2, losses.max(), 1e-37)
    )
    own = losses[rows, step.labels]
    assert (own - losses.min(axis=1) <= 2 * rounding).all()
    np.testing.assert_allclose(step.losses, own, rtol=1e-4, atol=rounding)
    labels, again = k.kmeans_assign(x, centroids, metric=metric, shift=shift)
    if k is reference:  # BLAS may round differently when rows come in blocks
        np.testing.assert_allclose(again, step.losses, rtol=1e-4, atol=2 * rounding)
    else:
        np.testing.assert_array_equal(labels, step.labels)
        np.testing.assert_array_equal(again, step.losses)
    labels = step.labels
    np.testing.assert_array_equal(step.counts, np.bincount(labels, minlength=len(centroids)))
    as_seen = reference.kmeans_rows(x.astype(np.float32), metric=metric, shift=shift, dtype=np.float64)
    size = block or max(len(x), 1)
    assert step.sums.shape == (-(-len(x) // size), *centroids.shape) and step.sums.dtype == np.float64
    for number, sums in enumerate(step.sums):
        part = slice(number * size, (number + 1) * size)
        expected = np.zeros(centroids.shape)
        np.add.at(expected, labels[part], as_seen[part])
        np.testing.assert_allclose(
            sums, expected, rtol=1e-4, atol=1e-5 * np.abs(as_seen).max(initial=1e-38) * size**0.5
        )
        assert step.inertia[number] == pytest.approx(float(step.losses[part].sum(dtype=float)), rel=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@settings(derandomize=True, deadline=None, max_examples=120)
@given(
    rows=st.sampled_from(ROWS), width=st.sampled_from(WIDTHS), clusters=st.sampled_from(CLUSTERS),
    seed=st.integers(0, 99), block=st.sampled_from([None, 1, 10, 24, 50]),
    kind=st.sampled_from([np.float16, np.float32, np.float64]),
)  # fmt: skip
def test_a_step_is_that_of_the_definition(metric, rows, width, clusters, seed, block, kind):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, width)).astype(kind)
    centroids = rng.standard_normal((clusters, width))
    centroids = (unit(centroids) if metric == "cosine" else centroids).astype(np.float32)
    check_step(
        x, centroids, metric, rng.standard_normal(width).astype(np.float32) if metric == "euclidean" else None, block
    )


@pytest.mark.parametrize("clusters", CLUSTERS)
def test_every_number_of_clusters(clusters):
    rng = np.random.default_rng(clusters)
    x, centroids = rng.standard_normal((50, 100)), unit(rng.standard_normal((clusters, 100))).astype(np.float32)
    for metric in ("cosine", "euclidean"):
        check_step(x, centroids, metric, None, 20)


@pytest.mark.parametrize("name", kinds())
@pytest.mark.parametrize("clusters", [1, 2, 3, 20])
def test_rows_of_every_kind(name, clusters):
    x = kinds()[name]
    check_step(x, reference.kmeans_rows(x[5 : 5 + clusters]), "cosine", None, 25)
    if "huge" not in name:
        check_step(x, x[5 : 5 + clusters].astype(np.float32), "euclidean", None, 25)
    else:
        found = k.kmeans_step(x[:1], x[:1].astype(np.float32), metric="euclidean")
        assert found.losses.tolist() == [0] and found.labels.tolist() == [0]


def test_sums_over_more_rows_than_float32_would_bear():
    x = np.full((70_000, 3), 0.1, np.float32)
    step = k.kmeans_step(x, np.zeros((2, 3), np.float32), metric="euclidean")
    # Added up one by one in float32 it would be off by 1e-3.
    np.testing.assert_allclose(step.sums[0, 0], 70_000 * np.float64(np.float32(0.1)), rtol=2e-5)
    assert step.counts.tolist() == [70_000, 0]


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("clusters", [2, 7, 30, 70])
def test_equally_near_centroids_leave_the_row_to_the_lowest(metric, clusters):
    rng = np.random.default_rng(3)
    some = unit(rng.standard_normal((3, 40))).astype(np.float32)
    which = np.concatenate([[0, 1], rng.integers(0, 3, clusters - 2)])
    x = rng.standard_normal((64, 40)).astype(np.float32)
    labels, _ = k.kmeans_assign(x, some[which], metric=metric)
    few, _ = k.kmeans_assign(x, some[: which.max() + 1], metric=metric)
    first = np.array([np.flatnonzero(which == j)[0] for j in range(which.max() + 1)])
    np.testing.assert_array_equal(labels, first[few])
    nothing, _ = k.kmeans_assign(np.zeros((5, 40), np.float32), some[which])
    assert not nothing.any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("clusters", [1, 2, 5, 20, 70])
def test_rows_that_are_not_finite_show_and_harm_no_other(bad, clusters):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 20)).astype(np.float32)
    centroids = unit(rng.standard_normal((clusters, 20))).astype(np.float32)
    spoilt = x.copy()
    spoilt[[3, 40], [1, 0]] = bad
    others = np.setdiff1d(np.arange(60), [3, 40])
    for metric in ("cosine", "euclidean"):
        clean, found = (k.kmeans_assign(rows, centroids, metric=metric) for rows in (x, spoilt))
        assert not np.isfinite(found[1][[3, 40]]).any()
        assert ((found[0] >= 0) & (found[0] < clusters)).all()
        for a, b in zip(clean, found):
            np.testing.assert_array_equal(a[others], b[others])
        assert k.kmeans_step(spoilt, centroids, metric=metric).counts.sum() == 60
        k.kmeans_closer(spoilt, centroids, None, metric=metric)
    k.similarity(spoilt, x), k.similarity_top(spoilt, x, 3), k.similarity_top(x, spoilt, 60)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    rows=st.sampled_from(ROWS), width=st.sampled_from(WIDTHS), candidates=st.integers(1, 20), seed=st.integers(0, 99),
    metric=st.sampled_from(["cosine", "euclidean"]), kind=st.sampled_from([np.float16, np.float32, np.float64]),
)  # fmt: skip
def test_distances_for_new_starts(rows, width, candidates, seed, metric, kind):
    rng = np.random.default_rng(seed)
    x, shift = rng.standard_normal((rows, width)).astype(kind), None
    if metric == "euclidean":
        shift = rng.standard_normal(width).astype(np.float32)
    picked = reference.kmeans_rows(x[rng.integers(0, rows, candidates)], metric=metric, shift=shift)
    losses = np.maximum(exact_losses(x, picked, metric, shift), 0)
    found = k.kmeans_closer(x, picked, None, metric=metric, shift=shift)
    np.testing.assert_allclose(found, losses, rtol=1e-4, atol=2e-6)
    nearest = rng.random(rows).astype(np.float32)
    with_nearest = k.kmeans_closer(x, picked, nearest, metric=metric, shift=shift)
    np.testing.assert_array_equal(with_nearest, np.minimum(found, nearest[:, None]))


@settings(derandomize=True, deadline=None, max_examples=80)
@given(
    rows=st.sampled_from([*ROWS, 479, 481, 700]), others=st.sampled_from(CLUSTERS), width=st.sampled_from(WIDTHS),
    seed=st.integers(0, 99), kind=st.sampled_from([np.float16, np.float32]), own=st.booleans(),
)  # fmt: skip
def test_similarity_and_its_largest(rows, others, width, seed, kind, own):
    rng = np.random.default_rng(seed)
    y = rng.standard_normal((others, width)).astype(kind)
    first = int(rng.integers(0, others))
    x = y[first : first + rows] if own else rng.standard_normal((rows, width)).astype(kind)
    cosine = unit(x) @ unit(y).T
    np.testing.assert_allclose(k.similarity(x, y), cosine, atol=2e-6)
    if own:
        cosine[np.arange(len(x)), first + np.arange(len(x))] = -np.inf
    for count in {1, min(5, others - own), others - own} - {0}:
        values, indices = k.similarity_top(x, y, count, own=first if own else None)
        np.testing.assert_allclose(values, -np.sort(-cosine, axis=1)[:, :count], atol=2e-6)
        np.testing.assert_allclose(np.take_along_axis(cosine, indices, axis=1), values, atol=2e-6)
        assert all(len(set(row)) == count for row in indices.tolist())
        assert (np.diff(values, axis=1) <= 0).all()


@pytest.mark.parametrize("name", kinds())
def test_similarity_of_rows_of_every_kind(name):
    x = kinds()[name]
    expected = unit(x.astype(np.float32)) @ unit(x.astype(np.float32)).T
    np.testing.assert_allclose(k.similarity(x, x), expected, atol=2e-6)
    values, _ = k.similarity_top(x, x, 4)
    np.testing.assert_allclose(values, -np.sort(-expected, axis=1)[:, :4], atol=2e-6)


def test_the_largest_of_equal_ones_is_the_lowest():
    y = (
        np.eye(4, dtype=np.float32)[np.random.default_rng(0).integers(0, 4, 300)]
        * np.arange(1, 301, dtype=np.float32)[:, None]
    )
    values, indices = k.similarity_top(3 * np.eye(4, dtype=np.float32), y, 20)
    for row in range(4):
        assert indices[row].tolist() == np.flatnonzero(y[:, row])[:20].tolist()
    np.testing.assert_array_equal(values, 1)
    _, long = k.similarity_top(np.ones((2, 4), np.float32), y, 290)
    assert (np.diff(np.sort(long), axis=1) > 0).all()


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_agrees_with_the_reference_but_for_near_ties(metric):
    rng = np.random.default_rng(11)
    x = rng.standard_normal((3000, 64)).astype(np.float32)
    centroids = unit(x[:40]).astype(np.float32)
    ours, theirs = k.kmeans_assign(x, centroids, metric=metric), reference.kmeans_assign(x, centroids, metric=metric)
    two_best = np.sort(exact_losses(x, centroids, metric), axis=1)[:, :2]
    clear = two_best[:, 1] - two_best[:, 0] > 1e-5 * max(1, two_best.max())
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(ours[0][clear], theirs[0][clear])
    np.testing.assert_allclose(ours[1], theirs[1], rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("clusters", [2, 8, 27])
def test_whole_runs_end_as_the_reference_s(metric, clusters, monkeypatch):
    rng = np.random.default_rng(5)
    x = (rng.standard_normal((4000, 48)) + 2 * rng.standard_normal((10, 48))[rng.integers(0, 10, 4000)]).astype(
        np.float16
    )
    compiled = KMeans(clusters, metric=metric, random_state=1).fit(x)
    monkeypatch.setenv("VITNP_KERNELS", "reference")
    plain = KMeans(clusters, metric=metric, random_state=1).fit(x)
    assert compiled.inertia_ == pytest.approx(plain.inertia_, rel=1e-4)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_threads_change_nothing(metric):
    rng = np.random.default_rng(2)
    x = rng.standard_normal((5000, 40)).astype(np.float32)
    centroids = unit(x[:30]).astype(np.float32)
    answers = []
    for count in (1, 2, 4):
        with pool.thread_limit(count):
            answers.append(
                [
                    *k.kmeans_step(x, centroids, metric=metric, block=700),
                    *k.kmeans_assign(x, centroids, metric=metric),
                    k.kmeans_closer(x, centroids[:5], None, metric=metric),
                    k.similarity(x, centroids),
                    *k.similarity_top(x, centroids, 3),
                ]
            )
    for other in answers[1:]:
        for a, b in zip(answers[0], other):
            np.testing.assert_array_equal(a, b)


def test_nothing_to_do():
    nothing, centroids = np.empty((0, 5), np.float32), np.ones((3, 5), np.float32)
    step = k.kmeans_step(nothing, centroids)
    assert step.sums.shape == (0, 3, 5) and step.labels.shape == (0,) and step.counts.tolist() == [0, 0, 0]
    assert k.kmeans_closer(nothing, centroids, None).shape == (0, 3)
    assert k.similarity(nothing, centroids).shape == (0, 3)
    assert k.similarity(centroids, nothing).shape == (3, 0)
    assert k.similarity_top(nothing, centroids, 2)[1].shape == (0, 2)


@pytest.mark.slow(reason="compiles the kernels for other processors")
@pytest.mark.parametrize("lanes", [8, 4])
def test_narrower_vectors(lanes):
    """The code for smaller processors, on this one."""
    if k is reference:
        pytest.skip("there are no compiled kernels here")
    tests = "every_number_of_clusters or rows_of_every_kind or lowest or harm_no_other"
    here = pathlib.Path(__file__)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider", str(here), "-k", tests],
        env=os.environ | {"VITNP_LANES": str(lanes)}, capture_output=True, text=True, cwd=here.parent.parent.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
