"""Periods of rotary position embeddings, for the checkpoints that don't hold them.

DINOv3's code keeps the periods in bfloat16, and its files hold the rounded numbers, by which its own code and vitnp
compute. transformers and timm leave them out of their files and compute them in float32. Each is right for its own
files.
"""

from __future__ import annotations

import numpy as np

from vitnp.checkpoints.bfloat16 import bfloat16_to_float32, float32_to_bfloat16
from vitnp.errors import CheckpointError

BASE = 100.0  # of all DINOv3
TRAINED_SIZE = 224  # pixels: img_size of DINOv3's code, from which it computes nothing


def axial_periods(head_width: int, base: float = BASE, rounded: bool = False) -> np.ndarray:
    """Return the periods of axial rotary position embeddings, in units of half the height or width of an image.

    Parameters
    ----------
    head_width : int
        Width d of a head. Half of its pairs of numbers rotate with the row of a patch, half with the column.
    base : float
        The periods grow geometrically from 1 to nearly this number.
    rounded : bool
        Whether they are rounded to bfloat16, as in the files of DINOv3.

    Returns
    -------
    (d / 4,) float32 array

    Raises
    ------
    CheckpointError
        If the width is no multiple of 4, or the base isn't positive.

    Examples
    --------
    >>> axial_periods(16)
    array([ 1.       ,  3.1622777, 10.       , 31.622776 ], dtype=float32)
    >>> axial_periods(16, rounded=True)
    array([ 1.     ,  3.15625, 10.     , 31.625  ], dtype=float32)
    """
    if head_width % 4 or head_width < 4:
        raise CheckpointError(
            f"its heads are {head_width} wide, but rotary positions need a multiple of 4: give the right --heads"
        )
    if not 0 < base < 1e6:
        raise CheckpointError(f"the base of its rotary positions should lie between 0 and 1e6, not be {base:g}")
    periods = (base ** (np.arange(head_width // 4) / (head_width // 4))).astype(np.float32)
    return bfloat16_to_float32(float32_to_bfloat16(periods)) if rounded else periods


def agree(periods: np.ndarray, base: float) -> bool:
    """Return whether periods, which may be rounded to bfloat16, are those of a base.

    Examples
    --------
    >>> agree(axial_periods(16, rounded=True), 100), agree(axial_periods(16), 99)
    (True, False)
    """
    return bool(np.allclose(periods, axial_periods(4 * len(periods), base), rtol=2**-8, atol=0))
