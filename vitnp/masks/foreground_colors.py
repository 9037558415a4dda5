"""Colors of an object at its soft edge, without those of the background that shine through.

Multi-level foreground estimation (Germer et al. 2020, "Fast Multi-Level Foreground Estimation", arXiv 2006.14970): from
coarse to fine, each level starts from the colors of the one above it. Only pixels at the edge have a color to be found,
so a level is a list of the pixels around it, not a picture.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from vitnp import kernels

# Sweeps per level: coarse levels are small, and carry colors far.
_SWEEPS, _COARSE_SWEEPS, _COARSE_SIZE = 3, 10, 64


@dataclasses.dataclass(frozen=True, eq=False)
class _Level:
    """Pixels around the edge at one scale.

    Attributes
    ----------
    rows, columns : (N,) int64
        Places of the pixels, in the order that the sweeps expect: red fields of a chessboard, then black ones.
    n_red : int
    neighbors : (N, 4) int32
    number : (height, width) int32
        Number of each pixel; undefined for those that are not in the list.
    """

    rows: np.ndarray
    columns: np.ndarray
    n_red: int
    neighbors: np.ndarray
    number: np.ndarray


def estimate_foreground(rgb: np.ndarray, alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Estimate the foreground colors of the pixels that are neither opaque nor transparent.

    Parameters
    ----------
    rgb : (height, width, 3) uint8
        The photograph: alpha times the foreground, plus 1 - alpha times the background.
    alpha : (height, width) uint8

    Returns
    -------
    positions : (N,) int64
        Places of these pixels in the flattened picture, in no particular order.
    colors : (N, 3) uint8
        The same on any number of threads.

    Examples
    --------
    >>> rgb = np.zeros((1, 5, 3), np.uint8)
    >>> rgb[0, :, 0], rgb[0, :, 2] = (200, 200, 100, 0, 0), (0, 0, 50, 100, 100)  # red, half of each, blue
    >>> positions, colors = estimate_foreground(rgb, np.array([[255, 255, 128, 0, 0]], np.uint8))
    >>> positions.tolist(), bool(abs(colors[0] - [200.0, 0, 0]).max() <= 2)
    ([2], True)
    """
    soft = (alpha - np.uint8(1)) < 254  # 0 becomes 255
    edge = EdgeColors(rgb, soft)
    foreground, _ = edge.estimate(alpha)
    return edge.positions, (foreground * 255 + np.float32(0.5)).astype(np.uint8)


class EdgeColors:
    """Colors of foreground and background in a region of a photograph, for any alpha channel.

    Parameters
    ----------
    rgb : (height, width, 3) uint8
    region : (height, width) bool
        Pixels whose colors are to be found. All others are opaque or transparent.

    Attributes
    ----------
    positions : (N,) int64
        Places of the region's pixels in the flattened picture.
    """

    def __init__(self, rgb: np.ndarray, region: np.ndarray) -> None:
        self._rgb, self._levels = rgb, _levels(region)
        if not self._levels:
            self.positions, self._inside = np.empty(0, np.int64), np.empty(0, bool)
            return
        positions = self._levels[0].rows * region.shape[1] + self._levels[0].columns
        self._inside = region.reshape(-1)[positions]
        self.positions = positions[self._inside]

    def estimate(self, alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Estimate the colors of foreground and background in the region.

        Parameters
        ----------
        alpha : (height, width) uint8

        Returns
        -------
        foreground, background : (N, 3) float32
            From 0 to 1. Where a pixel shows nothing of one of them, its color is carried on from its neighbors.
        """
        sweep = kernels.for_device("cpu").foreground_sweeps
        foreground = background = np.empty((0, 3), np.float32)
        parents: _Level | None = None
        for scale in range(len(self._levels) - 1, -1, -1):
            level = self._levels[scale]
            colors, opacity = _sample(self._rgb, alpha, level, scale)
            if parents is None:
                foreground, background = (_mean(colors, weight) for weight in (opacity, 1 - opacity))
            else:
                at = parents.number[level.rows >> 1, level.columns >> 1]
                foreground, background = foreground[at], background[at]
            sweeps = _COARSE_SWEEPS if max(level.number.shape) <= _COARSE_SIZE else _SWEEPS
            sweep(colors, opacity, level.neighbors, level.n_red, sweeps, foreground, background)
            parents = level
        return foreground[self._inside], background[self._inside]


def _levels(soft: np.ndarray) -> list[_Level]:
    """Return the levels, fine to coarse, for the pixels at the edge, (height, width) bool; none without an edge."""
    levels = []
    if not soft.any():
        return []
    mask = soft
    while True:
        mask = _grow(mask)
        levels.append(_level(mask))
        if max(mask.shape) == 1:
            return levels
        mask = _halve(mask)


def _grow(mask: np.ndarray) -> np.ndarray:
    """Return the mask and the pixels beside, above and below it."""
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown


def _halve(mask: np.ndarray) -> np.ndarray:
    """Return the mask at half the size: True where any of four pixels is."""
    height, width = mask.shape
    rows = mask[0::2].copy()
    rows[: height // 2] |= mask[1::2]
    halved = rows[:, 0::2].copy()
    halved[:, : width // 2] |= rows[:, 1::2]
    return halved


def _level(mask: np.ndarray) -> _Level:
    """Return the list of the pixels of a mask."""
    height, width = mask.shape
    positions = np.flatnonzero(mask)
    rows, columns = np.divmod(positions, width)
    is_black = ((rows + columns) & 1).astype(bool)
    order = np.concatenate([np.flatnonzero(~is_black), np.flatnonzero(is_black)])
    positions, rows, columns = positions[order], rows[order], columns[order]
    count = len(positions)
    own = np.arange(count, dtype=np.int32)
    number = np.empty(height * width, np.int32)  # memory that is not written to costs nothing
    number[positions] = own
    neighbors = np.empty((count, 4), np.int32)
    flat = mask.reshape(-1)
    for direction, (step, inside) in enumerate(
        ((-1, columns > 0), (1, columns < width - 1), (-width, rows > 0), (width, rows < height - 1))
    ):
        beside = np.where(inside, positions + step, positions)
        neighbors[:, direction] = np.where(flat[beside], number[beside], own)
    return _Level(rows, columns, int(count - np.count_nonzero(is_black)), neighbors, number.reshape(height, width))


def _sample(rgb: np.ndarray, alpha: np.ndarray, level: _Level, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """Return colors and alpha of the pixels of a level, 0 to 1 in float32: one pixel of the photograph for each."""
    height, width = alpha.shape
    half = (1 << scale) >> 1
    rows = np.minimum((level.rows << scale) + half, height - 1)
    columns = np.minimum((level.columns << scale) + half, width - 1)
    unit = np.float32(1 / 255)
    return rgb[rows, columns] * unit, (alpha[rows, columns] / np.float32(255))


def _mean(colors: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the weighted mean color, once for each pixel."""
    total = max(float(weight.sum()), 1e-6)
    return np.repeat((colors * weight[:, None]).sum(axis=0, keepdims=True) / np.float32(total), len(colors), axis=0)
