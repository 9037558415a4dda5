"""The simplified bilateral grid, built cell by cell: the pixels of a cell share their bins of position.

The reference sorts all pixels. Here the bins of color that occur anywhere are numbered once, in ascending order: this
is the palette. Each cell then marks those of its pixels in a bitmap, and a walk over the bitmap numbers its vertices
in the order of the reference.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from vitnp.kernels.cpu.codegen import types
from vitnp.kernels.cpu.codegen.jit import array_in, array_out, intrinsic, kernel
from vitnp.kernels.cpu.codegen.stack import stack_array
from vitnp.kernels.cpu.codegen.workspace import workspace
from vitnp.kernels.cpu.color_bins import number_colors
from vitnp.kernels.reference.bilateral_grid import position_bins

# Directions in the order of the vertices they lead to: up, left, darker, ..., right, down. The neighbors that have
# larger numbers are in the opposite order of those that have smaller ones.
DIRECTIONS = 10
# Vertices are grouped by how many neighbors they have, so that few sums contain many missing ones.
WIDTHS = (3, 6, DIRECTIONS)

# Without fused operations, so that the bits are those of NumPy. Indices are unsigned, because numba lets signed ones
# count from the end, which takes time.
EXACT = {"fastmath": False}
INDEX = types.uint32
_three = stack_array(3, dtype=types.int64)


class BilateralGrid:
    """The grid of :class:`vitnp.kernels.reference.bilateral_grid.BilateralGrid`, with the same vertices.

    Attributes
    ----------
    vertex : (pixels,) uint32
    count : int
    mass : (count,) float64
    rows : (count,) uint32
        Vertices in ascending order of their group, see WIDTHS.
    ends : (3,) int64
        End of each group in `rows`.
    neighbors : uint32 array
        Neighbors of each vertex of `rows` in ascending order, followed by `count` up to the width of its group; after
        each group there are DIRECTIONS numbers without a meaning.
    """

    def __init__(self, rgb: np.ndarray, sigma_xy: float, sigma_luma: float, sigma_chroma: float) -> None:
        self.shape = height, width = rgb.shape[:2]
        pixels = height * width
        (row_bin, row_edge), (column_bin, column_edge) = (_intervals(length, sigma_xy) for length in self.shape)
        colors, color, steps = number_colors(rgb, sigma_luma, sigma_chroma)
        n_cells = len(row_bin) * len(column_bin)

        self.vertex = np.empty(pixels, np.uint32)
        color_of = workspace("color of vertex", pixels, dtype=np.uint32)
        mass = workspace("mass", pixels, dtype=np.float64)
        cell_start = np.empty(n_cells + 1, np.int64)
        marks = np.zeros(len(colors) // 64 + 1, np.uint64)
        number = np.zeros(len(colors) + 1, np.int64)
        self.count = count = _number_vertices(
            color, width, row_edge, column_edge, marks, number, self.vertex, color_of, mass, cell_start
        )
        self.mass = mass[:count].copy()

        found = workspace("neighbors", (count + 1) * DIRECTIONS, dtype=np.uint32)
        _connect(color_of, cell_start, row_bin, column_bin, steps, number, found)
        self.rows, self.ends = np.empty(count, np.uint32), np.empty(len(WIDTHS), np.int64)
        self.neighbors = np.empty((count + len(WIDTHS)) * DIRECTIONS, np.uint32)
        group_of = workspace("group of vertex", count, dtype=np.uint8)
        _group(found, count, group_of, self.rows, self.ends, self.neighbors)

    def splat(self, pixels: np.ndarray) -> np.ndarray:
        """Compute S x: sum the pixels (h * w,) of each vertex."""
        vertices = np.zeros(self.count)
        _splat(self.vertex, pixels, vertices)
        return vertices

    def slice(self, vertices: np.ndarray) -> np.ndarray:
        """Compute S^T y: assign to each pixel the value of its vertex, (h, w) float32."""
        pixels = np.empty(self.shape, np.float32)
        _slice(self.vertex, vertices.astype(np.float32), pixels.reshape(-1))
        return pixels


def _intervals(length: int, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct bins of the rows or columns, ascending, and where each begins, with the end of the last."""
    bins = position_bins(length, sigma)
    edges = np.flatnonzero(np.diff(bins, prepend=bins[0] - 1, append=bins[-1] + 1))
    return bins[edges[:-1]], edges


@intrinsic
def _lowest_bit(context, word):
    """Return the position of the lowest bit of a word that is not 0."""

    def generate(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), generate


@kernel(
    array_in(1, INDEX),
    types.int64,
    array_in(1, types.int64),
    array_in(1, types.int64),
    array_out(1, types.uint64),
    array_out(1, types.int64),
    array_out(1, INDEX),
    array_out(1, INDEX),
    array_out(1, types.float64),
    array_out(1, types.int64),
)
def _number_vertices(color, width, row_edge, column_edge, marks, number, vertex, color_of, mass, cell_start):
    """Assign numbers to the vertices, cell by cell in the order of their colors; return how many there are.

    Parameters
    ----------
    color : (pixels,), IN
    width : int
        Pixels of a row.
    row_edge, column_edge : (n + 1,), IN
        First row or column of each interval of bins.
    marks : (P / 64 + 1,), all 0
        A bit for each color.
    number : (P,), OUT
        Temporary.
    vertex : (pixels,), OUT
    color_of, mass : (pixels,), OUT
        Color and number of pixels of each vertex.
    cell_start : (cells + 1,), OUT
        First vertex of each cell.
    """
    end = np.uint32(0)
    cell = 0
    for y in range(len(row_edge) - 1):
        for x in range(len(column_edge) - 1):
            cell_start[cell] = end
            cell += 1
            for row in range(row_edge[y], row_edge[y + 1]):
                for i in range(row * width + column_edge[x], row * width + column_edge[x + 1]):
                    marks[color[i] >> 6] |= np.uint64(1) << np.uint64(color[i] & 63)
            for place in range(len(marks)):
                while marks[place]:
                    found = np.uint32(64 * place + _lowest_bit(marks[place]))
                    marks[place] &= marks[place] - np.uint64(1)
                    number[found] = end
                    color_of[end] = found
                    mass[end] = 0
                    end += np.uint32(1)
            for row in range(row_edge[y], row_edge[y + 1]):
                for i in range(row * width + column_edge[x], row * width + column_edge[x + 1]):
                    found = np.uint32(number[color[i]])
                    vertex[i] = found
                    mass[found] += 1
    cell_start[cell] = end
    return end


@kernel(
    array_in(1, INDEX),
    array_in(1, types.int64),
    array_in(1, types.int64),
    array_in(1, types.int64),
    array_in(2, INDEX),
    array_out(1, types.int64),
    array_out(1, INDEX),
)
def _connect(color_of, cell_start, row_bin, column_bin, steps, number, neighbors):
    """Write the neighbors of each vertex, one per direction; the number of vertices where there is none.

    Parameters
    ----------
    color_of, cell_start : IN
        See :func:`_number_vertices`.
    row_bin, column_bin : IN
        Bin of each interval of rows or columns.
    steps : (3, P), IN
        See :func:`vitnp.kernels.cpu.color_bins.number_colors`.
    number : (P + 1,), OUT
        Temporary: the last vertex of each color.
    neighbors : ((M + 1) * DIRECTIONS,), OUT
        The last DIRECTIONS have no meaning: they are what the neighbors of a missing vertex overwrite.
    """
    n_columns = len(column_bin)
    n = np.uint32(cell_start[len(cell_start) - 1])
    neighbors[:] = n
    # In the order of the vertices: a neighbor to the left is the last vertex of this color, if it is in the last cell.
    number[:] = -1
    for cell in range(len(cell_start) - 1):
        x = cell % n_columns
        first, last = cell_start[cell], cell_start[cell + 1]
        left = cell_start[cell - 1] if x > 0 and column_bin[x] == column_bin[x - 1] + 1 else first
        for i in range(first, last):
            found = number[color_of[i]]
            j = np.uint32(found) if left <= found else n
            neighbors[np.uint32(i * DIRECTIONS + 1)] = j
            neighbors[j * np.uint32(DIRECTIONS) + np.uint32(8)] = i
            number[color_of[i]] = i
        for i in range(first, last):
            for axis in range(3):
                found = number[steps[axis, color_of[i]]]
                j = np.uint32(found) if first <= found else n
                neighbors[np.uint32(i * DIRECTIONS + 7 - axis)] = j
                neighbors[j * np.uint32(DIRECTIONS) + np.uint32(2 + axis)] = i
    # From top to bottom in each column of cells.
    number[:] = -1
    for x in range(n_columns):
        for y in range(1, len(row_bin)):
            cell = y * n_columns + x
            above = cell - n_columns
            for i in range(cell_start[above], cell_start[above + 1]):
                number[color_of[i]] = i
            first = cell_start[above] if row_bin[y] == row_bin[y - 1] + 1 else n
            for i in range(cell_start[cell], cell_start[cell + 1]):
                found = number[color_of[i]]
                j = np.uint32(found) if first <= found < cell_start[above + 1] else n
                neighbors[np.uint32(i * DIRECTIONS)] = j
                neighbors[j * np.uint32(DIRECTIONS) + np.uint32(9)] = i


@kernel(
    array_in(1, INDEX), types.int64, array_out(1, types.uint8), array_out(1, INDEX), array_out(1, types.int64),
    array_out(1, INDEX),
)  # fmt: skip
def _group(neighbors, count, group_of, rows, ends, packed):
    """Order the vertices by group and pack their neighbors.

    Parameters
    ----------
    neighbors : ((M + 1) * DIRECTIONS,), IN
        From :func:`_connect`.
    count : int
        Number of vertices M.
    group_of : (M,), OUT
        Temporary.
    rows, ends, packed : OUT
        See :class:`BilateralGrid`; `packed` has the room for all groups.
    """
    ends[:] = 0
    for i in range(count):
        n = 0
        for k in range(i * DIRECTIONS, (i + 1) * DIRECTIONS):
            n += neighbors[k] != count
        group = (n > WIDTHS[0]) + (n > WIDTHS[1])
        group_of[i] = group
        ends[group] += 1
    place, offset = _three(), _three()
    place[:] = 0
    offset[:] = 0
    for group in range(1, 3):
        place[group] = ends[group - 1]
        offset[group] = offset[group - 1] + (ends[group - 1] - place[group - 1]) * WIDTHS[group - 1] + DIRECTIONS
        ends[group] += ends[group - 1]
    # Without jumps, which the processor could not predict: all directions are written, and those beyond the width of
    # the group are overwritten by the next vertex.
    for i in range(count):
        group = group_of[i]
        start = offset[group]
        for k in range(DIRECTIONS):
            packed[start + k] = count
        n = start
        for k in range(i * DIRECTIONS, (i + 1) * DIRECTIONS):
            j = neighbors[k]
            packed[n] = j
            n += j != count
        rows[place[group]] = i
        place[group] += 1
        offset[group] = start + WIDTHS[group]


@kernel(array_in(1, INDEX), array_in(1, types.float64), array_out(1, types.float64), **EXACT)
def _splat(vertex, pixels, vertices):
    """Add each pixel to its vertex."""
    for i in range(len(vertex)):
        vertices[vertex[i]] += pixels[i]


@kernel(array_in(1, INDEX), array_in(1), array_out(1))
def _slice(vertex, vertices, pixels):
    """Give each pixel the value of its vertex."""
    for i in range(len(vertex)):
        pixels[i] = vertices[vertex[i]]
