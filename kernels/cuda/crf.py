"""The permutohedral lattice and mean field on the GPU: ``crf.cu`` under the names of :mod:`vitnp.kernels.reference`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from vitnp.kernels import reference
from vitnp.kernels.cuda.device import upload
from vitnp.kernels.cuda.loader import kernel
from vitnp.kernels.cuda.sort import sort_by_bits

if TYPE_CHECKING:
    import cupy

_THREADS = 256
# Maximum number of blocks of kernels that process the vertices, of which there are mostly far fewer than places.
_MAX_BLOCKS = 1024


@dataclasses.dataclass(frozen=True)
class Lattice(reference.Lattice):
    """A lattice on the device that also lists the corners of each vertex.

    Attributes
    ----------
    entry : (N (D + 1),) int32
        Corners of all points, as ``point * (D + 1) + corner``, sorted by vertex and then by number.
    start : (M + 1,) int32
        Range of each vertex in `entry`.
    count : (1,) int32
        Number M of vertices. `neighbor` and `start` may have more places than that.
    """

    entry: cupy.ndarray
    start: cupy.ndarray
    count: cupy.ndarray


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Scale and keys of a lattice on the device; see :func:`vitnp.kernels.reference.lattice_geometry`."""

    scale: cupy.ndarray
    stride: cupy.ndarray
    origin: cupy.ndarray
    size: int

    @staticmethod
    def of(features: np.ndarray) -> Geometry:
        """Return the geometry for features (D, N) in host memory, of which only the extremes matter."""
        scale, stride, origin, size = reference.lattice_geometry(features)
        return Geometry(upload(scale), upload(stride), upload(origin), size)


def permutohedral_lattice(features: cupy.ndarray) -> Lattice:
    import cupy

    features = cupy.ascontiguousarray(features, np.float32)
    # The geometry depends on the extremes only, which also reveal NaN and infinity.
    extremes = cupy.asnumpy(cupy.stack((features.min(axis=1), features.max(axis=1)), axis=1))
    return embed(features, Geometry.of(extremes), counted=True)


def embed(features: cupy.ndarray, geometry: Geometry, *, photographs: int = 1, counted: bool = False) -> Lattice:
    """Embed points in a lattice whose geometry is known; without `counted` the host neither reads nor transfers.

    Parameters
    ----------
    features : (D, N) float32
    geometry : Geometry
    photographs : int
        The points are of so many photographs, one after another, which have no vertices in common.
    counted : bool
        Wait for the number of vertices, and return arrays of exactly this size.

    Returns
    -------
    Lattice
    """
    import cupy

    size, points = features.shape
    corners = size + 1
    entries = points * corners
    launch = functools.partial(_launch, size)
    slots = 1 << (2 * entries - 1).bit_length()
    mask, n_entries = np.int32(slots - 1), np.int32(entries)
    table = cupy.full(slots, np.uint64(2**64 - 1), np.uint64)
    touched = cupy.full(slots, np.int32(2**31 - 1), np.int32)
    slot, mark, vertex, entry = (cupy.empty(entries, np.int32) for _ in range(4))
    weight = cupy.empty((points, corners), np.float32)
    tables = (geometry.scale, geometry.stride, geometry.origin, np.int64(geometry.size), table, mask)
    numbers = np.int32(points), np.int32(points // photographs)
    launch("embed", points, features, *numbers, *tables, touched, slot, weight)
    launch("mark_first", entries, slot, touched, n_entries, mark)
    running = cupy.cumsum(mark, dtype=np.int32)
    owned = cupy.empty(entries, np.int64)
    launch("own_entries", entries, slot, touched, running, n_entries, vertex, owned)
    places = int(running[-1]) if counted else entries
    start = cupy.empty(places + 1, np.int32)
    in_order = sort_by_bits(owned, 32, 32 + (places - 1).bit_length())
    launch("start_segments", entries, in_order, n_entries, entry, start)
    neighbor, count = cupy.empty((corners, places, 2), np.int32), cupy.empty(1, np.int32)
    known = (table, touched, running, n_entries, geometry.stride, mask, np.int32(places))
    launch("find_neighbors", slots, *known, neighbor, count, axes=corners)
    return Lattice(vertex.reshape(points, corners), weight, neighbor, entry, start, count)


def lattice_filter(lattice: Lattice, values: cupy.ndarray) -> cupy.ndarray:
    import cupy

    out = cupy.zeros(values.shape, np.float32)
    _filter_add(lattice, cupy.ascontiguousarray(values, np.float32), 1.0, out)
    return out


def normalize_lattice(lattice: Lattice) -> Lattice:
    import cupy

    sums = lattice_filter(lattice, cupy.ones((len(lattice.weight), 1), np.float32))
    return dataclasses.replace(lattice, weight=lattice.weight / cupy.sqrt(sums))


def mean_field(
    unary: cupy.ndarray, lattices: Sequence[Lattice], compatibility: Sequence[float], steps: int
) -> cupy.ndarray:
    import cupy

    energy = -cupy.ascontiguousarray(unary, np.float32)
    q = _softmax(energy.copy())
    for _ in range(steps):
        logits = energy.copy()
        for lattice, gain in zip(lattices, compatibility):
            _filter_add(lattice, q, gain, logits)
        q = _softmax(logits)
    return q


def _filter_add(lattice: Lattice, values: cupy.ndarray, gain: float, out: cupy.ndarray) -> None:
    """Compute ``out += gain * lattice_filter(lattice, values)``."""
    import cupy

    points, classes = values.shape
    corners, places, _ = lattice.neighbor.shape
    launch = functools.partial(_launch, corners - 1)
    among_vertices = functools.partial(launch, most=_MAX_BLOCKS)
    n_classes = np.int32(classes)
    vertices, blurred = (cupy.empty((places, classes), np.float32) for _ in range(2))
    # One warp per vertex.
    corner_lists = (lattice.entry, lattice.start, lattice.weight, lattice.count)
    among_vertices("splat", 32 * places, values, n_classes, *corner_lists, vertices)
    for axis in range(corners):
        pairs = (lattice.neighbor, np.int32(axis), lattice.count, np.int32(places))
        among_vertices("blur", vertices.size, vertices, n_classes, *pairs, blurred)
        vertices, blurred = blurred, vertices
    alpha = 1 / (1 + 0.5 ** (corners - 1))  # the factor by which blur and interpolation scale a constant
    numbers = np.int32(points), np.float32(gain * alpha)
    launch("slice_add", out.size, vertices, n_classes, lattice.vertex, lattice.weight, *numbers, out)


def _softmax(values: cupy.ndarray) -> cupy.ndarray:
    """Replace each row by its softmax over the classes."""
    points, classes = values.shape
    # This kernel does not depend on the number of features.
    _launch(2, "softmax_rows", points, values, np.int32(points), np.int32(classes))
    return values


def _launch(features: int, name: str, count: int, *arguments: object, axes: int = 1, most: int | None = None) -> None:
    """Launch a kernel of crf.cu with `count` threads for each axis, in at most so many blocks."""
    blocks = -(-count // _THREADS)
    kernel("crf", name, f"-DFEATURES={features}")((min(blocks, most or blocks), axes), (_THREADS,), arguments)
