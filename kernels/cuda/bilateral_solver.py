"""The fast bilateral solver on the GPU: the kernels of ``solver.cu`` as :func:`vitnp.refine.bilateral_solver.bilateral_solver`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from vitnp.kernels.constants import BISTOCHASTIC_STEPS, BLUE_DIFFERENCE, LUMA, RED_DIFFERENCE
from vitnp.kernels.cuda.loader import kernel

if TYPE_CHECKING:
    import cupy

_THREADS = 256
# Blocks of every kernel that goes over the vertices, at most: one a multiprocessor of a large device.
_MOST_BLOCKS = 128
_AXES = 5


class BilateralGrid:
    """The simplified bilateral grid on the device; see :class:`vitnp.refine.bilateral_solver.BilateralGrid`.

    The host never learns how many vertices there are: what holds one number a vertex is as long as there are pixels.

    Attributes
    ----------
    vertex : (pixels,) int32
        Of each pixel.
    order, start : (pixels,) and (pixels + 1,) int32
        The pixels sorted by vertex, and where each vertex's begin.
    count : (1,) int32
        How many vertices there are.
    neighbors : (10, pixels) int32
        Above and below along each axis; -1 where there is none.
    """

    def __init__(self, rgb: cupy.ndarray, sigma_xy: float, sigma_luma: float, sigma_chroma: float) -> None:
        import cupy

        self.shape = rgb.shape[:2]
        self.pixels = pixels = rgb.shape[0] * rgb.shape[1]
        weights, lowest, extents = _bins(self.shape, sigma_xy, sigma_luma, sigma_chroma)
        if math.prod(extents) * pixels >= 2**63:
            raise ValueError("the bilateral grid is too fine: raise sigma_xy, sigma_luma or sigma_chroma")
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

        self.blocks = min(-(-pixels // _THREADS), _MOST_BLOCKS)
        self.neighbors = cupy.full((2 * _AXES, pixels), -1, np.int32)
        strides = cupy.asarray(np.array([math.prod(extents[axis + 1 :]) for axis in range(_AXES)], np.int64))
        kernel("solver", "find_neighbors")(
            (self.blocks, _AXES), (_THREADS,), (occupied, self.count, strides, np.int32(pixels), self.neighbors)
        )

    def launch(self, name: str, *arguments: object) -> None:
        """A kernel that goes over the vertices."""
        kernel("solver", name)((self.blocks,), (_THREADS,), arguments)

    def slice(self, vertices: cupy.ndarray) -> cupy.ndarray:
        """Give each pixel the value of its vertex, clipped to 0..1; (h, w) float32."""
        import cupy

        out = cupy.empty(self.shape, np.float32)
        self._each("slice_vertices", vertices, self.vertex, np.int32(self.pixels), out)
        return out

    def bistochastize(self, mass: cupy.ndarray) -> cupy.ndarray:
        """The diagonal n for which diag(n) B diag(n) has row sums close to the pixel counts."""
        import cupy

        n, spare = cupy.ones(self.pixels), cupy.empty(self.pixels)
        for _ in range(BISTOCHASTIC_STEPS):
            self.launch("bistochastic_step", n, mass, self.neighbors, self.count, np.int32(self.pixels), spare)
            n, spare = spare, n
        return n

    def _each(self, name: str, *arguments: object, file: str = "solver") -> None:
        """A kernel with one thread a pixel."""
        kernel(file, name)((-(-self.pixels // _THREADS),), (_THREADS,), arguments)


def bilateral_solver(
    target: cupy.ndarray,
    rgb: cupy.ndarray,
    *,
    sigma_xy: float | None = None,
    sigma_luma: float = 12.0,
    sigma_chroma: float = 6.0,
    smoothness: float = 128.0,
    confidence: float | cupy.ndarray = 0.999,
    max_iterations: int = 25,
    tolerance: float = 1e-5,
) -> cupy.ndarray:
    """Smooth a map so that it stays near its values yet changes only where the photograph does.

    The device is never waited for: iterations that the tolerance makes unnecessary are launched all the same, and do
    nothing. Parameters are those of :func:`vitnp.refine.bilateral_solver.bilateral_solver`; whoever calls has checked
    the values.

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
        If shapes disagree or a parameter is out of its range.
    """
    import cupy

    rgb = cupy.ascontiguousarray(rgb)
    height, width = rgb.shape[:2]
    if target.shape != (height, width):
        shape = (height, width)
        raise ValueError(f"the map's shape {target.shape} differs from the photograph's height and width {shape}")
    if sigma_xy is None:
        sigma_xy = max(1.0, 0.03 * max(height, width))
    for name, value in (("sigma_xy", sigma_xy), ("sigma_luma", sigma_luma), ("sigma_chroma", sigma_chroma)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive, not {value}")
    if not 0 <= smoothness < math.inf:
        raise ValueError(f"smoothness must not be negative, but is {smoothness}")

    grid = BilateralGrid(rgb, sigma_xy, sigma_luma, sigma_chroma)
    if np.ndim(confidence) == 0:
        c = cupy.full(grid.pixels, float(confidence))
    else:
        c = cupy.ascontiguousarray(confidence, np.float64)
    t = cupy.ascontiguousarray(target, np.float32)
    mass, data, b, y, around, diagonal, residual, direction, scaled, image = cupy.empty((10, grid.pixels))
    grid.launch("splat", t, c, grid.order, grid.start, grid.count, mass, data, b, y)
    n = grid.bistochastize(mass)

    # Sums over the vertices, one partial sum a block: before each step of residual z and of residual^2, in it of
    # direction A direction.
    rho, square = cupy.empty((2, max_iterations + 1, grid.blocks))
    curve = cupy.empty((max_iterations, grid.blocks))
    goal = cupy.empty(grid.blocks)
    count, small = grid.count, np.float64(tolerance)
    matrix = (grid.neighbors, count, np.int32(grid.pixels), np.float64(smoothness))
    sums = [(rho[i], square[i]) for i in range(max_iterations + 1)]
    grid.launch("solver_start", n, data, b, y, *matrix, around, diagonal, residual, direction, scaled, *sums[0], goal)
    for i, (before, after) in enumerate(zip(sums, sums[1:])):
        product = (*matrix, small, square[i], goal, image, curve[i])
        grid.launch("solver_product", n, around, data, direction, scaled, *product)
        step = (*before, curve[i], goal, y, residual, *after)
        grid.launch("solver_step", direction, image, diagonal, count, small, *step)
        grid.launch("solver_turn", n, residual, diagonal, count, small, rho[i], *after, goal, direction, scaled)
    return grid.slice(y)


def _bins(
    shape: tuple[int, int], sigma_xy: float, sigma_luma: float, sigma_chroma: float
) -> tuple[np.ndarray, list[int], list[int]]:
    """The bins of all pictures of this size: color weights (3, 3) over the sides of the bins, lowest bins, extents.

    Each axis is widened by an empty bin, so that one step never leads into another row of bins.
    """
    colors = zip((LUMA, BLUE_DIFFERENCE, RED_DIFFERENCE), (sigma_luma, sigma_chroma, sigma_chroma))
    weights = np.array([np.array(channel) / sigma for channel, sigma in colors], np.float32)
    lowest, highest = [], []
    for length in shape:
        reach = round((length - 1) / 2 / sigma_xy) + 1
        lowest.append(-reach)
        highest.append(reach)
    for row in weights.astype(float) * 255:
        lowest.append(round(row.clip(max=0).sum()) - 1)
        highest.append(round(row.clip(min=0).sum()) + 1)
    return weights, lowest, [high - low + 2 for low, high in zip(lowest, highest)]
