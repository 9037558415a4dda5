"""The bilateral grid is that of its bins, and the compiled solver has the bits of the reference."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vitnp.kernels.constants import BLUE_DIFFERENCE, LUMA, RED_DIFFERENCE
from vitnp.kernels.cpu.bilateral_solver import pairwise_sum
from vitnp.kernels.cpu.codegen import types
from vitnp.kernels.cpu.codegen.jit import array_in, kernel

from vitnp import kernels

SIGMAS = st.sampled_from([0.4, 1.0, 2.7, 12.0, 300.0])


def photograph(height: int, width: int, levels: int, seed: int) -> np.ndarray:
    """Noise with few or many different colors."""
    rng = np.random.default_rng(seed)
    return (rng.integers(0, levels, (height, width, 3)) * (255 // max(1, levels - 1))).astype(np.uint8)


def neighbor_lists(grid) -> list[list[int]]:
    """Return the neighbors of each vertex of a grid of either implementation."""
    if hasattr(grid.neighbors, "indptr"):
        return [grid.neighbors.indices[a:b].tolist() for a, b in itertools.pairwise(grid.neighbors.indptr)]
    from vitnp.kernels.cpu.bilateral_grid import DIRECTIONS, WIDTHS

    found: dict[int, list[int]] = {}
    place, start = 0, 0
    for width, end in zip(WIDTHS, grid.ends):
        for row in grid.rows[start:end]:
            found[int(row)] = [int(j) for j in grid.neighbors[place : place + width] if j < grid.count]
            place += width
        place, start = place + DIRECTIONS, end
    return [found[i] for i in range(grid.count)]


@pytest.mark.parametrize("device", ["cpu", "reference"])
@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    height=st.integers(1, 9), width=st.integers(1, 9), levels=st.sampled_from([1, 3, 40]),
    sigmas=st.tuples(SIGMAS, SIGMAS, SIGMAS), seed=st.integers(0, 99),
)  # fmt: skip
def test_vertices_are_distinct_bins_and_neighbors_one_bin_apart(device, height, width, levels, sigmas, seed):
    rgb = photograph(height, width, levels, seed)
    grid = kernels.for_device(device).BilateralGrid(rgb, *sigmas)

    color = rgb.astype(float) @ np.array([LUMA, BLUE_DIFFERENCE, RED_DIFFERENCE]).T
    y, x = np.indices((height, width))
    bins = [(y - (height - 1) / 2) / sigmas[0], (x - (width - 1) / 2) / sigmas[0]]
    bins += [color[..., 0] / sigmas[1], color[..., 1] / sigmas[2], color[..., 2] / sigmas[2]]
    exact = np.stack(bins, axis=-1).reshape(-1, 5)
    if np.abs(exact - np.floor(exact) - 0.5).min() < 1e-4:
        return  # a pixel on the edge of a bin belongs to either
    points = sorted(set(map(tuple, np.rint(exact).astype(int).tolist())))
    assert grid.count == len(points)
    assert [points[v] for v in grid.vertex] == list(map(tuple, np.rint(exact).astype(int).tolist()))
    np.testing.assert_array_equal(grid.mass, np.bincount(grid.vertex, minlength=grid.count))
    expected = [[j for j, q in enumerate(points) if sum(abs(a - b) for a, b in zip(p, q)) == 1] for p in points]
    assert neighbor_lists(grid) == expected


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 2, 8, 256]), SIGMAS, SIGMAS, SIGMAS, st.booleans(),
    st.sampled_from([0.0, 1.0, 128.0]), st.sampled_from([0, 1, 25]), st.sampled_from([0.0, 1e-5, 0.5]),
    st.integers(0, 99),
)  # fmt: skip
def test_compiled_solver_has_the_bits_of_the_reference(
    height, width, levels, sigma_xy, sigma_luma, sigma_chroma, everywhere, smoothness, steps, tolerance, seed
):
    rng = np.random.default_rng(seed)
    rgb, target = photograph(height, width, levels, seed), rng.random((height, width), dtype=np.float32)
    options = {
        "sigma_xy": sigma_xy, "sigma_luma": sigma_luma, "sigma_chroma": sigma_chroma, "smoothness": smoothness,
        "confidence": 0.999 if everywhere else rng.random((height, width)) * (rng.random((height, width)) < 0.7),
        "max_iterations": steps, "tolerance": tolerance,
    }  # fmt: skip
    found, wanted = (
        kernels.for_device(device).bilateral_solver(target, rgb, **options) for device in ("cpu", "reference")
    )
    np.testing.assert_array_equal(found, wanted)


@kernel(array_in(1, types.float64))
def compiled_sum(values):
    return pairwise_sum(values)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 127, 128, 129, 136, 255, 1000, 4097, 70_402])
def test_sums_are_in_the_order_of_numpy(count):
    values = np.random.default_rng(count).normal(size=count) * 10.0 ** np.arange(count).clip(max=12)
    assert compiled_sum(values) == values.sum()


def test_a_photograph_that_is_a_view_has_the_bits_of_its_copy():
    rgb = photograph(40, 60, 30, seed=1)[::-1, ::2]
    target = np.random.default_rng(2).random(rgb.shape[:2], dtype=np.float32)
    solve = kernels.for_device("cpu").bilateral_solver
    np.testing.assert_array_equal(solve(target, rgb, sigma_xy=3.0), solve(target, rgb.copy(), sigma_xy=3.0))
