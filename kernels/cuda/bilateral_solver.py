"""The fast bilateral solver on the GPU, by the kernels of ``solver.cu``; see :mod:`vitnp.refine.bilateral_solver`."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import numpy as np
from vitnp.kernels.constants import BISTOCHASTIC_STEPS
from vitnp.kernels.cuda.loader import kernel
from vitnp.kernels.reference.bilateral_grid import TooManyBins, color_bounds

if TYPE_CHECKING:
    import cupy

_THREADS = 256
# Maximum number of blocks of kernels that process the vertices: one per multiprocessor of a large device.
_MAX_BLOCKS = 128
_AXES = 5


class BilateralGrid:
    """The simplified bilateral grid on the device; see :class:`vitnp.kernels.reference.bilateral_grid.BilateralGrid`.

    The host does not read the number of vertices, to avoid waiting for the device: arrays with one number per vertex
    have as many elements as there are pixels.

    Attributes
    ----------
    vertex : (pixels,) int32
        Vertex of each pixel.
    order, start : (pixels,) and (pixels + 1,) int32
        Pixels sorted by vertex, and the range of each vertex in `order`.
    count : (1,) int32
        Number of vertices.
    neighbors : (10, pixels) int32
        Next and previous vertex along each of the five axes; -1 if there is none.
    """

    def __init__(self, rgb: cupy.ndarray, sigma_xy: float, sigma_luma: float, sigma_chroma: float) -> None:
        import cupy

        self.shape = rgb.shape[:2]
        self.pixels = pixels = rgb.shape[0] * rgb.shape[1]
        weights, lowest, extents = _bins(self.shape, sigma_xy, sigma_luma, sigma_chroma)
        if math.prod(extents) * pixels >= 2**63:
            raise TooManyBins
        tables = [cupy.asarray(np.array(table, np.int64)) for table in (lowest, extents)]
        keys = cupy.empty(pixels, np.int64)
        sizes = (*map(np.int32, self.shape), np.float64(sigma_xy))
        self._each("color_keys", rgb, *sizes, cupy.asarray(weights), *tables, keys, file="image")

        keys = cupy.sort(keys)
        mark = cupy.empty(pixels, np.int32)
        self._each("mark_vertices", keys, np.int32(pixels), mark)
        running = cupy.cumsum(mark, dtype=np.int32)
        self.vertex, self.order = (cupy.empty(pixels, np.int32) for _ in range(2))
        self.start = cupy.empty(pixels + 1, np.int32)
        self.count = cupy.empty(1, np.int32)
        occupied = cupy.empty(pixels, np.int64)
        places = (self.vertex, self.order, self.start, occupied, self.count)
        self._each("number_vertices", keys, running, np.int32(pixels), *places)

        self.blocks = min(-(-pixels // _THREADS), _MAX_BLOCKS)
        self.neighbors = cupy.full((2 * _AXES, pixels), -1, np.int32)
        strides = cupy.asarray(np.array([math.prod(extents[axis + 1 :]) for axis in range(_AXES)], np.int64))
        kernel("solver", "find_neighbors")(
            (self.blocks, _AXES), (_THREADS,), (occupied, self.count, strides, np.int32(pixels), self.neighbors)
        )

    def launch(self, name: str, *arguments: object) -> None:
        """Launch a kernel that processes the vertices."""
        kernel("solver", name)((self.blocks,), (_THREADS,), arguments)

    def slice(self, vertices: cupy.ndarray) -> cupy.ndarray:
        """Give each pixel the value of its vertex, clipped to 0..1; (h, w) float32."""
        import cupy

        out = cupy.empty(self.shape, np.float32)
        self._each("slice_vertices", vertices, self.vertex, np.int32(self.pixels), out)
        return out

    def bistochastize(self, mass: cupy.ndarray) -> cupy.ndarray:
        """Return the diagonal n for which diag(n) B diag(n) has row sums close to the pixel counts."""
        import cupy

        n, updated = cupy.ones(self.pixels), cupy.empty(self.pixels)
        for _ in range(BISTOCHASTIC_STEPS):
            self.launch("bistochastic_step", n, mass, self.neighbors, self.count, np.int32(self.pixels), updated)
            n, updated = updated, n
        return n

    def _each(self, name: str, *arguments: object, file: str = "solver") -> None:
        """Launch a kernel with one thread per pixel."""
        kernel(file, name)((-(-self.pixels // _THREADS),), (_THREADS,), arguments)


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
    do nothing. Parameters are those of :func:`vitnp.refine.bilateral_solver.bilateral_solver`, which checks them.

    Parameters
    ----------
    target : array, shape (h, w), values in 0..1
    rgb : uint8 array, shape (h, w, 3)
    sigma_xy, sigma_luma, sigma_chroma, smoothness : float
    confidence : float or array, shape (h, w)
    max_iterations : int
    tolerance : float

    Returns
    -------
    array, shape (h, w), float32
        The same bits on every run; within 1e-5 of the CPU's.

    Raises
    ------
    ValueError
        If the shapes differ, or the grid is too fine.
    """
    import cupy

    rgb = cupy.ascontiguousarray(rgb)
    height, width = rgb.shape[:2]
    if target.shape != (height, width):
        shape = (height, width)
        raise ValueError(f"the map's shape {target.shape} differs from the photograph's height and width {shape}")
    grid = BilateralGrid(rgb, sigma_xy, sigma_luma, sigma_chroma)
    if np.ndim(confidence) == 0:
        c = cupy.full(grid.pixels, float(confidence))
    else:
        c = cupy.ascontiguousarray(confidence, np.float64)
    t = cupy.ascontiguousarray(target, np.float32)
    mass, data, b, y, neighbor_sum, diagonal, residual, direction, scaled, image = cupy.empty((10, grid.pixels))
    grid.launch("splat", t, c, grid.order, grid.start, grid.count, mass, data, b, y)
    n = grid.bistochastize(mass)

    # Partial sums over the vertices, one per block: residual * z and residual^2 before each iteration, and
    # direction * A direction in it.
    rho, square = cupy.empty((2, max_iterations + 1, grid.blocks))
    curve = cupy.empty((max_iterations, grid.blocks))
    goal = cupy.empty(grid.blocks)
    count, small = grid.count, np.float64(tolerance)
    matrix = (grid.neighbors, count, np.int32(grid.pixels), np.float64(smoothness))
    sums = [(rho[i], square[i]) for i in range(max_iterations + 1)]
    grid.launch(
        "solver_start", n, data, b, y, *matrix, neighbor_sum, diagonal, residual, direction, scaled, *sums[0], goal
    )
    for i, (before, after) in enumerate(itertools.pairwise(sums)):
        product = (*matrix, small, square[i], goal, image, curve[i])
        grid.launch("solver_product", n, neighbor_sum, data, direction, scaled, *product)
        step = (*before, curve[i], goal, y, residual, *after)
        grid.launch("solver_step", direction, image, diagonal, count, small, *step)
        grid.launch("solver_turn", n, residual, diagonal, count, small, rho[i], *after, goal, direction, scaled)
    return grid.slice(y)


def _bins(
    shape: tuple[int, int], sigma_xy: float, sigma_luma: float, sigma_chroma: float
) -> tuple[np.ndarray, list[int], list[int]]:
    """Return color weights (3, 3) divided by the sides of the bins, lowest bins, and extents, for images of this size.

    Each axis has an additional empty bin, so that the neighbor of the last bin of a row is not the first of the next
    row.
    """
    weights, color_lowest, color_extents = color_bounds(sigma_luma, sigma_chroma)
    lowest, extents = [], []
    for length in shape:
        reach = round((length - 1) / 2 / sigma_xy) + 1
        lowest.append(-reach)
        extents.append(2 * reach + 2)
    return weights, lowest + color_lowest, extents + color_extents
