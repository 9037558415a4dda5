"""Enlarge values of patches to the size of the photograph, each at the place that its patch was cut from."""

from __future__ import annotations

import dataclasses

import numpy as np

from vitnp.features.record import FeatureRecord


@dataclasses.dataclass(frozen=True)
class PatchPlaces:
    """Where the patches of a network lie.

    Attributes
    ----------
    patch, stride : int
        Side of a patch, and distance between patches, in pixels of the network's input. Patches overlap if the stride
        is less than the patch size.
    nearest : bool
        Give each pixel the value of the nearest patch, instead of interpolating bilinearly between the centers.
    """

    patch: int
    stride: int
    nearest: bool = False

    def enlarge(self, values: np.ndarray, features: FeatureRecord, rows: slice = slice(None)) -> np.ndarray:
        """Return values at the pixels of the photograph.

        Parameters
        ----------
        values : (grid rows, grid columns, ...) float
            One value, or several, for each patch.
        features : FeatureRecord
            Sizes of the photograph, of the network's input and of the grid.
        rows : slice
            Rows of pixels to compute; they are the same to the bit as in the whole.

        Returns
        -------
        (rows, width, ...) float32
        """
        down, across = (
            self.coordinates(size, pixels, n) for size, pixels, n in zip(features.size, features.pixels, features.grid)
        )
        values = values.astype(np.float32, copy=False)
        return self._take(self._take(values, down[rows], 0), across, 1)

    def coordinates(self, size: int, pixels: int, n: int) -> np.ndarray:
        """Return where the pixels of one side are on the grid, in patches from the center of the first: (size,) float.

        Beyond the centers of the first and the last patch the grid is continued by these.

        Examples
        --------
        >>> PatchPlaces(patch=8, stride=8).coordinates(4, 16, 2).tolist()
        [0.0, 0.25, 0.75, 1.0]
        >>> PatchPlaces(patch=8, stride=4).coordinates(4, 16, 3).tolist()
        [0.0, 0.5, 1.5, 2.0]
        """
        centers = (np.arange(size) + 0.5) * (pixels / size)
        return ((centers - self.patch / 2) / self.stride).clip(0, n - 1)

    def _take(self, values: np.ndarray, coordinates: np.ndarray, axis: int) -> np.ndarray:
        """Return values at coordinates along one axis."""
        if self.nearest:
            return values.take((coordinates + 0.5).astype(np.intp), axis=axis)
        low = np.minimum(coordinates.astype(np.intp), max(values.shape[axis] - 2, 0))
        share = (coordinates - low).astype(np.float32).reshape([-1 if k == axis else 1 for k in range(values.ndim)])
        start = values.take(low, axis=axis)
        return start + share * (values.take(np.minimum(low + 1, values.shape[axis] - 1), axis=axis) - start)
