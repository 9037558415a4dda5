"""The color guided filter of He, Sun and Tang, and guided upsampling of a map along the edges of a photograph."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from vitnp import kernels
from vitnp.io.resample import check_map, check_photograph, taps

# Pixels per tile: enough to hide the overhead of NumPy calls, few enough that the temporaries of a tile take about 20
# MB.
_TILE = 1 << 19


def guided_filter(target: np.ndarray, rgb: np.ndarray, *, radius: int, eps: float) -> np.ndarray:
    r"""Filter a map so that it is locally a linear function of the photograph's color.

    This is the filter with a color guide (equations 14 to 16 of the ECCV 2010 paper). In the window k of side
    2 `radius` + 1 around each pixel,

    .. math::
        a_k = (\Sigma_k + \epsilon U)^{-1} \Big( \frac{1}{|\omega|} \sum_{i \in \omega_k} I_i t_i - \mu_k \bar t_k
        \Big), \qquad b_k = \bar t_k - a_k^T \mu_k, \qquad x_i = \bar a_i^T I_i + \bar b_i

    with the mean color mu, the color covariance Sigma, the mean target t-bar, the 3 x 3 identity U, and bars over a and
    b for their means over the windows that cover pixel i. Windows are clipped at the border of the image.

    Parameters
    ----------
    target : array, shape (h, w)
        Map t.
    rgb : uint8 array, shape (h, w, 3)
        Photograph; I is its color scaled to 0..1.
    radius : int
        Distance from the center of a window to its side in pixels, at least 0.
    eps : float
        Color variance below which a window counts as flat, in squared units of I; positive.

    Returns
    -------
    array, shape (h, w), float32

    Raises
    ------
    ValueError
        If shapes differ, values are not finite, or a parameter is out of its range.

    References
    ----------
    K. He, J. Sun and X. Tang, "Guided Image Filtering", ECCV 2010, and IEEE TPAMI 35(6), 2013.

    Examples
    --------
    >>> rgb = np.zeros((5, 6, 3), np.uint8)
    >>> rgb[:, 3:] = 255
    >>> target = np.tile(np.float32([0, 0, 0.3, 0.7, 1, 1]), (5, 1))
    >>> guided_filter(target, rgb, radius=2, eps=1e-6)[2].astype(float).round(2).tolist()
    [0.1, 0.11, 0.15, 0.85, 0.89, 0.9]
    """
    if kernels.device_of(target) == "cuda":
        return kernels.for_array(target).guided_filter(target, rgb, radius=radius, eps=eps)
    rgb = check_photograph(rgb)
    target = check_map(target, rgb.shape[:2])
    *a, b = guided_coefficients(target, rgb, radius=radius, eps=eps)
    return _apply(a, b, rgb).astype(np.float32)


def guided_coefficients(target: np.ndarray, rgb: np.ndarray, *, radius: int, eps: float) -> list[np.ndarray]:
    """Compute the averaged coefficients of `guided_filter`.

    These are a for red, green and blue, then b: four (h, w) float64 arrays. They refer to 8-bit color:
    ``a[0] R + a[1] G + a[2] B + b`` is the filtered map. Parameters are those of `guided_filter`; the arrays are not
    checked again.
    """
    if radius != int(radius) or radius < 0:
        raise ValueError(f"radius must be a whole number of pixels of at least 0, got {radius}")
    if not 0 < eps < math.inf:
        raise ValueError(f"eps must be positive and finite, got {eps}")

    # float64 throughout, because the covariances are small differences of large moments.
    target = target.astype(float)
    image = [rgb[..., channel] / 255.0 for channel in range(3)]
    box_mean = kernels.for_device().box_mean

    def mean(values: np.ndarray) -> np.ndarray:
        return box_mean(values, int(radius))

    mu = [mean(channel) for channel in image]
    average = mean(target)
    covariance = [mean(channel * target) - m * average for channel, m in zip(image, mu)]
    sigma = {(i, j): mean(image[i] * image[j]) - mu[i] * mu[j] for i in range(3) for j in range(i + 1)}
    for i in range(3):
        sigma[i, i] += eps
    a = _solve(sigma, covariance)
    b = average - sum(slope * m for slope, m in zip(a, mu))
    return [mean(slope) / 255.0 for slope in a] + [mean(b)]


def guided_upsample(
    soft: np.ndarray,
    small: np.ndarray,
    rgb: np.ndarray,
    *,
    radius: int = 4,
    eps: float = 1e-4,
    tile: int = _TILE,
) -> np.ndarray:
    """Enlarge a map to the size of its photograph, with edges that follow those of the photograph.

    The coefficients of the guided filter are computed at the size of the map, on the reduced photograph, then enlarged
    bilinearly and applied to the colors of the full photograph: the coefficients vary slowly, the colors carry the
    edges. The result is computed in tiles to save memory, and does not depend on the tiles.

    Parameters
    ----------
    soft : array, shape (h, w), values in 0..1
        Map at working size.
    small : uint8 array, shape (h, w, 3)
        Photograph reduced to that size.
    rgb : uint8 array, shape (H, W, 3)
        Photograph.
    radius, eps : int, float
        As in `guided_filter`, in pixels of `small`.
    tile : int
        Number of pixels per tile; affects speed and memory only.

    Returns
    -------
    uint16 array, shape (H, W)
        Map in 16-bit fixed point: 65535 represents 1.

    Raises
    ------
    ValueError
        If shapes differ, values are not finite, or a parameter is out of its range.

    References
    ----------
    K. He and J. Sun, "Fast Guided Filter", arXiv:1505.00996, 2015, algorithm 2.
    """
    if kernels.device_of(soft) == "cuda":
        return kernels.for_array(soft).guided_upsample(soft, small, rgb, radius=radius, eps=eps)
    rgb, small = check_photograph(rgb), check_photograph(small)
    soft = check_map(soft, small.shape[:2])
    size = rgb.shape[0], rgb.shape[1]
    coefficients = np.array(guided_coefficients(soft, small, radius=radius, eps=eps), np.float32)
    enlarge = kernels.for_device().linear_in_color
    result = np.empty(size, np.uint16)
    for rows, columns in _tiles(size, tile):
        vertical, horizontal = taps(small.shape[0], size[0], rows), taps(small.shape[1], size[1], columns)
        result[rows, columns] = enlarge(coefficients, rgb[rows, columns], vertical, horizontal)
    return result


def fixed_point(size: tuple[int, int], window: Callable[[slice, slice], np.ndarray], tile: int = _TILE) -> np.ndarray:
    """Fill a uint16 map (H, W) tile by tile from ``window(rows, columns)``, clipped to 0..1; 65535 represents 1."""
    result = np.empty(size, np.uint16)
    for rows, columns in _tiles(size, tile):
        result[rows, columns] = np.rint(window(rows, columns).clip(0, 1) * np.float32(65535))
    return result


def _tiles(size: tuple[int, int], tile: int) -> Iterator[tuple[slice, slice]]:
    """Divide a map into bands of whole rows, or parts of rows that have more than `tile` pixels."""
    height, width = size
    tile_width = min(width, tile)
    tile_height = tile // tile_width
    for top in range(0, height, tile_height):
        for left in range(0, width, tile_width):
            yield slice(top, top + tile_height), slice(left, left + tile_width)


def _apply(a: list[np.ndarray], b: np.ndarray, rgb: np.ndarray) -> np.ndarray:
    """Compute a . rgb + b, accumulated in the memory of a and b."""
    for channel, slope in enumerate(a):
        slope *= rgb[..., channel]
        b += slope
    return b


def _solve(s: dict[tuple[int, int], np.ndarray], r: list[np.ndarray]) -> list[np.ndarray]:
    """Solve the symmetric 3 x 3 system S x = r of each pixel, given the lower triangle of S, by S = L D L^T.

    Unlike Cramer's rule this is accurate where a window contains a single hue and S is nearly singular.
    """
    d0 = s[0, 0]
    l10, l20 = s[1, 0] / d0, s[2, 0] / d0
    d1 = s[1, 1] - l10 * s[1, 0]
    d1_l21 = s[2, 1] - l20 * s[1, 0]
    l21 = d1_l21 / d1
    d2 = s[2, 2] - l20 * s[2, 0] - l21 * d1_l21
    y0 = r[0]
    y1 = r[1] - l10 * y0
    y2 = r[2] - l20 * y0 - l21 * y1
    x2 = y2 / d2
    x1 = y1 / d1 - l21 * x2
    x0 = y0 / d0 - l10 * x1 - l20 * x2
    return [x0, x1, x2]
