"""What is behind a cutout: a color, or the photograph's own background, blurred."""

from __future__ import annotations

import numpy as np

# Pixels per band: the temporary arrays of a band take some tens of megabytes.
_BAND_PIXELS = 1 << 20

# Standard deviation of the blur, as a fraction of the image diagonal. The picture is reduced until this is about so
# many pixels.
_BLUR_FRACTION, _BLUR_PIXELS = 0.012, 4.0


def over_color(rgba: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """Put a cutout (H, W, 4) uint8 on a color: (H, W, 3) uint8.

    Examples
    --------
    >>> over_color(np.array([[[200, 100, 0, 51]]], np.uint8), (255, 255, 255)).tolist()
    [[[244, 224, 204]]]
    """
    return over_picture(rgba, np.broadcast_to(np.array(color, np.uint8), (*rgba.shape[:2], 3)))


def over_picture(rgba: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Put a cutout (H, W, 4) uint8 on a background (H, W, 3) uint8 of the same size: (H, W, 3) uint8."""
    result = np.empty((*rgba.shape[:2], 3), np.uint8)
    rows = max(1, _BAND_PIXELS // rgba.shape[1])
    for top in range(0, len(rgba), rows):
        band = slice(top, top + rows)
        alpha = rgba[band, :, 3:].astype(np.uint16)
        total = rgba[band, :, :3] * alpha
        total += background[band] * (255 - alpha)
        total += 127
        total //= 255
        result[band] = total
    return result


def blurred_background(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Blur the background of a photograph, without the object, whose colors would make a halo around it.

    Parameters
    ----------
    rgb : (H, W, 3) uint8
    alpha : (H, W) uint8
        Opacity of the object.

    Returns
    -------
    (H, W, 3) uint8
        Behind the object, far from any background, the mean color of the background.
    """
    from PIL import Image
    from scipy import ndimage

    height, width = alpha.shape
    sigma = _BLUR_FRACTION * float(np.hypot(height, width))
    factor = max(1, int(sigma / _BLUR_PIXELS))
    # RGBa is premultiplied: reducing it sums the background's light only.
    pixels = Image.merge("RGBA", [*Image.fromarray(rgb).split(), Image.fromarray(np.uint8(255) - alpha)])
    premultiplied = np.asarray(pixels.convert("RGBa").reduce(factor), np.float32)
    mean = premultiplied.sum(axis=(0, 1)) + np.array([0, 0, 0, 1e-3], np.float32)
    # A little of the mean color everywhere, which shows only where nothing else is.
    premultiplied += mean / mean[3] * np.float32(1e-2)
    premultiplied = ndimage.gaussian_filter(premultiplied, (sigma / factor, sigma / factor, 0), mode="reflect")
    blurred = premultiplied[..., :3] / premultiplied[..., 3:] * 255
    image = Image.fromarray((blurred + np.float32(0.5)).clip(0, 255).astype(np.uint8))
    whole = image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)
    return np.asarray(whole)[:height, :width]
