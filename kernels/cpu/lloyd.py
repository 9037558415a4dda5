"""Lloyd's algorithm on rows in memory: many iterations in one kernel, whose threads wait for each other inside.

An iteration over the patches of a photograph takes a tenth of a millisecond, as long as waking a Python thread.
"""

from __future__ import annotations

import numpy as np
from vitnp.kernels import reference
from vitnp.kernels.cpu.bounds import FEW_ROWS, bounds_per_row
from vitnp.kernels.cpu.codegen import types
from vitnp.kernels.cpu.codegen.barrier import spin_wait
from vitnp.kernels.cpu.codegen.jit import IN, OUT, kernel
from vitnp.kernels.cpu.codegen.rows import WORKSPACE, readable_rows
from vitnp.kernels.cpu.kmeans import assign_and_add
from vitnp.kernels.cpu.kmeans_rows import EMPTY, inverse_norms_in_place, step_workspace
from vitnp.kernels.reference import Moves
from vitnp.kernels.threads import pool, team

# Status after a pass over the rows: continue, converged, or left to the caller (an empty cluster, NaN or infinity).
CONTINUE, ENDED, UNUSUAL = 0, 1, 2

# Multiplications per kernel call, some tenths of a second.
WORK_PER_CALL = 2**33

# Numbers in a cache line.
LINE = 16


def kmeans_moves(
    x: np.ndarray,
    centroids: np.ndarray,
    most: int,
    tolerance: float = 0.0,
    *,
    metric: str = "cosine",
    shift: np.ndarray | None = None,
    block: int | None = None,
) -> Moves:
    if centroids.dtype != np.float32 or not len(x):
        return reference.kmeans_moves(x, centroids, most, tolerance, metric=metric, shift=shift, block=block)
    count, (clusters, width) = len(x), centroids.shape
    block = block or count
    blocks = -(-count // block)
    n_bounds = bounds_per_row(count, clusters, width) if most > 1 and readable_as_float32(x) else 0
    shift = EMPTY if shift is None else shift
    if len(x) <= FEW_ROWS and most > 1:
        x, shift = aligned_rows(x, shift), EMPTY
    x, dtype_code = readable_rows(x)
    centroids = np.array(centroids, order="C")
    labels = np.empty((2, count), np.int32)
    sums, inertia = np.empty((blocks, clusters, width)), np.empty(blocks)
    total, counts, history = np.empty((clusters, width)), np.zeros(clusters, np.int64), np.empty(most + 1)
    n_threads = min(pool.allowed_threads(), blocks)
    tallies, ended = np.zeros((n_threads, clusters + 1), np.int64), np.array([-1, CONTINUE])
    common = tallies, total, counts, history, ended
    if n_bounds:
        from vitnp.kernels.cpu.bounded_lloyd import bounded_moves

        bounds, drifts = np.zeros((count, n_bounds), np.float32), np.zeros((n_threads, n_bounds))
        moved = np.zeros(clusters)
    else:
        losses = np.empty(count, np.float32)
        # Rows that stay in the cache are read without copying them first.
        inverse_norms = inverse_norms_in_place(x) if count <= FEW_ROWS and not len(shift) else EMPTY

    def work(worker: team.Worker) -> None:
        first, last = worker.share(count, block)
        start = int(ended[0]) + 1
        stop = min(start + passes_per_call, most + 1)
        space = step_workspace(clusters, width, 2 * n_bounds + 1)
        rest = sums, inertia, *common, start, worker.barrier_address, worker.rank, worker.size, space
        rows, settings = (x.ctypes.data, x.strides[0]), (centroids, metric == "cosine", shift, block, first, last, stop)
        if n_bounds:
            bounded_moves(*rows, *settings, most, tolerance, labels, bounds, drifts, moved, *rest)
        else:
            plain_moves(*rows, dtype_code, *settings, most, tolerance, labels, losses, inverse_norms, *rest)

    # A thread sees Ctrl-C only between kernels.
    passes_per_call = max(WORK_PER_CALL // max(count * clusters * width, 1), 1)
    while ended[1] == CONTINUE:
        team.run_team(work, most=n_threads)
    moves, status = ended.tolist()
    passes = moves + (status == ENDED)
    last = labels[(passes - 1) % 2].copy() if passes else None
    return Moves(centroids, last, total, counts, history[:passes].tolist(), status == ENDED)


def aligned_rows(x: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Return rows minus a shift, (N, D), as float32 from the start of a cache line on, which is read fastest."""
    if not len(shift) and x.dtype == np.float32 and x.flags.c_contiguous and x.ctypes.data % (4 * LINE) == 0:
        return x
    room = np.empty(x.size + LINE, np.float32)
    first = -(room.ctypes.data // room.itemsize) % LINE
    rows = room[first : first + x.size].reshape(x.shape)
    with np.errstate(over="ignore", invalid="ignore"):
        rows[:] = x
        if len(shift):
            rows -= shift
    return rows


def readable_as_float32(x: np.ndarray) -> bool:
    """Return whether rows are float32 in place, or few enough to be copied."""
    return len(x) <= FEW_ROWS or (x.dtype == np.float32 and x.dtype.isnative and x.flags.c_contiguous)


def kmeans_move(sums: np.ndarray, counts: np.ndarray, centroids: np.ndarray, *, metric: str = "cosine") -> np.ndarray:
    if centroids.dtype != np.float32:
        return reference.kmeans_move(sums, counts, centroids, metric=metric)
    moved = np.array(centroids, order="C")
    for cluster in range(len(moved)):
        move(sums[cluster], counts[cluster], moved[cluster], metric == "cosine")
    return moved


@kernel(IN(1, types.float64), types.float64, OUT(1), types.boolean, fastmath=False, shared=True)
def move(total, count, centroid, cosine):
    """Move a centroid (D,) to the mean of rows whose sum is `total` (D,), or to the direction of the mean.

    `count` is the number of rows, or the sum of their weights. Returns how far it has moved.
    """
    size = count
    if cosine:
        size = 0.0
        for d in range(total.shape[0]):
            size += total[d] * total[d]
        size = np.sqrt(size)
    square = 0.0
    if count > 0 and size > 0:
        for d in range(total.shape[0]):
            before = np.float64(centroid[d])
            centroid[d] = total[d] / size
            square += (centroid[d] - before) ** 2
    return np.sqrt(square)


@kernel
def end_of_pass(tallies, inertia, clusters, moves, most, before, tolerance):
    """Return the status after a pass over the rows, and its inertia.

    All threads add the same numbers in the same order, and so arrive at the same status.
    """
    total = 0.0
    for part in inertia:
        total += part
    all_kept = moves > 0
    for m in range(tallies.shape[0]):
        all_kept = all_kept and tallies[m, clusters] != 0
    status = CONTINUE
    if moves == most or all_kept or (moves > 0 and before - total <= tolerance * before):
        status = ENDED
    for j in range(clusters):
        rows = 0
        for m in range(tallies.shape[0]):
            rows += tallies[m, j]
        if rows == 0:
            status = UNUSUAL
    if not np.isfinite(total):
        status = UNUSUAL
    return status, total


@kernel
def sum_blocks(tallies, sums, total, j):
    """Set ``total[j]`` to the sum of the rows of cluster j in all blocks, and return their number."""
    total[j] = 0
    for b in range(sums.shape[0]):
        for d in range(sums.shape[2]):
            total[j, d] += sums[b, j, d]
    count = 0
    for m in range(tallies.shape[0]):
        count += tallies[m, j]
    return count


@kernel(
    types.int64, types.int64, types.int64, OUT(2, layout="C"), types.boolean, IN(1), *[types.int64] * 5, types.float64,
    OUT(2, types.int32, "C"), OUT(1), IN(1), OUT(3, types.float64, "C"), OUT(1, types.float64),
    OUT(2, types.int64, "C"), OUT(2, types.float64, "C"), OUT(1, types.int64), OUT(1, types.float64),
    OUT(1, types.int64), *[types.int64] * 4, WORKSPACE,
)  # fmt: skip
def plain_moves(
    x, step, dtype_code, centroids, cosine, shift, block, first, last, stop, most, tolerance, labels, losses,
    inverse_norms, sums, inertia, tallies, total, counts, history, ended, start, barrier, rank, n_threads, work,
):  # fmt: skip
    """Run Lloyd's algorithm in one thread of a team, which handles its share of the rows and of the clusters.

    Parameters
    ----------
    x, step, dtype_code, cosine, shift, block, work
        As in :func:`vitnp.kernels.cpu.kmeans.assign_and_add`; `x` is the address of the rows of all threads.
    centroids : (K, D) float32, IN and OUT
    first, last : int
        Rows of this thread, whole blocks.
    start, stop : int
        Passes over the rows to do now, from `start` on until before `stop`, unless the algorithm ends.
    most : int
        Maximum number of moves.
    tolerance : float
    labels : (2, N) int32, OUT
        Labels of even and of odd passes.
    inverse_norms : (N,) or (0,) float32, IN
        As in :func:`vitnp.kernels.cpu.kmeans.assign_and_add`.
    losses : (N,) float32, sums : (B, K, D) float64, inertia : (B,) float64, OUT
        Results of the last pass.
    tallies : (n_threads, K + 1) int64, OUT
        Rows of each cluster in each thread's share, and whether all of its labels are the same as in the previous pass.
    total : (K, D) float64, counts : (K,) int64, OUT
        Sum and number of all rows of each cluster, in the last pass that was not UNUSUAL.
    history : (most + 1,) float64, IN and OUT
        Inertia of each pass.
    ended : (2,) int64, OUT
        Number of moves before the last pass, and the status after it.
    barrier, rank, n_threads : int
        Attributes of :class:`vitnp.kernels.threads.team.Worker`.
    """
    clusters = centroids.shape[0]
    own_blocks = slice(first // block, (last + block - 1) // block)
    own_clusters = range(clusters * rank // n_threads, clusters * (rank + 1) // n_threads)
    tally = tallies[rank]
    before = history[start - 1] if start > 0 else np.inf
    for moves in range(start, stop):
        current, previous = labels[moves % 2, first:last], labels[(moves + 1) % 2, first:last]
        tally[:] = 0
        assign_and_add(
            x + first * step, step, dtype_code, centroids, cosine, shift, block, current, losses[first:last],
            sums[own_blocks], tally[:clusters], inertia[own_blocks],
            inverse_norms[first:last] if len(inverse_norms) else inverse_norms, work,
        )  # fmt: skip
        kept = moves > 0
        i = 0
        while kept and i < last - first:
            kept = current[i] == previous[i]
            i += 1
        tally[clusters] = kept
        if not spin_wait(barrier, n_threads):
            return
        status, before = end_of_pass(tallies, inertia, clusters, moves, most, before, tolerance)
        if rank == 0:
            ended[0], ended[1] = moves, status
        if status == UNUSUAL:
            return
        if rank == 0:
            history[moves] = before
        for j in own_clusters:
            counts[j] = sum_blocks(tallies, sums, total, j)
            if status == CONTINUE:
                move(total[j], np.float64(counts[j]), centroids[j], cosine)
        if status == ENDED or not spin_wait(barrier, n_threads):
            return
