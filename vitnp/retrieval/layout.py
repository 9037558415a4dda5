"""The layout of a photograph: what is where, in one vector, for finding near duplicates.

Two photographs of golf balls have similar CLS tokens, whatever is around the balls. For copies it counts that the same
things are at the same places: the keys of the patches, averaged over the cells of a coarse grid, tell. Left and right
are folded together, so that a mirrored copy has the same vector, and a random projection keeps it short.
"""

from __future__ import annotations

import functools

import numpy as np

# Rows and columns of cells.
CELLS = 4

# Length of the vector, whatever the network.
LAYOUT_WIDTH = 256

# Of the projection: part of what an index file means, not to be changed.
_SEED = 20231118


def layout_vector(keys: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Return the layout of a photograph.

    Parameters
    ----------
    keys : (N, D) float
        Keys of the patches, of length 1.
    grid : (int, int)
        Rows and columns of patches; N is their product.

    Returns
    -------
    (256,) float64
        Of any length.

    References
    ----------
    D. Achlioptas, "Database-friendly random projections: Johnson-Lindenstrauss with binary coins", Journal of Computer
    and System Sciences 66, 2003.

    Examples
    --------
    >>> keys = np.random.default_rng(0).standard_normal((6 * 7, 3))
    >>> mirrored = keys.reshape(6, 7, 3)[:, ::-1].reshape(-1, 3)
    >>> bool(np.allclose(layout_vector(keys, (6, 7)), layout_vector(mirrored, (6, 7))))
    True
    """
    rows, columns = grid
    patches = keys.astype(np.float64).reshape(rows, columns, -1)
    cells = np.einsum("rR,RCd->rCd", _shares(rows), patches)
    cells = np.einsum("cC,rCd->rcd", _shares(columns), cells)
    folded = (cells + cells[:, ::-1])[:, : CELLS // 2] / 2
    return folded.ravel() @ _projection(folded.size)


@functools.lru_cache(maxsize=64)
def _shares(n: int) -> np.ndarray:
    """Return the weights by which n patches side by side are averaged to cells, (CELLS, n): their overlap.

    Examples
    --------
    >>> _shares(6)[0]
    array([0.66666667, 0.33333333, 0.        , 0.        , 0.        , 0.        ])
    """
    edges = np.arange(n + 1) * (CELLS / n)
    cell = np.arange(CELLS)[:, None]
    overlap = np.minimum(edges[1:], cell + 1) - np.maximum(edges[:-1], cell)
    return overlap.clip(0)


@functools.lru_cache(maxsize=4)
def _projection(size: int) -> np.ndarray:
    """Return a random projection of plus and minus 1, (size, LAYOUT_WIDTH)."""
    signs = np.random.default_rng(_SEED).integers(0, 2, (size, LAYOUT_WIDTH), np.int8)
    return 2.0 * signs - 1.0
