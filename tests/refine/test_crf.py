"""The dense CRF against its definition, the reference kernels and the authors' program."""

from __future__ import annotations

import itertools
import math
import pathlib
import runpy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vitnp.kernels import reference
from vitnp.kernels.threads import pool

from vitnp.refine.dense_crf import dense_crf

try:
    from vitnp.kernels.cpu import lattice
    from vitnp.kernels.cpu.lattice_build import MIN_SLOTS
except ImportError:  # no numba, or no writable folder for its cache
    lattice = None

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
CRF_CASES = runpy.run_path(str(GOLDEN / "make_crf.py"))
compiled = pytest.mark.skipif(lattice is None, reason="the compiled kernels are not available")
every_kernel = pytest.mark.parametrize(
    "k", [reference, pytest.param(lattice, marks=compiled)], ids=["reference", "compiled"]
)
property_test = settings(derandomize=True, deadline=None, max_examples=30)


def points(dimensions: int, count: int, seed: int, spread: float = 3.0) -> np.ndarray:
    """Draw points of which many share their simplices, and two coincide."""
    features = np.random.default_rng(seed).normal(0, spread, (dimensions, count)).astype(np.float32)
    features[:, -1] = features[:, 0]
    return features


def photograph(height: int, width: int, seed: int) -> np.ndarray:
    """Make a synthetic photograph: shaded regions with a little noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    region = (np.hypot(y - 0.4 * height, x - 0.5 * width) < 0.3 * max(height, width)) + 2 * (x > 0.7 * width)
    colors = rng.integers(20, 230, (4, 3))
    shaded = colors[region] + 20 * y[..., None] / height + rng.normal(0, 3, (height, width, 3))
    return shaded.clip(0, 255).astype(np.uint8)


def probabilities(height: int, width: int, classes: int, seed: int) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(0, 1.5, (height, width, classes)).astype(np.float32)
    return reference.softmax(logits)


def in_float64(found: reference.Lattice) -> reference.Lattice:
    """Convert a lattice for computations in float64."""
    return reference.Lattice(found.vertex, found.weight.astype(float), found.neighbor)


def gaussian_matrix(features: np.ndarray) -> np.ndarray:
    """Compute exp(-|f_p - f_q|^2 / 2) of all pairs, normalized symmetrically."""
    difference = features[:, :, None].astype(float) - features[:, None]
    matrix = np.exp(-0.5 * np.square(difference).sum(axis=0))
    root = np.sqrt(matrix.sum(axis=1))
    return matrix / root / root[:, None]


def pixels(rgb: np.ndarray, xy: float, color: float | None = None) -> np.ndarray:
    y, x = np.mgrid[: rgb.shape[0], : rgb.shape[1]]
    planes = [x / xy, y / xy]
    if color:
        planes += [rgb[..., channel] / color for channel in range(3)]
    return np.array(planes, np.float32).reshape(len(planes), -1)


def normalized(rgb: np.ndarray, *widths: float) -> reference.Lattice:
    return lattice.normalize_lattice(lattice.permutohedral_lattice(pixels(rgb, *widths)))


# --- the lattice -----------------------------------------------------------------------------------------------------


@every_kernel
def test_filter_on_a_line_has_hand_computed_weights(k):
    """With one feature, vertices are sqrt(3) / 2 apart and both axes are the line: [1/2 1 1/2] twice, times 2/3."""
    features = (np.arange(-6, 7) * math.sqrt(0.75)).astype(np.float32)[None]
    impulse = np.zeros((13, 1), np.float32)
    impulse[6] = 1
    response = k.lattice_filter(k.permutohedral_lattice(features), impulse)[:, 0]
    expected = np.zeros(13)
    expected[4:9] = 1 / 6, 2 / 3, 1, 2 / 3, 1 / 6
    np.testing.assert_allclose(response, expected, atol=1e-5)
    np.testing.assert_allclose(response, np.exp(-0.375 * np.arange(-6, 7) ** 2), atol=0.06)


@every_kernel
@pytest.mark.parametrize("dimensions", [1, 2, 3, 5])
def test_weights_are_barycentric_coordinates_of_distinct_corners(k, dimensions):
    found = k.permutohedral_lattice(points(dimensions, 200, seed=0))
    np.testing.assert_allclose(found.weight.sum(axis=1), 1, atol=1e-5)
    assert found.weight.min() > -1e-4 and found.weight.max() < 1 + 1e-4
    assert all(len(set(corners)) == dimensions + 1 for corners in found.vertex.tolist())
    np.testing.assert_array_equal(found.vertex[0], found.vertex[-1])
    first = np.unique(found.vertex, return_index=True)[1]
    assert (np.diff(first) > 0).all(), "vertices are not numbered in order of first occurrence"


@every_kernel
def test_neighbor_relation_is_symmetric(k):
    found = k.permutohedral_lattice(points(3, 300, seed=1))
    axes, count, _ = found.neighbor.shape
    assert count == found.vertex.max() + 1
    for axis in range(axes):
        for e, (back, ahead) in enumerate(found.neighbor[axis].tolist()):
            assert back == count or found.neighbor[axis, back, 1] == e
            assert ahead == count or found.neighbor[axis, ahead, 0] == e
    # Consecutive corners of a simplex are one step apart along one axis.
    for corners in found.vertex[:50].tolist():
        for here, there in itertools.pairwise(corners):
            assert there in found.neighbor[:, here]


@compiled
@property_test
@given(st.integers(1, 6), st.integers(1, 400), st.integers(0, 10**6), st.sampled_from([0.1, 3, 60]))
def test_compiled_lattice_equals_the_reference(dimensions, count, seed, spread):
    features = points(dimensions, count, seed, spread)
    expected, found = reference.permutohedral_lattice(features), lattice.permutohedral_lattice(features)
    for name in ("vertex", "neighbor", "weight"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
        assert getattr(found, name).dtype == getattr(expected, name).dtype


@compiled
@pytest.mark.parametrize("n_threads", [1, 2, 4])
def test_compiled_lattice_equals_the_reference_when_hash_tables_grow(n_threads):
    rgb = np.random.default_rng(2).integers(0, 256, (60, 81, 3), dtype=np.uint8)
    features = pixels(rgb, 20, 5)
    expected = reference.permutohedral_lattice(features)
    assert expected.neighbor.shape[1] > 4 * MIN_SLOTS
    with pool.thread_limit(n_threads):
        found = lattice.permutohedral_lattice(features)
    for name in ("vertex", "neighbor", "weight"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)


@compiled
@property_test
@given(dimensions=st.integers(1, 5), count=st.integers(1, 300), channels=st.integers(1, 20), seed=st.integers(0, 10**6))
def test_filter_in_both_precisions(dimensions, count, channels, seed):
    features = points(dimensions, count, seed)
    values = np.random.default_rng(seed).normal(0, 1, (count, channels)).astype(np.float32)
    for normalized in (False, True):
        found = lattice.permutohedral_lattice(features)
        exact = in_float64(found)
        if normalized:
            found, exact = lattice.normalize_lattice(found), reference.normalize_lattice(exact)
        expected = reference.lattice_filter(exact, values.astype(float))
        plain = reference.Lattice(found.vertex, found.weight, found.neighbor)
        for result in (lattice.lattice_filter(found, values), reference.lattice_filter(plain, values)):
            assert result.dtype == np.float32
            np.testing.assert_allclose(result, expected, atol=1e-5 * max(1, abs(expected).max()))


@every_kernel
@pytest.mark.parametrize(("xy", "color"), [(3.0, None), (6.0, 20.0)])
def test_filter_is_near_the_gaussian_of_all_pairs(k, xy, color):
    """The lattice is an approximation: for values in -1..1 the error is below 0.03 on average and 0.15 at most."""
    features = pixels(photograph(24, 30, seed=3), xy, color)
    smooth = np.sin(np.arange(720) / 50)[:, None].astype(np.float32)
    found = k.lattice_filter(k.normalize_lattice(k.permutohedral_lattice(features)), smooth)
    error = abs(found - gaussian_matrix(features) @ smooth)
    assert error.mean() < 0.03 and error.max() < 0.15


@every_kernel
def test_coinciding_points_are_averaged(k):
    found = k.normalize_lattice(k.permutohedral_lattice(np.full((3, 5), 0.3, np.float32)))
    values = np.float32([[1, 0], [2, 0], [3, 0], [4, 10], [5, 0]])
    np.testing.assert_allclose(k.lattice_filter(found, values), np.full((5, 2), [3, 2]), rtol=1e-5)


@every_kernel
@pytest.mark.parametrize("far", [1e7, 1e30, np.nan, np.inf])
def test_features_beyond_the_range_of_the_lattice_are_an_error(k, far):
    features = points(5, 10, seed=4)
    features[2, 7] = far
    with pytest.raises(ValueError, match="too far apart|must be finite"):
        k.permutohedral_lattice(features)


# --- mean field ------------------------------------------------------------------------------------------------------


@every_kernel
@pytest.mark.parametrize("classes", [2, 3])
def test_equal_pixels_are_assigned_by_the_mean(k, classes):
    """Every normalized kernel then computes the mean, so the mean-field iteration has a closed form."""
    unary = np.random.default_rng(5).exponential(1, (7, classes)).astype(np.float32)
    averaging = k.normalize_lattice(k.permutohedral_lattice(np.zeros((5, 7), np.float32)))
    expected = reference.softmax(-unary.astype(float))
    for _ in range(4):
        expected = reference.softmax(-unary + 2.5 * expected.mean(axis=0))
    np.testing.assert_allclose(k.mean_field(unary, [averaging], [2.5], 4), expected, atol=1e-5)


@compiled
@pytest.mark.parametrize("classes", [1, 2, 3, 7, 8, 9, 16, 17, 21])
@pytest.mark.parametrize("steps", [0, 1, 6])
def test_mean_field_in_both_precisions(classes, steps):
    rgb = photograph(19, 23, seed=classes)
    unary = -np.log(probabilities(19, 23, classes, seed=6).reshape(-1, classes))
    found = [normalized(rgb, 3), normalized(rgb, 8, 12)]
    expected = reference.mean_field(unary.astype(float), [in_float64(each) for each in found], [3, 5], steps)
    result = lattice.mean_field(unary, found, [3, 5], steps)
    assert result.dtype == np.float32 and result.shape == expected.shape
    np.testing.assert_allclose(result, expected, atol=2e-4)
    np.testing.assert_allclose(result.sum(axis=1), 1, atol=1e-5)


@every_kernel
@pytest.mark.parametrize("classes", [2, 3])
def test_huge_and_tiny_energies_stay_finite(k, classes):
    unary = np.float32([[0, 1e5], [1e5, 0], [1e-40, 1e-40], [-3e4, 3e4], [88, 0], [0, 104]])
    unary = np.concatenate((unary, np.full((6, classes - 2), 3e4, np.float32)), axis=1)
    found = k.normalize_lattice(k.permutohedral_lattice(points(2, 6, seed=7)))
    result = k.mean_field(unary, [found], [1.0], 3)
    np.testing.assert_allclose(result[[0, 1, 3, 4, 5], [0, 1, 0, 1, 0]], 1, atol=1e-6)
    np.testing.assert_allclose(result.sum(axis=1), 1, atol=1e-6)


@compiled
@pytest.mark.parametrize("classes", [2, 3, 21])
def test_result_is_the_same_to_the_bit_for_any_number_of_threads(classes):
    rgb = np.random.default_rng(8).integers(
        0, 256, (97, 131, 3), dtype=np.uint8
    )  # more vertices than one thread processes
    unary = -np.log(probabilities(97, 131, classes, seed=8).reshape(-1, classes))
    results = []
    for n_threads in (1, 2, 4):
        with pool.thread_limit(n_threads):
            results.append(lattice.mean_field(unary, [normalized(rgb, 3), normalized(rgb, 9, 2)], [3, 5], 3))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@compiled
def test_float64_uses_the_reference():
    features = points(2, 40, seed=9).astype(float)
    values = np.random.default_rng(9).random((40, 3))
    found = lattice.permutohedral_lattice(features)
    assert found.weight.dtype == np.float64
    np.testing.assert_array_equal(lattice.lattice_filter(found, values), reference.lattice_filter(found, values))
    normal = lattice.normalize_lattice(found)
    result = lattice.mean_field(values, [normal], [2.0], 2)
    assert result.dtype == np.float64
    np.testing.assert_array_equal(result, reference.mean_field(values, [normal], [2.0], 2))


# --- the method ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", CRF_CASES["CASES"])
def test_labels_are_those_of_the_authors_program(classes):
    _, _, steps, constants = CRF_CASES["CASES"][classes]
    rgb, probability = CRF_CASES["make_case"](classes)
    marginals = dense_crf(probability, rgb, steps=steps, **constants)
    with np.load(GOLDEN / f"crf_{classes}.npz") as golden:
        labels, certainty = golden["labels"], golden["certainty"]
    assert (probability.argmax(axis=-1) == labels).mean() < 0.9, "the case is too easy"
    assert (marginals.argmax(axis=-1) == labels).mean() >= 0.999
    assert abs(marginals.max(axis=-1) - certainty).mean() < 1e-3


@pytest.mark.parametrize("classes", [2, 4])
def test_labels_are_close_to_those_of_exact_mean_field(classes):
    rgb, probability = photograph(28, 36, seed=10), probabilities(28, 36, classes, seed=10)
    gaussian, bilateral = (gaussian_matrix(pixels(rgb, *widths)) for widths in ((3,), (10, 15)))
    unary = -np.log(probability.reshape(-1, classes).astype(float))
    q = reference.softmax(-unary)
    for _ in range(5):
        q = reference.softmax(-unary + 3 * gaussian @ q + 4 * bilateral @ q)
    result = dense_crf(
        probability, rgb, bilateral_weight=4, bilateral_xy=10, bilateral_rgb=15, gaussian_weight=3, gaussian_xy=3
    )
    agreement = (result.reshape(-1, classes).argmax(axis=1) == q.argmax(axis=1)).mean()
    assert agreement > 0.97 > (probability.reshape(-1, classes).argmax(axis=1) == q.argmax(axis=1)).mean()


def test_noise_is_removed_and_edges_are_kept():
    rgb = np.full((40, 60, 3), (40, 90, 60), np.uint8)
    rgb[:, 25:] = (200, 180, 220)
    truth = np.arange(60) >= 25 + np.zeros((40, 1))
    probability = (0.35 + 0.3 * truth + np.random.default_rng(11).uniform(-0.3, 0.3, truth.shape)).clip(0, 1)
    assert ((probability > 0.5) == truth).mean() < 0.9
    np.testing.assert_array_equal(dense_crf(probability, rgb)[..., 1] > 0.5, truth)


def test_a_map_is_the_second_of_two_classes():
    rgb, probability = photograph(20, 30, seed=12), probabilities(20, 30, 2, seed=12)
    stacked = np.stack((1 - probability[..., 1], probability[..., 1]), axis=-1)
    np.testing.assert_array_equal(dense_crf(probability[..., 1], rgb), dense_crf(stacked, rgb))


@property_test
@given(height=st.integers(1, 12), width=st.integers(1, 12), classes=st.integers(2, 9), seed=st.integers(0, 10**6))
def test_result_commutes_with_permutations_of_the_classes(height, width, classes, seed):
    rng = np.random.default_rng(seed)
    rgb, probability = photograph(height, width, seed), probabilities(height, width, classes, seed)
    order = rng.permutation(classes)
    result = dense_crf(probability, rgb, steps=2)
    assert result.dtype == np.float32 and result.shape == probability.shape
    np.testing.assert_allclose(dense_crf(probability[..., order], rgb, steps=2), result[..., order], atol=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (2, 2)])
@pytest.mark.parametrize("value", [0, 1, 0.5])
def test_certain_and_undecided_maps_of_any_shape(size, value):
    result = dense_crf(np.full(size, value), np.full((*size, 3), 255, np.uint8), gaussian_weight=3)
    # One half is an unstable equilibrium: each iteration amplifies rounding errors.
    np.testing.assert_allclose(result[..., 1], value, atol=1e-4)
    np.testing.assert_allclose(result.sum(axis=-1), 1, atol=1e-6)


def test_without_steps_or_weights_probabilities_are_only_normalized():
    rgb = photograph(6, 7, seed=13)
    probability = np.random.default_rng(13).uniform(0.1, 0.5, (6, 7, 3))
    expected = probability / probability.sum(axis=-1, keepdims=True)
    for constants in ({"steps": 0}, {"bilateral_weight": 0}):
        np.testing.assert_allclose(dense_crf(probability, rgb, **constants), expected, atol=1e-5)


def test_bandwidth_is_an_eighth_of_the_long_side():
    rgb, probability = photograph(20, 64, seed=14), probabilities(20, 64, 2, seed=14)
    np.testing.assert_array_equal(dense_crf(probability, rgb), dense_crf(probability, rgb, bilateral_xy=8.0))
    assert (dense_crf(probability, rgb) != dense_crf(probability, rgb, bilateral_xy=6.0)).any()


def test_inputs_are_not_modified_and_views_are_accepted():
    rgb, probability = photograph(12, 16, seed=15), probabilities(12, 16, 3, seed=15)
    probability.setflags(write=False)
    rgb.setflags(write=False)
    flipped = dense_crf(probability[:, ::-1], rgb[:, ::-1])
    np.testing.assert_array_equal(flipped, dense_crf(probability[:, ::-1].copy(), rgb[:, ::-1].copy()))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -0.01, 1.01])
@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 2), (5, 6, 3)])
def test_values_outside_0_to_1_are_an_error(bad, shape):
    probability = np.full(shape, 0.5)
    probability[2, 3] = bad
    with pytest.raises(ValueError, match="finite and between 0 and 1"):
        dense_crf(probability, np.zeros((5, 6, 3), np.uint8))


@pytest.mark.parametrize(
    "call, complaint",
    [
        (lambda p, rgb: dense_crf(p[:-1], rgb), r"\(8, 8\), .* got \(7, 8\)"),
        (lambda p, rgb: dense_crf(np.zeros((8, 8, 0)), rgb), r"got \(8, 8, 0\)"),
        (lambda p, rgb: dense_crf(p, rgb / 255), "got float64"),
        (lambda p, rgb: dense_crf(p, rgb, bilateral_xy=0), "bilateral_xy must be positive"),
        (lambda p, rgb: dense_crf(p, rgb, bilateral_rgb=math.inf), "bilateral_rgb must be positive"),
        (lambda p, rgb: dense_crf(p, rgb, gaussian_xy=math.nan), "gaussian_xy must be positive"),
        (lambda p, rgb: dense_crf(p, rgb, bilateral_weight=-1), "bilateral_weight must be at least 0"),
        (lambda p, rgb: dense_crf(p, rgb, steps=-1), "steps"),
        (lambda p, rgb: dense_crf(p, rgb, bilateral_xy=1e-9), "larger standard deviations"),
    ],
)
def test_bad_arguments_are_named(call, complaint):
    with pytest.raises(ValueError, match=complaint):
        call(np.full((8, 8), 0.5), photograph(8, 8, seed=16))
