"""Heat maps: values from 0 to 1 as colors over a photograph."""

from __future__ import annotations

import functools

import numpy as np

from vitnp.kernels.constants import LUMA

# The color scale in OKLCh (Ottosson 2020): hue in degrees and chroma at equal steps of lightness. The lightness rises
# linearly, so that equal steps of the value look equal, also without colors; the chroma stays inside sRGB.
_LIGHTNESS = (0.10, 0.96)
_HUES = (275.0, 295.0, 325.0, 360.0, 388.0, 412.0, 440.0, 465.0, 470.0)
_CHROMAS = (0.03, 0.115, 0.155, 0.18, 0.19, 0.17, 0.15, 0.145, 0.09)

# Opacity of the colors where the value is 0 and 1. Below them is the photograph in gray, dimmed, so that every hue
# that is seen belongs to the scale.
_OPACITY = (0.25, 0.8)
_DIM = 0.85

# Matrices of OKLab: Lab to the cube roots of cone responses, and cone responses to linear sRGB.
_LAB_TO_ROOTS = np.array(
    [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
)
_CONES_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def heat_colors(n: int = 256) -> np.ndarray:
    """Return a perceptually even color scale from dark blue over red to light yellow.

    Parameters
    ----------
    n : int
        Number of colors, at least 2.

    Returns
    -------
    (n, 3) uint8

    Examples
    --------
    >>> heat_colors(2).tolist()
    [[2, 3, 12], [245, 248, 177]]
    """
    position = np.linspace(0, 1, n)
    lightness = _LIGHTNESS[0] + (_LIGHTNESS[1] - _LIGHTNESS[0]) * position
    steps = np.linspace(0, 1, len(_HUES))
    hue, chroma = np.deg2rad(np.interp(position, steps, _HUES)), np.interp(position, steps, _CHROMAS)
    lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=1)
    linear = ((lab @ _LAB_TO_ROOTS.T) ** 3 @ _CONES_TO_RGB.T).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return (encoded * 255 + 0.5).astype(np.uint8)


def heatmap(rgb: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Draw values over a photograph in gray.

    Parameters
    ----------
    rgb : (H, W, 3) uint8
    values : (H, W) float
        From 0 to 1; what lies beyond is clipped.

    Returns
    -------
    (H, W, 3) uint8

    Examples
    --------
    >>> heatmap(np.full((1, 2, 3), 200, np.uint8), np.array([[0.0, 1.0]])).tolist()
    [[[128, 128, 131], [230, 232, 176]]]
    """
    levels = (values.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    colors, transparency = _tables()
    gray = rgb @ np.asarray(LUMA, np.float32)
    return (colors[levels] + transparency[levels] * gray[..., None] + 0.5).astype(np.uint8)


@functools.lru_cache(maxsize=1)
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """Return by level the color times its opacity (256, 3), and the share of the gray photograph (256, 1), float32."""
    opacity = np.linspace(*_OPACITY, 256)[:, None]
    return (opacity * heat_colors()).astype(np.float32), ((1 - opacity) * _DIM).astype(np.float32)
