"""From patch scores to a map as large as the photograph, whose edges follow the photograph's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vitnp import kernels
from vitnp.errors import UsageError
from vitnp.io.resample import bilinear, check_map, check_photograph, downscale, working_size
from vitnp.refine.bilateral_solver import bilateral_solver
from vitnp.refine.dense_crf import dense_crf
from vitnp.refine.guided_filter import fixed_point, guided_filter, guided_upsample

METHODS = ("solver", "crf", "guided", "none")

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
        Foreground score of each patch. Where it lives decides where all is computed.
    rgb : uint8 array, shape (H, W, 3)
        The photograph, there or in the host's memory.
    method : "solver", "crf", "guided" or "none"
        `bilateral_solver`, `dense_crf` at half the working size, `guided_filter`, or plain bilinear interpolation up to
        the full size.
    working_side : int
        Longest side, in pixels, at which to refine.

    Returns
    -------
    uint16 array, shape (H, W)
        The soft map in 16-bit fixed point: 65535 stands for 1, and the mask is where it is at least 32768. Lives where the
        score does.

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
    score = check_map(score)
    rgb = check_photograph(kernels.to_device(rgb, kernels.device_of(score)))
    full = rgb.shape[:2]
    if method == "none":
        return _fixed_point(full, lambda rows, columns: bilinear(score, full, rows=rows, columns=columns), score)

    size = working_size(*full, working_side)
    if method == "crf":
        # A pixel in four says as much about colors and places, and the guided filter finds the way back.
        size = working_size(*size, max(1, round(max(size) / 2)))
    small = downscale(rgb, size)
    soft = bilinear(score, size)
    if method == "solver":
        soft = bilateral_solver(soft, small)
    elif method == "crf":
        soft = dense_crf(soft.clip(0, 1), small)[..., 1]
    else:
        soft = guided_filter(soft, small, radius=max(1, round(_GUIDED_RADIUS * max(size))), eps=_GUIDED_EPS)
    if size == full:
        return _fixed_point(full, lambda rows, columns: soft[rows, columns], score)
    return guided_upsample(soft.clip(0, 1), small, rgb)


def _fixed_point(size: tuple[int, int], window: Callable[[slice, slice], np.ndarray], like: np.ndarray) -> np.ndarray:
    """A uint16 map, tile by tile in the host's memory; a GPU makes it at once."""
    if kernels.device_of(like) == "cpu":
        return fixed_point(size, window)
    return kernels.for_array(like).fixed_point(window(slice(None), slice(None)))
