"""Refinement against its definitions: dense matrices, direct solves, loops over windows."""

from __future__ import annotations

import hashlib
import importlib
import pathlib
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from vitnp.kernels import reference
from vitnp.kernels.threads import pool

from vitnp import kernels
from vitnp.errors import UsageError
from vitnp.io.resample import bilinear, downscale, working_size
from vitnp.options import REFINEMENTS
from vitnp.refine.bilateral_solver import bilateral_solver
from vitnp.refine.guided_filter import guided_filter, guided_upsample
from vitnp.refine.refine import refine

property_test = settings(derandomize=True, deadline=None, max_examples=40)
sides = st.integers(1, 40)
seeds = st.integers(0, 10**6)


def blobs(height: int, width: int, seed: int, noise: float = 6.0) -> np.ndarray:
    """Make a synthetic photograph: a few flat regions with straight edges, shading and a little noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    region = (np.hypot(y - 0.5 * height, x - 0.45 * width) < 0.3 * max(height, width)) + 2 * (x > 0.7 * width)
    colors = rng.integers(20, 230, (4, 3))
    shade = 20.0 * y[..., None] / height
    return (colors[region] + shade + rng.normal(0, noise, (height, width, 3))).clip(0, 255).astype(np.uint8)


def two_tone(height: int, width: int, edge: int) -> np.ndarray:
    rgb = np.full((height, width, 3), (40, 90, 60), np.uint8)
    rgb[:, edge:] = (200, 180, 220)
    return rgb


# --- oracles: slow, direct implementations of the definitions --------------------------------------------------------


def bilinear_by_definition(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Interpolate at each center in a loop, in float64; coordinates beyond the outermost centers are clamped."""
    rows, columns = values.shape
    result = np.empty((height, width))
    for i in range(height):
        y = min(max((i + 0.5) * rows / height - 0.5, 0.0), rows - 1.0)
        for j in range(width):
            x = min(max((j + 0.5) * columns / width - 0.5, 0.0), columns - 1.0)
            result[i, j] = sum(
                values[r, c] * max(0.0, 1 - abs(y - r)) * max(0.0, 1 - abs(x - c))
                for r in {int(y), min(int(y) + 1, rows - 1)}
                for c in {int(x), min(int(x) + 1, columns - 1)}
            )
    return result


def solver_system(rgb, confidence, target, sigma_xy, sigma_luma, sigma_chroma, smoothness):
    """Dense S (vertices, pixels), A and b of the bilateral solver, built from dictionaries of bins."""
    height, width = rgb.shape[:2]
    vertex_of, pixels = {}, []
    for i in range(height):
        for j in range(width):
            r, g, b = (float(value) for value in rgb[i, j])
            position = (
                round((i - (height - 1) / 2) / sigma_xy),
                round((j - (width - 1) / 2) / sigma_xy),
                round((0.299 * r + 0.587 * g + 0.114 * b) / sigma_luma),
                round((-0.168736 * r - 0.331264 * g + 0.5 * b) / sigma_chroma),
                round((0.5 * r - 0.418688 * g - 0.081312 * b) / sigma_chroma),
            )
            pixels.append(vertex_of.setdefault(position, len(vertex_of)))
    count = len(vertex_of)
    splat = np.zeros((count, height * width))
    splat[pixels, range(height * width)] = 1
    blur = 10.0 * np.eye(count)  # [1 2 1] along each of five axes
    for p, k in vertex_of.items():
        for q, m in vertex_of.items():
            if sum(abs(a - b) for a, b in zip(p, q)) == 1:
                blur[k, m] = 1
    n = np.ones(count)
    for _ in range(10):
        n = np.sqrt(n * splat.sum(axis=1) / (blur @ n))
    affinity = n[:, None] * blur * n
    laplacian = np.diag(affinity.sum(axis=1)) - affinity
    system = smoothness * laplacian + np.diag(splat @ confidence.ravel())
    return splat, system, splat @ (confidence * target).ravel()


def guided_by_definition(target: np.ndarray, rgb: np.ndarray, radius: int, eps: float) -> np.ndarray:
    """He, Sun and Tang's color filter with one 3 x 3 solve per window and one mean per pixel."""
    height, width = target.shape
    image = rgb / 255.0

    def window(i, j):
        return slice(max(i - radius, 0), i + radius + 1), slice(max(j - radius, 0), j + radius + 1)

    a, b = np.empty((height, width, 3)), np.empty((height, width))
    for i in range(height):
        for j in range(width):
            colors, values = image[window(i, j)].reshape(-1, 3), target[window(i, j)].ravel()
            centered = colors - colors.mean(axis=0)
            sigma = centered.T @ centered / len(values)
            a[i, j] = np.linalg.solve(sigma + eps * np.eye(3), centered.T @ (values - values.mean()) / len(values))
            b[i, j] = values.mean() - a[i, j] @ colors.mean(axis=0)
    result = np.empty((height, width))
    for i in range(height):
        for j in range(width):
            result[i, j] = a[window(i, j)].mean(axis=(0, 1)) @ image[i, j] + b[window(i, j)].mean()
    return result


# --- bilinear --------------------------------------------------------------------------------------------------------


@property_test
@given(sides, sides, sides, sides, seeds)
def test_bilinear_is_its_definition(gh, gw, height, width, seed):
    values = np.random.default_rng(seed).random((gh, gw), dtype=np.float32)
    result = bilinear(values, (height, width))
    assert result.dtype == np.float32 and result.shape == (height, width)
    np.testing.assert_allclose(result, bilinear_by_definition(values.astype(float), height, width), atol=2e-5)


@property_test
@given(sides, sides, sides, sides, seeds)
def test_windows_are_the_same_to_the_bit_as_the_whole(gh, gw, height, width, seed):
    rng = np.random.default_rng(seed)
    values = rng.random((gh, gw), dtype=np.float32)
    top, bottom = sorted(rng.integers(0, height + 1, 2))
    left, right = sorted(rng.integers(0, width + 1, 2))
    rows, columns = slice(top, bottom), slice(left, right)
    window = bilinear(values, (height, width), rows=rows, columns=columns)
    np.testing.assert_array_equal(window, bilinear(values, (height, width))[rows, columns])


def test_bilinear_leaves_its_input_alone():
    values = np.random.default_rng(0).random((3, 4), dtype=np.float32)
    before = values.copy()
    bilinear(values, (3, 4))
    bilinear(values, (6, 8))
    np.testing.assert_array_equal(values, before)


# --- reduction -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["reference", "compiled"])
@pytest.mark.parametrize("size", [(80, 53), (400, 500), (301, 90), (90, 203), (7, 5), (3, 400), (150, 202), (60, 61)])
def test_reduction_is_pillows_resizing(monkeypatch, size, variant):
    monkeypatch.setenv("VITNP_KERNELS", variant)
    monkeypatch.setattr(importlib.import_module("vitnp.kernels.reference.resize"), "_BAND_PIXELS", 7 * 203)
    rgb = blobs(301, 203, seed=3)
    rgb[::3, ::5] = 255
    # Pillow may take columns first.
    along_rows = Image.fromarray(rgb).resize((size[1], 301), Image.Resampling.BICUBIC)
    expected = np.asarray(along_rows.resize(size[::-1], Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(downscale(rgb, size), expected)
    with pool.thread_limit(3):
        np.testing.assert_array_equal(downscale(rgb, size), expected)
    np.testing.assert_array_equal(downscale(rgb[::-1, ::2], size), downscale(rgb[::-1, ::2].copy(), size))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 90), st.integers(1, 90), st.booleans())
def test_resizing_has_the_bytes_of_the_reference(height, width, rows, columns, noise):
    rgb = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    rgb = rgb if noise else (rgb[..., :1] >> 7) * np.uint8(255) + np.zeros(3, np.uint8)  # overshoots
    found = kernels.for_device("cpu").resize(rgb, (rows, columns))
    np.testing.assert_array_equal(found, reference.resize(rgb, (rows, columns)))


def test_very_long_images_are_subsampled_first(monkeypatch):
    monkeypatch.setattr("vitnp.io.resample._MAX_SIDE", 1000)
    ramp = np.repeat(np.linspace(0, 255, 8000).astype(np.uint8)[:, None, None], 3, axis=2)
    np.testing.assert_allclose(downscale(ramp, (10, 1))[:, 0, 0], np.linspace(12.75, 242.25, 10), atol=2)


@property_test
@given(st.integers(1, 20000), st.integers(1, 20000), st.integers(1, 1000))
def test_working_size_keeps_aspect_and_bound(height, width, side):
    h, w = working_size(height, width, side)
    assert 1 <= h <= height and 1 <= w <= width and max(h, w) == min(side, max(height, width))
    scale = max(h, w) / max(height, width)
    assert abs(h - height * scale) < 1 and abs(w - width * scale) < 1


# --- the bilateral solver --------------------------------------------------------------------------------------------

# Widths for which no color lies on the edge between two bins, where float32 and float64 may disagree.
SIGMAS = {"sigma_xy": 3.3, "sigma_luma": 11.37, "sigma_chroma": 6.61}


@settings(property_test, max_examples=20)
@given(st.integers(1, 12), st.integers(1, 12), seeds)
def test_solver_solves_the_system_of_the_paper(height, width, seed):
    rng = np.random.default_rng(seed)
    rgb = blobs(height, width, seed)
    target, confidence = rng.random((height, width)), rng.random((height, width)) + 0.01
    splat, system, b = solver_system(rgb, confidence, target, **SIGMAS, smoothness=20.0)
    expected = (np.linalg.solve(system, b) @ splat).reshape(height, width).clip(0, 1)
    result = bilateral_solver(
        target, rgb, **SIGMAS, smoothness=20.0, confidence=confidence, max_iterations=2000, tolerance=1e-12
    )
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=1e-6)


@pytest.mark.slow(reason="many inputs")
def test_solver_agrees_with_a_direct_sparse_solve():
    from scipy.sparse import csc_array
    from scipy.sparse.linalg import spsolve

    rgb = blobs(48, 64, seed=1, noise=3.0)
    target = bilinear(np.random.default_rng(2).random((4, 5)), (48, 64))
    splat, system, b = solver_system(rgb, np.full(target.shape, 0.999), target, **SIGMAS, smoothness=128.0)
    exact = (spsolve(csc_array(system), b) @ splat).reshape(target.shape)
    converged = bilateral_solver(target, rgb, **SIGMAS, max_iterations=1000, tolerance=1e-12)
    np.testing.assert_allclose(converged, exact, atol=1e-6)
    # 25 steps, the default, come close to it.
    np.testing.assert_allclose(bilateral_solver(target, rgb, **SIGMAS), exact, atol=0.01)


def test_spatial_bandwidth_is_three_percent_of_the_long_side():
    rgb, target = blobs(60, 200, seed=4), np.random.default_rng(4).random((60, 200))
    np.testing.assert_array_equal(bilateral_solver(target, rgb), bilateral_solver(target, rgb, sigma_xy=6.0))
    assert (bilateral_solver(target, rgb) != bilateral_solver(target, rgb, sigma_xy=5.0)).any()


@property_test
@given(sides, sides, seeds, st.floats(0, 1))
def test_solver_keeps_constants(height, width, seed, value):
    rgb = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    result = bilateral_solver(np.full((height, width), value), rgb)
    np.testing.assert_allclose(result, value, atol=1e-6)


@pytest.mark.parametrize("flip", [np.s_[::-1], np.s_[:, ::-1]], ids=["up-down", "left-right"])
@pytest.mark.parametrize("size", [(60, 80), (61, 83)])
def test_solver_commutes_with_flips(flip, size):
    rgb, target = blobs(*size, seed=5), bilinear(np.random.default_rng(5).random((5, 6)), size)
    result = bilateral_solver(target, rgb, sigma_xy=4.0)
    np.testing.assert_allclose(bilateral_solver(target[flip], rgb[flip], sigma_xy=4.0), result[flip], atol=1e-5)


def test_isolated_pixels_without_confidence_get_the_mean_of_their_vertex():
    rgb = np.zeros((4, 12, 3), np.uint8)
    rgb[:, 4:8] = 12  # a neighbor of black
    rgb[:, 8:] = 255  # too different in color to have neighbors
    target = np.random.default_rng(8).random((4, 12))
    confidence = np.where(np.arange(12) < 8, 0.01, 0.0) * np.ones((4, 1))
    result = bilateral_solver(target, rgb, sigma_xy=50.0, confidence=confidence)
    np.testing.assert_allclose(result[:, 8:], target[:, 8:].mean(), atol=1e-6)


def test_pixels_without_confidence_take_the_value_of_their_surroundings():
    rgb = two_tone(40, 40, edge=20)
    target = np.zeros((40, 40))
    target[:, 20:] = 1
    confidence = np.ones((40, 40))
    hole = np.s_[10:30, 5:35]
    target[hole], confidence[hole] = 0.5, 0
    result = bilateral_solver(target, rgb, sigma_xy=4, confidence=confidence, max_iterations=200)
    np.testing.assert_allclose(result, np.arange(40) >= 20 + np.zeros((40, 1)), atol=0.02)


def test_solver_has_the_same_bits_whatever_the_number_of_threads():
    from threadpoolctl import threadpool_limits

    rgb, target = blobs(300, 400, seed=6), bilinear(np.random.default_rng(6).random((20, 27)), (300, 400))
    digests = set()
    for threads in (1, 2, 4):
        with threadpool_limits(threads):
            digests.add(hashlib.sha256(bilateral_solver(target, rgb).tobytes()).hexdigest())
    assert len(digests) == 1


# --- the guided filter -----------------------------------------------------------------------------------------------


@settings(property_test, max_examples=15)
@given(st.integers(1, 14), st.integers(1, 14), st.integers(0, 20), st.sampled_from([1e-6, 1e-3, 0.1]), seeds)
def test_guided_filter_is_its_definition(height, width, radius, eps, seed):
    rgb, target = blobs(height, width, seed), np.random.default_rng(seed).random((height, width))
    result = guided_filter(target, rgb, radius=radius, eps=eps)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, guided_by_definition(target, rgb, radius, eps), atol=1e-6)


def test_guided_filter_is_accurate_where_windows_hold_one_hue():
    gray = np.repeat(np.linspace(0, 255, 240).astype(np.uint8).reshape(12, 20, 1), 3, axis=2)
    target = np.random.default_rng(7).random((12, 20))
    result = guided_filter(target, gray, radius=3, eps=1e-7)
    np.testing.assert_allclose(result, guided_by_definition(target, gray, 3, 1e-7), atol=1e-6)


@property_test
@given(sides, sides, st.integers(0, 50), seeds, st.floats(0, 1))
def test_guided_filter_keeps_constants(height, width, radius, seed, value):
    rgb = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    result = guided_filter(np.full((height, width), value), rgb, radius=radius, eps=1e-4)
    np.testing.assert_allclose(result, value, atol=1e-6)


# --- guided upsampling -----------------------------------------------------------------------------------------------


@property_test
@given(sides, sides, st.integers(1, 12), st.integers(1, 2000), seeds)
def test_result_does_not_depend_on_the_tiles(height, width, side, tile, seed):
    rng = np.random.default_rng(seed)
    rgb = blobs(height, width, seed)
    small = downscale(rgb, working_size(height, width, side))
    soft = rng.random(small.shape[:2])
    whole = guided_upsample(soft, small, rgb, tile=10**6)
    assert whole.dtype == np.uint16 and whole.shape == (height, width)
    np.testing.assert_array_equal(guided_upsample(soft, small, rgb, tile=tile), whole)


def test_upsampling_to_the_same_size_is_the_guided_filter():
    rgb, soft = blobs(30, 40, seed=8), np.random.default_rng(8).random((30, 40))
    expected = guided_filter(soft, rgb, radius=4, eps=1e-4).clip(0, 1) * 65535.0
    np.testing.assert_allclose(guided_upsample(soft, rgb, rgb), expected, atol=1)


def test_upsampled_edges_follow_the_photograph():
    """A disk whose map has a tenth of the size: bilinear enlargement is off by a few pixels at its outline."""
    y, x = np.mgrid[:900, :1200]
    disk = np.hypot(y - 440, x - 617) < 287.3
    rgb = np.where(disk[..., None], np.uint8([190, 120, 60]), np.uint8([70, 110, 130]))
    small = downscale(rgb, (90, 120))
    soft = np.asarray(Image.fromarray(disk.astype(np.float32)).resize((120, 90), Image.Resampling.BOX))
    guided = (guided_upsample(soft, small, rgb) >= 32768) != disk
    plain = (bilinear(soft, (900, 1200)) >= 0.5) != disk
    assert guided.sum() == 0 < plain.sum()


# --- refine ----------------------------------------------------------------------------------------------------------


@property_test
@given(sides, sides, st.integers(1, 6), st.integers(1, 6), st.sampled_from(REFINEMENTS), st.integers(1, 50), seeds)
def test_any_photograph_and_score_gives_a_map_of_the_photographs_size(height, width, gh, gw, method, side, seed):
    rng = np.random.default_rng(seed)
    rgb = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    score = rng.random((gh, gw), dtype=np.float32)
    soft = refine(score, rgb, method=method, working_side=side)
    assert soft.dtype == np.uint16 and soft.shape == (height, width)
    np.testing.assert_array_equal(soft, refine(score, rgb, method=method, working_side=side))


@pytest.mark.parametrize("method", REFINEMENTS)
@pytest.mark.parametrize("side", [20, 100])
def test_constant_scores_stay_constant(method, side):
    rgb = np.random.default_rng(9).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    for value, expected in ((0.0, 0), (0.5, 32768), (1.0, 65535)):
        soft = refine(np.full((4, 5), value), rgb, method=method, working_side=side)
        assert abs(soft.astype(int) - expected).max() <= 1


def test_none_is_bilinear_interpolation_in_fixed_point():
    score = np.random.default_rng(10).random((5, 7))
    soft = refine(score, blobs(700, 1000, seed=10), method="none")
    np.testing.assert_allclose(soft, bilinear(score, (700, 1000)) * 65535.0, atol=0.51)


@pytest.mark.parametrize("method", ["solver", "crf", "guided"])
@pytest.mark.parametrize("side", [640, 120])
def test_a_blurred_boundary_moves_onto_the_edge_of_the_photograph(method, side):
    """The edge is at column 100 of 240; the scores, on patches of 16, cross 1/2 seven columns beside it."""
    rgb = two_tone(160, 240, edge=100)
    score = np.tile(((107 - (np.arange(15) * 16 + 8)) / 64 + 0.5).clip(0, 1), (10, 1))
    assert (bilinear(score, (160, 240)) >= 0.5)[:, 100:106].all()
    mask = refine(score, rgb, method=method, working_side=side) >= 32768
    np.testing.assert_array_equal(mask, np.broadcast_to(np.arange(240) < 100, mask.shape))


@pytest.mark.parametrize("method", REFINEMENTS)
@pytest.mark.parametrize("size", [(1, 1), (8, 8), (10000, 10), (10, 10000)])
def test_extreme_shapes(method, size):
    rgb = np.random.default_rng(11).integers(0, 256, (*size, 3), dtype=np.uint8)
    soft = refine(np.random.default_rng(11).random((2, 3)), rgb, method=method)
    assert soft.shape == size


def test_mirrored_views_are_accepted():
    rgb, score = blobs(70, 90, seed=12), np.random.default_rng(12).random((4, 5))
    view = rgb[:, ::-1]
    np.testing.assert_array_equal(
        refine(score, view, working_side=40), refine(score, np.ascontiguousarray(view), working_side=40)
    )


@pytest.mark.slow(reason="a large image")
def test_a_large_photograph_is_never_copied_as_floats():
    rgb = np.tile(blobs(100, 100, seed=13), (40, 60, 1))  # 24 megapixels: 288 MB as float32
    refine(np.eye(4), rgb[:200, :200])
    tracemalloc.start()
    try:
        soft = refine(np.eye(4), rgb)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - soft.nbytes < 80e6


def test_error_for_an_unknown_method_lists_the_known_ones():
    with pytest.raises(UsageError, match="one of solver, crf, guided, color or none, got 'grabcut'"):
        refine(np.zeros((2, 2)), blobs(8, 8, seed=0), method="grabcut")


@pytest.mark.parametrize("method", REFINEMENTS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_an_error(method, bad):
    score = np.zeros((3, 3))
    score[1, 1] = bad
    with pytest.raises(ValueError, match="finite"):
        refine(score, blobs(8, 8, seed=0), method=method)


@pytest.mark.parametrize(
    "call, complaint",
    [
        (lambda rgb: bilateral_solver(np.zeros((8, 9)), rgb), r"\(8, 8\), got \(8, 9\)"),
        (lambda rgb: guided_filter(np.zeros((9, 8)), rgb, radius=1, eps=1e-3), r"\(8, 8\), got \(9, 8\)"),
        (lambda rgb: guided_upsample(np.zeros((9, 8)), rgb, rgb), r"\(8, 8\), got \(9, 8\)"),
        (lambda rgb: bilateral_solver(np.zeros((8, 8)), rgb, confidence=np.ones((8, 7))), r"confidence .* \(8, 7\)"),
        (lambda rgb: bilateral_solver(np.zeros((8, 8)), rgb, confidence=0), "positive somewhere"),
        (lambda rgb: bilateral_solver(np.zeros((8, 8)), rgb, sigma_luma=0), "sigma_luma must be positive"),
        (lambda rgb: bilateral_solver(np.zeros((8, 8)), rgb, sigma_luma=1e-9, sigma_chroma=1e-9), "too many bins"),
        (lambda rgb: bilateral_solver(np.zeros((8, 8)), rgb, smoothness=-1), "smoothness"),
        (lambda rgb: guided_filter(np.zeros((8, 8)), rgb, radius=-1, eps=1e-3), "radius"),
        (lambda rgb: guided_filter(np.zeros((8, 8)), rgb, radius=1, eps=0), "eps must be positive"),
        (lambda rgb: refine(np.zeros(8), rgb), r"2-D .* \(8,\)"),
        (lambda rgb: refine(np.zeros((0, 3)), rgb), "not empty"),
        (lambda rgb: refine(np.zeros((2, 2)), rgb[..., 0]), r"uint8 array of shape \(H, W, 3\)"),
        (lambda rgb: refine(np.zeros((2, 2)), rgb / 255), "got float64"),
        (lambda rgb: refine(np.zeros((2, 2)), rgb, working_side=0), "working_side"),
        (lambda rgb: bilinear(np.zeros((2, 2)), (0, 4)), "0 x 4"),
    ],
)
def test_bad_arguments_are_named(call, complaint):
    with pytest.raises(ValueError, match=complaint):
        call(blobs(8, 8, seed=0))


# --- photographs -----------------------------------------------------------------------------------------------------


def photographs_with_masks(folder: pathlib.Path, every: int):
    for path in sorted((folder / "images").iterdir())[::every]:
        truth = next((folder / "masks").glob(f"{path.stem}.*"))
        yield np.asarray(Image.open(path).convert("RGB")), np.asarray(Image.open(truth).convert("L")) >= 128


def patch_scores(truth: np.ndarray, seed: int) -> np.ndarray:
    """Simulate scores of patches of 16 at a short side of 320: the truth, averaged, smoothed and with noise."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    scale = 20 / min(truth.shape)
    columns, rows = round(truth.shape[1] * scale), round(truth.shape[0] * scale)
    covered = Image.fromarray(truth.astype(np.float32)).resize((columns, rows), Image.Resampling.BOX)
    covered = gaussian_filter(np.asarray(covered), 0.7)
    noise = gaussian_filter(rng.standard_normal((rows, columns)), 0.8)
    return 1 / (1 + np.exp(-6 * (covered - 0.5) - 1.2 * noise / noise.std()))


def iou(soft: np.ndarray, truth: np.ndarray) -> float:
    mask = soft >= 32768
    return (mask & truth).sum() / max((mask | truth).sum(), 1)


@pytest.mark.slow(reason="segments many photographs")
def test_refinement_improves_masks_of_photographs(shared):
    pairs = list(photographs_with_masks(shared / "data" / "duts-dev", every=8))
    scored = [(patch_scores(truth, seed), rgb, truth) for seed, (rgb, truth) in enumerate(pairs)]
    mean = {m: np.mean([iou(refine(score, rgb, method=m), truth) for score, rgb, truth in scored]) for m in REFINEMENTS}
    assert mean["guided"] > mean["none"] + 0.02
    assert mean["solver"] > mean["none"] + 0.03
    assert mean["crf"] > mean["none"] + 0.03


@pytest.mark.slow(reason="a large image")
def test_large_photographs_are_refined_as_well_as_small_ones(shared):
    original, enlarged = [], []
    for seed, (rgb, truth) in enumerate(photographs_with_masks(shared / "data" / "duts-dev", every=32)):
        score = patch_scores(truth, seed)
        original.append(iou(refine(score, rgb), truth))
        scale = (12e6 / truth.size) ** 0.5
        size = round(truth.shape[1] * scale), round(truth.shape[0] * scale)
        large = np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.LANCZOS))
        large_truth = np.asarray(Image.fromarray(truth).resize(size, Image.Resampling.NEAREST))
        enlarged.append(iou(refine(score, large), large_truth))
    assert abs(np.mean(enlarged) - np.mean(original)) < 0.01
