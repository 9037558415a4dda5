"""The two metrics of k-means. A metric only adds arguments to the kernel calls; everything else is shared."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np

from vitnp import kernels


@dataclasses.dataclass(frozen=True)
class Cosine:
    """Spherical k-means (Dhillon and Modha 2001): rows and centroids are unit vectors, the loss of a row is 1 - cosine.

    A row of zeros stays zero: its cosine to every centroid is 0, so it is assigned to cluster 0 and moves no centroid.
    """

    name: ClassVar[str] = "cosine"

    def kernel_options(self, x: np.ndarray) -> dict[str, Any]:
        """Return the keyword arguments of the k-means kernels for rows `x`."""
        return {"metric": self.name}

    def cluster_centers(self, centroids: np.ndarray) -> np.ndarray:
        """Return centroids in the coordinates of the caller's rows."""
        return centroids


@dataclasses.dataclass(frozen=True)
class Euclidean:
    """Ordinary k-means: the loss of a row is its squared distance to the centroid.

    Attributes
    ----------
    shift : (D,) float32 or None
        Vector subtracted from all rows first, usually their mean. Far from the origin products are large and their
        differences would be lost in rounding.
    """

    shift: np.ndarray | None
    name: ClassVar[str] = "euclidean"

    def kernel_options(self, x: np.ndarray) -> dict[str, Any]:
        """Return the keyword arguments of the k-means kernels for rows `x`, with the shift on the rows' device."""
        shift = None if self.shift is None else kernels.to_device(self.shift, kernels.device_of(x))
        return {"metric": self.name, "shift": shift}

    def cluster_centers(self, centroids: np.ndarray) -> np.ndarray:
        """Return centroids in the coordinates of the caller's rows."""
        return centroids if self.shift is None else centroids + self.shift


Metric = Cosine | Euclidean
