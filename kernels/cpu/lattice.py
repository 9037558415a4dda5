"""The permutohedral lattice and mean-field inference on it, in float32.

The kernels are in :mod:`vitnp.kernels.cpu.lattice_build` and :mod:`vitnp.kernels.cpu.lattice_filter`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from vitnp.kernels import reference
from vitnp.kernels.cpu.lattice_build import (
    BLOCK,
    add_at,
    embed,
    enlarged,
    link_neighbors,
    new_table,
    number_keys,
    scale_weights,
    transpose,
)
from vitnp.kernels.cpu.lattice_filter import WIDTH, blur, slice_add, splat, to_differences, to_marginals
from vitnp.kernels.threads import team

# Points whose marginals are updated at a time: their rows stay in the L2 cache from one kernel to the next.
STRIP = 4096
# Blurring fewer numbers than this is not worth waking a thread.
MIN_NUMBERS_PER_THREAD = 1 << 16


@dataclasses.dataclass(frozen=True)
class Lattice(reference.Lattice):
    """A lattice that also lists the points of each vertex.

    Attributes
    ----------
    start : (M + 1,) int64
        Range of each vertex in `point` and `share`.
    point : (N (D + 1),) int32
        Points around each vertex, in ascending order.
    share : (N (D + 1),) float32
        Weight of the vertex for each of these points.
    """

    start: np.ndarray
    point: np.ndarray
    share: np.ndarray


def permutohedral_lattice(features: np.ndarray) -> reference.Lattice:
    if features.dtype != np.float32:
        return reference.permutohedral_lattice(features)
    features = np.ascontiguousarray(features)
    scale, stride, origin, _ = reference.lattice_geometry(features)
    axes, points = len(stride), features.shape[1]
    vertex, weight = np.empty((points, axes), np.int32), np.empty((points, axes), np.float32)

    # Keys of the vertices of each chunk of points, and how many of its points have each vertex as a corner.
    embedded: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}

    def embed_chunk(first: int, last: int) -> None:
        embedded[first, last] = embed(features, scale, stride, origin, first, last, vertex, weight)

    team.parallel_for(embed_chunk, points, BLOCK)
    chunks = sorted(embedded)

    # Number the vertices of all chunks.
    (keys, slots), count = new_table(), 0
    numbers = {}
    for chunk in chunks:
        chunk_keys, _ = embedded[chunk]
        numbers[chunk] = np.empty(len(chunk_keys), np.int32)
        keys, slots = enlarged(keys, slots, count, len(chunk_keys))
        count = number_keys(chunk_keys, keys, slots, count, numbers[chunk])

    # List the points of each vertex, chunk after chunk.
    start = np.zeros(count + 1, np.int64)
    for chunk in chunks:
        add_at(numbers[chunk], embedded[chunk][1], start[1:])
    start.cumsum(out=start)
    next_entry, cursors = start[:-1].copy(), {}
    for chunk in chunks:
        cursors[chunk] = next_entry[numbers[chunk]]
        add_at(numbers[chunk], embedded[chunk][1], next_entry)
    point, share = np.empty(vertex.size, np.int32), np.empty(vertex.size, np.float32)

    def transpose_chunks(first: int, last: int) -> None:
        for chunk in chunks[first:last]:
            transpose(*chunk, numbers[chunk], cursors[chunk], vertex, weight, point, share)

    team.parallel_for(transpose_chunks, len(chunks))
    neighbor = np.full((axes, count, 2), count, np.int32)
    ahead = stride.sum() - axes * stride
    team.parallel_for(lambda first, last: link_neighbors(keys, slots, ahead, first, last, neighbor), count, BLOCK)
    return Lattice(vertex, weight, neighbor, start, point, share)


def lattice_filter(lattice: reference.Lattice, values: np.ndarray) -> np.ndarray:
    if not isinstance(lattice, Lattice) or values.dtype != np.float32:
        return reference.lattice_filter(lattice, values)
    points, channels = values.shape
    lattice_sum = _LatticeSum([lattice], [1.0], _pad_channels(values))
    result = np.zeros_like(lattice_sum.values)

    def work(worker: team.Worker) -> None:
        lattice_sum.splat_and_blur(worker)
        lattice_sum.slice_add(result, *worker.share(points, BLOCK))

    team.run_team(work)
    return np.ascontiguousarray(result[:, :channels])


def normalize_lattice(lattice: reference.Lattice) -> reference.Lattice:
    if not isinstance(lattice, Lattice):
        return reference.normalize_lattice(lattice)
    points = len(lattice.weight)
    factor = 1 / np.sqrt(lattice_filter(lattice, np.ones((points, 1), np.float32)))
    weight, share = np.empty_like(lattice.weight), np.empty_like(lattice.share)

    def run(first: int, last: int) -> None:
        scale_weights(lattice.weight, lattice.share, lattice.point, factor, first, last, weight, share)

    team.parallel_for(run, points, BLOCK)
    return dataclasses.replace(lattice, weight=weight, share=share)


def mean_field(
    unary: np.ndarray, lattices: Sequence[reference.Lattice], compatibility: Sequence[float], steps: int
) -> np.ndarray:
    points, classes = unary.shape
    compiled = [lattice for lattice in lattices if isinstance(lattice, Lattice)]
    if unary.dtype != np.float32 or classes == 1 or len(compiled) < len(lattices):
        return reference.mean_field(unary, lattices, compatibility, steps)
    if classes == 2:
        # The difference of the two marginals is enough: q1 - q0 = tanh((u0 - u1 + sum of gains K (q1 - q0)) / 2).
        energy, update = np.subtract(unary[:, :1], unary[:, 1:]), to_differences
    else:
        energy, update = _pad_channels(-unary, -np.inf), to_marginals
    state = np.empty_like(energy)
    lattice_sum = _LatticeSum(compiled, compatibility, state)

    def work(worker: team.Worker) -> None:
        start, stop = worker.share(points, STRIP)
        for step in range(steps + 1):
            if step:
                lattice_sum.splat_and_blur(worker)
            for first in range(start, stop, STRIP):
                last = min(first + STRIP, stop)
                state[first:last] = energy[first:last]
                if step:
                    lattice_sum.slice_add(state, first, last)
                update(state, first, last)
            worker.wait()

    team.run_team(work)
    if classes == 2:
        return np.concatenate((0.5 - 0.5 * state, 0.5 + 0.5 * state), axis=1)
    return np.ascontiguousarray(state[:, :classes])


class _LatticeSum:
    """Weighted sum of the filters of several lattices, computed by a team of threads.

    Parameters
    ----------
    lattices : sequence of Lattice
    gains : sequence of float
        Factor of each lattice.
    values : (N, C) float32
        Read by every :meth:`splat_and_blur`; may change in between.
    """

    def __init__(self, lattices: Sequence[Lattice], gains: Sequence[float], values: np.ndarray):
        self.width = values.shape[1]
        self.values, self.lattices = values, lattices
        self.max_axes = max((len(lattice.neighbor) for lattice in lattices), default=0)
        self.gains = [np.float32(gain / (1 + 2.0 ** (1 - len(each.neighbor)))) for gain, each in zip(gains, lattices)]
        # Two buffers per lattice. The last row stays 0, for missing neighbors.
        shapes = [(len(lattice.start), self.width) for lattice in lattices]
        self.vertices = [[np.zeros(shape, np.float32) for _ in range(2)] for shape in shapes]

    def splat_and_blur(self, worker: team.Worker) -> None:
        """Compute the blurred vertices of all lattices; call it in every thread of the team."""
        for lattice, gain, (first_buffer, _) in zip(self.lattices, self.gains, self.vertices):
            first, last = worker.share(len(lattice.start) - 1, BLOCK)
            splat(lattice.start, lattice.point, lattice.share, gain, self.values, first, last, first_buffer)
        for axis in range(self.max_axes):
            worker.wait()
            for lattice, vertices in zip(self.lattices, self.vertices):
                if axis < len(lattice.neighbor):
                    first, last = worker.share(len(lattice.start) - 1, MIN_NUMBERS_PER_THREAD // self.width)
                    blur(lattice.neighbor[axis], vertices[axis % 2], first, last, vertices[1 - axis % 2])
        worker.wait()

    def slice_add(self, target: np.ndarray, first: int, last: int) -> None:
        """Add the sum at the points from `first` to `last` to the rows of `target`."""
        for lattice, vertices in zip(self.lattices, self.vertices):
            slice_add(lattice.vertex, lattice.weight, vertices[len(lattice.neighbor) % 2], first, last, target)


def _pad_channels(values: np.ndarray, padding: float = 0.0) -> np.ndarray:
    """Pad rows to whole vectors, unless they consist of a single number."""
    points, channels = values.shape
    if channels == 1:
        return np.ascontiguousarray(values)
    rows = np.full((points, -(-channels // WIDTH) * WIDTH), padding, np.float32)
    rows[:, :channels] = values
    return rows
