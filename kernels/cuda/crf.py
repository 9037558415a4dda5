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
    """The lattice on the device, and its corners sorted by vertex.

    Attributes
    ----------
    entry : (N (D + 1),) int32
        The corners of all points, ``point * (D + 1) + corner``, sorted by vertex and for one vertex by themselves.
    start : (M + 1,) int32
        Where each vertex's begin.
    """

    entry: cupy.ndarray
    start: cupy.ndarray


@functools.wraps(reference.permutohedral_lattice)
def permutohedral_lattice(features: cupy.ndarray) -> Lattice:
    import cupy

    features = cupy.ascontiguousarray(features, np.float32)
    size, points = features.shape
    corners = size + 1
    entries = points * corners
    # The geometry depends on the extremes alone; NaN and infinity show in them too.
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


@functools.wraps(reference.lattice_filter)
def lattice_filter(lattice: Lattice, values: cupy.ndarray) -> cupy.ndarray:
    import cupy

    out = cupy.zeros(values.shape, np.float32)
    _filter_add(lattice, cupy.ascontiguousarray(values, np.float32), 1.0, out)
    return out


@functools.wraps(reference.normalize_lattice)
def normalize_lattice(lattice: Lattice) -> Lattice:
    import cupy

    sums = lattice_filter(lattice, cupy.ones((len(lattice.weight), 1), np.float32))
    return dataclasses.replace(lattice, weight=lattice.weight / cupy.sqrt(sums))


@functools.wraps(reference.mean_field)
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
    """Out += gain * the lattice's filter of the values."""
    import cupy

    points, classes = values.shape
    corners, count, _ = lattice.neighbor.shape
    launch = functools.partial(_launch, corners - 1)
    classes = np.int32(classes)
    vertices, spare = (cupy.empty((count, int(classes)), np.float32) for _ in range(2))
    # A warp a vertex.
    launch(
        "splat", 32 * count, values, classes, lattice.entry, lattice.start, lattice.weight, np.int32(count), vertices
    )
    for axis in range(corners):
        launch("blur", vertices.size, vertices, classes, lattice.neighbor, np.int32(axis), np.int32(count), spare)
        vertices, spare = spare, vertices
    alpha = 1 / (1 + 0.5 ** (corners - 1))  # what the blur and the interpolation leave of a constant
    launch(
        "slice_add",
        out.size,
        vertices,
        classes,
        lattice.vertex,
        lattice.weight,
        np.int32(points),
        np.float32(gain * alpha),
        out,
    )


def _softmax(values: cupy.ndarray) -> cupy.ndarray:
    """Over the classes, in place."""
    points, classes = values.shape
    # The same for any number of features.
    _launch(2, "softmax_rows", points, values, np.int32(points), np.int32(classes))
    return values


def _launch(features: int, name: str, count: int, *arguments: object, axes: int = 1) -> None:
    kernel("crf", name, f"-DFEATURES={features}")((-(-count // _THREADS), axes), (_THREADS,), arguments)
