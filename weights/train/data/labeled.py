"""Batches of crops with a target for every patch, cut from photographs and their pseudo-labels alike."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from vitnp.kernels.threads import pool
from vitnp.weights.train.data.crops import HostCropper
from vitnp.weights.train.data.packs import Picture
from vitnp.weights.train.data.sampler import CropParams, crop_boxes, sample_crops

from vitnp.errors import ImageError

_JITTER_STREAM = 5  # random stream, distinct from those of sampler.py, targets.py and distill.py
_JITTER_PROBABILITY, _GRAY_PROBABILITY = 0.8, 0.16
_JITTER_RANGE = (0.75, 1.25)  # factors of brightness and contrast


class LabeledBatch(NamedTuple):
    """A batch of crops with the foreground of each patch.

    ``crops`` (B, 3, h, w) float32 in 0..255; ``targets`` (B, N) float32, 0 to 1, row by row.
    """

    crops: Tensor
    targets: Tensor


class LabeledCropLoader:
    """Load batches of labeled crops; each is a pure function of the seed and the batch's index.

    Parameters
    ----------
    pictures : sequence of Picture
        Photographs, at least `batch_size`.
    maps : sequence of (h, w) uint8 arrays
        Soft map of each photograph, of any resolution, in its aspect ratio up to rounding.
    batch_size, patch, seed : int
        See :func:`vitnp.weights.train.data.sampler.sample_crops`.
    n_threads : int
        Number of threads that read photographs.
    """

    def __init__(
        self,
        pictures: Sequence[Picture],
        maps: Sequence[np.ndarray],
        *,
        batch_size: int,
        patch: int,
        seed: int,
        n_threads: int = 1,
    ) -> None:
        self._cropper, self._maps = HostCropper(pictures), maps
        self._batch_size, self._patch, self._seed, self._n_threads = batch_size, patch, seed, n_threads

    def batch(self, index: int) -> LabeledBatch:
        """Return a batch by its index.

        Raises
        ------
        ImageError
            If one of its photographs can no longer be read.
        """
        params = sample_crops(index, len(self._maps), self._batch_size, self._patch, self._seed)
        crops = self._cropper(params)
        if len(crops) != len(params.indices):
            raise ImageError("photographs that were labeled can no longer be read; put them back, or start a new run")
        rng = np.random.default_rng([self._seed, _JITTER_STREAM, index])
        maps = [self._maps[index] for index in params.indices]
        return LabeledBatch(jitter_colors(crops.float(), rng), crop_maps(maps, params, self._patch))

    def prefetch(self, first: int) -> Generator[LabeledBatch, None, None]:
        """Yield all batches from an index on, computed ahead by threads; close the generator to stop them."""
        yield from pool.map_ordered(self.batch, itertools.count(first), self._n_threads)


def crop_maps(maps: Sequence[np.ndarray], params: CropParams, patch: int) -> Tensor:
    """Cut crops from the maps of their photographs, and average each over the patches.

    Parameters
    ----------
    maps : sequence of (h, w) uint8 arrays
        Soft map of the photograph of each crop.
    params : CropParams
        Parameters of the crops.
    patch : int
        Patch size in pixels of a crop.

    Returns
    -------
    (B, N) float32 Tensor
        Mean of each patch, 0 to 1, row by row.
    """
    rows, columns = (side // patch for side in params.shape)
    boxes = crop_boxes(params, np.array([soft.shape for soft in maps]))
    targets = np.empty((len(maps), rows, columns), np.float32)
    for target, soft, box, flipped in zip(targets, maps, boxes, params.flipped, strict=True):
        image = Image.fromarray(soft.astype(np.float32))
        mean = np.asarray(image.resize((columns, rows), Image.Resampling.BOX, box=tuple(box)))
        target[:] = mean[:, ::-1] if flipped else mean
    return torch.from_numpy(targets / 255).flatten(1)


def jitter_colors(crops: Tensor, rng: np.random.Generator) -> Tensor:
    """Change brightness and contrast of most crops at random, and turn some gray.

    Parameters
    ----------
    crops : (B, 3, h, w) float32 Tensor
        In 0..255.
    rng : numpy.random.Generator

    Returns
    -------
    (B, 3, h, w) float32 Tensor
        In 0..255.
    """
    n_crops = len(crops)
    jittered = rng.random(n_crops) < _JITTER_PROBABILITY
    brightness, contrast = (_column(np.where(jittered, rng.uniform(*_JITTER_RANGE, n_crops), 1)) for _ in range(2))
    gray = _column(rng.random(n_crops) < _GRAY_PROBABILITY)
    crops = crops * brightness
    mean = crops.mean((1, 2, 3), keepdim=True)
    crops = ((crops - mean) * contrast + mean).clamp(0, 255)
    return torch.where(gray > 0, crops.mean(1, keepdim=True), crops)


def _column(values: np.ndarray) -> Tensor:
    """Return values (B,) as a tensor (B, 1, 1, 1)."""
    return torch.from_numpy(values.astype(np.float32))[:, None, None, None]
