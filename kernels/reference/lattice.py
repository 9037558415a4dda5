"""The permutohedral lattice (fast high-dimensional Gaussian filtering) and mean-field inference of a dense CRF on it.

Letters in shapes: N points, D features, M lattice vertices, C classes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from vitnp.kernels.reference.transformer import softmax


@dataclasses.dataclass(frozen=True)
class Lattice:
    """Embedding of N points in D dimensions among the M occupied vertices of the permutohedral lattice.

    Attributes
    ----------
    vertex : (N, D + 1) int32
        Corners of the simplex that contains each point. Vertices are numbered in the order of their first occurrence.
    weight : (N, D + 1) float
        Barycentric coordinates of each point among these corners. They sum to 1 until :func:`normalize_lattice` scales
        them.
    neighbor : (D + 1, M, 2) int32
        Previous and next vertex along each axis of the lattice; M if that vertex is not occupied.
    """

    vertex: np.ndarray
    weight: np.ndarray
    neighbor: np.ndarray


def permutohedral_lattice(features: np.ndarray) -> Lattice:
    """Embed points so that a Gaussian blur over all pairs becomes a few sums (Adams, Baek and Davis 2010, section 3.1).

    The lattice tiles the hyperplane of the vectors whose D + 1 coordinates sum to 0. It is scaled such that
    :func:`lattice_filter` has the standard deviation 1 along every feature.

    Parameters
    ----------
    features : (D, N) float
        One row per feature, divided by the standard deviation of the blur along that feature.

    Returns
    -------
    Lattice

    Raises
    ------
    ValueError
        If features are not finite, or are so far apart that the keys of the vertices do not fit into 64 bits.

    Examples
    --------
    >>> lattice = permutohedral_lattice(np.array([[0.0, 0.25]]))
    >>> lattice.vertex
    array([[0, 1],
           [0, 1]], dtype=int32)
    >>> lattice.weight.round(3)
    array([[1.   , 0.   ],
           [0.711, 0.289]])
    """
    scale, stride, origin, _ = lattice_geometry(features)
    real = features.dtype.type
    axes, points = len(stride), features.shape[1]
    elevated = np.empty((axes, points), features.dtype)
    above = np.zeros(points, features.dtype)
    for axis in range(axes - 1, 0, -1):
        scaled = features[axis - 1] * scale[axis - 1]
        elevated[axis] = above - real(axis) * scaled
        above += scaled
    elevated[0] = above

    # Coordinates rounded to multiples of D + 1 are a vertex, if they still sum to 0 ...
    nearest = np.rint(elevated * (real(1) / real(axes)))
    excess = nearest.sum(axis=0).astype(np.int64)
    nearest *= real(axes)
    rest = elevated - nearest
    rank = np.zeros((axes, points), np.int64)
    for i in range(axes):
        for j in range(i + 1, axes):
            less = rest[i] < rest[j]
            rank[i] += less
            rank[j] += ~less
    # ... and if not, the coordinates that rounding changed most go one step back.
    rank += excess
    wrap = axes * ((rank < 0).astype(np.int64) - (rank >= axes))
    rank += wrap
    nearest += wrap
    rest = (elevated - nearest) * (real(1) / real(axes))

    # From one corner of the simplex to the next, one coordinate decreases by D, the one with the highest rank first,
    # and all others increase by 1.
    axis_of_rank = np.empty_like(rank)
    np.put_along_axis(axis_of_rank, rank, np.arange(axes)[:, None], axis=0)
    rest = np.take_along_axis(rest, axis_of_rank, axis=0)
    weight = np.empty((points, axes), features.dtype)
    weight[:, 0] = (real(1) + rest[-1]) - rest[0]
    weight[:, 1:] = (rest[:-1] - rest[1:])[::-1].T
    corner = np.empty((points, axes), np.int64)
    corner[:, 0] = stride @ (nearest.astype(np.int64) - origin[:, None])
    corner[:, 1:] = stride.sum() - axes * stride[axis_of_rank[:0:-1].T]
    key, first, vertex = np.unique(corner.cumsum(axis=1), return_index=True, return_inverse=True)

    count = len(key)
    number = np.empty(count, np.int32)
    number[first.argsort()] = np.arange(count)
    neighbor = np.full((axes, count, 2), count, np.int32)
    for axis in range(axes):
        next_key = key + (stride.sum() - axes * stride[axis])
        position = np.searchsorted(key, next_key).clip(max=count - 1)
        has_next = np.flatnonzero(key[position] == next_key)
        neighbor[axis, number[has_next], 1] = number[position[has_next]]
        neighbor[axis, number[position[has_next]], 0] = number[has_next]
    return Lattice(number[vertex].reshape(points, axes), weight, neighbor)


def lattice_geometry(features: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Compute the scale of the lattice, and how to pack the coordinates of a vertex into one integer, its key.

    The key is ``stride @ (coordinates - origin)``, a mixed-radix number. The last coordinate of a vertex follows from
    the others, so its stride is 0.

    Parameters
    ----------
    features : (D, N) float
        Only the extremes of each feature matter.

    Returns
    -------
    scale : (D,) float
        Factor of each feature before it is rotated into the hyperplane.
    stride, origin : (D + 1,) int64
    size : int
        All keys of vertices and of their neighbors are from 0 to ``size - 1``.

    Raises
    ------
    ValueError
        If features are not finite, or are so far apart that the keys of the vertices do not fit into 64 bits.

    Examples
    --------
    >>> lattice_geometry(np.array([[0.0, 1.0]]))
    (array([1.15470054]), array([1, 0]), array([ -8, -10]), 18)
    """
    if not np.isfinite(features).all():
        raise ValueError("features must be finite, got NaN or infinity")
    axes = len(features) + 1
    # Splatting, blurring and slicing together have the variance 2 (D + 1)^2 / 3 in lattice units (section 3.1).
    scale = [axes * math.sqrt(2 / 3) / math.sqrt((i + 1) * (i + 2)) for i in range(axes - 1)]
    # Coordinate j is the sum of the scaled features from j on, minus j times the scaled feature j - 1.
    low = [float(end) * s for end, s in zip(features.min(axis=1), scale)]
    high = [float(end) * s for end, s in zip(features.max(axis=1), scale)]
    least = [sum(low[j:]) - (j * high[j - 1] if j else 0) for j in range(axes)]
    most = [sum(high[j:]) - (j * low[j - 1] if j else 0) for j in range(axes)]
    margin = 4 * axes  # more than the distance from a point to the neighbors of its vertices
    origin = [math.floor(end) - margin for end in least]
    extent = [math.ceil(end) + margin - start for end, start in zip(most, origin)]
    stride = [math.prod(extent[axis + 1 : -1]) for axis in range(axes - 1)] + [0]
    precise = max(map(abs, least + most)) * np.finfo(features.dtype).eps < 0.1
    size = math.prod(extent[:-1])
    if not precise or size >= 2**62:
        raise ValueError("the features are too far apart for a lattice; choose larger standard deviations")
    return np.array(scale, features.dtype), np.array(stride, np.int64), np.array(origin, np.int64), size


def lattice_filter(lattice: Lattice, values: np.ndarray) -> np.ndarray:
    """Sum values over all points, weighted by a Gaussian of the distance, on the lattice (Adams et al. 2010).

    Each value is distributed over the corners around its point (splatting), the vertices are blurred by [1/2 1 1/2]
    along one axis after the other, and each point interpolates its corners (slicing). Up to a constant factor the
    result approximates ``sum over q of exp(-|f_p - f_q|^2 / 2) values_q``.

    Parameters
    ----------
    lattice : Lattice
    values : (N, C) float

    Returns
    -------
    (N, C) float

    Examples
    --------
    >>> lattice = permutohedral_lattice(np.array([[0.0, 0.0, 9.0]]))
    >>> lattice_filter(lattice, np.array([[1.0], [2.0], [0.0]])).ravel().tolist()
    [2.5, 2.5, 0.0]
    """
    axes, count, _ = lattice.neighbor.shape
    alpha = 1 / (1 + 0.5 ** (axes - 1))  # section 3.1: the factor by which blur and interpolation scale a constant
    result = np.empty_like(values)
    for channel in range(values.shape[1]):
        splatted = lattice.weight * values[:, channel, None]
        # The additional last entry stands for missing neighbors and stays 0.
        vertices = np.bincount(lattice.vertex.ravel(), splatted.ravel(), count + 1)
        for axis in range(axes):
            vertices[:count] += 0.5 * vertices[lattice.neighbor[axis]].sum(axis=1)
        result[:, channel] = alpha * (lattice.weight * vertices[lattice.vertex]).sum(axis=1)
    return result


def normalize_lattice(lattice: Lattice) -> Lattice:
    """Scale the weights such that :func:`lattice_filter` becomes ``D^-1/2 K D^-1/2``, with D the row sums of K.

    This is the symmetric normalization of Krähenbühl and Koltun's implementation. The filter stays symmetric, up to the
    order of the axes, and approximately preserves a constant.

    Parameters
    ----------
    lattice : Lattice
        Result of :func:`permutohedral_lattice`.

    Returns
    -------
    Lattice
        With scaled weights.

    Examples
    --------
    >>> lattice = normalize_lattice(permutohedral_lattice(np.zeros((2, 4))))
    >>> lattice_filter(lattice, np.ones((4, 1))).round(6).ravel().tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    sums = lattice_filter(lattice, np.ones((len(lattice.weight), 1), lattice.weight.dtype))
    return dataclasses.replace(lattice, weight=lattice.weight / np.sqrt(sums))


def mean_field(
    unary: np.ndarray, lattices: Sequence[Lattice], compatibility: Sequence[float], steps: int
) -> np.ndarray:
    """Approximate the marginals of a fully connected CRF with Potts potentials (Krähenbühl and Koltun 2011, alg. 1).

    Starting with q = softmax(-unary), each step is ``q <- softmax(-unary + sum over kernels of compatibility *
    filter(q))``. The paper penalizes disagreement; rewarding agreement, as here, is the same up to a constant.

    Parameters
    ----------
    unary : (N, C) float
        Energies: negative logarithms of probabilities.
    lattices : sequence of Lattice
        One normalized lattice per kernel.
    compatibility : sequence of float
        Weight of each kernel.
    steps : int
        Number of mean-field updates.

    Returns
    -------
    (N, C) float
        Each row sums to 1.

    Examples
    --------
    >>> lattice = normalize_lattice(permutohedral_lattice(np.zeros((1, 3))))
    >>> mean_field(-np.log(np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]])), [lattice], [4.0], 5).round(2)
    array([[1.  , 0.  ],
           [1.  , 0.  ],
           [0.97, 0.03]])
    """
    q = softmax(-unary)
    for _ in range(steps):
        logits = -unary
        for lattice, gain in zip(lattices, compatibility):
            logits += unary.dtype.type(gain) * lattice_filter(lattice, q)
        q = softmax(logits)
    return q
