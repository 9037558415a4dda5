"""Loading of batches: crops by batch index, optionally prefetched by threads."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Sequence

import torch
from torch import Tensor
from vitnp.kernels.threads import pool
from vitnp.weights.train.data.crops import DeviceCropper, HostCropper
from vitnp.weights.train.data.packs import Picture
from vitnp.weights.train.data.sampler import sample_crops


class CropLoader:
    """Load batches of crops.

    Parameters
    ----------
    pictures : sequence of Picture
        Photographs, at least `batch_size`.
    batch_size, patch, seed : int
        See :func:`vitnp.weights.train.data.sampler.sample_crops`.
    device : torch.device or str
        With a CPU, crops are cut on the host; with a GPU, all photographs are kept in its memory.
    n_threads : int
        Number of threads that read photographs.
    """

    def __init__(
        self,
        pictures: Sequence[Picture],
        *,
        batch_size: int,
        patch: int,
        seed: int,
        device: torch.device | str = "cpu",
        n_threads: int = 1,
    ) -> None:
        self._n_pictures, self._batch_size, self._patch, self._seed = len(pictures), batch_size, patch, seed
        self._cropper: HostCropper | DeviceCropper
        if torch.device(device).type == "cpu":
            self._cropper, self._n_threads = HostCropper(pictures), n_threads
        else:
            # Cropping on a GPU takes microseconds, and torch is best used from one thread.
            self._cropper, self._n_threads = DeviceCropper(pictures, torch.device(device), n_threads), 1

    def batch(self, index: int) -> Tensor:
        """Return a batch of crops (n, 3, h, w) with values in 0..255, by its index.

        Raises
        ------
        ImageError
            If none of its photographs can be read.
        """
        return self._cropper(sample_crops(index, self._n_pictures, self._batch_size, self._patch, self._seed))

    def prefetch(self, first: int) -> Generator[Tensor, None, None]:
        """Yield all batches from an index on, computed ahead by threads; close the generator to stop them."""
        yield from pool.map_ordered(self.batch, itertools.count(first), self._n_threads)
