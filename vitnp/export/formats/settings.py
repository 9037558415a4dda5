"""What the writers of all formats know before the first photograph."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class FormatSettings:
    """Settings of an export.

    Attributes
    ----------
    names : tuple of str
        Names of the classes 1, 2, ...
    n_photographs : int
        Number of photographs to come.
    tolerance : float, optional
        Polygons, simplified within so many pixels, in formats that have masks as well; formats that have only polygons
        simplify within one pixel if this is None.
    copy : bool
        Copy the photographs instead of linking to them.
    split : float
        Share of the photographs for validation, 0 to 1, in formats that have it.
    seed : int
        Seed of the split.

    Examples
    --------
    >>> FormatSettings(("cat",), n_photographs=10, split=0.2).validation
    frozenset({4, 6})
    """

    names: tuple[str, ...]
    n_photographs: int
    tolerance: float | None = None
    copy: bool = False
    split: float = 0.2
    seed: int = 0

    @property
    def validation(self) -> frozenset[int]:
        """Indices of the photographs for validation; neither part is empty if there are two or more and a split."""
        count = round(self.split * self.n_photographs)
        if 0 < self.split < 1:
            count = min(max(count, 1), self.n_photographs - 1)
        order = np.random.default_rng(self.seed).permutation(self.n_photographs)
        return frozenset(order[: max(count, 0)].tolist())
