"""Pictures of a result: overlay and cutout, and the boxes around a mask's parts. Made in bands, lean in memory."""

from __future__ import annotations

import numpy as np

from vitnp.kernels.constants import LUMA

# Pixels in flight at a time: a band's temporaries stay within some tens of megabytes.
_BAND_PIXELS = 1 << 20

# The overlay's colors. Around the object a light line, so that dark backgrounds show it, and within that a saturated
# one, so that bright ones do; few objects have its hue. The object is tinted a little, the rest grayed and dimmed.
_LIGHT = (255, 255, 255)
_ACCENT = (0, 190, 255)
_TINT = 0.10
_DIM = 0.62
_GRAY = 0.65

# Outside, as a color matrix on (R, G, B, 1): part of each channel, part of the luma, all of it dimmed.
_OUTSIDE = tuple(
    _DIM * value
    for channel in range(3)
    for value in (*(_GRAY * weight + (1 - _GRAY) * (index == channel) for index, weight in enumerate(LUMA)), 0.0)
)

# Widths of the two lines, as shares of the picture's diagonal and in pixels at least.
_LINE_SHARE, _LINE_MIN = 0.005, 2.0
_LIGHT_PART = 0.4


def overlay(rgb: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Show a mask on its photograph: the object tinted and outlined, the rest dimmed and half gray.

    The mask is blurred a little, and what a pixel gets depends on its blurred value alone: near an edge that is a
    function of the distance to it, which makes smooth lines of an even width on either side of the edge.

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
    line = max(_LINE_MIN, _LINE_SHARE * float(np.hypot(height, width)))
    sigma = line / 2
    blur = ImageFilter.GaussianBlur(sigma)
    # Pillow's blur is three box filters; beyond this reach rows don't feel each other, so bands don't show.
    reach = int(np.ceil(4 * sigma)) + 4
    inside, light, accent = _ramps(line, sigma)
    result = np.empty((height, width, 3), np.uint8)
    rows = max(1, _BAND_PIXELS // width, 2 * reach)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        above, below = max(0, top - reach), min(height, bottom + reach)
        soft = Image.fromarray(mask[above:below].view(np.uint8) * np.uint8(255)).filter(blur)
        soft = soft.crop((0, top - above, width, bottom - above))
        photograph = Image.fromarray(np.ascontiguousarray(rgb[top:bottom]))
        tinted = Image.blend(photograph, Image.new("RGB", photograph.size, _ACCENT), _TINT)
        band = Image.composite(tinted, photograph.convert("RGB", _OUTSIDE), soft.point(inside))
        band.paste(_LIGHT, mask=soft.point(light))
        band.paste(_ACCENT, mask=soft.point(accent))
        result[top:bottom] = band
    return result


def _ramps(line: float, sigma: float) -> tuple[list[int], list[int], list[int]]:
    """What each of the blurred mask's 256 values means: opacities of the object, the light and the saturated line."""
    from scipy.special import ndtri

    # A straight edge blurred by a Gaussian is its distribution function: invert it for the distance, inwards positive.
    inwards = sigma * ndtri((np.arange(256) + 0.5) / 256)
    inside = _step(inwards)
    accent = inside * (1 - _step(inwards - (1 - _LIGHT_PART) * line))
    light = _step(inwards + _LIGHT_PART * line) * (1 - inside)
    # The light line is painted first, and is then covered by what there is of the other.
    light = light / np.maximum(1 - accent, 1e-6)
    return tuple((opacity * 255 + 0.5).astype(int).tolist() for opacity in (inside, light.clip(0, 1), accent))


def _step(distance: np.ndarray) -> np.ndarray:
    """An edge one pixel wide: 0 outside, 1 inside."""
    return (distance + 0.5).clip(0, 1)


def cutout(rgb: np.ndarray, soft: np.ndarray) -> np.ndarray:
    """Cut the object out: the photograph with the soft map as its alpha channel.

    The map is steepened about the half, sixteenfold: scores that are merely more than a half make an object opaque, and it's the
    edges that stay soft. Where nothing shows through, the color is zero too: the background doesn't leave the house hidden in the file.

    Parameters
    ----------
    rgb : array, shape (H, W, 3), uint8
    soft : array, shape (H, W), uint16
        Opaque from 17/32 of 65535 on, clear up to 15/32; alpha >= 128 where soft >= 32768.

    Returns
    -------
    array, shape (H, W, 4), uint8

    Examples
    --------
    >>> cutout(np.full((1, 2, 3), 9, np.uint8), np.array([[0, 65535]], np.uint16)).tolist()
    [[[0, 0, 0, 0], [9, 9, 9, 255]]]
    """
    height, width = soft.shape
    rgba = np.empty((height, width, 4), np.uint8)
    rows = max(1, _BAND_PIXELS // width)
    for top in range(0, height, rows):
        band = slice(top, top + rows)
        alpha = ((soft[band].astype(np.int32) - 32768) // 16 + 128).clip(0, 255).astype(np.uint8)
        rgba[band, :, 3] = alpha
        np.multiply(rgb[band], (alpha > 0)[..., None], out=rgba[band, :, :3])
    return rgba
