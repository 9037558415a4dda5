"""From patch scores to a map as large as the photograph, whose edges follow the photograph's."""

from __future__ import annotations

import numpy as np

from vitnp.bilateral import bilateral_solver
from vitnp.errors import UsageError
from vitnp.guided import fixed_point, guided_filter, guided_upsample
from vitnp.rasters import bilinear, check_map, check_photograph, reduce, working_size

__all__ = ["METHODS", "bilateral_solver", "bilinear", "guided_filter", "guided_upsample", "refine"]

METHODS = ("solver", "guided", "none")

# As a share of the long side. The filter has to reach beyond the blur of the scores, a patch or two.
_GUIDED_RADIUS = 0.08
_GUIDED_EPS = 1e-4


def refine(score: np.ndarray, rgb: np.ndarray, *, method: str = "solver", working_side: int = 640) -> np.ndarray:
    """Enlarge patch scores to a soft map of the photograph's size.

    The scores are enlarged bilinearly to the working size, the photograph's own or its reduction to a long side of
    `working_side` pixels, and refined there; from there `guided_upsample` goes on to the full size. A photograph of
    100 megapixels takes about 100 MB beside itself and the result.

    Parameters
    ----------
    score : array, shape (gh, gw), values in 0..1
        Foreground score of each patch.
    rgb : uint8 array, shape (H, W, 3)
        The photograph.
    method : "solver", "guided" or "none"
        `bilateral_solver`, `guided_filter`, or plain bilinear interpolation up to the full size.
    working_side : int
        Longest side, in pixels, at which to refine.

    Returns
    -------
    uint16 array, shape (H, W)
        The soft map in 16-bit fixed point: 65535 stands for 1, and the mask is where it is at least 32768.

    Raises
    ------
    UsageError
        If there is no such method.
    ValueError
        If scores or photograph aren't of the stated form, or the scores aren't finite.

    Examples
    --------
    >>> refine(np.array([[0.0, 1.0]]), np.zeros((1, 4, 3), np.uint8), method="none").tolist()
    [[0, 16384, 49151, 65535]]
    """
    if method not in METHODS:
        raise UsageError(f"there is no refinement {method!r}; choose one of {', '.join(METHODS)}")
    if working_side < 1:
        raise ValueError(f"the working side must be at least one pixel, not {working_side}")
    score, rgb = check_map(score), check_photograph(rgb)
    full = rgb.shape[:2]
    if method == "none":
        return fixed_point(full, lambda rows, columns: bilinear(score, full, rows=rows, columns=columns))

    size = working_size(*full, working_side)
    small = reduce(rgb, size)
    soft = bilinear(score, size)
    if method == "solver":
        soft = bilateral_solver(soft, small)
    else:
        soft = guided_filter(soft, small, radius=max(1, round(_GUIDED_RADIUS * max(size))), eps=_GUIDED_EPS)
    if size == full:
        return fixed_point(full, lambda rows, columns: soft[rows, columns])
    return guided_upsample(soft.clip(0, 1), small, rgb)
