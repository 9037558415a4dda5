"""Principal components of patch features against NumPy and scikit-learn, in blocks, in threads and from a file."""

from __future__ import annotations

import numpy as np
import pytest

from vitnp import CheckpointError, PatchPCA, UsageError
from vitnp.checkpoints.safetensors_io import read_safetensors, write_safetensors
from vitnp.features import moments


def rows(n: int = 20_000, width: int = 12, seed: int = 0) -> np.ndarray:
    """Return correlated rows far from the origin, of several chunks."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(width, width)) * np.arange(width, 0, -1)[:, None]
    return (rng.normal(size=(n, width)) @ mixing + 100 * rng.normal(size=width)).astype(np.float32)


def two_groups(n: int = 4000, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of a foreground (a quarter) and a background far from it, and which are foreground."""
    rng = np.random.default_rng(seed)
    inside = rng.random(n) < 0.25
    spread = np.where(inside[:, None], [0.3, 3.0, 1.0, 0.2, 2.0, 0.1], 0.2)
    return rng.normal(size=(n, 6)) * spread + np.where(inside[:, None], [20.0, 0, 0, 0, 0, 0], 0.0), inside


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_components_are_those_of_a_singular_value_decomposition(dtype):
    x = rows().astype(dtype)
    pca = PatchPCA(4).fit(x)
    exact = x.astype(np.float64)
    mean = exact.mean(axis=0)
    _, singular, components = np.linalg.svd(exact - mean, full_matrices=False)
    np.testing.assert_allclose(pca.mean_, mean, rtol=1e-13)
    np.testing.assert_allclose(np.abs((pca.components_ * components[:4]).sum(axis=1)), 1, rtol=1e-12)
    np.testing.assert_allclose(pca.explained_variance_, singular[:4] ** 2 / (len(x) - 1), rtol=1e-11)
    np.testing.assert_allclose(pca.explained_variance_ratio_, (singular**2 / (singular**2).sum())[:4], rtol=1e-11)
    assert pca.n_samples_ == len(x) and pca.n_features_in_ == 12
    projected = (exact - mean) @ pca.components_.T
    np.testing.assert_allclose(pca.transform(x), projected, atol=1e-4 if dtype != np.float64 else 1e-10)
    assert pca.transform(x).dtype == (np.float64 if dtype == np.float64 else np.float32)


def test_signs_and_conventions_are_those_of_scikit_learn():
    decomposition = pytest.importorskip("sklearn.decomposition")
    from sklearn.base import clone
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x = rows(3000).astype(np.float64)
    theirs, ours = decomposition.PCA(3, svd_solver="full").fit(x), PatchPCA(3).fit(x)
    np.testing.assert_allclose(ours.components_, theirs.components_, atol=1e-10)
    np.testing.assert_allclose(ours.transform(x), theirs.transform(x), atol=1e-8)
    copy = clone(PatchPCA(5, foreground="auto", n_jobs=2))
    assert copy.get_params() == {"n_components": 5, "foreground": "auto", "n_jobs": 2}
    assert make_pipeline(StandardScaler(), PatchPCA(2)).fit_transform(x).shape == (3000, 2)


@pytest.mark.slow(reason="some fifty checks")
@pytest.mark.filterwarnings("ignore")
def test_scikit_learn_accepts_it():
    checks = pytest.importorskip("sklearn.utils.estimator_checks", reason="scikit-learn is not installed")
    expected = {"check_dtype_object": "text among the numbers raises a UsageError, which is a ValueError"}
    results = checks.check_estimator(PatchPCA(2), expected_failed_checks=expected, on_skip=None, on_fail=None)
    assert [result["check_name"] for result in results if result["status"] == "failed"] == []


def test_same_bits_for_any_number_of_threads_and_any_blocks():
    x = rows(30_000)
    attention = np.abs(x[:, 0])
    expected = PatchPCA(foreground="auto", n_jobs=1).fit(x, attention=attention)
    for other, n_jobs in ((x, 5), ([x[:7], x[7:9000], x[9000:9000], x[9000:]], 3), (np.asfortranarray(x), 2)):
        found = PatchPCA(foreground="auto", n_jobs=n_jobs).fit(other, attention=attention)
        assert found.digest == expected.digest
    assert PatchPCA().fit(x[:-1]).digest != PatchPCA().fit(x).digest


def test_range_of_colors_is_the_first_and_99th_percentile():
    x = rows()
    x[:50] *= 1000  # outliers
    pca = PatchPCA().fit(x)
    expected = np.percentile(pca.transform(x), [1, 99], axis=0)
    np.testing.assert_allclose(pca.range_, expected, atol=1e-3 * np.sqrt(pca.explained_variance_).max())
    colors = pca.colors(x)
    assert colors.dtype == np.uint8 and colors.min() == 0 and colors.max() == 255
    low, high = pca.range_
    expected_colors = ((pca.transform(x) - low) / (high - low)).clip(0, 1) * 255
    assert np.abs(colors - expected_colors).max() <= 0.51


@pytest.mark.parametrize("sign", [1, -1])
def test_foreground_is_the_side_with_more_attention(sign):
    x, inside = two_groups()
    x = x * sign
    pca = PatchPCA(foreground="auto").fit(x, attention=np.where(inside, 2.0, 1.0))
    assert np.array_equal(pca.foreground_score(x) > 0, inside)
    _, _, components = np.linalg.svd(x[inside] - x[inside].mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(np.abs((pca.components_ * components[:3]).sum(axis=1)), 1, rtol=1e-12)
    assert pca.n_samples_ == inside.sum()
    assert np.array_equal(pca.colors([x[:10], x[10:]]), pca.colors(x))
    assert not pca.colors(x)[~inside].any() and pca.colors(x)[inside].any(axis=1).mean() > 0.99
    background = PatchPCA(foreground="auto").fit(x, attention=np.where(inside, 1.0, 2.0))
    assert np.array_equal(background.foreground_score(x) > 0, ~inside)


def test_without_attention_the_foreground_is_the_smaller_side():
    x, inside = two_groups()
    for each in (x, -x):
        assert np.array_equal(PatchPCA(foreground="auto").fit(each).foreground_score(each) > 0, inside)


def test_a_number_is_a_threshold_in_standard_deviations():
    x, inside = two_groups()
    pca = PatchPCA(foreground=0.5).fit(x, attention=inside)
    along = (x - x.mean(axis=0)) @ pca.foreground_.component
    np.testing.assert_allclose(pca.foreground_score(x), along / along.std(ddof=1) - 0.5, atol=1e-5)


def test_columns_without_variance_have_a_color_in_the_middle():
    x = np.zeros((40, 5))
    x[:, 2] = np.arange(40)
    colors = PatchPCA().fit(x).colors(x)
    assert colors[0, 0] == 0 and colors[-1, 0] == 255 and (colors[:, 1:] == 128).all()


def test_saved_basis_gives_the_same_colors(tmp_path):
    x, inside = two_groups()
    for pca in (PatchPCA().fit(x), PatchPCA(foreground=0.25).fit(x, attention=inside)):
        pca.features_ = {"facet": "key", "mean": (0.5, 0.5, 0.5)}
        pca.save(tmp_path / "basis.safetensors")
        loaded = PatchPCA.load(tmp_path / "basis.safetensors")
        assert loaded.digest == pca.digest and np.array_equal(loaded.colors(x), pca.colors(x))
        assert np.array_equal(loaded.components_, pca.components_) and loaded.foreground == pca.foreground
        assert loaded.n_samples_ == pca.n_samples_ and loaded.n_features_in_ == 6
    assert [path.name for path in tmp_path.iterdir()] == ["basis.safetensors"]


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays, metadata: arrays.pop("mean"),
        lambda arrays, metadata: arrays.update(mean=arrays["mean"][:3]),
        lambda arrays, metadata: arrays.update(mean=arrays["mean"] + 1),
        lambda arrays, metadata: arrays.update(range=arrays["range"] * np.nan),
        lambda arrays, metadata: metadata.update(facts="[]"),
        lambda arrays, metadata: metadata.update(facts="{"),
        lambda arrays, metadata: metadata.pop("digest"),
        lambda arrays, metadata: metadata.update(format="something else"),
    ],
)
def test_damaged_and_foreign_files_are_refused_in_one_sentence(tmp_path, change):
    path = tmp_path / "basis.safetensors"
    PatchPCA(foreground="auto").fit(two_groups()[0]).save(path)
    arrays, metadata = read_safetensors(path)
    arrays = {name: np.array(array) for name, array in arrays.items()}
    change(arrays, metadata)
    write_safetensors(path, arrays, metadata)
    with pytest.raises(CheckpointError, match="basis") as caught:
        PatchPCA.load(path)
    assert "\n" not in str(caught.value)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.safetensors doesn't exist"):
        PatchPCA.load(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: PatchPCA(0).fit(x), "n_components must be a whole number"),
        (lambda x: PatchPCA(7).fit(x), "n_components must be at most 6"),
        (lambda x: PatchPCA().fit(x[:2]), "at least 3 rows"),
        (lambda x: PatchPCA(foreground="always").fit(x), "foreground must be"),
        (lambda x: PatchPCA(foreground=40.0).fit(x), "above the threshold"),
        (lambda x: PatchPCA().fit(np.where(np.arange(len(x))[:, None] == 9, np.nan, x)), "row 9 contains NaN"),
        (lambda x: PatchPCA().fit(iter([x])), "read only once"),
        (lambda x: PatchPCA().fit(x[:, 0]), "Expected 2D"),
        (
            lambda x: PatchPCA(foreground=0).fit(x, attention=np.ones(9)),
            "one number per row, \\(4000,\\), got \\(9,\\)",
        ),
        (lambda x: PatchPCA().transform(x), "not fitted"),
        (lambda x: PatchPCA().foreground_score(x), "not fitted"),
        (lambda x: PatchPCA().fit(x).transform(x[:, :4]), "expecting 6"),
        (lambda x: PatchPCA(2).fit(x).colors(x), "three components"),
    ],
)
def test_wrong_arguments_are_refused_in_one_sentence(make, message):
    with pytest.raises(UsageError, match=message):
        make(two_groups()[0])


def test_threshold_of_otsu_is_that_of_all_thresholds():
    counts = np.zeros(moments.BINS, np.int64)
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(-1, 0.4, 3000), rng.normal(2, 0.7, 900)])
    np.add.at(counts, ((values / moments.REACH + 1) / 2 * moments.BINS).astype(int), 1)

    def within(threshold: float) -> float:
        parts = values[values < threshold], values[values >= threshold]
        return sum(len(part) * part.var() for part in parts)

    grid = np.linspace(-2, 3, 501)
    assert within(moments.otsu_threshold(counts)) <= min(map(within, grid)) * (1 + 1e-6)
