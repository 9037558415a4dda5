"""The overlay of a result, computed in bands to save memory."""

from __future__ import annotations

import numpy as np

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

# Background colors as a matrix on (R, G, B, 1): a weighted mean of each channel and the luma, dimmed.
_OUTSIDE = tuple(
    _DIM * value
    for channel in range(3)
    for value in (*(_GRAY * weight + (1 - _GRAY) * (index == channel) for index, weight in enumerate(LUMA)), 0.0)
)

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
    from PIL import Image, ImageFilter

    height, width = mask.shape
    line = max(_LINE_MIN_PIXELS, _LINE_FRACTION * float(np.hypot(height, width)))
    sigma = line / 2
    blur = ImageFilter.GaussianBlur(sigma)
    # Pillow approximates the blur by three box filters; rows farther apart than this do not affect each other.
    reach = int(np.ceil(4 * sigma)) + 4
    inside, light, accent = _ramps(line, sigma)
    result = np.empty((height, width, 3), np.uint8)
    rows = max(1, _BAND_PIXELS // width, 2 * reach)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        first, last = max(0, top - reach), min(height, bottom + reach)
        soft = Image.fromarray(mask[first:last].view(np.uint8) * np.uint8(255)).filter(blur)
        soft = soft.crop((0, top - first, width, bottom - first))
        photograph = Image.fromarray(np.ascontiguousarray(rgb[top:bottom]))
        tinted = Image.blend(photograph, Image.new("RGB", photograph.size, _ACCENT), _TINT)
        band = Image.composite(tinted, photograph.convert("RGB", _OUTSIDE), soft.point(inside))
        band.paste(_LIGHT, mask=soft.point(light))
        band.paste(_ACCENT, mask=soft.point(accent))
        result[top:bottom] = np.asarray(band)
    return result


def _ramps(line: float, sigma: float) -> tuple[list[int], list[int], list[int]]:
    """Map the 256 values of the blurred mask to the opacities of the object, the light line and the saturated line."""
    from scipy.special import ndtri

    # A straight edge blurred by a Gaussian is the normal distribution function; its inverse is the distance, positive
    # inside.
    distance = sigma * ndtri((np.arange(256) + 0.5) / 256)
    inside = _step(distance)
    accent = inside * (1 - _step(distance - (1 - _LIGHT_FRACTION) * line))
    light = _step(distance + _LIGHT_FRACTION * line) * (1 - inside)
    # The light line is painted first and then covered by the saturated one.
    light = light / np.maximum(1 - accent, 1e-6)
    inside, light, accent = (
        (opacity * 255 + 0.5).astype(int).tolist() for opacity in (inside, light.clip(0, 1), accent)
    )
    return inside, light, accent


def _step(distance: np.ndarray) -> np.ndarray:
    """Return a ramp one pixel wide: 0 outside, 1 inside."""
    return (distance + 0.5).clip(0, 1)
