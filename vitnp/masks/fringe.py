"""Take the fringe of background colors off an object's edge.

The edge of a mask is exact to some pixels, while background between object and mask shows at once, as a blue line along
a wing. There, colors decide: a pixel is a mixture of the object's color, carried there from inside, and of the
background's, carried there from outside, and its share of the former is its alpha.
"""

from __future__ import annotations

import numpy as np

from vitnp.masks.foreground_colors import EdgeColors

# Pixels on both sides of the mask's edge that are looked at: this fraction of the image diagonal, within limits.
_REACH_FRACTION, _REACH_LIMITS = 0.005, (2, 8)

# Where the two colors are as similar as this (squared distance, of 3), and where the pixel is not on the line between
# them, the mask weighs as much as the colors. Chosen on photographs of DUTS with their true masks.
_SIMILAR, _OFF_LINE_WEIGHT = 0.15, 4.0
# Contrast of alpha around 1/2, against remains of texture.
_CONTRAST = 1.5


def without_fringe(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Lower an alpha channel at the edge where the photograph shows background.

    Parameters
    ----------
    rgb : (height, width, 3) uint8
    alpha : (height, width) uint8

    Returns
    -------
    (height, width) uint8
        Nowhere more than `alpha`.

    Examples
    --------
    >>> rgb = np.full((1, 40, 3), 250, np.uint8)  # a bright background, and a dark object in columns 20 to 39
    >>> rgb[:, 20:] = 10
    >>> alpha = np.zeros((1, 40), np.uint8)
    >>> alpha[:, 19:] = 255  # the mask is one pixel too wide
    >>> without_fringe(rgb, alpha)[0, 18:22].tolist()
    [0, 0, 255, 255]
    """
    reach = int(np.clip(round(_REACH_FRACTION * float(np.hypot(*alpha.shape))), *_REACH_LIMITS))
    near_background, near_object = dilate(alpha < 255, reach), dilate(alpha > 0, reach)
    edge = EdgeColors(rgb, near_background & near_object)
    if edge.positions.size == 0:
        return alpha
    # Beyond their own side, the colors of either are carried on smoothly.
    opaque = np.uint8(255)
    foreground, _ = edge.estimate((~near_background).view(np.uint8) * opaque)
    _, background = edge.estimate(near_object.view(np.uint8) * opaque)
    colors = rgb.reshape(-1, 3)[edge.positions] / np.float32(255)
    before = alpha.reshape(-1)[edge.positions] / np.float32(255)
    line = foreground - background
    length = (line * line).sum(axis=1)
    share = (((colors - background) * line).sum(axis=1) / np.maximum(length, np.float32(1e-6))).clip(0, 1)
    off = colors - background - share[:, None] * line
    doubt = np.float32(_SIMILAR) + np.float32(_OFF_LINE_WEIGHT) * (off * off).sum(axis=1)
    found = (length * share + doubt * before) / (length + doubt)
    found = ((found - np.float32(0.5)) * np.float32(_CONTRAST) + np.float32(0.5)).clip(0, before)
    result = alpha.copy()
    result.reshape(-1)[edge.positions] = (found * 255 + np.float32(0.5)).astype(np.uint8)
    return result


def dilate(mask: np.ndarray, reach: int) -> np.ndarray:
    """Return the pixels of a mask (H, W) bool and those within `reach` rows and columns of them.

    Examples
    --------
    >>> dilate(np.arange(9)[None] == 4, 2)[0].astype(int).tolist()
    [0, 0, 1, 1, 1, 1, 1, 0, 0]
    """
    for axis in (0, 1):
        done = 0
        while done < reach:
            # Windows side by side make a larger one without a gap, at the border too, where half of each is lost.
            step = min(done + 1, reach - done)
            source = mask if axis == 0 else mask.T
            grown = mask.copy()
            target = grown if axis == 0 else grown.T
            target[step:] |= source[:-step]
            target[:-step] |= source[step:]
            mask, done = grown, done + step
    return mask
