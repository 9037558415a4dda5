"""Vectors of layouts, against sums by hand."""

from __future__ import annotations

import numpy as np
import pytest

from vitnp.retrieval.layout import CELLS, _projection, layout_vector


def by_hand(keys: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Return the folded means of cells: each patch is divided into CELLS x CELLS parts, which fill the cells evenly."""
    rows, columns = grid
    parts = keys.reshape(rows, columns, -1).repeat(CELLS, axis=0).repeat(CELLS, axis=1)
    cells = parts.reshape(CELLS, rows, CELLS, columns, -1).mean(axis=(1, 3))
    return np.stack([(cells[:, 0] + cells[:, 3]) / 2, (cells[:, 1] + cells[:, 2]) / 2], axis=1).ravel()


@pytest.mark.parametrize("grid", [(4, 4), (20, 27), (1, 9), (3, 2), (1, 1), (27, 20)])
def test_cells_are_means_of_their_area(grid):
    keys = np.random.default_rng(0).standard_normal((grid[0] * grid[1], 5))
    expected = by_hand(keys, grid)
    assert np.allclose(layout_vector(keys, grid), expected @ _projection(expected.size))


def test_the_projection_keeps_cosines():
    """Random vectors of many numbers: the error is about 1 / sqrt(256)."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((30, 1536))
    y = x + 0.3 * rng.standard_normal(x.shape)
    projection = _projection(1536)

    def cosines(a, b):
        return (a * b).sum(axis=1) / np.sqrt(np.square(a).sum(axis=1) * np.square(b).sum(axis=1))

    assert np.abs(cosines(x @ projection, y @ projection) - cosines(x, y)).max() < 0.03
    assert np.isin(projection, (-1, 1)).all() and abs(projection.mean()) < 0.01


def test_the_projection_is_always_the_same():
    """Index files depend on it."""
    assert _projection(16)[:2, :8].tolist() == [[-1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, -1, 1, 1, -1, -1]]
