"""The overlay of a result, computed in bands to save memory."""

from __future__ import annotations

import functools
import statistics

import numpy as np

from vitnp import kernels
from vitnp.kernels.constants import LUMA

# Pixels per band: the temporary arrays of a band take some tens of megabytes.
_BAND_PIXELS = 1 << 20

# The outline is a light line, which shows on dark backgrounds, around a saturated one, which shows on bright
# backgrounds and has a hue that few objects have. The object is slightly tinted; the rest is desaturated and dimmed.
_LIGHT = (255, 255, 255)
_ACCENT = (0, 190, 255)
_TINT = 0.10
_DIM = 0.62
_GRAY = 0.65

# Background colors as a matrix on (R, G, B): a weighted mean of each channel and the luma, dimmed.
_OUTSIDE = (_DIM * (_GRAY * np.array([LUMA] * 3) + (1 - _GRAY) * np.eye(3))).astype(np.float32)

# Total width of the two lines, as a fraction of the image diagonal and at least in pixels, and the light line's share.
_LINE_FRACTION, _LINE_MIN_PIXELS = 0.005, 2.0
_LIGHT_FRACTION = 0.4


def overlay(rgb: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Draw a mask on its photograph: the object tinted and outlined, the rest dimmed and desaturated.

    The mask is blurred slightly, and the color of a pixel depends only on its blurred value: near an edge this is a
    function of the distance to the edge, which gives smooth lines of constant width.

    Parameters
    ----------
    rgb : array, shape (H, W, 3), uint8
    mask : array, shape (H, W), bool

    Returns
    -------
    array, shape (H, W, 3), uint8

    Examples
    --------
    >>> gray = np.full((40, 40, 3), 128, np.uint8)
    >>> overlay(gray, np.zeros((40, 40), bool))[0, 0].tolist()
    [79, 79, 79]
    """
    height, width = mask.shape
    line = max(_LINE_MIN_PIXELS, _LINE_FRACTION * float(np.hypot(height, width)))
    sigma = line / 2
    # Pillow approximates the blur by three box filters; rows farther apart than this do not affect each other.
    reach = int(np.ceil(4 * sigma)) + 4
    opacity, lines = _ramps(line, sigma), np.array([_LIGHT, _ACCENT], np.uint8)
    result = np.empty((height, width, 3), np.uint8)
    rows = max(1, _BAND_PIXELS // width, 2 * reach)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        first, last = max(0, top - reach), min(height, bottom + reach)
        soft = _blurred(mask[first:last], sigma, reach)[top - first : bottom - first]
        result[top:bottom] = kernels.for_device().paint_overlay(rgb[top:bottom], soft, opacity, _OUTSIDE, _TINT, lines)
    return result


def _blurred(mask: np.ndarray, sigma: float, reach: int) -> np.ndarray:
    """Return a mask as 0 and 255, blurred by a Gaussian where the box around its edges, widened by the reach, is."""
    from PIL import Image, ImageFilter

    soft = mask.view(np.uint8) * np.uint8(255)
    across, along = mask[1:] != mask[:-1], mask[:, 1:] != mask[:, :-1]
    rows = np.flatnonzero(_any_above(across.any(axis=1)) | along.any(axis=1))
    columns = np.flatnonzero(across.any(axis=0) | _any_above(along.any(axis=0)))
    if len(rows):
        top, left = max(0, rows[0] - reach), max(0, columns[0] - reach)
        box = np.s_[top : rows[-1] + reach + 1, left : columns[-1] + reach + 1]
        blurred = Image.fromarray(np.ascontiguousarray(soft[box])).filter(ImageFilter.GaussianBlur(sigma))
        soft[box] = np.asarray(blurred)
    return soft


def _any_above(steps: np.ndarray) -> np.ndarray:
    """Mark the rows on both sides of each step between two rows."""
    return np.append(steps, False) | np.append(False, steps)


def _ramps(line: float, sigma: float) -> np.ndarray:
    """Map the 256 values of the blurred mask to the opacities of object, light line and saturated line; (3, 256)."""
    # A straight edge blurred by a Gaussian is the normal distribution function; its inverse is the distance, positive
    # inside.
    distance = sigma * _normal_quantiles()
    inside = _step(distance)
    accent = inside * (1 - _step(distance - (1 - _LIGHT_FRACTION) * line))
    light = _step(distance + _LIGHT_FRACTION * line) * (1 - inside)
    # The light line is painted first and then covered by the saturated one.
    light = light / np.maximum(1 - accent, 1e-6)
    return (np.stack((inside, light.clip(0, 1), accent)) * 255 + 0.5).astype(np.uint8)


@functools.cache
def _normal_quantiles() -> np.ndarray:
    """Return the numbers below which shares of (0.5, 1.5, ..., 255.5) / 256 of a normal distribution lie."""
    # Not ndtri of scipy.special, whose import takes longer than the overlay.
    normal = statistics.NormalDist()
    return np.array([normal.inv_cdf((value + 0.5) / 256) for value in range(256)])


def _step(distance: np.ndarray) -> np.ndarray:
    """Return a ramp one pixel wide: 0 outside, 1 inside."""
    return (distance + 0.5).clip(0, 1)
