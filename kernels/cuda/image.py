"""Images and maps on the GPU: the kernels of ``image.cu`` under the names of the corresponding CPU functions.

Callers have checked photographs and maps; only what can be checked without waiting for the device is checked again.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import numpy as np
from vitnp.kernels.cuda.device import upload
from vitnp.kernels.cuda.loader import kernel
from vitnp.kernels.reference.resize import filter_weights

if TYPE_CHECKING:
    import cupy

_THREADS = 256
# Maximum number of blocks along the second axis of a grid.
_MAX_PLANES = 65_535
# As in vitnp.io.resample: longer sides are subsampled before they are filtered.
_LONGEST_SIDE = 1 << 20


def resize(rgb: cupy.ndarray, size: tuple[int, int]) -> cupy.ndarray:
    """Scale a photograph with Pillow's antialiased bicubic filter, to the same bytes as the CPU.

    See :func:`vitnp.io.resample.downscale`.

    Parameters
    ----------
    rgb : uint8 array, shape (H, W, 3) or (photographs, H, W, 3)
    size : (int, int)
        Height and width ``(h, w)`` of the result.

    Returns
    -------
    uint8 array, shape (h, w, 3) or (photographs, h, w, 3)
    """
    import cupy

    rgb = check(rgb)
    *leading, height, width, _ = rgb.shape
    if (height, width) == tuple(size):
        return rgb
    thin_rows, thin_columns = (-(-side // _LONGEST_SIDE) for side in (height, width))
    rgb = cupy.ascontiguousarray(rgb[..., ::thin_rows, ::thin_columns, :])
    *leading, height, width, _ = rgb.shape
    photographs = math.prod(leading)
    # Along rows first, then along columns, rounded to eight bits in between, as Pillow does it.
    if size[1] != width:
        rgb = _resample(rgb, width, size[1], photographs * height, 3)
    if size[0] != height:
        rgb = _resample(rgb, height, size[0], photographs, 3 * size[1])
    return rgb.reshape(*leading, *size, 3)


def normalize(
    rgb: cupy.ndarray, mean: tuple[float, float, float], std: tuple[float, float, float], dtype: type = np.float32
) -> cupy.ndarray:
    """Scale an image to 0..1, subtract the mean, divide by the standard deviation, and put channels first.

    Parameters
    ----------
    rgb : uint8 array, shape (h, w, 3)
    mean, std : three floats
        On the scale 0..1.
    dtype : float32 or float16
        Type of the result; it is computed in float32.

    Returns
    -------
    array, shape (3, h, w)
    """
    import cupy

    rgb = check(rgb)
    height, width = rgb.shape[:2]
    out = cupy.empty((3, height, width), dtype)
    name = {"float32": "normalize_float", "float16": "normalize_half"}[out.dtype.name]
    constants = (np.float32(x) for x in (*mean, *std))
    _launch(name, rgb, np.int64(height * width), *constants, out, count=height * width)
    return out


def bilinear(
    values: cupy.ndarray, size: tuple[int, int], *, rows: slice = slice(None), columns: slice = slice(None)
) -> cupy.ndarray:
    """Resample a map bilinearly, to the same bits as :func:`vitnp.io.resample.bilinear`.

    Parameters
    ----------
    values : float32 array, shape (h, w) or (maps, h, w)
    size : (int, int)
        Height and width ``(H, W)`` of the result.
    rows, columns : slice, optional
        Compute this window of the result only.

    Returns
    -------
    array, shape (H, W) or that of the window, float32; of each map
    """
    import cupy

    values = cupy.ascontiguousarray(values, np.float32)
    *leading, height, width = values.shape
    (top, down), (left, across) = taps((height, width), size)
    top, down, left, across = top[rows], down[rows], left[columns], across[columns]
    out = cupy.empty((*leading, len(top), len(left)), np.float32)
    tables = map(cupy.ascontiguousarray, (top, down, left, across))
    arguments = (values, np.int32(height), np.int32(width), *tables, np.int32(len(top)), np.int32(len(left)), out)
    _launch("bilinear", *arguments, count=len(top) * len(left), photographs=math.prod(leading))
    return out


def fixed_point(values: cupy.ndarray) -> cupy.ndarray:
    """Clip maps (..., H, W) to 0..1 and scale it to uint16; see :func:`vitnp.refine.guided_filter.fixed_point`."""
    import cupy

    values = cupy.ascontiguousarray(values, np.float32)
    out = cupy.empty(values.shape, np.uint16)
    _launch("to_fixed_point", values, np.int64(out.size), out, count=out.size)
    return out


def clean(score: cupy.ndarray, relative: float, absolute: float, cap: float) -> cupy.ndarray:
    """Push small islands of foreground below the threshold; see :func:`vitnp.method.cleaning.clean`.

    Parameters
    ----------
    score : (rows, columns) or (maps, rows, columns) float32
    relative, absolute, cap : float
        As in :class:`vitnp.method.cleaning.CleaningConfig`.

    Returns
    -------
    array with the shape of `score`, float32
    """
    import cupy

    score = cupy.ascontiguousarray(score, np.float32)
    *leading, rows, columns = score.shape
    launch = functools.partial(_launch, count=rows * columns, photographs=math.prod(leading))
    pixels = np.int32(rows * columns)
    label, size = (cupy.empty(score.shape, np.int32) for _ in range(2))
    summary = cupy.zeros((*leading, 2), np.int32)
    out = cupy.empty_like(score)
    launch("start_labels", score, pixels, label, size)
    launch("join_labels", score, np.int32(rows), np.int32(columns), label)
    launch("measure_labels", pixels, label, size)
    launch("summarize_labels", size, pixels, summary)
    shares = np.float64(relative), np.float64(absolute), np.float32(cap)
    launch("cap_small", score, pixels, label, size, summary, *shares, out)
    return out


def check(rgb: cupy.ndarray) -> cupy.ndarray:
    """Return photographs (..., H, W, 3) as a contiguous array; ValueError if they have another shape or type."""
    import cupy

    if rgb.ndim not in (3, 4) or rgb.shape[-1] != 3 or rgb.dtype != np.uint8 or rgb.size == 0:
        raise ValueError(f"the photograph must be a uint8 array of shape (H, W, 3), not {rgb.dtype} of {rgb.shape}")
    return cupy.ascontiguousarray(rgb)


def _launch(name: str, *arguments: object, count: int, planes: int = 1, photographs: int = 1) -> None:
    """Launch a kernel with one thread per output, `count` of them for each plane of each photograph."""
    kernel("image", name)((-(-count // _THREADS), planes, photographs), (_THREADS,), arguments)


def _resample(pixels: cupy.ndarray, length: int, size: int, outer: int, inner: int) -> cupy.ndarray:
    import cupy

    first, weights = _filter_on_device(cupy.cuda.Device().id, length, size)
    out = cupy.empty(outer * size * inner, np.uint8)
    numbers = (np.int32(number) for number in (weights.shape[1], outer, length, size, inner))
    _launch("resample", pixels, first, weights, *numbers, out, count=size * inner, planes=min(outer, _MAX_PLANES))
    return out


def taps(shape: tuple[int, int], size: tuple[int, int]) -> list[tuple[cupy.ndarray, cupy.ndarray]]:
    """Return the input before each output and the fraction of the way to the next one, for rows and for columns."""
    import cupy

    if min(size) < 1:
        raise ValueError(f"the size of a map must be positive, not {size[0]}x{size[1]}")
    device = cupy.cuda.Device().id
    return [_taps_on_device(device, *pair) for pair in zip(shape, size)]


# Photographs have few different sizes, so their tables are cached on the device.


@functools.lru_cache(maxsize=128)
def _filter_on_device(device: int, length: int, size: int) -> tuple[cupy.ndarray, cupy.ndarray]:
    first, weights = filter_weights(length, size)
    return upload(first), upload(weights)


@functools.lru_cache(maxsize=128)
def _taps_on_device(device: int, length: int, size: int) -> tuple[cupy.ndarray, cupy.ndarray]:
    centers = ((np.arange(size) + 0.5) * (length / size) - 0.5).clip(0, length - 1)
    low = centers.astype(np.int32)
    return upload(low), upload((centers - low).astype(np.float32))
