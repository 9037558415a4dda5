"""Check and resize photographs and maps of photographs."""

from __future__ import annotations

import numpy as np

from vitnp import kernels

# Filter tables take 32 bytes per pixel of a side. Longer images are subsampled before they are filtered.
_MAX_SIDE = 1 << 20


def check_photograph(rgb: np.ndarray, *, several: bool = False) -> np.ndarray:
    """Return the photograph as an array; ValueError unless it is uint8 of shape (H, W, 3) with at least one pixel.

    With `several` it may be (N, H, W, 3).
    """
    rgb = kernels.array_module(rgb).asarray(rgb)
    if rgb.ndim not in ((3, 4) if several else (3,)) or rgb.shape[-1] != 3 or rgb.dtype != np.uint8 or rgb.size == 0:
        raise ValueError(f"photograph must be a uint8 array of shape (H, W, 3), got {rgb.dtype} of shape {rgb.shape}")
    return rgb


def check_map(values: np.ndarray, shape: tuple[int, ...] | None = None, *, several: bool = False) -> np.ndarray:
    """Return the map as an array; ValueError unless it is 2-D, not empty, finite and, if given, of that shape.

    With `several` it may be 3-D.

    A map on a GPU is not checked for NaN and infinity, because this would have to wait for the GPU.
    """
    values = kernels.array_module(values).asarray(values)
    if values.ndim not in ((2, 3) if several else (2,)) or values.size == 0:
        raise ValueError(f"map must be 2-D and not empty, got the shape {values.shape}")
    if shape is not None and values.shape != tuple(shape):
        raise ValueError(f"map must have the photograph's height and width {tuple(shape)}, got {values.shape}")
    if kernels.device_of(values) == "cpu" and not np.isfinite(values).all():
        raise ValueError("map must be finite, but contains NaN or infinity")
    return values


def bilinear(
    values: np.ndarray, size: tuple[int, int], *, rows: slice = slice(None), columns: slice = slice(None)
) -> np.ndarray:
    """Resize a map bilinearly, with values at pixel centers.

    The center of output row ``i`` lies at the input row ``(i + 1/2) h / H - 1/2``, and columns likewise; beyond the
    outermost centers the map is constant. This equals ``interpolate(mode="bilinear", align_corners=False)`` of torch,
    without antialiasing when the result is smaller.

    Parameters
    ----------
    values : array, shape (h, w), any real dtype
        Map; computed in float32. It is not checked for NaN and infinity.
    size : (int, int)
        Height and width ``(H, W)`` of the result.
    rows, columns : slice, optional
        Compute only this window of the result. Its values are the same to the bit as in the whole result, so a large
        result can be computed in tiles without seams.

    Returns
    -------
    array, shape (H, W) or that of the window, float32

    Raises
    ------
    ValueError
        If `size` is not positive.

    Examples
    --------
    >>> bilinear(np.array([[0, 1]]), (1, 4)).tolist()
    [[0.0, 0.25, 0.75, 1.0]]
    """
    if min(size) < 1:
        raise ValueError(f"size must be at least 1 x 1, got {size[0]} x {size[1]}")
    values = values.astype(np.float32, copy=False)
    if kernels.device_of(values) == "cuda":
        return kernels.for_array(values).bilinear(values, size, rows=rows, columns=columns)
    top, bottom, down = taps(values.shape[0], size[0], rows)
    left, right, across = taps(values.shape[1], size[1], columns)
    # Rows first, while they are as short as those of the input.
    values = _lerp(values.take(top, axis=0), values.take(bottom, axis=0), down[:, None])
    return _lerp(values.take(left, axis=1), values.take(right, axis=1), across)


def taps(source: int, target: int, window: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the indices of the two neighbors of each output center along one axis, and the weight of the second."""
    centers = ((np.arange(*window.indices(target)) + 0.5) * (source / target) - 0.5).clip(0, source - 1)
    low = centers.astype(np.intp)
    return low, np.minimum(low + 1, source - 1), (centers - low).astype(np.float32)


def _lerp(start: np.ndarray, stop: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Compute start + weight (stop - start) in the memory of `stop`."""
    stop -= start
    stop *= weight
    stop += start
    return stop


def working_size(height: int, width: int, side: int) -> tuple[int, int]:
    """Return height and width reduced to a long side of at most `side`, with the same aspect, at least one pixel each.

    Examples
    --------
    >>> working_size(3000, 4000, 640), working_size(300, 400, 640), working_size(10000, 10, 640)
    ((480, 640), (300, 400), (640, 1))
    """
    scale = min(1.0, side / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def downscale(rgb: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a photograph, usually to a smaller size, with Pillow's antialiased bicubic filter, in little memory.

    Parameters
    ----------
    rgb : uint8 array, shape (H, W, 3)
    size : (int, int)
        Height and width ``(h, w)`` of the result.

    Returns
    -------
    uint8 array, shape (h, w, 3)
    """
    if kernels.device_of(rgb) == "cuda":
        return kernels.for_array(rgb).resize(rgb, size)
    if rgb.shape[:2] == tuple(size):
        return rgb
    row_step, column_step = (-(-side // _MAX_SIDE) for side in rgb.shape[:2])
    return kernels.for_array(rgb).resize(rgb[::row_step, ::column_step], size)
