"""k-means: one pass over the rows assigns them, adds them up by cluster and tells how far they are."""

from __future__ import annotations

import numpy as np
from numba import types
from vitnp.kernels import reference
from vitnp.kernels.cpu.codegen.jit import IN, OUT, kernel
from vitnp.kernels.cpu.codegen.rows import (
    DOTS,
    FAR_AHEAD,
    FEW_ROWS,
    FEW_WIDE_ROWS,
    NARROW,
    ROWS,
    add_apart,
    add_scaled,
    aligned,
    distance,
    distances,
    largest,
    lay_out,
    length,
    pack,
    padded,
    products,
    read_row,
    rows_of,
    whole,
    widen,
)
from vitnp.kernels.cpu.codegen.simd import LANES
from vitnp.kernels.cpu.codegen.workspace import scratch
from vitnp.kernels.reference import Step
from vitnp.kernels.threads import team

# Rows whose sum is kept in float32; such sums are added in float64.
SINGLE_ROWS = 1024

# Products of numbers that take as long as to wake another thread, which for fewer has nothing to gain.
WORTH_A_THREAD = 2**22

# Up to so many numbers the largest is found sooner one by one than by vectors.
FEW_COLUMNS = 4

ROWS_IN = types.Array(types.float32, 2, "C", readonly=True, aligned=True)
SUMS_OUT = types.Array(types.float64, 3, "C")
WORK = types.Array(types.float32, 1, "C")

_NO_SUMS = np.empty((0, 0, 0))
NOTHING = np.empty(0, np.float32)


def kmeans_step(
    x: np.ndarray,
    centroids: np.ndarray,
    *,
    metric: str = "cosine",
    shift: np.ndarray | None = None,
    block: int | None = None,
) -> Step:
    if centroids.dtype != np.float32:
        return reference.kmeans_step(x, centroids, metric=metric, shift=shift, block=block)
    block = block or max(len(x), 1)
    blocks = -(-len(x) // block)
    labels, losses = np.empty(len(x), np.int32), np.empty(len(x), np.float32)
    sums, inertia = np.empty((blocks, *centroids.shape)), np.empty(blocks)
    counts = _assign(x, centroids, metric, shift, block, labels, losses, sums, inertia)
    return Step(labels, losses, sums, counts, inertia)


def kmeans_assign(
    x: np.ndarray, centroids: np.ndarray, *, metric: str = "cosine", shift: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    if centroids.dtype != np.float32:
        return reference.kmeans_assign(x, centroids, metric=metric, shift=shift)
    labels, losses = np.empty(len(x), np.int32), np.empty(len(x), np.float32)
    inertia = np.empty(-(-len(x) // SINGLE_ROWS))
    _assign(x, centroids, metric, shift, SINGLE_ROWS, labels, losses, _NO_SUMS, inertia)
    return labels, losses


def kmeans_closer(
    x: np.ndarray,
    candidates: np.ndarray,
    nearest: np.ndarray | None,
    *,
    metric: str = "cosine",
    shift: np.ndarray | None = None,
) -> np.ndarray:
    if candidates.dtype != np.float32:
        return reference.kmeans_closer(x, candidates, nearest, metric=metric, shift=shift)
    x, kind = rows_of(x)
    candidates = np.ascontiguousarray(candidates)
    out = np.empty((len(x), len(candidates)), np.float32)
    wide, n = _room(len(candidates)), _room(x.shape[1])
    shift = NOTHING if shift is None else shift

    def share(first: int, last: int) -> None:
        work = scratch("k-means", 16 + ROWS * (n + wide) + n + wide * n)
        rows = x.ctypes.data + first * x.strides[0]
        so_far = NOTHING if nearest is None else nearest[first:last]
        _closer(rows, x.strides[0], kind, candidates, metric == "cosine", shift, so_far, out[first:last], work)

    team.parallel_for(share, len(x), max(WORTH_A_THREAD // max(candidates.size, 1), SINGLE_ROWS))
    return out


def _assign(x, centroids, metric, shift, block, labels, losses, sums, inertia) -> np.ndarray:
    """Have :func:`assign_and_add` fill the arrays, whole blocks in each thread; the clusters' counts."""
    x, kind = rows_of(x)
    centroids, (clusters, width) = np.ascontiguousarray(centroids), centroids.shape
    shift = NOTHING if shift is None else shift
    shares = []

    def share(first: int, last: int) -> None:
        work = work_for(clusters, width)
        counts = np.zeros(clusters, np.int64)
        blocks = slice(first // block, -(-last // block))
        assign_and_add(
            x.ctypes.data + first * x.strides[0], x.strides[0], kind, centroids, metric == "cosine", shift, block,
            labels[first:last], losses[first:last], sums[blocks], counts, inertia[blocks], work,
        )  # fmt: skip
        shares.append(counts)

    team.parallel_for(share, len(x), block)
    return sum(shares, np.zeros(clusters, np.int64))


def work_for(clusters: int, width: int) -> np.ndarray:
    """Scratch memory of this thread for :func:`assign_and_add`."""
    wide, n = _room(clusters), _room(width)
    return scratch("k-means", 16 + ROWS * (n + wide) + n + wide + (wide + 2 * clusters) * n)


def _room(count: int) -> int:
    """Whole vectors, and no less than a tile of two."""
    return max(-(-count // LANES), 2) * LANES


@kernel(
    types.int64, types.int64, types.int64, ROWS_IN, types.boolean, IN(1), types.int64,
    OUT(1, types.int32), OUT(1), SUMS_OUT, OUT(1, types.int64), OUT(1, types.float64), WORK,
)  # fmt: skip
def assign_and_add(x, step, kind, centroids, cosine, shift, block, labels, losses, sums, counts, inertia, work):
    """Assign every row and add the rows up.

    Parameters
    ----------
    x, step, kind : int
        Address of the rows, bytes from one to the next, their type.
    centroids : (K, D) float32, IN
    cosine : bool
    shift : (D,) or (0,) float32, IN
        Subtracted from rows.
    block : int
        Rows added up together.
    labels : (N,) int32, OUT
    losses : (N,) float32, OUT
    sums : (N / block, K, D) float64, OUT
        Without any blocks nothing is added up.
    counts : (K,) int64, OUT
        Added to.
    inertia : (N / block,) float64, OUT
        Added to.
    work : float32, OUT
        Scratch.
    """
    clusters, width = centroids.shape
    n = whole(width)
    columns = padded(clusters, n)
    wide = whole(columns)
    rows = aligned(work)
    out = rows + ROWS * n
    bias = out + ROWS * wide
    moved = bias + wide
    packed = moved + n
    centers = packed + columns * n
    added = centers + clusters * n
    base = work.ctypes.data
    adding = sums.shape[0] > 0
    work[rows:out] = 0
    work[moved:packed] = 0
    for d in range(shift.shape[0]):
        work[moved + d] = shift[d]
    pack(centroids, work, packed, n)
    lay_out(centroids, work, centers, clusters, n)
    # The nearest centroid has the largest x.c - |c|^2 / 2, see :func:`vitnp.kernels.reference.kmeans_assign`.
    for j in range(wide):
        if j >= clusters:
            work[bias + j] = -np.inf
        elif cosine:
            work[bias + j] = 0
        else:
            square = 0.0
            for d in range(width):
                square += np.float64(centroids[j, d]) * centroids[j, d]
            work[bias + j] = -0.5 * square
    inverse = np.empty(ROWS, np.float32)
    far = FAR_AHEAD if columns <= DOTS else 0  # tiles by columns ask for memory themselves
    group = ROWS if columns > DOTS else FEW_ROWS if n <= NARROW else FEW_WIDE_ROWS
    for number in range((labels.shape[0] + block - 1) // block):
        end = min((number + 1) * block, labels.shape[0])
        if adding:
            sums[number] = 0
        total = 0.0
        for start in range(number * block, end, SINGLE_ROWS):
            stop = min(start + SINGLE_ROWS, end)
            if adding:
                work[added : added + clusters * n] = 0
            for first in range(start, stop, group):
                here = min(group, stop - first)
                ahead = x + (first + group) * step
                for i in range(here):
                    at = rows + i * n
                    squares = read_row(base + 4 * at, x + (first + i) * step, kind, base + 4 * moved, width, far)
                    if cosine:
                        inverse[i] = np.float32(1) / length(work, at, n, squares)
                products(
                    base + 4 * rows, here, n, base + 4 * packed, columns, base + 4 * out, wide, ahead, group * step
                )
                for i in range(here):
                    row, soon = base + 4 * (rows + i * n), ahead + i * step
                    if columns <= FEW_COLUMNS:
                        label, most = 0, np.float32(-np.inf)
                        for j in range(columns):
                            value = work[out + i * wide + j] + work[bias + j]
                            if value > most:
                                label, most = j, value
                    else:
                        label = largest(base + 4 * (out + i * wide), base + 4 * bias, wide)
                    into = base + 4 * (added + label * n)
                    if cosine:
                        loss = np.float32(1) - work[out + i * wide + label] * inverse[i]
                        if adding:
                            add_scaled(row, into, n, inverse[i], soon)
                    elif adding:
                        loss = add_apart(row, into, n, base + 4 * (centers + label * n), soon)
                    else:
                        loss = distance(row, base + 4 * (centers + label * n), n)
                    labels[first + i] = label
                    losses[first + i] = loss
                    counts[label] += 1
                    total += loss
            if adding:
                for j in range(clusters):
                    into = sums.ctypes.data + 8 * (number * clusters + j) * width
                    widen(base + 4 * (added + j * n), width, into)
        inertia[number] = total


@kernel(types.int64, types.int64, types.int64, ROWS_IN, types.boolean, IN(1), IN(1), OUT(2), WORK)
def _closer(x, step, kind, candidates, cosine, shift, nearest, out, work):
    """``out[i, j]``: loss of row i for candidate j, or ``nearest[i]`` if that is smaller.

    Parameters
    ----------
    x, step, kind, cosine, shift, work
        As in :func:`assign_and_add`.
    candidates : (M, D) float32, IN
    nearest : (N,) or (0,) float32, IN
    out : (N, M) float32, OUT
    """
    count, width = candidates.shape
    n = whole(width)
    columns = padded(count, n) if cosine else (count + 3) // 4 * 4
    wide = whole(columns)
    rows = aligned(work)
    found = rows + ROWS * n
    moved = found + ROWS * wide
    packed = moved + n
    base = work.ctypes.data
    work[rows:found] = 0
    work[moved:packed] = 0
    for d in range(shift.shape[0]):
        work[moved + d] = shift[d]
    if cosine:
        pack(candidates, work, packed, n)
    else:
        lay_out(candidates, work, packed, columns, n)
    inverse = np.empty(ROWS, np.float32)
    for first in range(0, out.shape[0], ROWS):
        here = min(ROWS, out.shape[0] - first)
        for i in range(here):
            at = rows + i * n
            squares = read_row(base + 4 * at, x + (first + i) * step, kind, base + 4 * moved, width, FAR_AHEAD)
            if cosine:
                inverse[i] = np.float32(1) / length(work, at, n, squares)
        if cosine:
            products(base + 4 * rows, here, n, base + 4 * packed, columns, base + 4 * found, wide, x, 0)
        else:
            distances(base + 4 * rows, here, n, base + 4 * packed, columns, base + 4 * found, wide)
        for i in range(here):
            limit = nearest[first + i] if nearest.shape[0] else np.float32(np.inf)
            for j in range(count):
                loss = work[found + i * wide + j]
                if cosine:
                    loss = max(np.float32(1) - loss * inverse[i], np.float32(0))
                out[first + i, j] = min(loss, limit)
