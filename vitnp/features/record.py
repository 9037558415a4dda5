"""The features of one photograph."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from vitnp import kernels
from vitnp.errors import UsageError


@dataclasses.dataclass(frozen=True)
class FeatureRecord:
    """Features of one photograph.

    The arrays of a stored photograph are read from the memory-mapped files of the store on every access.

    Attributes
    ----------
    photograph : str
        Fingerprint of the file, or of the pixels if there is no file.
    grid : (int, int)
        Rows and columns of patches; N is their product.
    pixels : (int, int)
        Height and width of the network's input in pixels.
    size : (int, int)
        Height and width of the photograph itself in pixels, upright.
    digest : int
        Hash of the pixels of the network's input: the seed of the photograph.
    capped : bool
        Whether the grid was made coarser to stay within ``max_tokens``.
    arrays : callable
        Returns the arrays by name.
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
        """Number of patches N."""
        return self.grid[0] * self.grid[1]

    @property
    def keys(self) -> np.ndarray:
        """(N, D) float16 or float32: the facet of the spec, as the network computes it."""
        return self.arrays()["keys"]

    @property
    def unit(self) -> np.ndarray:
        """(N, D) float32: keys normalized to unit length."""
        return unit_rows(self.keys)

    @property
    def attention(self) -> np.ndarray:
        """(N,) float32: CLS attention in the block of the keys, mean over heads."""
        return self.arrays()["attention"]

    @property
    def attention_heads(self) -> np.ndarray:
        """(N, H) float32: CLS attention of each head in the block of the keys."""
        arrays = self.arrays()
        if "attention_heads" not in arrays:
            raise UsageError("the features lack the attention of each head; extract them with attention_heads=True")
        return arrays["attention_heads"]

    @property
    def cls(self) -> np.ndarray:
        """(D,) float32: CLS token of the last block, after the final norm."""
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
        """(4, D) float32: the CLS token at the input of the last block, and its query, key and value there."""
        return self._for_regions("cls_state")

    def _for_regions(self, name: str) -> np.ndarray:
        arrays = self.arrays()
        if "cls_state" not in arrays:
            raise UsageError("the features lack the arrays that regions need; extract them with regions=True")
        # The last key is not stored if it is the same array as the keys.
        return arrays[name] if name in arrays else arrays["keys"]


def unit_rows(keys: np.ndarray) -> np.ndarray:
    """Return rows normalized to unit length, float32 on their device.

    Examples
    --------
    >>> unit_rows(np.array([[3, 4]], np.float16))
    array([[0.6, 0.8]], dtype=float32)
    """
    return kernels.for_array(keys).normalize_rows(keys.astype(np.float32))
