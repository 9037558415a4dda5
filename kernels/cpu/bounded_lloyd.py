"""Lloyd's algorithm with bounds of distances, see :mod:`vitnp.kernels.cpu.bounds`; imported when bounds are used."""

from __future__ import annotations

import numpy as np
from vitnp.kernels.cpu.bounds import (
    MAX_SQUARE,
    SLIGHTLY_LESS,
    add_scaled_row,
    add_shifted_row,
    count_bits,
    lanes_not_above,
    lowest_bit,
    margins,
    own_distance,
    own_product,
    round_drift,
    store_bound,
    store_bounds,
)
from vitnp.kernels.cpu.codegen import types
from vitnp.kernels.cpu.codegen.barrier import spin_wait
from vitnp.kernels.cpu.codegen.jit import IN, OUT, kernel
from vitnp.kernels.cpu.codegen.products import MAX_DOTS, products
from vitnp.kernels.cpu.codegen.rows import (
    FAR_AHEAD,
    ROWS,
    TINY,
    WORKSPACE,
    add_scaled,
    add_to_float64,
    distance,
    read_row,
    row_norm,
)
from vitnp.kernels.cpu.codegen.simd import LANES
from vitnp.kernels.cpu.codegen.stack import stack_array
from vitnp.kernels.cpu.kmeans_rows import (
    FLOAT32_ROWS,
    best_column,
    dot,
    prepare_step,
)
from vitnp.kernels.cpu.lloyd import CONTINUE, ENDED, UNUSUAL, end_of_pass, move, sum_blocks

# Rows that are tested, assigned and added at a time: they stay in the L2 cache.
SPAN = 96
_new_numbers, _new_indices = stack_array(SPAN), stack_array(SPAN, dtype=types.int64)

SINGLE = np.dtype(np.float32).itemsize


@kernel(fastmath=False)  # because square roots and quotients would be approximated
def _limits(losses, factor, slope, margin, limits, count):
    """Set `limits` to the distances that all others of a row must exceed; infinite if it has to be assigned anew."""
    for i in range(count):
        limit = np.sqrt(slope * (factor * losses[i]) + margin)
        limits[i] = limit if losses[i] < MAX_SQUARE else np.float32(np.inf)


@kernel(fastmath=False)
def _inverse_norms(squares, inverses, count):
    """Set `inverses` to 1 / norm; infinite where a row has to be scaled up first, or is not finite."""
    for i in range(count):
        inverse = np.float32(1) / np.sqrt(squares[i])
        inverses[i] = inverse if TINY <= squares[i] < np.inf else np.float32(np.inf)


@kernel
def _own_losses(x, step, shift, centers, cosine, n, labels, first, count, losses, squares, inverses):
    """Compute the losses of rows for the centroids of their labels, with the cosine also 1 / norm of each row."""
    if not cosine:
        for i in range(count):
            center = centers + SINGLE * labels[first + i] * n
            losses[i] = own_distance(x + (first + i) * step, shift, center, n, 0, FAR_AHEAD)
        return
    for i in range(count):
        center, square = centers + SINGLE * labels[first + i] * n, squares.ctypes.data + SINGLE * i
        losses[i] = own_product(x + (first + i) * step, 0, center, n, square, FAR_AHEAD)
    _inverse_norms(squares, inverses, count)
    for i in range(count):
        loss = np.float32(1) - losses[i] * inverses[i]
        losses[i] = loss if inverses[i] < np.inf else np.float32(np.inf)


@kernel
def _count_low(bounds, up, groups, limit):
    """Return the number of bounds that do not exceed the limit."""
    n_low = 0
    for first in range(0, groups, LANES):
        n_low += count_bits(lanes_not_above(bounds + SINGLE * first, up + SINGLE * first, limit))
    return n_low


@kernel
def _raise_bounds(
    row, shift, inverse, centers, cosine, n, label, clusters, bounds, up, down, limit, groups, factor, shrink, margin
):
    """Measure the centroids whose bounds do not exceed the limit; return whether the new bounds all do."""
    for first in range(0, groups, LANES):
        mask = lanes_not_above(bounds + SINGLE * first, up + SINGLE * first, limit)
        while mask != 0:
            group = first + lowest_bit(mask)
            mask &= mask - 1
            lower = np.float32(np.inf)
            for j in range(group, clusters, groups):
                if j != label:
                    center = centers + SINGLE * j * n
                    if cosine:
                        loss = np.float32(1) - dot(row, center, n) * inverse
                    else:
                        loss = own_distance(row, shift, center, n, 0, 0)
                    lower = min(lower, factor * loss * shrink - margin)
            lower = np.sqrt(max(lower, np.float32(0))) * SLIGHTLY_LESS
            if not lower > limit:
                return False
            store_bound(bounds + SINGLE * group, down + SINGLE * group, lower)
    return True


@kernel
def _assign_and_add(
    x, step, centroids, cosine, shift, block, previous, known, labels, bounds, drift, sums, counts, inertia, work
):
    """Assign every row to a centroid, sum the rows of each cluster, and return whether no label has changed.

    Parameters
    ----------
    previous : (N,) int32, IN
        Labels of the previous pass.
    known : bool
        Whether there was one.
    x, step, centroids, cosine, shift, block, labels, bounds, drift, sums, counts, inertia, work
        As in :func:`bounded_moves` and :func:`vitnp.kernels.cpu.kmeans.assign_and_add`.
    """
    n, columns, wide, rows, out, offset, packed, bias, centers, cluster_sums = prepare_step(
        work, centroids, shift, cosine
    )
    clusters, groups = centroids.shape[0], drift.shape[0]
    rounded = cluster_sums + clusters * n
    round_drift(drift, work, rounded, rounded + groups)
    factor, slope, margin, shrink = margins(centroids, cosine)
    base = work.ctypes.data
    shift_address, packed_address, bias_address = base + SINGLE * offset, base + SINGLE * packed, base + SINGLE * bias
    centers_address, up = base + SINGLE * centers, base + SINGLE * rounded
    down = up + SINGLE * groups
    bounds_address, bounds_step = bounds.ctypes.data, SINGLE * groups
    # Most centroids that are measured one by one; if there are more, it is faster to assign the row anew.
    most_low = (1 + clusters // 8) // ((clusters + groups - 1) // groups)
    losses, inverses, squares, limits = _new_numbers(), _new_numbers(), _new_numbers(), _new_numbers()
    open_rows = _new_indices()  # rows that may change their label
    all_kept = known
    for index in range(inertia.shape[0]):
        end = min((index + 1) * block, labels.shape[0])
        sums[index] = 0
        subtotal = 0.0
        for chunk in range(index * block, end, FLOAT32_ROWS):
            stop = min(chunk + FLOAT32_ROWS, end)
            work[cluster_sums : cluster_sums + clusters * n] = 0
            for first in range(chunk, stop, SPAN):
                count = min(SPAN, stop - first)
                n_open = 0
                if known:
                    _own_losses(
                        x, step, shift_address, centers_address, cosine, n, previous, first, count, losses, squares,
                        inverses,
                    )  # fmt: skip
                    _limits(losses, factor, slope, margin, limits, count)
                for i in range(count):
                    label, row_bounds = previous[first + i], bounds_address + bounds_step * (first + i)
                    if known:
                        n_low = _count_low(row_bounds, up, groups, limits[i])
                        if n_low == 0 or (
                            n_low <= most_low
                            and _raise_bounds(
                                x + (first + i) * step, shift_address, inverses[i], centers_address, cosine, n, label,
                                clusters, row_bounds, up, down, limits[i], groups, factor, shrink, margin,
                            )
                        ):  # fmt: skip
                            labels[first + i] = label
                            continue
                    open_rows[n_open] = i
                    n_open += 1
                for part in range(0, n_open, ROWS):
                    some = min(ROWS, n_open - part)
                    for k in range(some):
                        i, at = open_rows[part + k], rows + k * n
                        row = x + (first + i) * step
                        square = read_row(base + SINGLE * at, row, 0, shift_address, n, 0)
                        if cosine:
                            inverses[i] = np.float32(1) / row_norm(work, at, n, square)
                            if square < TINY:
                                inverses[i] = -inverses[i]  # to be scaled up when it is added, too
                    products(base + SINGLE * rows, some, n, packed_address, columns, base + SINGLE * out, wide, x, 0)
                    for k in range(some):
                        i, at = open_rows[part + k], out + k * wide
                        label = best_column(work, at, bias, columns, wide)
                        center, scale = centers + label * n, np.float32(2)
                        if cosine:
                            inverse = abs(inverses[i])
                            product = work[at + label]
                            if columns > MAX_DOTS:
                                product = dot(base + SINGLE * (rows + k * n), base + SINGLE * center, n)
                            losses[i] = np.float32(1) - product * inverse
                            scale *= inverse
                        else:
                            losses[i] = distance(base + SINGLE * (rows + k * n), base + SINGLE * center, n)
                        own = work[at + label] + work[bias + label]
                        work[at + label] = -np.inf
                        store_bounds(
                            base + SINGLE * at, bias_address, wide, down, bounds_address + bounds_step * (first + i),
                            groups, own, scale, factor * losses[i], shrink, margin,
                        )  # fmt: skip
                        all_kept = all_kept and label == previous[first + i]
                        labels[first + i] = label
                for i in range(count):
                    row, label = x + (first + i) * step, labels[first + i]
                    target = base + SINGLE * (cluster_sums + label * n)
                    if not cosine:
                        add_shifted_row(row, shift_address, target, n, np.float32(0))
                    elif inverses[i] < 0:
                        square = read_row(base + SINGLE * rows, row, 0, shift_address, n, 0)
                        row_norm(work, rows, n, square)
                        add_scaled(base + SINGLE * rows, target, n, -inverses[i], row)
                    else:
                        add_scaled_row(row, 0, target, n, inverses[i])
                    counts[label] += 1
                    subtotal += losses[i]
            for j in range(clusters):
                target = sums.ctypes.data + 8 * (index * clusters + j) * n
                add_to_float64(base + SINGLE * (cluster_sums + j * n), n, target)
        inertia[index] = subtotal
    return all_kept


@kernel(
    types.int64, types.int64, OUT(2, layout="C"), types.boolean, IN(1), *[types.int64] * 5, types.float64,
    OUT(2, types.int32, "C"), OUT(2, layout="C"), OUT(2, types.float64, "C"), OUT(1, types.float64),
    OUT(3, types.float64, "C"), OUT(1, types.float64), OUT(2, types.int64, "C"), OUT(2, types.float64, "C"),
    OUT(1, types.int64), OUT(1, types.float64), OUT(1, types.int64), *[types.int64] * 4, WORKSPACE,
)  # fmt: skip
def bounded_moves(
    x, step, centroids, cosine, shift, block, first, last, stop, most, tolerance, labels, bounds, drifts, moved,
    sums, inertia, tallies, total, counts, history, ended, start, barrier, rank, n_threads, work,
):  # fmt: skip
    """Run Lloyd's algorithm in one thread of a team, as :func:`vitnp.kernels.cpu.lloyd.plain_moves`.

    Parameters
    ----------
    x, step : int
        Address of float32 rows of whole vectors, and bytes from row to row.
    bounds : (N, G) float32, IN and OUT
        Bounds of the rows' distances to groups of centroids.
    drifts : (n_threads, G) float64, IN and OUT
        How far the centroids of each group have moved at most, the same in every thread.
    moved : (K,) float64, IN and OUT
        How far each centroid has moved last.
    centroids, cosine, shift, block, first, last, stop, most, tolerance, labels, sums, inertia, tallies, total, counts,
    history, ended, start, barrier, rank, n_threads, work
        As in :func:`vitnp.kernels.cpu.lloyd.plain_moves`.
    """
    clusters = centroids.shape[0]
    own_blocks = slice(first // block, (last + block - 1) // block)
    own_clusters = range(clusters * rank // n_threads, clusters * (rank + 1) // n_threads)
    tally, drift = tallies[rank], drifts[rank]
    before = history[start - 1] if start > 0 else np.inf
    for moves in range(start, stop):
        tally[:] = 0
        tally[clusters] = _assign_and_add(
            x + first * step, step, centroids, cosine, shift, block, labels[(moves + 1) % 2, first:last], moves > 0,
            labels[moves % 2, first:last], bounds[first:last], drift, sums[own_blocks], tally[:clusters],
            inertia[own_blocks], work,
        )  # fmt: skip
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
                moved[j] = move(total[j], np.float64(counts[j]), centroids[j], cosine)
        if status == ENDED or not spin_wait(barrier, n_threads):
            return
        groups = drift.shape[0]
        for group in range(groups):
            farthest = 0.0
            for j in range(group, clusters, groups):
                farthest = max(farthest, moved[j])
            drift[group] += farthest
