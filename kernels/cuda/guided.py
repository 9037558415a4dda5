"""The color guided filter on the GPU, by the kernels of ``guided.cu``; see :mod:`vitnp.refine.guided_filter`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from vitnp.kernels.cuda.image import check, taps
from vitnp.kernels.cuda.loader import kernel

if TYPE_CHECKING:
    import cupy

_THREADS = 256
# As in the source file.
_MOMENTS, _PLANES = 13, 4


def guided_filter(target: cupy.ndarray, rgb: cupy.ndarray, *, radius: int, eps: float) -> cupy.ndarray:
    """Filter a map so that within any small window it is a linear function of the photograph's color.

    See :func:`vitnp.refine.guided_filter.guided_filter`.

    Parameters
    ----------
    target : float32 array, shape (h, w) or (photographs, h, w)
    rgb : uint8 array, shape (h, w, 3) or (photographs, h, w, 3)
    radius, eps : int, float

    Returns
    -------
    array with the shape of `target`, float32
    """
    import cupy

    planes = guided_coefficients(target, rgb, radius=radius, eps=eps)
    out = cupy.empty(target.shape, np.float32)
    pixels = math.prod(out.shape[-2:])
    _launch("apply_map", out.shape, planes, check(rgb), np.int64(pixels), out)
    return out


def guided_coefficients(target: cupy.ndarray, rgb: cupy.ndarray, *, radius: int, eps: float) -> cupy.ndarray:
    """Return the averaged coefficients of :func:`guided_filter` for 8-bit color, (..., 4, h, w) float64: a, then b."""
    import cupy

    rgb = check(rgb)
    if radius != int(radius) or radius < 0:
        raise ValueError(f"radius must be an integer of at least 0, got {radius}")
    if not 0 < eps < math.inf:
        raise ValueError(f"eps must be positive, got {eps}")
    target = cupy.ascontiguousarray(target, np.float32)
    *leading, height, width = shape = target.shape
    window = (np.int32(height), np.int32(width), np.int32(radius))
    moments = cupy.empty((*leading, _MOMENTS, height, width), np.float64)
    fitted, planes = (cupy.empty((*leading, _PLANES, height, width), np.float64) for _ in range(2))
    _launch("moments_across", shape, rgb, target, *window, moments)
    _launch("fit", shape, moments, *window, np.float64(eps), fitted)
    _launch("average_across", shape, fitted, *window, planes, planes=_PLANES)
    _launch("average_down", shape, planes, *window, fitted, planes=_PLANES)
    return fitted


def guided_upsample(
    soft: cupy.ndarray, small: cupy.ndarray, rgb: cupy.ndarray, *, radius: int = 4, eps: float = 1e-4
) -> cupy.ndarray:
    """Enlarge a map to the size of its photograph, with edges that follow the photograph's.

    See :func:`vitnp.refine.guided_filter.guided_upsample`.

    Parameters
    ----------
    soft : float32 array, shape (h, w) or (photographs, h, w), values in 0..1
    small : uint8 array, shape (h, w, 3) or (photographs, h, w, 3)
        The photographs reduced to that size.
    rgb : uint8 array, shape (H, W, 3) or (photographs, H, W, 3)
    radius, eps : int, float

    Returns
    -------
    uint16 array, shape (H, W) or (photographs, H, W)
        65535 stands for 1. At most one level from the CPU's.
    """
    import cupy

    rgb = check(rgb)
    planes = guided_coefficients(soft, small, radius=radius, eps=eps)
    size, full = planes.shape[-2:], rgb.shape[-3:-1]
    rows, columns = taps(size, full)
    out = cupy.empty(rgb.shape[:-1], np.uint16)
    sizes = [np.int32(side) for side in (*size, *full)]
    _launch("apply_enlarged", out.shape, planes, *sizes[:2], *rows, *columns, rgb, *sizes[2:], out)
    return out


def _launch(name: str, shape: tuple[int, ...], *arguments: object, planes: int = 1) -> None:
    """Launch a kernel with one thread per pixel of maps (..., h, w), as often as there are planes."""
    *leading, height, width = shape
    grid = (-(-(height * width) // _THREADS), planes, math.prod(leading))
    kernel("guided", name)(grid, (_THREADS,), arguments)
