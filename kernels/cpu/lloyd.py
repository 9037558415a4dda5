"""Lloyd's algorithm on few rows: all its iterations in one kernel, whose threads meet inside.

An iteration over the patches of a photograph takes a tenth of a millisecond, as long as it takes to wake a Python thread.
"""

from __future__ import annotations

import numpy as np
from numba import types
from vitnp.kernels import reference
from vitnp.kernels.cpu.codegen.barrier import meet
from vitnp.kernels.cpu.codegen.jit import IN, OUT, kernel
from vitnp.kernels.cpu.codegen.rows import rows_of
from vitnp.kernels.cpu.kmeans import NOTHING, WORK, assign_and_add, work_for
from vitnp.kernels.reference import Moves
from vitnp.kernels.threads import pool, team

# Verdicts on a pass: what to do next.
GO_ON, ENDED, UNUSUAL = 0, 1, 2


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
    x, kind = rows_of(x)
    shift = NOTHING if shift is None else shift
    centroids = np.array(centroids, order="C")
    labels, losses = np.empty((2, count), np.int32), np.empty(count, np.float32)
    sums, inertia = np.empty((blocks, clusters, width)), np.empty(blocks)
    total, counts, history = np.empty((clusters, width)), np.zeros(clusters, np.int64), np.empty(most + 1)
    members = min(pool.allowed_threads(), blocks)
    tallies, ended = np.zeros((members, clusters + 1), np.int64), np.zeros(2, np.int64)

    def work(worker: team.Worker) -> None:
        first, last = worker.share(count, block)
        _moves(
            x.ctypes.data, x.strides[0], kind, centroids, metric == "cosine", shift, block, first, last, most, tolerance,
            labels, losses, sums, inertia, tallies, total, counts, history, ended,
            worker.barrier_address, worker.rank, worker.size, work_for(clusters, width),
        )  # fmt: skip

    team.run_team(work, most=members)
    moves, verdict = ended.tolist()
    passes = moves + (verdict == ENDED)
    last = labels[(passes - 1) % 2].copy() if passes else None
    return Moves(centroids, last, total, counts, history[:passes].tolist(), verdict == ENDED)


def kmeans_move(sums: np.ndarray, counts: np.ndarray, centroids: np.ndarray, *, metric: str = "cosine") -> np.ndarray:
    if centroids.dtype != np.float32:
        return reference.kmeans_move(sums, counts, centroids, metric=metric)
    moved = np.array(centroids, order="C")
    for cluster in range(len(moved)):
        _move(sums[cluster], counts[cluster], moved[cluster], metric == "cosine")
    return moved


@kernel(IN(1, types.float64), types.int64, OUT(1), types.boolean, fastmath=False)
def _move(total, count, centroid, cosine):
    """Move a centroid (D,) to the mean of `count` rows whose sum is `total` (D,), or to its direction."""
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
    OUT(2, types.float64, "C"), OUT(1, types.int64), OUT(1, types.float64), OUT(1, types.int64), *[types.int64] * 3, WORK,
)  # fmt: skip
def _moves(
    x, step, kind, centroids, cosine, shift, block, first, last, most, tolerance, labels, losses, sums, inertia, tallies,
    total, counts, history, ended, meeting, index, members, work,
):  # fmt: skip
    """What one of the threads does: its rows, its clusters.

    Parameters
    ----------
    x, step, kind, cosine, shift, block, work
        As in :func:`vitnp.kernels.cpu.kmeans.assign_and_add`, but `x` the address of all rows.
    centroids : (K, D) float32, OUT
    first, last : int
        The thread's own rows, whole blocks.
    most : int
        Moves at most.
    tolerance : float
    labels : (2, N) int32, OUT
        Of the passes in turn.
    losses : (N,) float32, sums : (B, K, D) float64, inertia : (B,) float64, OUT
        Of the last pass.
    tallies : (members, K + 1) int64, OUT
        Rows of each cluster among a thread's own, and whether all have kept their labels.
    total : (K, D) float64, counts : (K,) int64, OUT
        Of all rows, in the last ordinary pass.
    history : (most + 1,) float64, OUT
        Inertia of each pass.
    ended : (2,) int64, OUT
        Moves made, and the last verdict.
    meeting, index, members : int
        Of the thread, see :class:`vitnp.kernels.threads.team.Worker`.
    """
    clusters, width = centroids.shape
    blocks = inertia.shape[0]
    own_blocks = slice(first // block, (last + block - 1) // block)
    own_clusters = range(clusters * index // members, clusters * (index + 1) // members)
    tally = tallies[index]
    before = np.inf
    for moves in range(most + 1):
        now, former = labels[moves % 2, first:last], labels[(moves + 1) % 2, first:last]
        tally[:] = 0
        assign_and_add(
            x + first * step, step, kind, centroids, cosine, shift, block, now, losses[first:last], sums[own_blocks],
            tally[:clusters], inertia[own_blocks], work,
        )  # fmt: skip
        kept = moves > 0
        i = 0
        while kept and i < last - first:
            kept = now[i] == former[i]
            i += 1
        tally[clusters] = kept
        if not meet(meeting, members):
            return
        # Everybody adds up the same numbers in the same order, and so comes to the same verdict.
        now_all = 0.0
        for b in range(blocks):
            now_all += inertia[b]
        verdict = ENDED if moves == most else GO_ON
        if moves > 0:
            all_kept = True
            for m in range(members):
                all_kept = all_kept and tallies[m, clusters] != 0
            if all_kept or before - now_all <= tolerance * before:
                verdict = ENDED
        for j in range(clusters):
            rows = 0
            for m in range(members):
                rows += tallies[m, j]
            if rows == 0:
                verdict = UNUSUAL
        if not np.isfinite(now_all):
            verdict = UNUSUAL
        if index == 0:
            ended[0], ended[1] = moves, verdict
        if verdict == UNUSUAL:
            return
        if index == 0:
            history[moves] = now_all
        before = now_all
        for j in own_clusters:
            counts[j] = 0
            for m in range(members):
                counts[j] += tallies[m, j]
            total[j] = 0
            for b in range(blocks):
                for d in range(width):
                    total[j, d] += sums[b, j, d]
            if verdict == GO_ON:
                _move(total[j], counts[j], centroids[j], cosine)
        if verdict == ENDED or not meet(meeting, members):
            return
