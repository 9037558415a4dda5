"""Maps beside photographs: that they agree in size, and how either is brought to another size."""

from __future__ import annotations

import numpy as np

from vitnp import kernels

# Pillow holds a photograph at four bytes a pixel; one band of so many pixels takes 64 MiB.
_BAND_PIXELS = 1 << 24
# Pillow's filter tables take 32 bytes for each pixel of a side. Longer strips are thinned before they are filtered.
_LONGEST_SIDE = 1 << 20


def check_photograph(rgb: np.ndarray) -> np.ndarray:
    """The photograph as an array; ValueError unless it is uint8 of shape (H, W, 3) with at least one pixel."""
    rgb = kernels.array_module(rgb).asarray(rgb)
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or rgb.size == 0:
        raise ValueError(f"the photograph must be a uint8 array of shape (H, W, 3), not {rgb.dtype} of {rgb.shape}")
    return rgb


def check_map(values: np.ndarray, shape: tuple[int, int] | None = None) -> np.ndarray:
    """The map as an array; ValueError unless it is 2-D, not empty, finite and, if `shape` is given, of that shape.

    Whether a map on a GPU is finite isn't looked at: one would have to wait for it.
    """
    values = kernels.array_module(values).asarray(values)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"a map must be 2-D and not empty, but this one has the shape {values.shape}")
    if shape is not None and values.shape != tuple(shape):
        raise ValueError(f"the map's shape {values.shape} differs from the photograph's height and width {shape}")
    if kernels.device_of(values) == "cpu" and not np.isfinite(values).all():
        raise ValueError("a map must be finite, but this one holds NaN or infinity")
    return values


def bilinear(
    values: np.ndarray, size: tuple[int, int], *, rows: slice = slice(None), columns: slice = slice(None)
) -> np.ndarray:
    """Resample a map bilinearly; its pixels are squares whose values stand at their centers.

    The center of output row ``i`` lies at the input row ``(i + 1/2) h / H - 1/2``, likewise across, and beyond the
    outermost centers the map goes on as a constant. This is torch's ``interpolate(mode="bilinear",
    align_corners=False)``; like it, it doesn't antialias where the result is smaller.

    Parameters
    ----------
    values : array, shape (h, w), any real dtype
        The map; computed in float32.
    size : (int, int)
        Height and width ``(H, W)`` of the result.
    rows, columns : slice, optional
        Compute this window of the result only. Its values have the same bits as in the whole, so that a large
        result can be made in tiles without seams.

    Returns
    -------
    array, shape (H, W) or that of the window, float32

    Raises
    ------
    ValueError
        If `values` isn't a non-empty finite 2-D array or `size` isn't positive.

    Examples
    --------
    >>> bilinear([[0, 1]], (1, 4)).tolist()
    [[0.0, 0.25, 0.75, 1.0]]
    """
    values = check_map(values).astype(np.float32, copy=False)
    if min(size) < 1:
        raise ValueError(f"the size of a map must be positive, not {size[0]}x{size[1]}")
    if kernels.device_of(values) == "cuda":
        return kernels.for_array(values).bilinear(values, size, rows=rows, columns=columns)
    top, bottom, down = _taps(values.shape[0], size[0], rows)
    left, right, across = _taps(values.shape[1], size[1], columns)
    # Down first, while the rows are still as short as the input's.
    values = _lerp(values.take(top, axis=0), values.take(bottom, axis=0), down[:, None])
    return _lerp(values.take(left, axis=1), values.take(right, axis=1), across)


def _taps(source: int, target: int, window: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of both neighbors of each output center along one axis, and the weight of the second."""
    centers = ((np.arange(*window.indices(target)) + 0.5) * (source / target) - 0.5).clip(0, source - 1)
    low = centers.astype(np.intp)
    return low, np.minimum(low + 1, source - 1), (centers - low).astype(np.float32)


def _lerp(start: np.ndarray, stop: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Start + weight (stop - start), in the memory of `stop`."""
    stop -= start
    stop *= weight
    stop += start
    return stop


def working_size(height: int, width: int, side: int) -> tuple[int, int]:
    """Height and width scaled down to a long side of at most `side`, aspect kept, at least one pixel each way.

    Examples
    --------
    >>> working_size(3000, 4000, 640), working_size(300, 400, 640), working_size(10000, 10, 640)
    ((480, 640), (300, 400), (640, 1))
    """
    scale = min(1.0, side / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def downscale(rgb: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale a photograph, down as a rule, with Pillow's antialiased bicubic filter, in little memory.

    Pillow resamples across first and down second, rounding to eight bits in between. The first pass in bands of
    rows therefore yields the very same pixels, without Pillow's copy of the whole photograph at four bytes a pixel.

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
    from PIL import Image

    if rgb.shape[:2] == tuple(size):
        return rgb
    thin_rows, thin_columns = (-(-side // _LONGEST_SIDE) for side in rgb.shape[:2])
    rgb = rgb[::thin_rows, ::thin_columns]
    height, width = rgb.shape[:2]
    narrow = np.empty((height, size[1], 3), np.uint8)
    step = max(1, _BAND_PIXELS // width)
    for top in range(0, height, step):
        band = Image.fromarray(np.ascontiguousarray(rgb[top : top + step]))
        narrow[top : top + step] = band.resize((size[1], band.height), Image.Resampling.BICUBIC)
    return np.asarray(Image.fromarray(narrow).resize((size[1], size[0]), Image.Resampling.BICUBIC))
