"""Lloyd's algorithm on few rows: all iterations in one kernel, whose threads wait for each other inside.

An iteration over the patches of a photograph takes a tenth of a millisecond, as long as waking a Python thread.
"""

from __future__ import annotations

import numpy as np
from numba import types
from vitnp.kernels import reference
from vitnp.kernels.cpu.codegen.barrier import spin_wait
from vitnp.kernels.cpu.codegen.jit import IN, OUT, kernel
from vitnp.kernels.cpu.codegen.rows import WORKSPACE, readable_rows
from vitnp.kernels.cpu.kmeans import EMPTY, assign_and_add
from vitnp.kernels.cpu.kmeans_rows import step_workspace
from vitnp.kernels.reference import Moves
from vitnp.kernels.threads import pool, team

# Status after a pass over the rows: continue, converged, or left to the caller (an empty cluster, NaN or infinity).
CONTINUE, ENDED, UNUSUAL = 0, 1, 2


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
    x, dtype_code = readable_rows(x)
    shift = EMPTY if shift is None else shift
    centroids = np.array(centroids, order="C")
    labels, losses = np.empty((2, count), np.int32), np.empty(count, np.float32)
    sums, inertia = np.empty((blocks, clusters, width)), np.empty(blocks)
    total, counts, history = np.empty((clusters, width)), np.zeros(clusters, np.int64), np.empty(most + 1)
    n_threads = min(pool.allowed_threads(), blocks)
    tallies, ended = np.zeros((n_threads, clusters + 1), np.int64), np.zeros(2, np.int64)

    def work(worker: team.Worker) -> None:
        first, last = worker.share(count, block)
        _moves(
            x.ctypes.data, x.strides[0], dtype_code, centroids, metric == "cosine", shift, block, first, last, most,
            tolerance, labels, losses, sums, inertia, tallies, total, counts, history, ended,
            worker.barrier_address, worker.rank, worker.size, step_workspace(clusters, width),
        )  # fmt: skip

    team.run_team(work, most=n_threads)
    moves, status = ended.tolist()
    passes = moves + (status == ENDED)
    last = labels[(passes - 1) % 2].copy() if passes else None
    return Moves(centroids, last, total, counts, history[:passes].tolist(), status == ENDED)


def kmeans_move(sums: np.ndarray, counts: np.ndarray, centroids: np.ndarray, *, metric: str = "cosine") -> np.ndarray:
    if centroids.dtype != np.float32:
        return reference.kmeans_move(sums, counts, centroids, metric=metric)
    moved = np.array(centroids, order="C")
    for cluster in range(len(moved)):
        _move(sums[cluster], counts[cluster], moved[cluster], metric == "cosine")
    return moved


@kernel(IN(1, types.float64), types.int64, OUT(1), types.boolean, fastmath=False)
def _move(total, count, centroid, cosine):
    """Move a centroid (D,) to the mean of `count` rows whose sum is `total` (D,), or to the direction of the mean."""
    size = np.float64(count)
    if cosine:
        size = 0.0
        for d in range(total.shape[0]):
            size += total[d] * total[d]
        size = np.sqrt(size)
    if count > 0 and size > 0:
        for d in range(total.shape[0]):
            centroid[d] = total[d] / size


@kernel(
    types.int64, types.int64, types.int64, OUT(2, layout="C"), types.boolean, IN(1), *[types.int64] * 4, types.float64,
    OUT(2, types.int32, "C"), OUT(1), OUT(3, types.float64, "C"), OUT(1, types.float64), OUT(2, types.int64, "C"),
    OUT(2, types.float64, "C"), OUT(1, types.int64), OUT(1, types.float64), OUT(1, types.int64), *[types.int64] * 3,
    WORKSPACE,
)  # fmt: skip
def _moves(
    x, step, dtype_code, centroids, cosine, shift, block, first, last, most, tolerance, labels, losses, sums, inertia,
    tallies, total, counts, history, ended, barrier, rank, n_threads, work,
):  # fmt: skip
    """Run Lloyd's algorithm in one thread of a team, which handles its share of the rows and of the clusters.

    Parameters
    ----------
    x, step, dtype_code, cosine, shift, block, work
        As in :func:`vitnp.kernels.cpu.kmeans.assign_and_add`; `x` is the address of the rows of all threads.
    centroids : (K, D) float32, IN and OUT
    first, last : int
        Rows of this thread, whole blocks.
    most : int
        Maximum number of moves.
    tolerance : float
    labels : (2, N) int32, OUT
        Labels of even and of odd passes.
    losses : (N,) float32, sums : (B, K, D) float64, inertia : (B,) float64, OUT
        Results of the last pass.
    tallies : (n_threads, K + 1) int64, OUT
        Rows of each cluster in each thread's share, and whether all of its labels are the same as in the previous pass.
    total : (K, D) float64, counts : (K,) int64, OUT
        Sum and number of all rows of each cluster, in the last pass that was not UNUSUAL.
    history : (most + 1,) float64, OUT
        Inertia of each pass.
    ended : (2,) int64, OUT
        Number of moves, and the last status.
    barrier, rank, n_threads : int
        Attributes of :class:`vitnp.kernels.threads.team.Worker`.
    """
    clusters, width = centroids.shape
    blocks = inertia.shape[0]
    own_blocks = slice(first // block, (last + block - 1) // block)
    own_clusters = range(clusters * rank // n_threads, clusters * (rank + 1) // n_threads)
    tally = tallies[rank]
    before = np.inf
    for moves in range(most + 1):
        current, previous = labels[moves % 2, first:last], labels[(moves + 1) % 2, first:last]
        tally[:] = 0
        assign_and_add(
            x + first * step, step, dtype_code, centroids, cosine, shift, block, current, losses[first:last],
            sums[own_blocks], tally[:clusters], inertia[own_blocks], work,
        )  # fmt: skip
        kept = moves > 0
        i = 0
        while kept and i < last - first:
            kept = current[i] == previous[i]
            i += 1
        tally[clusters] = kept
        if not spin_wait(barrier, n_threads):
            return
        # All threads add the same numbers in the same order, and so arrive at the same status.
        total_inertia = 0.0
        for b in range(blocks):
            total_inertia += inertia[b]
        status = ENDED if moves == most else CONTINUE
        if moves > 0:
            all_kept = True
            for m in range(n_threads):
                all_kept = all_kept and tallies[m, clusters] != 0
            if all_kept or before - total_inertia <= tolerance * before:
                status = ENDED
        for j in range(clusters):
            rows = 0
            for m in range(n_threads):
                rows += tallies[m, j]
            if rows == 0:
                status = UNUSUAL
        if not np.isfinite(total_inertia):
            status = UNUSUAL
        if rank == 0:
            ended[0], ended[1] = moves, status
        if status == UNUSUAL:
            return
        if rank == 0:
            history[moves] = total_inertia
        before = total_inertia
        for j in own_clusters:
            counts[j] = 0
            for m in range(n_threads):
                counts[j] += tallies[m, j]
            total[j] = 0
            for b in range(blocks):
                for d in range(width):
                    total[j, d] += sums[b, j, d]
            if status == CONTINUE:
                _move(total[j], counts[j], centroids[j], cosine)
        if status == ENDED or not spin_wait(barrier, n_threads):
            return
