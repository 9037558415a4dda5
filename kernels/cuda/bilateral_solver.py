"""The fast bilateral solver on the GPU, by the kernels of ``solver.cu``; see :mod:`vitnp.refine.bilateral_solver`."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import TYPE_CHECKING

import numpy as np
from vitnp.kernels.constants import BISTOCHASTIC_STEPS
from vitnp.kernels.cuda.device import upload
from vitnp.kernels.cuda.graphs import Compute, GraphCache, Results
from vitnp.kernels.cuda.loader import kernel, require_cupy
from vitnp.kernels.reference.bilateral_grid import TooManyBins, color_bounds

if TYPE_CHECKING:
    import cupy

_THREADS = 256
# Maximum number of blocks of kernels that process the vertices: one per multiprocessor of a large device.
_MAX_BLOCKS = 128
_AXES = 5
_graphs = GraphCache()


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
        bins = _Bins.of(rgb.shape[:2], sigma_xy, sigma_luma, sigma_chroma)
        self.prepare(rgb.shape[:2], bins)
        self.connect(bins.sorted_keys(rgb))

    @classmethod
    def unconnected(cls, shape: tuple[int, int], bins: _Bins) -> BilateralGrid:
        """Return a grid of this size that :meth:`connect` fills."""
        grid = cls.__new__(cls)
        grid.prepare(shape, bins)
        return grid

    def prepare(self, shape: tuple[int, int], bins: _Bins) -> None:
        """Allocate memory."""
        import cupy

        self.shape, self.pixels, self.strides = shape, shape[0] * shape[1], bins.strides
        self.mark, self.vertex, self.order = (cupy.empty(self.pixels, np.int32) for _ in range(3))
        self.start, self.count = cupy.empty(self.pixels + 1, np.int32), cupy.empty(1, np.int32)
        self.occupied = cupy.empty(self.pixels, np.int64)
        self.neighbors = cupy.empty((2 * _AXES, self.pixels), np.int32)
        self.blocks = min(-(-self.pixels // _THREADS), _MAX_BLOCKS)

    def connect(self, keys: cupy.ndarray) -> None:
        """Assign numbers to the vertices and find their neighbors, from the sorted keys of the pixels."""
        import cupy

        pixels = np.int32(self.pixels)
        self._each("mark_vertices", keys, pixels, self.mark)
        running = cupy.cumsum(self.mark, dtype=np.int32)
        places = (self.vertex, self.order, self.start, self.occupied, self.count)
        self._each("number_vertices", keys, running, pixels, *places)
        self.neighbors[...] = -1
        kernel("solver", "find_neighbors")(
            (self.blocks, _AXES), (_THREADS,), (self.occupied, self.count, self.strides, pixels, self.neighbors)
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

    def _each(self, name: str, *arguments: object) -> None:
        """Launch a kernel with one thread per pixel."""
        kernel("solver", name)((-(-self.pixels // _THREADS),), (_THREADS,), arguments)


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
    do nothing. For shapes that occur again all launches after the sort are one CUDA graph. Parameters are those of
    :func:`vitnp.refine.bilateral_solver.bilateral_solver`, which checks them.

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
    bins = _Bins.of((height, width), sigma_xy, sigma_luma, sigma_chroma)
    inputs = [bins.sorted_keys(rgb), cupy.ascontiguousarray(target, np.float32)]
    if np.ndim(confidence):
        inputs.append(cupy.ascontiguousarray(confidence, np.float64))
    constant = None if np.ndim(confidence) else float(confidence)

    def prepare(keys: cupy.ndarray, t: cupy.ndarray, c: cupy.ndarray | None = None) -> Compute:
        grid = BilateralGrid.unconnected((height, width), bins)

        def compute() -> Results:
            grid.connect(keys)
            of_pixels = cupy.full(grid.pixels, constant) if c is None else c
            return {"map": _solve(grid, t, of_pixels, smoothness, max_iterations, tolerance)}

        return compute

    key = (sigma_xy, sigma_luma, sigma_chroma, smoothness, constant, max_iterations, tolerance)
    return _graphs.run(key, inputs, prepare)["map"]


def _solve(
    grid: BilateralGrid, t: cupy.ndarray, c: cupy.ndarray, smoothness: float, max_iterations: int, tolerance: float
) -> cupy.ndarray:
    """Return the map (h, w) float32 that minimizes the solver's energy, by launches alone."""
    import cupy

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


@dataclasses.dataclass(frozen=True)
class _Bins:
    """The bins of all grids of one size; the arrays are on the device.

    Attributes
    ----------
    sigma_xy : float
    weights : (3, 3) float32
        Color weights divided by the sides of the bins.
    lowest, extents, strides : (5,) int64
        Lowest bin, number of bins, and distance of consecutive bins in keys, by axis.
    """

    sigma_xy: float
    weights: cupy.ndarray
    lowest: cupy.ndarray
    extents: cupy.ndarray
    strides: cupy.ndarray

    @staticmethod
    def of(shape: tuple[int, int], sigma_xy: float, sigma_luma: float, sigma_chroma: float) -> _Bins:
        """Return the bins of photographs of this height and width.

        Raises
        ------
        TooManyBins
            If the grid is too fine.
        """
        return _transferred(require_cupy().cuda.Device().id, shape, sigma_xy, sigma_luma, sigma_chroma)

    def sorted_keys(self, rgb: cupy.ndarray) -> cupy.ndarray:
        """Return the sorted keys of the pixels, (pixels,) int64."""
        import cupy

        height, width = rgb.shape[:2]
        keys = cupy.empty(height * width, np.int64)
        sizes = (np.int32(height), np.int32(width), np.float64(self.sigma_xy))
        arguments = (rgb, *sizes, self.weights, self.lowest, self.extents, keys)
        kernel("image", "color_keys")((-(-keys.size // _THREADS),), (_THREADS,), arguments)
        return cupy.sort(keys)


@functools.lru_cache(maxsize=64)
def _transferred(device: int, shape: tuple[int, int], sigma_xy: float, sigma_luma: float, sigma_chroma: float) -> _Bins:
    """Return the bins of a size on a device; they are kept, because photographs of one size follow each other."""
    weights, lowest, extents = _bins(shape, sigma_xy, sigma_luma, sigma_chroma)
    if math.prod(extents) * math.prod(shape) >= 2**63:
        raise TooManyBins
    strides = [math.prod(extents[axis + 1 :]) for axis in range(_AXES)]
    return _Bins(
        sigma_xy, upload(weights), *(upload(np.array(table, np.int64)) for table in (lowest, extents, strides))
    )


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
