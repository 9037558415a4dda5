"""The fast bilateral solver, with the bits of the reference: the same operations in the same order."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from vitnp.kernels.constants import BISTOCHASTIC_STEPS
from vitnp.kernels.cpu.bilateral_grid import DIRECTIONS, EXACT, INDEX, WIDTHS, BilateralGrid
from vitnp.kernels.cpu.codegen import types
from vitnp.kernels.cpu.codegen.jit import array_in, array_out, intrinsic, kernel
from vitnp.kernels.cpu.codegen.simd import I32, I64, loop
from vitnp.kernels.cpu.codegen.stack import stack_array
from vitnp.kernels.cpu.codegen.workspace import workspace
from vitnp.kernels.reference.bilateral_solver import TINY, right_hand_side

DOUBLE = ir.DoubleType()
VECTOR_IN, VECTOR = array_in(1, types.float64), array_out(1, types.float64)
GRID = (array_in(1, INDEX), array_in(1, types.int64), array_in(1, INDEX))


def bilateral_solver(
    target: np.ndarray,
    rgb: np.ndarray,
    *,
    sigma_xy: float,
    sigma_luma: float = 12.0,
    sigma_chroma: float = 6.0,
    smoothness: float = 128.0,
    confidence: float | np.ndarray = 0.999,
    max_iterations: int = 25,
    tolerance: float = 1e-5,
) -> np.ndarray:
    grid = BilateralGrid(rgb, sigma_xy, sigma_luma, sigma_chroma)
    data, b, y = right_hand_side(grid.splat, grid.mass, target, confidence)
    work = workspace("bilateral solver", 10, grid.count + 1, dtype=np.float64)
    matrix = (grid.rows, grid.ends, grid.neighbors)
    _solve(*matrix, grid.mass, data, b, float(smoothness), max_iterations, float(tolerance), work, y)
    return grid.slice(y.clip(0, 1, out=y))


@kernel(**EXACT)
def neighbor_sums(rows, ends, neighbors, values, sums):
    """Sum the values of the neighbors of each vertex, in ascending order; a missing neighbor has the value 0.

    Parameters
    ----------
    rows, ends, neighbors : IN
        See :class:`BilateralGrid`.
    values : (M + 1,), IN
        The last one is 0.
    sums : (M,), OUT
    """
    k = np.uint64(0)
    for i in range(ends[0]):
        sums[rows[i]] = values[neighbors[k]] + values[neighbors[k + 1]] + values[neighbors[k + 2]]
        k += np.uint64(WIDTHS[0])
    k += np.uint64(DIRECTIONS)
    for i in range(ends[0], ends[1]):
        total = values[neighbors[k]]
        for step in range(1, WIDTHS[1]):
            total += values[neighbors[k + np.uint64(step)]]
        sums[rows[i]] = total
        k += np.uint64(WIDTHS[1])
    k += np.uint64(DIRECTIONS)
    for i in range(ends[1], ends[2]):
        total = values[neighbors[k]]
        for step in range(1, WIDTHS[2]):
            total += values[neighbors[k + np.uint64(step)]]
        sums[rows[i]] = total
        k += np.uint64(WIDTHS[2])


@intrinsic
def _eight_sums(context, address, count):
    """Sum float64 numbers in memory, of which there are a multiple of eight: eight running sums, then these."""

    def generate(context, builder, signature, arguments):
        vector, (address, count) = ir.VectorType(DOUBLE, 8), arguments
        numbers = builder.inttoptr(address, DOUBLE.as_pointer())

        def load(index):
            value = builder.load(builder.bitcast(builder.gep(numbers, [index]), vector.as_pointer()))
            value.align = 8
            return value

        _, (sums,) = loop(
            builder, 8, count, 8, [load(I64(0))], lambda index, sums: [builder.fadd(sums[0], load(index))]
        )
        parts = [builder.extract_element(sums, I32(lane)) for lane in range(8)]
        while len(parts) > 1:
            parts = [builder.fadd(*pair) for pair in zip(parts[::2], parts[1::2])]
        return parts[0]

    return types.float64(types.int64, types.int64), generate


@kernel(**EXACT)
def _block_sum(values, start, stop):
    """Sum at most 128 numbers."""
    total, end = -0.0, start
    if stop - start >= 8:
        end = stop - (stop - start) % 8
        total = _eight_sums(values[start:end].ctypes.data, end - start)
    for i in range(end, stop):
        total += values[i]
    return total


_new_ends, _new_sums = stack_array(64, dtype=types.int64), stack_array(64, dtype=types.float64)
_new_known = stack_array(64, dtype=types.boolean)


@kernel(**EXACT)
def pairwise_sum(values):
    """Sum numbers in the order of ``np.sum``: that of the two halves, and so on down to blocks of at most 128."""
    # The halves around the present block, from the whole down: where each ends, and the sum of its first half if known.
    ends, sums, known = _new_ends(), _new_sums(), _new_known()
    depth, start, stop = 0, 0, len(values)
    while True:
        while stop - start > 128:
            half = (stop - start) // 2
            ends[depth], known[depth] = stop, False
            depth, stop = depth + 1, start + half - half % 8
        total = _block_sum(values, start, stop)
        while depth > 0 and known[depth - 1]:
            depth -= 1
            total = sums[depth] + total
        if depth == 0:
            return total
        sums[depth - 1], known[depth - 1] = total, True
        start, stop = stop, ends[depth - 1]


@kernel(
    *GRID,
    VECTOR_IN,
    VECTOR_IN,
    VECTOR_IN,
    types.float64,
    types.int64,
    types.float64,
    array_out(2, types.float64),
    VECTOR,
    **EXACT,
)
def _solve(rows, ends, neighbors, mass, data, b, smoothness, max_iterations, tolerance, work, y):
    """Solve the system of the reference by conjugate gradients; the start is in y, and so is the solution.

    `work` has the room for ten vectors, each with one additional number, which stays 0.
    """
    count = len(mass)
    n, scaled_n, neighbor_sum, diagonal, residual = work[0], work[1], work[2], work[3], work[4]
    direction, scaled, image, products, squares = work[5], work[6], work[7], work[8], work[9]

    n[:count] = 1.0
    n[count] = 0.0
    for _ in range(BISTOCHASTIC_STEPS):
        neighbor_sums(rows, ends, neighbors, n, image)
        for i in range(count):
            n[i] = np.sqrt(n[i] * mass[i] / (10 * n[i] + image[i]))
    neighbor_sums(rows, ends, neighbors, n, neighbor_sum)
    for i in range(count):
        scaled_n[i] = smoothness * n[i]
        diagonal[i] = max(scaled_n[i] * neighbor_sum[i] + data[i], TINY)
        squares[i] = b[i] * b[i]
        direction[i] = y[i]
        scaled[i] = n[i] * y[i]
    scaled[count] = 0.0
    goal = (tolerance * tolerance) * pairwise_sum(squares[:count])

    rho = 0.0
    # Step 0 takes the residual of the start, instead of going along a direction.
    for step in range(max_iterations + 1):
        neighbor_sums(rows, ends, neighbors, scaled, image)
        for i in range(count):
            image[i] = scaled_n[i] * (neighbor_sum[i] * direction[i] - image[i]) + data[i] * direction[i]
            products[i] = direction[i] * image[i]
        alpha = 0.0
        if step == 0:
            for i in range(count):
                residual[i] = b[i] - image[i]
                image[i] = 0.0
        else:
            alpha = rho / pairwise_sum(products[:count])
        for i in range(count):
            y[i] += alpha * direction[i]
            residual[i] -= alpha * image[i]
            image[i] = residual[i] / diagonal[i]
            products[i] = residual[i] * image[i]
            squares[i] = residual[i] * residual[i]
        if pairwise_sum(squares[:count]) <= goal:
            break
        previous, rho = rho, pairwise_sum(products[:count])
        ratio = 0.0 if step == 0 else rho / previous
        for i in range(count):
            direction[i] = image[i] + ratio * direction[i]
            scaled[i] = n[i] * direction[i]
