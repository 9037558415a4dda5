"""MaskCut, as published, on features of vitnp: several objects of a photograph by repeated normalized cuts.

Wang et al., "Cut and learn for unsupervised object detection and instance segmentation", CVPR 2023, section 3.2.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from bench.quality.peers import component_around, second_eigenvector
from vitnp.method.regions import patch_cells
from vitnp.refine.refine import refine
from vitnp.result import HALF

# Weight of edges between dissimilar patches; smallest share of a second or third object; overlap that refinement has to
# keep, and that two objects may have.
_EPSILON = 1e-5
_SMALLEST = 0.01
_OVERLAP = 0.5


def maskcut(keys: np.ndarray, *, threshold: float = 0.15, n_objects: int = 3) -> list[np.ndarray]:
    """Return the objects of a photograph in the order in which they are found, (rows, columns) bool each.

    The normalized cut of a graph whose edges are 1 where the cosine exceeds `threshold`, and 1e-5 elsewhere, cut at the
    mean of the eigenvector. The side of the most extreme patch is the foreground, unless it has three corners of the
    photograph. The object is the component around the most extreme patch of the foreground; its keys are set to zero
    before the next cut.

    Parameters
    ----------
    keys : (rows, columns, D) float
    threshold : float
        0.15 as published for DINO's ViT-B/8.
    n_objects : int
        Number of cuts.
    """
    grid = keys.shape[:2]
    flat = keys.reshape(-1, keys.shape[-1]).astype(np.float64)
    painted, previous, objects = np.zeros(grid, bool), np.zeros(grid, bool), []
    for cut in range(n_objects):
        visible = flat * ~painted.ravel()[:, None]
        unit = visible / np.maximum(np.linalg.norm(visible, axis=1, keepdims=True), 1e-12)
        vector = second_eigenvector(np.where(unit @ unit.T > threshold, 1.0, _EPSILON))
        side = vector > vector.mean()
        corners = np.count_nonzero(side.reshape(grid)[[0, 0, -1, -1], [0, -1, 0, -1]])
        if corners >= 3 or not side[np.abs(vector).argmax()]:
            side, vector = ~side, -vector
        found = component_around(int(vector.argmax()), side.reshape(grid))
        if cut and (iou(found, previous) > _OVERLAP or found.mean() <= _SMALLEST):
            found = np.zeros(grid, bool)
        objects.append(found & ~painted)
        painted, previous = painted | found, found
    return [found for found in objects if found.any()]


def refined(objects: list[np.ndarray], rgb: np.ndarray) -> list[np.ndarray]:
    """Refine objects by the bilateral solver, fill holes, and drop those that it changes too much, as published.

    Parameters
    ----------
    objects : list of (rows, columns) bool
    rgb : (height, width, 3) uint8

    Returns
    -------
    list of (height, width) bool
    """
    masks = []
    for found in objects:
        rows, columns = patch_cells(rgb.shape[:2], found.shape)
        mask = ndimage.binary_fill_holes(refine(found.astype(np.float32), rgb) >= HALF)
        if iou(mask, found[rows[:, None], columns]) >= _OVERLAP:
            masks.append(mask)
    return masks


def iou(one: np.ndarray, other: np.ndarray) -> float:
    """Return the intersection over union of two masks, 0 if both are empty."""
    return np.count_nonzero(one & other) / max(np.count_nonzero(one | other), 1)
