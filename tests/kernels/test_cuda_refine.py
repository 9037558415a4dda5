"""The bilateral solver and the permutohedral lattice in CUDA, against the CPU's and dense linear algebra in float64:
emulated in check mode, and on a GPU under ``pytest -m gpu``."""

from __future__ import annotations

import numpy as np
import pytest
from vitnp.kernels import reference
from vitnp.kernels.reference import BilateralGrid

from vitnp.refine.bilateral_solver import bilateral_solver
from vitnp.refine.dense_crf import dense_crf


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """Patches of color, with noise."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 256, (-(-height // 5), -(-width // 5), 3))
    return (
        (patches.repeat(5, 0).repeat(5, 1)[:height, :width] + rng.normal(0, 4, (height, width, 3)))
        .clip(0, 255)
        .astype(np.uint8)
    )


def score(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def solve(cupy, target, rgb, **options) -> np.ndarray:
    return cupy.asnumpy(bilateral_solver(cupy.asarray(target), cupy.asarray(rgb), **options))


# --- The solver ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("height, width, sigma_xy", [(1, 1, None), (9, 5, 1.5), (24, 31, 4.0), (3, 300, None)])
def test_solver_gives_the_cpu_s_answer(cupy, height, width, sigma_xy):
    rgb, target = picture(0, height, width), score(1, height, width)
    found = solve(cupy, target, rgb, sigma_xy=sigma_xy)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, bilateral_solver(target, rgb, sigma_xy=sigma_xy), atol=1e-6)


def test_grid_has_the_cpu_s_vertices_and_neighbors(cupy):
    from vitnp.kernels.cuda.bilateral_grid import BilateralGrid as Grid

    rgb = picture(2, 21, 30)
    wanted, found = BilateralGrid(rgb, 3.0, 12.0, 6.0), Grid(cupy.asarray(rgb), 3.0, 12.0, 6.0)
    count = int(found.first[1])
    assert count == wanted.count
    np.testing.assert_array_equal(cupy.asnumpy(found.vertex), wanted.vertex)
    pairs = {
        (v, int(other)) for row in cupy.asnumpy(found.neighbors)[:, :count] for v, other in enumerate(row) if other >= 0
    }
    assert pairs == set(zip(*map(np.ndarray.tolist, wanted.neighbors.nonzero())))
    order, start = cupy.asnumpy(found.order), cupy.asnumpy(found.start)
    for v in range(count):
        np.testing.assert_array_equal(order[start[v] : start[v + 1]], np.flatnonzero(wanted.vertex == v))


def test_converged_solver_solves_the_dense_system(cupy):
    rgb, target = picture(3, 12, 18), score(4, 12, 18)
    confidence = score(5, 12, 18) + 0.1
    grid = BilateralGrid(rgb, 4.0, 12.0, 6.0)
    n = grid.bistochastize()
    m = n * grid.blur(n)
    blur = 10 * np.eye(grid.count) + grid.neighbors.toarray()
    system = 128 * (np.diag(m) - n[:, None] * blur * n) + np.diag(grid.splat(confidence.ravel()))
    wanted = np.linalg.solve(system, grid.splat((confidence * target).ravel().astype(float)))
    found = solve(
        cupy, target, rgb, sigma_xy=4.0, confidence=cupy.asarray(confidence), max_iterations=80, tolerance=1e-10
    )
    np.testing.assert_allclose(found, grid.slice(wanted).clip(0, 1), atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [{"tolerance": 0.05}, {"max_iterations": 0}, {"max_iterations": 3}, {"smoothness": 0.0}, {"smoothness": 5.0}],
)
def test_solver_stops_where_the_cpu_does(cupy, options):
    rgb, target = picture(6, 16, 20), score(7, 16, 20)
    np.testing.assert_allclose(solve(cupy, target, rgb, **options), bilateral_solver(target, rgb, **options), atol=1e-6)


def test_pixels_nobody_vouches_for_keep_the_mean_of_their_vertex(cupy):
    rgb = np.zeros((4, 12, 3), np.uint8)
    rgb[:, 4:8] = 12  # a neighbor of black
    rgb[:, 8:] = 255  # too far in color to be anyone's
    target = score(8, 4, 12)
    confidence = np.where(np.arange(12) < 8, 0.01, 0.0) * np.ones((4, 1))
    found = solve(cupy, target, rgb, sigma_xy=50.0, confidence=cupy.asarray(confidence))
    np.testing.assert_allclose(found[:, 8:], target[:, 8:].mean(), atol=1e-6)
    # The others are all but one.
    np.testing.assert_allclose(found[:, :8], target[:, :8].mean(), atol=1e-3)
    assert np.ptp(found[:, :8]) > 0


def test_a_constant_map_stays(cupy):
    found = solve(cupy, np.full((10, 10), 0.25, np.float32), picture(9, 10, 10))
    np.testing.assert_allclose(found, 0.25, atol=1e-6)


def test_solver_twice_gives_the_same_bits(cupy):
    rgb, target = picture(10, 20, 20), score(11, 20, 20)
    np.testing.assert_array_equal(solve(cupy, target, rgb), solve(cupy, target, rgb))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"sigma_xy": 0.0}, "sigma_xy must be positive"),
        ({"smoothness": -1.0}, "smoothness"),
        ({"sigma_chroma": 1e-9}, "too many bins"),
    ],
)
def test_solver_refuses(cupy, options, message):
    with pytest.raises(ValueError, match=message):
        solve(cupy, score(0, 4, 4), picture(0, 4, 4), **options)


def test_solver_refuses_a_map_of_another_size(cupy):
    with pytest.raises(ValueError, match="differs from the photograph"):
        solve(cupy, score(0, 4, 5), picture(0, 4, 4))


def test_photographs_of_a_size_get_the_same_bits_together_and_alone(cupy):
    """Of very different numbers of vertices and of steps until they have converged."""
    rgb = np.stack([picture(12, 16, 20), np.full((16, 20, 3), 90, np.uint8), picture(13, 16, 20)])
    target = score(14, 3, 16, 20)
    weights = score(15, 3, 16, 20).astype(float)
    for options in ({}, {"tolerance": 0.05}, {"confidence": weights}):
        found = solve(cupy, target, rgb, **{name: cupy.asarray(x) if np.ndim(x) else x for name, x in options.items()})
        here = bilateral_solver(target, rgb, **options)
        for index, one in enumerate(found):
            own = {name: cupy.asarray(x[index]) if np.ndim(x) else x for name, x in options.items()}
            np.testing.assert_array_equal(one, solve(cupy, target[index], rgb[index], **own))
        np.testing.assert_allclose(found, here, atol=1e-6)


@pytest.mark.parametrize("size", [1, 31, 513, 2600])
def test_sort_by_bits(cupy, size):
    from vitnp.kernels.cuda.sort import sort_by_bits

    keys = np.random.default_rng(size).integers(0, 1 << 45, size)
    for low, high in ((3, 3), (40, 45), (7, 26)):
        wanted = keys[np.argsort(keys >> low & (1 << high - low) - 1, kind="stable")]
        np.testing.assert_array_equal(cupy.asnumpy(sort_by_bits(cupy.asarray(keys & (1 << high) - 1), low, high)),
                                      wanted & (1 << high) - 1)  # fmt: skip


# --- The lattice and mean field --------------------------------------------------------------------------------------


def features(seed: int, dimensions: int, points: int, spread: float) -> np.ndarray:
    """Some of the points coincide."""
    found = np.random.default_rng(seed).random((dimensions, points), dtype=np.float32) * np.float32(spread)
    found[:, points - points // 3 :] = found[:, : points // 3]
    return found


@pytest.mark.parametrize(
    "dimensions, points, spread", [(1, 7, 4), (2, 1, 1), (2, 300, 20), (5, 1, 9), (5, 200, 3), (5, 90, 100)]
)
def test_lattice(cupy, dimensions, points, spread):
    from vitnp.kernels.cuda.crf import permutohedral_lattice

    given = features(0, dimensions, points, spread)
    found, wanted = permutohedral_lattice(cupy.asarray(given)), reference.permutohedral_lattice(given.astype(float))
    np.testing.assert_array_equal(cupy.asnumpy(found.vertex), wanted.vertex)
    np.testing.assert_array_equal(cupy.asnumpy(found.neighbor), wanted.neighbor)
    np.testing.assert_allclose(cupy.asnumpy(found.weight), wanted.weight, atol=2e-5)


@pytest.mark.parametrize("dimensions, points, classes", [(2, 300, 1), (5, 200, 2), (5, 50, 21)])
def test_filter(cupy, dimensions, points, classes):
    from vitnp.kernels.cuda.crf import lattice_filter, permutohedral_lattice

    given, values = features(1, dimensions, points, 3), score(2, points, classes)
    found = lattice_filter(permutohedral_lattice(cupy.asarray(given)), cupy.asarray(values))
    wanted = reference.lattice_filter(reference.permutohedral_lattice(given.astype(float)), values.astype(float))
    np.testing.assert_allclose(cupy.asnumpy(found), wanted, rtol=1e-5, atol=1e-6)


def test_mean_field(cupy):
    from vitnp.kernels.cuda import crf

    near, far = features(3, 2, 150, 4), features(4, 5, 150, 2)
    unary = -np.log(np.random.default_rng(5).dirichlet(np.ones(3), 150)).astype(np.float32)
    lattices = [crf.normalize_lattice(crf.permutohedral_lattice(cupy.asarray(f))) for f in (near, far)]
    found = crf.mean_field(cupy.asarray(unary), lattices, [3.0, 5.0], 4)
    plain = [reference.normalize_lattice(reference.permutohedral_lattice(f.astype(float))) for f in (near, far)]
    np.testing.assert_allclose(
        cupy.asnumpy(found), reference.mean_field(unary.astype(float), plain, [3.0, 5.0], 4), atol=2e-5
    )
    np.testing.assert_allclose(cupy.asnumpy(found).sum(axis=1), 1, atol=1e-6)
    again = [crf.normalize_lattice(crf.permutohedral_lattice(cupy.asarray(f))) for f in (near, far)]
    np.testing.assert_array_equal(
        cupy.asnumpy(crf.mean_field(cupy.asarray(unary), again, [3.0, 5.0], 4)), cupy.asnumpy(found)
    )


def marginals(cupy, probability, rgb, **options) -> np.ndarray:
    return cupy.asnumpy(dense_crf(cupy.asarray(probability), cupy.asarray(rgb), **options))


@pytest.mark.parametrize(
    "height, width, options", [(1, 1, {}), (9, 14, {"gaussian_weight": 3.0}), (12, 10, {"steps": 0})]
)
def test_crf_gives_the_answer_of_its_definition(cupy, height, width, options):
    rgb, probability = picture(16, height, width), score(17, height, width)
    found = marginals(cupy, probability, rgb, **options)
    kinds = {"gaussian_weight": 0.0, "steps": 5, **options}
    gaussians = [(5.0, max(1.0, max(height, width) / 8), 5.0)]
    gaussians += [(kinds["gaussian_weight"], 3.0, None)] if kinds["gaussian_weight"] else []
    plain = [
        reference.normalize_lattice(reference.permutohedral_lattice(pixels_of(rgb, *sigmas)))
        for _, *sigmas in gaussians
    ]
    unary = -np.log(np.stack([1 - probability.astype(float), probability], axis=-1).reshape(-1, 2).clip(1e-6))
    wanted = reference.mean_field(unary, plain, [weight for weight, *_ in gaussians], kinds["steps"])
    np.testing.assert_allclose(found.reshape(-1, 2), wanted, atol=5e-5)


def pixels_of(rgb: np.ndarray, sigma_xy: float, sigma_rgb: float | None) -> np.ndarray:
    """Features of the pixels by their definition, in float64."""
    y, x = np.mgrid[: rgb.shape[0], : rgb.shape[1]]
    rows = [x.ravel() / sigma_xy, y.ravel() / sigma_xy]
    return np.array(rows if sigma_rgb is None else [*rows, *(rgb.reshape(-1, 3).T / sigma_rgb)])


def test_crf_of_photographs_of_a_size_has_the_same_bits_together_and_alone(cupy, monkeypatch):
    from vitnp.kernels.cuda import crf, dense_crf

    rgb = np.stack([picture(18, 9, 13), np.zeros((9, 13, 3), np.uint8), picture(18, 9, 13)])
    probability = score(19, 3, 9, 13, 3)
    alone = [marginals(cupy, *one, steps=2, gaussian_weight=1.0) for one in zip(probability, rgb)]
    assert np.isfinite(alone).all()
    monkeypatch.setattr(crf, "_MAX_BLOCKS", 2)  # threads go on to further vertices
    np.testing.assert_array_equal(marginals(cupy, probability, rgb, steps=2, gaussian_weight=1.0), alone)
    monkeypatch.setattr(dense_crf, "MOST_ENTRIES", 100)  # one by one, by the number of vertices
    np.testing.assert_array_equal(marginals(cupy, probability, rgb, steps=2, gaussian_weight=1.0), alone)


def test_crf_of_bandwidths_that_only_the_colors_can_tell_possible(cupy):
    """A deviation so small that colors from 0 to 255 would not fit into a lattice, of a photograph of one color."""
    rgb, probability = np.full((3, 4, 3), 7, np.uint8), score(20, 3, 4)
    for sigma, fits in ((5e-4, True), (1e-9, False)):
        if fits:
            found, wanted = (
                call(probability, rgb, bilateral_rgb=sigma)
                for call in (lambda *a, **o: marginals(cupy, *a, **o), dense_crf)
            )
            np.testing.assert_allclose(found, wanted, atol=1e-5)
        else:
            with pytest.raises(ValueError, match="too far apart"):
                marginals(cupy, probability, rgb, bilateral_rgb=sigma)


def test_features_that_are_not_finite_are_refused(cupy):
    from vitnp.kernels.cuda.crf import permutohedral_lattice

    with pytest.raises(ValueError, match="must be finite"):
        permutohedral_lattice(cupy.asarray(np.array([[0.0, np.nan]], np.float32)))
