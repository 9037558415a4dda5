"""Cut out objects: alpha channel without specks, colors at the edge, and the box to crop to."""

from __future__ import annotations

import numpy as np

from vitnp.masks.alpha import without_white
from vitnp.masks.components import find_runs
from vitnp.masks.foreground_colors import estimate_foreground
from vitnp.masks.fringe import without_fringe

# Pixels per band: the temporary arrays of a band take some tens of megabytes.
_BAND_PIXELS = 1 << 20

# A part of the alpha channel is a speck if it is smaller than these shares of the photograph and of the largest part.
_SPECK_OF_PHOTOGRAPH, _SPECK_OF_LARGEST = 1e-3, 1e-2


def cutout(rgb: np.ndarray, soft: np.ndarray, opacity: np.ndarray | None = None) -> np.ndarray:
    """Cut out the object: the photograph with the soft map as its alpha channel.

    The slope of the map is increased sixteenfold around 1/2, so that objects are opaque and only their edges are soft.
    There, alpha is lowered where the photograph shows background (:func:`vitnp.masks.fringe.without_fringe`), and the
    colors are those of the object, without the background that shines through
    (:func:`vitnp.masks.foreground_colors.estimate_foreground`). Specks, small parts away from the object, are left out.
    The color is zero where alpha is zero: no background color survives under transparent pixels. If the map reaches 1/2
    nowhere, there is no object, and everything is transparent.

    Parameters
    ----------
    rgb : array, shape (H, W, 3), uint8
    soft : array, shape (H, W), uint16
        Opaque from 17/32 of 65535, transparent up to 15/32; alpha >= 128 at most where soft >= 32768.
    opacity : array, shape (H, W), uint8, optional
        Alpha channel with which the photograph was composited over white. Its own colors are restored, so that edges of
        objects get no white fringe, and it limits the alpha channel of the result.

    Returns
    -------
    array, shape (H, W, 4), uint8

    Examples
    --------
    >>> cutout(np.full((1, 2, 3), 9, np.uint8), np.array([[0, 65535]], np.uint16)).tolist()
    [[[0, 0, 0, 0], [9, 9, 9, 255]]]
    """
    height, width = soft.shape
    rgba = np.zeros((height, width, 4), np.uint8)
    if soft.max(initial=0) < 32768:
        return rgba
    alpha = steep_alpha(soft)
    if opacity is None:
        alpha = without_fringe(rgb, alpha)
    else:
        # What is transparent by itself has an edge of its own, without background behind it.
        alpha = np.where(opacity == 255, without_fringe(rgb, alpha), alpha)
    alpha = remove_specks(alpha)
    positions, colors = estimate_foreground(rgb, alpha)
    if opacity is not None:
        # The picture's own soft edge needs no estimate, its colors are known.
        inside = opacity.reshape(-1)[positions] == 255
        positions, colors = positions[inside], colors[inside]
    rows = max(1, _BAND_PIXELS // width)
    for top in range(0, height, rows):
        band = slice(top, top + rows)
        part, visible = rgb[band], alpha[band]
        if opacity is not None:
            part, visible = without_white(part, opacity[band]), np.minimum(visible, opacity[band])
        rgba[band, :, 3] = visible
        np.multiply(part, (visible > 0)[..., None], out=rgba[band, :, :3])
    rgba.reshape(-1, 4)[positions, :3] = colors
    return rgba


def steep_alpha(soft: np.ndarray) -> np.ndarray:
    """Return the alpha channel of a soft map (H, W) uint16: its slope around 1/2 increased sixteenfold, uint8.

    Examples
    --------
    >>> steep_alpha(np.array([[0, 31000, 32768, 34000, 65535]], np.uint16)).tolist()
    [[0, 17, 128, 205, 255]]
    """
    alpha = np.empty(soft.shape, np.uint8)
    rows = max(1, _BAND_PIXELS // soft.shape[1])
    for top in range(0, len(soft), rows):
        # Clipped first, so that all steps fit into 16 bits: (soft - 32768) // 16 + 128 from 0 to 255.
        band = soft[top : top + rows].clip(32768 - 16 * 128, 32768 + 16 * 127)
        alpha[top : top + rows] = (band - np.uint16(32768 - 16 * 128)) >> 4
    return alpha


def remove_specks(alpha: np.ndarray) -> np.ndarray:
    """Return an alpha channel (H, W) uint8 without its specks: small parts that touch nothing else, even diagonally.

    A speck is smaller than a thousandth of the photograph and than a hundredth of the largest part.

    Examples
    --------
    >>> alpha = np.zeros((50, 50), np.uint8)
    >>> alpha[:30, :30] = alpha[45, 45] = 255
    >>> int((remove_specks(alpha) > 0).sum())
    900
    """
    visible = alpha > 0
    runs = find_runs(visible)
    if runs.starts.size == 0:
        return alpha
    _, part = np.unique(runs.component, return_inverse=True)
    areas = np.bincount(part, weights=runs.ends - runs.starts)
    specks = areas < min(_SPECK_OF_PHOTOGRAPH * alpha.size, _SPECK_OF_LARGEST * areas.max())
    doomed = specks[part]
    if not doomed.any():
        return alpha
    alpha = alpha.copy()
    starts, lengths = runs.starts[doomed], (runs.ends - runs.starts)[doomed]
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    rows, columns = np.divmod(np.repeat(starts, lengths) + within, runs.pitch)
    alpha[rows, columns] = 0
    return alpha


def box_with_margin(alpha: np.ndarray, margin: float, *, percent: bool = False) -> tuple[int, int, int, int]:
    """Return the bounding box of what is visible in an alpha channel (H, W) uint8, with a margin.

    Parameters
    ----------
    alpha : (H, W) uint8
    margin : float
        In pixels, or in percent of the box's longer side. The box ends at the photograph's border.
    percent : bool

    Returns
    -------
    (int, int, int, int)
        Left, top, right and bottom, the latter two after the last pixel; the whole picture if nothing is visible.

    Examples
    --------
    >>> alpha = np.zeros((100, 200), np.uint8)
    >>> alpha[40:60, 50:150] = 255
    >>> box_with_margin(alpha, 5), box_with_margin(alpha, 10, percent=True)
    ((45, 35, 155, 65), (40, 30, 160, 70))
    """
    height, width = alpha.shape
    rows, columns = np.flatnonzero(alpha.any(axis=1)), np.flatnonzero(alpha.any(axis=0))
    if rows.size == 0:
        return 0, 0, width, height
    left, top, right, bottom = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    pixels = round(margin / 100 * max(right - left, bottom - top)) if percent else round(margin)
    return max(0, left - pixels), max(0, top - pixels), min(width, right + pixels), min(height, bottom + pixels)
