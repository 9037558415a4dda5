"""Sampling of batches: which photographs, and which part of each, as pure functions of a seed and the batch index.

Without any state, an interrupted run continues with exactly the batches that it would have had.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

# Height and width of crops in pixels, for patches of 16. Most are as large as the grid of position embeddings; the
# others train the network for other sizes and aspect ratios, because it is applied to whole photographs.
SHAPES = ((224, 224),) * 6 + ((256, 320), (320, 256), (320, 400), (400, 320))
BASE_SIZE = 224  # side of the crops by which batch_size is defined, and which the position embeddings cover

_AREA_RANGE = (0.45, 1.0)  # relative to the photograph
_ASPECT_RANGE = (0.85, 1.18)  # of the box, relative to the crop: limits how much a crop is distorted
_MIN_CROPS = 4  # per batch, however large the crops are
_ORDER_STREAM, _BATCH_STREAM = range(2)  # random streams


class CropParams(NamedTuple):
    """Parameters of a batch of n crops of one shape, see :func:`crop_boxes`.

    ``shape`` is (height, width) in pixels; ``indices`` (n,) int64 are those of the photographs. All others are (n,):
    ``area`` and ``aspect`` float64, relative to the photograph and the crop; ``x`` and ``y`` float64, the position
    in 0..1 between left and right, top and bottom; ``flipped`` bool, horizontally.
    """

    shape: tuple[int, int]
    indices: np.ndarray
    area: np.ndarray
    aspect: np.ndarray
    x: np.ndarray
    y: np.ndarray
    flipped: np.ndarray

    def select(self, rows: np.ndarray | list[int]) -> CropParams:
        """Return the parameters of some of the crops, by their position in the batch."""
        return self._replace(**{name: getattr(self, name)[rows] for name in self._fields if name != "shape"})


def sample_crops(batch_index: int, n_pictures: int, batch_size: int, patch: int, seed: int) -> CropParams:
    """Sample the crops of one batch.

    Parameters
    ----------
    batch_index : int
        Index of the batch, from 0.
    n_pictures : int
        Number of photographs, at least `batch_size`. In each epoch every photograph is sampled once, except those that
        do not fit into batches of large crops, and a remainder smaller than a batch.
    batch_size : int
        Number of crops of 224 x 224 per batch; a batch of larger crops has fewer, for the same amount of computation.
    patch : int
        Patch size in pixels; sides are the multiples of it that are nearest to those of :data:`SHAPES`.
    seed : int
        Seed of the random numbers.

    Returns
    -------
    CropParams
        Photographs and parts of them.

    Examples
    --------
    >>> sample_crops(0, n_pictures=100, batch_size=8, patch=16, seed=0).shape
    (224, 224)
    """
    rng = np.random.default_rng([seed, _BATCH_STREAM, batch_index])
    shape = SHAPES[rng.integers(len(SHAPES))]
    n_crops = min(batch_size, max(_MIN_CROPS, round(batch_size * BASE_SIZE**2 / math.prod(shape))))
    epoch, position = divmod(batch_index, n_pictures // batch_size)
    start = position * batch_size
    indices = _epoch_order(epoch, n_pictures, seed)[start : start + n_crops]
    area = rng.uniform(*_AREA_RANGE, n_crops)
    log_min, log_max = np.log(_ASPECT_RANGE)
    aspect = np.exp(rng.uniform(log_min, log_max, n_crops))
    x, y = rng.random((2, n_crops))
    return CropParams(round_to_patch(shape, patch), indices, area, aspect, x, y, rng.random(n_crops) < 0.5)


def crop_boxes(params: CropParams, sizes: np.ndarray) -> np.ndarray:
    """Compute the box that each crop shows of its photograph.

    Parameters
    ----------
    params : CropParams
        Parameters of n crops.
    sizes : (n, 2) int array
        Height and width of the photographs in pixels.

    Returns
    -------
    (n, 4) float64 array
        Left, top, right and bottom in pixels, inside the photograph.

    Examples
    --------
    >>> crop_boxes(sample_crops(0, 100, 8, 16, 0), np.tile([[300, 400]], (8, 1)))[0].round().tolist()
    [29.0, 2.0, 337.0, 297.0]
    """
    height, width = np.asarray(sizes, np.float64).T
    area = params.area * height * width
    aspect = params.aspect * params.shape[1] / params.shape[0]
    # A side that exceeds the photograph is shortened; the other one is kept.
    box_width = np.minimum(width, np.sqrt(area * aspect))
    box_height = np.minimum(height, np.sqrt(area / aspect))
    left, top = params.x * (width - box_width), params.y * (height - box_height)
    return np.stack([left, top, left + box_width, top + box_height], axis=1)


def round_to_patch(shape: tuple[int, int], patch: int) -> tuple[int, int]:
    """Return the multiples of the patch size that are nearest to a height and a width."""
    height, width = (max(1, int(side / patch + 0.5)) * patch for side in shape)
    return height, width


@functools.lru_cache(maxsize=2)
def _epoch_order(epoch: int, n_pictures: int, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, _ORDER_STREAM, epoch]).permutation(n_pictures)
