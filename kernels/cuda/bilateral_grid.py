"""The simplified bilateral grid on the GPU, by the kernels of ``solver.cu`` and ``image.cu``."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING

import numpy as np
from vitnp.kernels.constants import BISTOCHASTIC_STEPS
from vitnp.kernels.cuda.device import upload
from vitnp.kernels.cuda.loader import kernel, require_cupy
from vitnp.kernels.cuda.sort import sort_by_bits
from vitnp.kernels.reference.bilateral_grid import TooManyBins, color_bounds

if TYPE_CHECKING:
    import cupy

_THREADS = 256
# Maximum number of blocks of kernels that process the vertices of a photograph: one per multiprocessor of a large
# device.
_MAX_BLOCKS = 128
_AXES = 5


class BilateralGrid:
    """The grid of one or several photographs of a size; see :class:`vitnp.kernels.reference.BilateralGrid`.

    The host does not read the number of vertices, to avoid waiting for the device: arrays with one number per vertex
    have as many elements as there are pixels. Pixels and vertices of several photographs follow each other, and no
    photograph has neighbors in another.

    Parameters
    ----------
    rgb : uint8 array, shape (h, w, 3) or (photographs, h, w, 3)
    sigma_xy, sigma_luma, sigma_chroma : float

    Attributes
    ----------
    vertex : (pixels,) int32
        Vertex of each pixel.
    order, start : (pixels,) and (pixels + 1,) int32
        Pixels sorted by vertex, and the range of each vertex in `order`.
    first : (photographs + 1,) int32
        First vertex of each photograph, and the number of vertices.
    neighbors : (10, pixels) int32
        Next and previous vertex along each of the five axes; -1 if there is none.

    Raises
    ------
    TooManyBins
        If the grid is too fine.
    """

    def __init__(self, rgb: cupy.ndarray, sigma_xy: float, sigma_luma: float, sigma_chroma: float) -> None:
        photographs = rgb.shape[0] if rgb.ndim == 4 else 1
        self.prepare(Bins.of(rgb.shape[-3:-1], photographs, sigma_xy, sigma_luma, sigma_chroma))
        self.connect(rgb)

    @classmethod
    def unconnected(cls, bins: Bins) -> BilateralGrid:
        """Return a grid that :meth:`connect` fills."""
        grid = cls.__new__(cls)
        grid.prepare(bins)
        return grid

    def prepare(self, bins: Bins) -> None:
        """Allocate memory."""
        import cupy

        self.bins, self.pixels = bins, bins.pixels
        self.mark, self.vertex, self.order = (cupy.empty(self.pixels, np.int32) for _ in range(3))
        self.start, self.first = cupy.empty(self.pixels + 1, np.int32), cupy.empty(bins.photographs + 1, np.int32)
        self.occupied = cupy.empty(self.pixels, np.int64)
        self.neighbors = cupy.empty((2 * _AXES, self.pixels), np.int32)
        # By the size of a photograph alone, because it decides the order of sums.
        self.blocks = min(-(-math.prod(bins.shape) // _THREADS), _MAX_BLOCKS)

    def connect(self, rgb: cupy.ndarray) -> None:
        """Assign numbers to the vertices of photographs and find their neighbors."""
        import cupy

        keys, shift, pixels = self.bins.sorted_keys(rgb), np.int32(self.bins.shift), np.int32(self.pixels)
        self._each("mark_vertices", keys, shift, pixels, self.mark)
        running = cupy.cumsum(self.mark, dtype=np.int32)
        places = (self.vertex, self.order, self.start, self.occupied, self.first)
        self._each("number_vertices", keys, running, shift, pixels, np.int32(math.prod(self.bins.shape)), *places)
        self.neighbors[...] = -1
        arguments = (self.occupied, *self.range, self.bins.strides, pixels, self.neighbors)
        kernel("solver", "find_neighbors")((self.blocks * self.bins.photographs, _AXES), (_THREADS,), arguments)

    @property
    def range(self) -> tuple[cupy.ndarray, np.int32]:
        """First vertices, and the number of photographs, as kernels take them."""
        return self.first, np.int32(self.bins.photographs)

    def launch(self, name: str, *arguments: object) -> None:
        """Launch a kernel that processes all vertices."""
        kernel("solver", name)((self.blocks * self.bins.photographs,), (_THREADS,), arguments)

    def launch_each(self, name: str, *arguments: object) -> None:
        """Launch a kernel that processes the vertices of each photograph by blocks of its own."""
        kernel("solver", name)((self.blocks, self.bins.photographs), (_THREADS,), arguments)

    def slice(self, vertices: cupy.ndarray) -> cupy.ndarray:
        """Give each pixel the value of its vertex, clipped to 0..1; (photographs, h, w) float32."""
        import cupy

        out = cupy.empty((self.bins.photographs, *self.bins.shape), np.float32)
        self._each("slice_vertices", vertices, self.vertex, np.int32(self.pixels), out)
        return out

    def bistochastize(self, mass: cupy.ndarray) -> cupy.ndarray:
        """Return the diagonal n for which diag(n) B diag(n) has row sums close to the pixel counts."""
        import cupy

        n, updated = cupy.ones(self.pixels), cupy.empty(self.pixels)
        for _ in range(BISTOCHASTIC_STEPS):
            self.launch("bistochastic_step", n, mass, self.neighbors, *self.range, np.int32(self.pixels), updated)
            n, updated = updated, n
        return n

    def _each(self, name: str, *arguments: object) -> None:
        """Launch a kernel with one thread per pixel."""
        kernel("solver", name)((-(-self.pixels // _THREADS),), (_THREADS,), arguments)


@dataclasses.dataclass(frozen=True)
class Bins:
    """The bins of all grids of photographs of one size; the arrays are on the device.

    Attributes
    ----------
    shape : (int, int)
        Height and width of a photograph.
    photographs : int
        Photographs of a grid.
    sigma_xy : float
    bits : int
        Bits of the numbers of all bins, behind the lowest :attr:`shift` of a key.
    weights : (3, 3) float32
        Color weights divided by the sides of the bins.
    lowest, extents, strides : (5,) int64
        Lowest bin, number of bins, and distance of consecutive bins in keys, by axis.
    """

    shape: tuple[int, int]
    photographs: int
    sigma_xy: float
    bits: int
    weights: cupy.ndarray
    lowest: cupy.ndarray
    extents: cupy.ndarray
    strides: cupy.ndarray

    @staticmethod
    def of(shape: tuple[int, int], photographs: int, sigma_xy: float, sigma_luma: float, sigma_chroma: float) -> Bins:
        """Return the bins of photographs of this height and width.

        Raises
        ------
        TooManyBins
            If the grid is too fine.
        """
        device = require_cupy().cuda.Device().id
        return _transferred(device, shape, photographs, sigma_xy, sigma_luma, sigma_chroma)

    @property
    def pixels(self) -> int:
        """Number of pixels of all photographs."""
        return self.photographs * math.prod(self.shape)

    @property
    def shift(self) -> int:
        """Number of bits of the index of a pixel."""
        return _bits(self.pixels)

    def sorted_keys(self, rgb: cupy.ndarray) -> cupy.ndarray:
        """Return the sorted keys of the pixels, (pixels,) int64."""
        import cupy

        keys = cupy.empty(self.pixels, np.int64)
        sizes = (np.int32(self.pixels), *map(np.int32, self.shape), np.float64(self.sigma_xy))
        tables = (self.weights, self.lowest, self.extents)
        arguments = (rgb, *sizes, *tables, np.int32(self.shift), keys)
        kernel("image", "color_keys")((-(-keys.size // _THREADS),), (_THREADS,), arguments)
        return sort_by_bits(keys, self.shift, self.shift + self.bits)


@functools.lru_cache(maxsize=64)
def _transferred(
    device: int,
    shape: tuple[int, int],
    photographs: int,
    sigma_xy: float,
    sigma_luma: float,
    sigma_chroma: float,
) -> Bins:
    """Return the bins of a size on a device; they are kept, because photographs of one size follow each other."""
    weights, lowest, extents = _bins(shape, sigma_xy, sigma_luma, sigma_chroma)
    bits = _bits(photographs * math.prod(extents))
    if bits + _bits(photographs * math.prod(shape)) > 63 or photographs * math.prod(shape) >= 2**31:
        raise TooManyBins
    strides = [math.prod(extents[axis + 1 :]) for axis in range(_AXES)]
    tables = (upload(np.array(table, np.int64)) for table in (lowest, extents, strides))
    return Bins(shape, photographs, sigma_xy, bits, upload(weights), *tables)


def _bits(count: int) -> int:
    """Return the number of bits of the numbers below `count`."""
    return (count - 1).bit_length()


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
