"""The permutohedral lattice and mean field on the GPU: ``crf.cu`` under the names of :mod:`vitnp.kernels.reference`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from vitnp.kernels import reference
from vitnp.kernels.cuda.loader import kernel

if TYPE_CHECKING:
    import cupy

_THREADS = 256


@dataclasses.dataclass(frozen=True)
class Lattice(reference.Lattice):
    """A lattice on the device that also lists the corners of each vertex.

    Attributes
    ----------
    entry : (N (D + 1),) int32
        Corners of all points, as ``point * (D + 1) + corner``, sorted by vertex and then by number.
    start : (M + 1,) int32
        Range of each vertex in `entry`.
    """

    entry: cupy.ndarray
    start: cupy.ndarray


def permutohedral_lattice(features: cupy.ndarray) -> Lattice:
    import cupy

    features = cupy.ascontiguousarray(features, np.float32)
    size, points = features.shape
    corners = size + 1
    entries = points * corners
    # The geometry depends on the extremes only, which also reveal NaN and infinity.
    extremes = cupy.asnumpy(cupy.stack((features.min(axis=1), features.max(axis=1)), axis=1))
    scale, stride, origin = (cupy.asarray(table) for table in reference.lattice_geometry(extremes))

    launch = functools.partial(_launch, size)
    slots = 1 << (2 * entries - 1).bit_length()
    mask = np.int32(slots - 1)
    table = cupy.full(slots, np.uint64(2**64 - 1), np.uint64)
    touched = cupy.full(slots, np.int32(2**31 - 1), np.int32)
    slot, mark, vertex, entry = (cupy.empty(entries, np.int32) for _ in range(4))
    weight = cupy.empty((points, corners), np.float32)
    launch("embed", points, features, np.int32(points), scale, stride, origin, table, mask, touched, slot, weight)
    launch("mark_first", entries, slot, touched, np.int32(entries), mark)
    running = cupy.cumsum(mark, dtype=np.int32)
    count = int(running[-1])
    owned = cupy.empty(entries, np.int64)
    launch("own_entries", entries, slot, touched, running, np.int32(entries), vertex, owned)
    start = cupy.empty(count + 1, np.int32)
    launch("start_segments", entries, cupy.sort(owned), np.int32(entries), entry, start)
    neighbor = cupy.empty((corners, count, 2), np.int32)
    launch("find_neighbors", slots, table, touched, running, stride, mask, np.int32(count), neighbor, axes=corners)
    return Lattice(vertex.reshape(points, corners), weight, neighbor, entry, start)


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
    corners, count, _ = lattice.neighbor.shape
    launch = functools.partial(_launch, corners - 1)
    n_classes, n_vertices = np.int32(classes), np.int32(count)
    vertices, blurred = (cupy.empty((count, classes), np.float32) for _ in range(2))
    # One warp per vertex.
    launch("splat", 32 * count, values, n_classes, lattice.entry, lattice.start, lattice.weight, n_vertices, vertices)
    for axis in range(corners):
        launch("blur", vertices.size, vertices, n_classes, lattice.neighbor, np.int32(axis), n_vertices, blurred)
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


def _launch(features: int, name: str, count: int, *arguments: object, axes: int = 1) -> None:
    """Launch a kernel of crf.cu with `count` threads for each axis."""
    kernel("crf", name, f"-DFEATURES={features}")((-(-count // _THREADS), axes), (_THREADS,), arguments)
