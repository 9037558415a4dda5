"""The fast bilateral solver on the GPU, by the kernels of ``solver.cu``; see :mod:`vitnp.refine.bilateral_solver`."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
from vitnp.kernels.cuda.bilateral_grid import BilateralGrid, Bins
from vitnp.kernels.cuda.graphs import Compute, GraphCache, Results

if TYPE_CHECKING:
    import cupy

# Two passes for each size, alone and by two, four or eight: more than networks and lattices have.
_graphs = GraphCache(max_graphs=48)


def bilateral_solver(
    target: cupy.ndarray,
    rgb: cupy.ndarray,
    *,
    sigma_xy: float,
    sigma_luma: float = 12.0,
    sigma_chroma: float = 6.0,
    smoothness: float = 128.0,
    confidence: float | cupy.ndarray = 0.999,
    max_iterations: int = 25,
    tolerance: float = 1e-5,
) -> cupy.ndarray:
    """Smooth a map so that it stays near its values yet changes only where the photograph does.

    The host never waits for the device: iterations that the tolerance makes unnecessary are launched nevertheless, and
    do nothing. For shapes that occur again all launches are one CUDA graph. Several photographs of a size are solved
    together, by as many launches as one. Parameters are those of
    :func:`vitnp.refine.bilateral_solver.bilateral_solver`, which checks them.

    Parameters
    ----------
    target : array, shape (h, w) or (photographs, h, w), values in 0..1
    rgb : uint8 array, shape (h, w, 3) or (photographs, h, w, 3)
    sigma_xy, sigma_luma, sigma_chroma, smoothness : float
    confidence : float or array with the shape of `target`
    max_iterations : int
    tolerance : float

    Returns
    -------
    array with the shape of `target`, float32
        The same bits on every run, alone or with other photographs; within 1e-5 of the CPU's.

    Raises
    ------
    ValueError
        If the shapes differ, or the grid is too fine.
    """
    import cupy

    rgb = cupy.ascontiguousarray(rgb)
    if target.shape != rgb.shape[:-1]:
        raise ValueError(
            f"the map's shape {target.shape} differs from the photograph's height and width {rgb.shape[:-1]}"
        )
    photographs = rgb.shape[0] if rgb.ndim == 4 else 1
    bins = Bins.of(rgb.shape[-3:-1], photographs, sigma_xy, sigma_luma, sigma_chroma)
    inputs = [rgb, cupy.ascontiguousarray(target, np.float32)]
    if np.ndim(confidence):
        inputs.append(cupy.ascontiguousarray(confidence, np.float64))
    constant = None if np.ndim(confidence) else float(confidence)

    def prepare(pixels: cupy.ndarray, t: cupy.ndarray, c: cupy.ndarray | None = None) -> Compute:
        grid = BilateralGrid.unconnected(bins)

        def compute() -> Results:
            grid.connect(pixels)
            of_pixels = cupy.full(grid.pixels, constant) if c is None else c
            return {"map": _solve(grid, t, of_pixels, smoothness, max_iterations, tolerance)}

        return compute

    key = (sigma_xy, sigma_luma, sigma_chroma, smoothness, constant, max_iterations, tolerance)
    return _graphs.run(key, inputs, prepare)["map"].reshape(target.shape)


def _solve(
    grid: BilateralGrid, t: cupy.ndarray, c: cupy.ndarray, smoothness: float, max_iterations: int, tolerance: float
) -> cupy.ndarray:
    """Return the maps (photographs, h, w) float32 that minimize the solver's energy, by launches alone."""
    import cupy

    mass, data, b, y, neighbor_sum, diagonal, residual, direction, scaled, image = cupy.empty((10, grid.pixels))
    grid.launch("splat", t, c, grid.order, grid.start, *grid.range, mass, data, b, y)
    n = grid.bistochastize(mass)

    # Partial sums over the vertices of each photograph, one per block: residual * z and residual^2 before each
    # iteration, and direction * A direction in it.
    blocks = (grid.bins.photographs, grid.blocks)
    rho, square = cupy.empty((2, max_iterations + 1, *blocks))
    curve = cupy.empty((max_iterations, *blocks))
    goal = cupy.empty(blocks)
    first, small = grid.first, np.float64(tolerance)
    matrix = (grid.neighbors, first, np.int32(grid.pixels), np.float64(smoothness))
    sums = [(rho[i], square[i]) for i in range(max_iterations + 1)]
    launch = grid.launch_each
    launch("solver_start", n, data, b, y, *matrix, neighbor_sum, diagonal, residual, direction, scaled, *sums[0], goal)
    for i, (before, after) in enumerate(itertools.pairwise(sums)):
        product = (*matrix, small, square[i], goal, image, curve[i])
        launch("solver_product", n, neighbor_sum, data, direction, scaled, *product)
        step = (*before, curve[i], goal, y, residual, *after)
        launch("solver_step", direction, image, diagonal, first, small, *step)
        launch("solver_turn", n, residual, diagonal, first, small, rho[i], *after, goal, direction, scaled)
    return grid.slice(y)
