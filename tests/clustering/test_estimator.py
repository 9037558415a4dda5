"""KMeans as an estimator: scikit-learn's own checks, weights of rows, and distances by hand."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import vitnp
from vitnp import KMeans
from vitnp.errors import UsageError

# Checks that cannot pass, and why.
EXPECTED_FAILURES = {
    "check_sample_weight_equivalence_on_dense_data": (
        "a repeated row draws other random numbers than a row of weight two, as in scikit-learn's own KMeans"
    ),
    "check_dtype_object": "text among the numbers raises a UsageError, which is a ValueError, not a TypeError",
}


@pytest.mark.slow(reason="some fifty checks per metric")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_scikit_learn_accepts_it(metric):
    checks = pytest.importorskip("sklearn.utils.estimator_checks", reason="scikit-learn is not installed")
    results = checks.check_estimator(
        KMeans(metric=metric), expected_failed_checks=EXPECTED_FAILURES, on_skip=None, on_fail=None
    )
    failed = {result["check_name"]: str(result["exception"]) for result in results if result["status"] == "failed"}
    assert failed == {}
    assert {result["check_name"] for result in results if result["status"] == "xfail"} == set(EXPECTED_FAILURES)


@pytest.mark.filterwarnings("ignore")
def test_it_works_in_pipelines_and_searches():
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    from sklearn.base import clone
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x = np.random.default_rng(0).standard_normal((60, 4))
    model = make_pipeline(StandardScaler(), KMeans(3, metric="euclidean")).fit(x)
    assert model.predict(x).shape == (60,) and model.transform(x).shape == (60, 3)
    search = GridSearchCV(KMeans(metric="euclidean"), {"n_clusters": [2, 30]}, cv=2).fit(x)
    assert search.best_params_ == {"n_clusters": 30}
    copied = clone(model[-1])
    assert copied.get_params() == model[-1].get_params() and not hasattr(copied, "labels_")


def test_parameters_by_name():
    model = KMeans(5, tol=0.1)
    assert model.get_params() == {
        "device": "cpu", "init": "k-means++", "max_iter": 300, "metric": "cosine", "n_clusters": 5, "n_init": "auto",
        "n_jobs": None, "random_state": 0, "tol": 0.1,
    }  # fmt: skip
    assert model.set_params(n_clusters=2).n_clusters == 2 and repr(model) == "KMeans(n_clusters=2, tol=0.1)"
    with pytest.raises(UsageError, match="a parameter must be one of device, init.*got 'clusters'"):
        model.set_params(clusters=3)


def test_unfitted_is_an_error_of_every_kind():
    with pytest.raises(UsageError, match="not fitted yet; call fit first") as caught:
        KMeans(2).predict(np.eye(3))
    assert isinstance(caught.value, ValueError) and isinstance(caught.value, AttributeError)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_distances_and_score_by_hand(metric):
    x = np.array([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0], [-1.0, 1.0]])
    model = KMeans(2, metric=metric, init=np.array([[1.0, 0.0], [0.0, 1.0]]), max_iter=1).fit(x)
    centers = model.cluster_centers_
    if metric == "euclidean":
        expected = np.sqrt(((x[:, None] - centers) ** 2).sum(axis=2))
        losses = expected.min(axis=1) ** 2
    else:
        expected = 1 - (x / np.linalg.norm(x, axis=1, keepdims=True)) @ centers.T
        losses = expected.min(axis=1)
    np.testing.assert_allclose(model.transform(x), expected, atol=2e-6)
    assert np.array_equal(model.transform(x).argmin(axis=1), model.predict(x))
    assert model.score(x) == pytest.approx(-losses.sum(), rel=1e-5) == pytest.approx(-model.inertia_, rel=1e-5)
    weights = np.array([1.0, 0.0, 2.0, 0.5])
    assert model.score(x, sample_weight=weights) == pytest.approx(-(losses * weights).sum(), rel=1e-5)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_weights_below_one_count(metric):
    rng = np.random.default_rng(0)
    x, weights = rng.standard_normal((400, 8)), rng.random(400)
    light, heavy = (KMeans(4, metric=metric, random_state=0).fit(x, sample_weight=by * weights) for by in (0.001, 1000))
    np.testing.assert_array_equal(light.labels_, heavy.labels_)
    np.testing.assert_allclose(light.cluster_centers_, heavy.cluster_centers_, atol=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("n", [50, 20_000])
def test_a_weight_counts_like_repeated_rows(metric, n):
    rng = np.random.default_rng(n)
    x = rng.standard_normal((n, 3)) + 1
    weights = rng.integers(0, 4, n)
    weights[0] = 1
    init = x[np.flatnonzero(weights)[:4]]
    weighted = KMeans(4, metric=metric, init=init).fit(x, sample_weight=weights)
    repeated = KMeans(4, metric=metric, init=init).fit(np.repeat(x, weights, axis=0))
    np.testing.assert_allclose(weighted.cluster_centers_, repeated.cluster_centers_, atol=1e-4)
    assert weighted.inertia_ == pytest.approx(repeated.inertia_, rel=1e-4)
    np.testing.assert_allclose(weighted.counts_, repeated.counts_, atol=n / 1000)
    one, many = (KMeans(4, metric=metric, n_jobs=jobs).fit(x, sample_weight=weights) for jobs in (1, 3))
    assert np.array_equal(one.cluster_centers_, many.cluster_centers_) and one.inertia_ == many.inertia_


def test_equal_weights_find_the_same_clusters():
    x = np.random.default_rng(0).standard_normal((500, 4))
    init = x[:3]
    plain = KMeans(3, init=init).fit(x)
    weighted = KMeans(3, init=init).fit(x, sample_weight=np.full(500, 2.5))
    assert np.array_equal(plain.labels_, weighted.labels_)
    assert weighted.inertia_ == pytest.approx(2.5 * plain.inertia_)


def test_heavy_rows_attract_the_first_centroids():
    x = np.concatenate([np.tile([1.0, 0.0], (999, 1)), [[0.0, 1.0]]])
    weights = np.r_[np.full(999, 1e-9), 1.0]
    chosen = [KMeans(1, random_state=seed, max_iter=1).fit(x, sample_weight=weights) for seed in range(5)]
    assert all(model.cluster_centers_[0, 1] > 0.99 for model in chosen)


@pytest.mark.parametrize(
    "weights, message",
    [
        (np.ones(4), r"one number per row, \(5,\), got the shape \(4,\)"),
        ([1, 1, -1, 1, 1], "at least 0"),
        ([1, 1, np.nan, 1, 1], "finite"),
        (np.zeros(5), "not all zero"),
    ],
)
def test_weights_that_make_no_sense_are_refused(weights, message):
    with pytest.raises(UsageError, match=message):
        KMeans(2).fit(np.random.default_rng(0).standard_normal((5, 2)), sample_weight=weights)


def test_sparse_rows_are_refused_in_a_sentence():
    from scipy import sparse

    for make in (sparse.csr_matrix, sparse.coo_array):
        with pytest.raises(UsageError, match=r"X must be dense.*use X.toarray\(\)"):
            KMeans(2).fit(make(np.eye(4)))


def test_precision_out_is_that_of_the_rows():
    x = np.random.default_rng(0).standard_normal((30, 3))
    for dtype in (np.float64, np.float32):
        model = KMeans(2).fit(x.astype(dtype))
        assert model.cluster_centers_.dtype == dtype and model.transform(x.astype(dtype)).dtype == dtype


def test_a_fitted_model_can_be_pickled():
    x = np.random.default_rng(0).standard_normal((30, 3))
    model = KMeans(3).fit(x)
    assert np.array_equal(pickle.loads(pickle.dumps(model)).predict(x), model.labels_)


def test_a_segmenter_has_parameters_too(builtin):
    segmenter = vitnp.Segmenter(builtin, 3, short_side=96, seed=2)
    params = segmenter.get_params()
    assert (params["n_classes"], params["short_side"], params["seed"]) == (3, 96, 2) and params["vit"] is builtin
    assert segmenter.set_params(n_classes=2, facet="token").n_classes == 2
    assert segmenter.settings.facet == "token" and segmenter.settings.short_side == 96
    with pytest.raises(UsageError, match="a parameter must be one of alpha, .*got 'classes'"):
        segmenter.set_params(classes=3)
    with pytest.raises(UsageError, match="seed must be a whole number"):
        segmenter.set_params(seed="x")
    for use in (lambda: segmenter.predict(np.zeros((32, 32, 3), np.uint8)), lambda: segmenter.masks):
        with pytest.raises(UsageError, match="this Segmenter is not fitted yet; call fit first") as caught:
            use()
        assert isinstance(caught.value, AttributeError)


def test_a_segmenter_can_be_cloned(builtin):
    base = pytest.importorskip("sklearn.base", reason="scikit-learn is not installed")
    segmenter = vitnp.Segmenter(n_classes=3, seed=1)
    copied = base.clone(segmenter)
    assert copied is not segmenter and copied.get_params() == segmenter.get_params()
