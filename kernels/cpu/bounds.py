"""k-means with bounds: skip the distances that cannot change a label, with the same bits of labels, sums and losses.

Elkan (2003) keeps for each row and each centroid a lower bound of their distance: when a centroid moves by s, the bound
falls by s. A row whose distance to its own centroid is below all bounds keeps its label, and needs one distance instead
of K. With many centroids, a bound is shared by a group of them, as in the Yinyang k-means of Ding et al. (2015).

Labels are those of the products in float32, ties included: the distances that are skipped must differ by more than
their rounding errors, see :func:`margins`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from llvmlite import ir
from vitnp.kernels.cpu.codegen import types
from vitnp.kernels.cpu.codegen.jit import intrinsic, kernel
from vitnp.kernels.cpu.codegen.products import DEPTH, MAX_DOTS
from vitnp.kernels.cpu.codegen.simd import FLOAT, I64, LANES, Vectors, loop

# Smallest number of centroids for which bounds save more than they cost over whole fits, as measured by
# ``python -m bench cpu kmeans``: for rows that stay in the cache, and for rows that come from memory in every pass.
MIN_CLUSTERS, MIN_CLUSTERS_IN_MEMORY = 8, 16

# Rows that stay in the cache.
FEW_ROWS = 8192

# Largest size of the bounds of a row, as a share of the size of the row: more memory traffic would not pay.
MAX_SHARE = 0.25

# Half the distance from 1 to the next float32: the largest relative error of one operation.
UNIT_ROUNDOFF = 2.0**-24

# A factor that outweighs the rounding of the next few operations.
SLIGHTLY_LESS = np.float32(1 - 4 * UNIT_ROUNDOFF)

# Squared distances below this number are lost among denormals, those above the other one near overflow.
MIN_SQUARE, MAX_SQUARE = 1e-36, 1e30

# Largest deviation of a unit centroid's square from 1.
MAX_UNIT_ERROR = 1e-6


def bounds_per_row(n_rows: int, n_clusters: int, width: int) -> int:
    """Return the number of bounds per row, a multiple of LANES; 0 if k-means is faster without, or has to do without.

    Bounds are used from MIN_CLUSTERS centroids on, for more than FEW_ROWS rows from MIN_CLUSTERS_IN_MEMORY on, if a row
    consists of whole vectors, at least four per vector of bounds.

    Examples
    --------
    >>> bounds_per_row(3600, 4, 384), bounds_per_row(100_000, 8, 384), bounds_per_row(3600, 8, 99)
    (0, 0, 0)
    """
    if n_clusters < (MIN_CLUSTERS if n_rows <= FEW_ROWS else MIN_CLUSTERS_IN_MEMORY) or width % LANES:
        return 0
    most = int(width * MAX_SHARE) // LANES * LANES
    return min(-(-n_clusters // LANES) * LANES, most)


@kernel
def margins(centroids, cosine):
    """Return the constants (factor, slope, offset, shrink) of the bounds for the errors of products in float32.

    Notation: d is the distance from a row x, as the metric sees it, to a centroid; u the one to the row's own. A row is
    skipped if all bounds of d exceed ``sqrt(slope u^2 + offset)``, where u^2 is `factor` times the loss.

    The score of a centroid is x.c - |c|^2 / 2, so d^2 - u^2 is twice the difference of two scores. A sum of products
    after r roundings has an error of at most g |x| |c|, with g = r UNIT_ROUNDOFF (Higham 2002, section 3.1). With C the
    largest norm of a centroid, |x| <= u + C, hence |x| |c| <= (u + C) C <= 1.5 C^2 + u^2 / 2. The halved square adds
    C^2 / 2, and its sum with the product at most as much again: a score is wrong by at most g (2.5 C^2 + u^2 / 2), and
    d^2 - u^2, of two scores, by 4 times that, g (10 C^2 + 2 u^2). Twice as much is left, 20 g C^2 and 4 g u^2, for the
    roundings of the bounds themselves and of drifts that are added up. Another g u^2 is for u^2, a sum of squared
    differences: `slope` is 1 + 5 g, and bounds are lowered likewise when they are stored, by `shrink` and the offset.

    The bound is for errors that all have one sign. Real ones partly cancel: of rows made for the purpose, all of one
    number so that roundings repeat, some change their label unnoticed with a fiftieth of the margin, none with a
    twentieth.
    With the cosine, x and c have length 1, up to rounding.
    """
    clusters, n = centroids.shape
    largest, unit = 0.0, True
    for j in range(clusters):
        square = 0.0
        for d in range(n):
            square += np.float64(centroids[j, d]) * centroids[j, d]
        largest = max(largest, square)
        unit = unit and abs(square - 1) <= MAX_UNIT_ERROR
    roundings = n / LANES + 8 if clusters <= MAX_DOTS else min(n, DEPTH) + n / DEPTH + 8
    g = 1.1 * (roundings + 8) * UNIT_ROUNDOFF
    if not largest < MAX_SQUARE or (cosine and not unit):
        return np.float32(1), np.float32(1), np.float32(np.inf), np.float32(0)
    slope, shrink = np.float32(1 + 5 * g), np.float32(1 - 5 * g)
    if cosine:
        return np.float32(2), slope, np.float32(20 * g + 4 * MAX_UNIT_ERROR), shrink
    return np.float32(1), slope, np.float32(20 * g * largest + MIN_SQUARE), shrink


@kernel
def round_drift(drift, work, up, down):
    """Write how far centroids have moved so far, as float32 rounded up and rounded down, to ``work[up:]``, `down`."""
    for j in range(drift.shape[0]):
        work[up + j] = drift[j] * (1 + 4 * UNIT_ROUNDOFF)
        work[down + j] = drift[j] * (1 - 4 * UNIT_ROUNDOFF)


@intrinsic
def lanes_not_above(context, bounds, drift, limit):
    """Return a bit for each of LANES numbers of ``bounds - drift`` that is not larger than the limit, or NaN."""

    def generate(context, builder, signature, arguments):
        bounds, drift, limit = arguments
        v = Vectors(builder)
        lower = builder.fsub(v.load(v.pointer(bounds)), v.load(v.pointer(drift)))
        below = builder.fcmp_unordered("<=", lower, v.splat(limit))
        return builder.zext(builder.bitcast(below, ir.IntType(LANES)), I64)

    return types.int64(types.int64, types.int64, types.float32), generate


@intrinsic
def lowest_bit(context, mask):
    """Return the index of the lowest bit that is set in a mask that is not 0."""

    def generate(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.IntType(1)(1))

    return types.int64(types.int64), generate


@intrinsic
def count_bits(context, mask):
    """Return the number of bits that are set in a mask."""

    def generate(context, builder, signature, arguments):
        return builder.ctpop(arguments[0])

    return types.int64(types.int64), generate


@intrinsic
def store_bounds(context, scores, bias, n_scores, drift, bounds, n, own, scale, square, shrink, offset):
    """Compute the bounds of a row: n numbers, bound g for the centroids g, g + n, g + 2 n, ...

    The bound is the lower limit of the distance plus `drift`, so that it need not change when centroids move: later the
    drift of that time is subtracted. The square of the distance is ``square + scale (own - score)``, where the score of
    centroid j is ``scores[j] + bias[j]``.
    """

    def generate(context, builder, signature, arguments):
        scores, bias, n_scores, drift, bounds, n, own, scale, square, shrink, offset = arguments
        v = Vectors(builder)
        scores, bias, drift, bounds = (v.pointer(address) for address in (scores, bias, drift, bounds))
        own, scale, square, shrink, offset = (v.splat(number) for number in (own, scale, square, shrink, offset))
        slightly_less = v.constant(float(SLIGHTLY_LESS))

        def one_vector(group, _):
            # loop() has a constant step; count the vectors that belong to this group.
            turns = builder.sdiv(builder.sub(builder.add(n_scores, n), builder.add(group, I64(1))), n)

            def largest(turn, best):
                at = builder.add(group, builder.mul(turn, n))
                return [v.larger(builder.fadd(v.load(v.at(scores, at)), v.load(v.at(bias, at))), best[0])]

            _, (best,) = loop(builder, 0, turns, 1, [v.constant(-math.inf)], largest)
            lower = builder.fmul(v.fma(builder.fsub(own, best), scale, square), shrink)
            lower = v.larger(builder.fsub(lower, offset), v.constant(0.0))
            lower = builder.fmul(v.call("sqrt", lower), slightly_less)
            lower = builder.fmul(builder.fadd(lower, v.load(v.at(drift, group))), slightly_less)
            v.store(lower, v.at(bounds, group))
            return []

        loop(builder, 0, n, LANES, [], one_vector)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6, *[types.float32] * 5), generate


@intrinsic
def store_bound(context, bound, drift, lower):
    """Store the lower limit of a distance plus the drift, rounded down, as :func:`store_bounds` does."""

    def generate(context, builder, signature, arguments):
        bound, drift, lower = arguments
        v = Vectors(builder)
        total = builder.fadd(lower, builder.load(v.pointer(drift)))
        slightly_less = ir.Constant(FLOAT, float(SLIGHTLY_LESS))
        builder.store(builder.fmul(total, slightly_less), v.pointer(bound))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float32), generate


def _own_loss(with_squares: bool) -> Callable:
    """Generate ``loss(row, shift, center, n, squares, ahead)`` of a float32 row that is read in place.

    With squares, it returns the product of row and center to the bit as :func:`dot` does, and stores the sum of squares
    as :func:`read_row` returns it. Else it returns the squared distance as :func:`distance` does, of the row minus the
    shift. Memory that is `ahead` bytes further on is prefetched.
    """

    @intrinsic
    def loss(context, row, shift, center, n, squares, ahead):
        def generate(context, builder, signature, arguments):
            row, shift, center, n, target, ahead = arguments
            v = Vectors(builder)
            row, shift, center = (v.pointer(address) for address in (row, shift, center))

            def unrolled(count):
                def body(index, carried):
                    squares, product = list(carried[:count]), carried[-1]
                    for u in range(count):
                        at = builder.add(index, I64(u * LANES))
                        v.prefetch(builder.add(builder.ptrtoint(v.at(row, at), I64), ahead), cache=2)
                        value, other = v.load(v.at(row, at)), v.load(v.at(center, at))
                        if with_squares:
                            squares[u] = v.fma(value, value, squares[u])
                            product = v.fma(value, other, product)
                        else:
                            difference = builder.fsub(builder.fsub(value, v.load(v.at(shift, at))), other)
                            squares[u] = v.fma(difference, difference, squares[u])
                    return [*squares, product]

                return body

            zero = v.constant(0.0)
            index, carried = loop(builder, 0, n, 4 * LANES, [zero] * 5, unrolled(4))
            _, (first, product) = loop(builder, index, n, LANES, [carried[0], carried[4]], unrolled(1))
            add = builder.fadd
            total = v.fold(add(add(first, carried[1]), add(carried[2], carried[3])), add)
            if not with_squares:
                return total
            builder.store(total, v.pointer(target))
            return v.fold(product, add)

        return types.float32(*[types.int64] * 6), generate

    return loss


own_product, own_distance = _own_loss(True), _own_loss(False)


def _row_adder(scaled: bool) -> Callable:
    """Generate ``add(row, shift, sums, n, scale)``, which adds a float32 row, read in place, to `sums`.

    Scaled, it adds the row times `scale`, else the row minus the shift, in both cases to the bit as the adders of
    :mod:`vitnp.kernels.cpu.codegen.rows`.
    """

    @intrinsic
    def add(context, row, shift, sums, n, scale):
        def generate(context, builder, signature, arguments):
            row, shift, sums, n, scale = arguments
            v = Vectors(builder)
            row, shift, sums, scale = v.pointer(row), v.pointer(shift), v.pointer(sums), v.splat(scale)

            def unrolled(count):
                def body(index, _):
                    for u in range(count):
                        at = builder.add(index, I64(u * LANES))
                        value, before = v.load(v.at(row, at)), v.load(v.at(sums, at))
                        if scaled:
                            after = v.fma(value, scale, before)
                        else:
                            after = builder.fadd(before, builder.fsub(value, v.load(v.at(shift, at))))
                        v.store(after, v.at(sums, at))
                    return []

                return body

            index, _ = loop(builder, 0, n, 4 * LANES, [], unrolled(4))
            loop(builder, index, n, LANES, [], unrolled(1))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 4, types.float32), generate

    return add


add_scaled_row, add_shifted_row = _row_adder(True), _row_adder(False)
