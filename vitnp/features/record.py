"""The features of one photograph as they are kept: facts at hand, arrays when asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from vitnp import kernels
from vitnp.errors import UsageError


@dataclasses.dataclass(frozen=True)
class FeatureRecord:
    """Features of one photograph; its arrays are views of the store's mapped files, made whenever they are asked for.

    Attributes
    ----------
    photograph : str
        Fingerprint of the file, or of the pixels where there was no file.
    grid : (int, int)
        Rows and columns of patches; N is their product.
    pixels : (int, int)
        Height and width in pixels at which the network saw the photograph.
    size : (int, int)
        The photograph's own height and width, upright.
    digest : int
        Of the pixels that the network saw: the photograph's own seed.
    capped : bool
        Whether the grid was made coarser to stay within the tokens allowed.
    arrays : callable
        Gives the arrays by name.
    """

    photograph: str
    grid: tuple[int, int]
    pixels: tuple[int, int]
    size: tuple[int, int]
    digest: int
    capped: bool
    arrays: Callable[[], Mapping[str, np.ndarray]] = dataclasses.field(repr=False, compare=False)

    @property
    def patches(self) -> int:
        """N."""
        return self.grid[0] * self.grid[1]

    @property
    def keys(self) -> np.ndarray:
        """(N, D) float16 or float32: the facet that was asked for, as the network gives it."""
        return self.arrays()["keys"]

    @property
    def unit(self) -> np.ndarray:
        """(N, D) float32: the same with rows of unit length."""
        return unit_rows(self.keys)

    @property
    def attention(self) -> np.ndarray:
        """(N,) float32: CLS attention of the block that the keys are from, mean over heads."""
        return self.arrays()["attention"]

    @property
    def cls(self) -> np.ndarray:
        """(D,) float32: CLS of the last block, after the final norm."""
        return self.arrays()["cls"]

    @property
    def last_key(self) -> np.ndarray:
        """(N, D): keys of the last block."""
        return self._for_regions("last_key")

    @property
    def value(self) -> np.ndarray:
        """(N, D): values of the last block."""
        return self._for_regions("value")

    @property
    def cls_state(self) -> np.ndarray:
        """(4, D) float32: CLS as it enters the last block, and its query, key and value there."""
        return self._for_regions("cls_state")

    def _for_regions(self, name: str) -> np.ndarray:
        arrays = self.arrays()
        if "cls_state" not in arrays:
            raise UsageError("the features were stored without what regions need; store them with regions=True")
        # Stored once where the keys are the last block's own.
        return arrays[name] if name in arrays else arrays["keys"]


def unit_rows(keys: np.ndarray) -> np.ndarray:
    """Rows of any length scaled to unit length in float32, where they are.

    Examples
    --------
    >>> unit_rows(np.array([[3, 4]], np.float16))
    array([[0.6, 0.8]], dtype=float32)
    """
    return kernels.for_array(keys).normalize_rows(keys.astype(np.float32))
