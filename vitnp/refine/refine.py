"""Refine patch scores to a map of the photograph's size, with edges that follow those of the photograph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from vitnp import kernels, options
from vitnp.io.resample import bilinear, check_map, check_photograph, downscale, working_size
from vitnp.refine.bilateral_solver import bilateral_solver
from vitnp.refine.color_direction import color_direction
from vitnp.refine.dense_crf import dense_crf
from vitnp.refine.guided_filter import fixed_point, guided_filter, guided_upsample

# Long side in pixels to which photographs are reduced for refinement.
WORKING_SIDE = 640

# As a fraction of the long side: the filter has to reach beyond the blur of the scores, which is one or two patches
# wide.
_GUIDED_RADIUS = 0.08
_GUIDED_EPS = 1e-4

# The solver's second pass: side of a bin as a fraction of the long side; bins of color, and steps. It starts close to
# its solution, and after eight steps edges stay where they are.
_FINE_SIGMA_XY = 0.02
_FINE: dict[str, Any] = {"sigma_luma": 8.0, "sigma_chroma": 4.0, "max_iterations": 8}


def refine(
    score: np.ndarray, rgb: np.ndarray, *, method: str = "solver", working_side: int = WORKING_SIDE
) -> np.ndarray:
    """Enlarge patch scores to a soft map of the photograph's size.

    The scores are enlarged bilinearly to the working size (that of the photograph, or reduced to a long side of
    `working_side` pixels) and refined there. If this is not the full size, `guided_upsample` enlarges the result to it.
    A photograph of 100 megapixels needs about 100 MB in addition to itself and the result.

    Parameters
    ----------
    score : array, shape (gh, gw), values in 0..1
        Foreground score of each patch. Everything is computed on its device. On a GPU also those of several
        photographs, (N, gh, gw), which are refined together; see :func:`vitnp.refine.batch.refine_batch`.
    rgb : uint8 array, shape (H, W, 3)
        Photograph, on the same device or in host memory; several as (N, H, W, 3).
    method : "solver", "crf", "guided", "color" or "none"
        `bilateral_solver` in two passes, `dense_crf` at half the working size, `guided_filter`, `color_direction` (on
        the CPU), or only bilinear interpolation to the full size.
    working_side : int
        Long side of the working size in pixels.

    Returns
    -------
    uint16 array, shape (H, W) or (N, H, W)
        Soft map in 16-bit fixed point, on the device of the score: 65535 represents 1, and the mask is where the map is
        at least 32768.

    Raises
    ------
    UsageError
        If the method is unknown.
    ValueError
        If the score or the photograph has another shape or dtype, or the score is not finite.

    Examples
    --------
    >>> refine(np.array([[0.0, 1.0]]), np.zeros((1, 4, 3), np.uint8), method="none").tolist()
    [[0, 16384, 49151, 65535]]
    """
    options.check("refine", method)
    if working_side < 1:
        raise ValueError(f"working_side must be at least 1 pixel, got {working_side}")
    several = kernels.device_of(score) == "cuda"
    score = check_map(score, several=several)
    rgb = check_photograph(kernels.to_device(rgb, kernels.device_of(score)), several=several)
    if score.shape[:-2] != rgb.shape[:-3]:
        raise ValueError(f"there must be a map for each photograph, got the shapes {score.shape} and {rgb.shape}")
    full = rgb.shape[-3], rgb.shape[-2]
    if method == "none":
        return _fixed_point(full, lambda rows, columns: bilinear(score, full, rows=rows, columns=columns), score)

    size = working_size(*full, working_side)
    if method == "crf":
        # A quarter of the pixels carries as much color and position, and guided upsampling restores the full size.
        size = working_size(*size, max(1, round(max(size) / 2)))
    small = downscale(rgb, size)
    soft = bilinear(score, size)
    if method == "solver":
        soft = bilateral_solver(soft, small)
        # The first pass carries scores across an object, the second, on a finer grid, follows its edge.
        soft = bilateral_solver(soft, small, sigma_xy=max(1.0, _FINE_SIGMA_XY * max(size)), **_FINE)
    elif method == "crf":
        soft = dense_crf(soft.clip(0, 1), small)[..., 1]
    elif method == "color":
        soft = _divide_by_color(soft, small)
    else:
        soft = guided_filter(soft, small, radius=max(1, round(_GUIDED_RADIUS * max(size))), eps=_GUIDED_EPS)
    if size == full:
        return _fixed_point(full, lambda rows, columns: soft[..., rows, columns], score)
    return guided_upsample(soft.clip(0, 1), small, rgb)


def stretch(soft: np.ndarray) -> np.ndarray:
    """Double the contrast of a soft map, which leaves its mask as it is: S becomes clip(2 S - 1/2, 0, 1).

    The mean of several levels is rarely near 0 or 1, though the levels agree.

    Parameters
    ----------
    soft : uint16 array, shape (H, W)
        Map in 16-bit fixed point, in host memory; overwritten.

    Returns
    -------
    uint16 array, shape (H, W)

    Examples
    --------
    >>> stretch(np.array([[0, 16384, 24576, 32767, 32768, 49152, 65535]], np.uint16)).tolist()
    [[0, 0, 16384, 32766, 32769, 65535, 65535]]
    """
    # In place: the map of a photograph of 100 megapixels has 200 MB.
    np.clip(soft, 16384, 49151, out=soft)
    soft -= 16384
    soft *= 2
    soft += soft >= 32768  # 65535 stands for 1, not 65534
    return soft


def _divide_by_color(soft: np.ndarray, rgb: np.ndarray) -> np.ndarray:
    """Divide photographs by a color direction on the CPU; the result is on the device of the map."""
    maps, photographs = (kernels.to_host(array) for array in (soft, rgb))
    if maps.ndim == 3:
        divided = np.stack([color_direction(one, photograph) for one, photograph in zip(maps, photographs)])
    else:
        divided = color_direction(maps, photographs)
    return kernels.to_device(divided.astype(soft.dtype), kernels.device_of(soft))


def _fixed_point(size: tuple[int, int], window: Callable[[slice, slice], np.ndarray], like: np.ndarray) -> np.ndarray:
    """Compute a uint16 map: tile by tile in host memory, or the whole at once on a GPU."""
    if kernels.device_of(like) == "cpu":
        return fixed_point(size, window)
    return kernels.for_array(like).fixed_point(window(slice(None), slice(None)))
