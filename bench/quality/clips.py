"""Draw short clips whose true masks are known: an object that moves, and a camera that moves over a photograph.

All of them have sensor noise, without which a still picture would give the same mask in every frame.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy import ndimage

# Standard deviation of the sensor noise, in 8-bit levels: that of a telephone indoors.
NOISE = 6.0
# That of one in the dark.
DARK = 20.0

# Fields of other textures in the background of a moving object.
_FIELDS = 3

# Sides of a window as a share of those of the photograph.
_EXTENT = 0.8

# A window on a photograph: top, left, height and width in its pixels.
Window = tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
    """Frames, their true masks, and which pixels of neighboring frames show the same.

    Attributes
    ----------
    frames : (T, height, width, 3) uint8
    truths : (T, height, width) bool
    same : callable
        ``same(t)`` gives the pixels of frame t and those of frame t + 1 that show the same part of the scene, without
        any change but noise, as two flat index arrays.
    """

    frames: np.ndarray
    truths: np.ndarray
    same: Callable[[int], tuple[np.ndarray, np.ndarray]]

    def flicker(self, masks: np.ndarray) -> float:
        """Return the share of pixels whose mask changes from frame to frame where the picture does not.

        Parameters
        ----------
        masks : (T, height, width) bool
        """
        changed = total = 0
        for t in range(len(masks) - 1):
            here, there = self.same(t)
            changed += int(np.count_nonzero(masks[t].ravel()[here] != masks[t + 1].ravel()[there]))
            total += len(here)
        return changed / max(total, 1)

    def iou(self, masks: np.ndarray) -> float:
        """Return the mean IoU of masks (T, height, width) bool with the true ones."""
        both = (masks & self.truths).sum(axis=(1, 2))
        either = (masks | self.truths).sum(axis=(1, 2))
        return float((both / np.maximum(either, 1)).mean())


def moving_object(seed: int, n_frames: int = 24, size: tuple[int, int] = (180, 240), noise: float = NOISE) -> Clip:
    """Draw a textured object that moves before a textured background at rest.

    Parameters
    ----------
    seed : int
        Seed of the textures, the outline, the path and the noise.
    n_frames : int
    size : (int, int)
        Height and width in pixels.
    noise : float
        Standard deviation of the sensor noise in 8-bit levels.
    """
    rng = np.random.default_rng(seed)
    height, width = size
    radius = 0.22 * height
    side = int(2.6 * radius)
    background = _cluttered(rng, size, side)
    patch, outline = _texture(rng, (side, side), coarse=3.0, contrast=40.0), _blob(rng, side, radius)
    # A whole number of pixels per frame, so that the object's own pixels stay as they are.
    path = _path(rng, n_frames, (height - side, width - side))
    clean, truths = np.empty((n_frames, height, width, 3)), np.zeros((n_frames, height, width), bool)
    for frame, truth, (top, left) in zip(clean, truths, path):
        frame[:] = background
        truth[top : top + side, left : left + side] = outline
        frame[truth] = patch[outline]

    def same(t: int) -> tuple[np.ndarray, np.ndarray]:
        still = np.flatnonzero((clean[t] == clean[t + 1]).all(axis=-1))
        return still, still

    return Clip(_noisy(clean, rng, noise), truths, same)


@dataclasses.dataclass(frozen=True, eq=False)
class PairClip:
    """Frames of two objects of different kinds.

    Attributes
    ----------
    frames : (T, height, width, 3) uint8
    objects : (T, height, width) uint8
        0 on the background, and the number of the object.
    """

    frames: np.ndarray
    objects: np.ndarray

    def classes(self, labels: np.ndarray) -> np.ndarray:
        """Return the class of each object in each frame, (T, 2) int: that of most of its pixels, 0 if it is not found.

        Parameters
        ----------
        labels : (T, height, width) uint8
            0 on the background, classes from 1.
        """
        found = np.zeros((len(labels), 2), int)
        for t, number in np.ndindex(found.shape):
            votes = np.bincount(labels[t][self.objects[t] == number + 1])
            votes[0] = 0
            found[t, number] = votes.argmax()
        return found

    def switched(self, labels: np.ndarray) -> float:
        """Return the share of frames in which the class of an object is not the one it has most often in the clip."""
        share = []
        for classes in self.classes(labels).T:
            classes = classes[classes > 0]
            share.append((classes != np.bincount(classes).argmax()).mean() if len(classes) else 0.0)
        return float(np.mean(share))


def moving_pair(seed: int, n_frames: int = 24, size: tuple[int, int] = (180, 240), noise: float = DARK) -> PairClip:
    """Draw two objects with two kinds of texture that move up and down, apart from each other.

    Arguments are those of :func:`moving_object`.
    """
    rng = np.random.default_rng(seed)
    height, width = size
    radius = 0.18 * height
    side = int(2.6 * radius)
    clean = np.repeat(_texture(rng, size, coarse=12.0, contrast=12.0)[None], n_frames, axis=0)
    objects = np.zeros((n_frames, height, width), np.uint8)
    for number, (coarse, contrast) in enumerate(((3.0, 40.0), (4.0, 40.0))):
        texture, outline = _texture(rng, (side, side), coarse, contrast), _blob(rng, side, radius)
        path = _path(rng, n_frames, (height - side, width // 2 - side))
        for t, (top, left) in enumerate(path + np.array([0, number * (width // 2)])):
            place = slice(top, top + side), slice(left, left + side)
            clean[t][place][outline] = texture[outline]
            objects[t][place][outline] = number + 1
    return PairClip(_noisy(clean, rng, noise), objects)


def moving_view(
    photograph: np.ndarray,
    truth: np.ndarray,
    seed: int,
    n_frames: int = 24,
    size: tuple[int, int] = (180, 240),
    zoom: float = 1.0,
    noise: float = NOISE,
) -> Clip:
    """Move a window over a photograph, as a panning and zooming camera does.

    Parameters
    ----------
    photograph : (H, W, 3) uint8
    truth : (H, W) bool
        True mask of the photograph.
    seed : int
        Seed of the path and the noise.
    n_frames : int
    size : (int, int)
        Most rows and columns of the frames; they have the proportions of the photograph.
    zoom : float
        Size of the last window as a share of the first, at most 1.2.
    noise : float
        Standard deviation of the sensor noise in 8-bit levels.
    """
    rng = np.random.default_rng(seed)
    scale = min(size[0] / truth.shape[0], size[1] / truth.shape[1])
    height, width = (max(16, round(scale * length)) for length in truth.shape)
    # The first window has one pixel per pixel of the frame, so that without zoom nothing is interpolated.
    full = round(height / _EXTENT), round(width / _EXTENT)
    picture = Image.fromarray(photograph).resize(full[::-1], Image.Resampling.BICUBIC)
    mask = Image.fromarray(truth.view(np.uint8)).resize(full[::-1], Image.Resampling.NEAREST)
    start, end = rng.uniform(0, 1, 2), rng.uniform(0, 1, 2)
    windows: list[Window] = []
    for share in np.linspace(0, 1, n_frames):
        extent = np.array([height, width]) * (1 + share * (zoom - 1))
        corner = (start + share * (end - start)) * (full - extent)
        corner = corner.round() if zoom == 1 else corner
        windows.append((*corner, *extent))
    boxes = [(left, top, left + w, top + h) for top, left, h, w in windows]
    clean = np.stack(
        [np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC, box), np.float64) for box in boxes]
    )
    truths = np.stack([np.asarray(mask.resize((width, height), Image.Resampling.NEAREST, box)) > 0 for box in boxes])

    def same(t: int) -> tuple[np.ndarray, np.ndarray]:
        """Pair the pixels of frame t with the nearest ones of frame t + 1, where these are in the picture."""
        (top, left, h, w), (next_top, next_left, next_h, next_w) = windows[t], windows[t + 1]
        rows = np.floor((top + (np.arange(height) + 0.5) * h / height - next_top) * height / next_h).astype(int)
        columns = np.floor((left + (np.arange(width) + 0.5) * w / width - next_left) * width / next_w).astype(int)
        inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
        here = np.flatnonzero(inside)
        return here, (rows[:, None] * width + columns)[inside]

    return Clip(_noisy(clean, rng, noise), truths, same)


def _texture(rng: np.random.Generator, size: tuple[int, int], coarse: float, contrast: float) -> np.ndarray:
    """Return a picture (height, width, 3) of smooth noise in several octaves about a color."""
    color = rng.uniform(70, 180, 3)
    waves = sum(
        contrast * weight * _unit(ndimage.gaussian_filter(rng.standard_normal(size), coarse / divisor))
        for divisor, weight in ((1, 1.0), (2, 0.5), (4, 0.25))
    )
    return (color + waves[..., None]).clip(0, 255).round()


def _cluttered(rng: np.random.Generator, size: tuple[int, int], side: int) -> np.ndarray:
    """Return a background (height, width, 3) of fields of other textures, of which none is quite unlike an object."""
    background = _texture(rng, size, coarse=12.0, contrast=22.0)
    for _ in range(_FIELDS):
        top, left = (int(rng.integers(-side // 2, length - side // 2)) for length in size)
        field = _texture(rng, (side, side), coarse=rng.uniform(3, 8), contrast=20.0)
        field = (0.5 * field + 0.5 * background.mean(axis=(0, 1))).round()
        outline = _blob(rng, side, side * rng.uniform(0.15, 0.45))
        rows, columns = slice(max(top, 0), top + side), slice(max(left, 0), left + side)
        part = background[rows, columns]
        inside = (slice(max(-top, 0), None), slice(max(-left, 0), None))
        field, outline = (each[inside][: part.shape[0], : part.shape[1]] for each in (field, outline))
        part[outline] = field[outline]
    return background


def _unit(noise: np.ndarray) -> np.ndarray:
    return noise / noise.std()


def _blob(rng: np.random.Generator, side: int, radius: float) -> np.ndarray:
    """Return an outline (side, side) bool: a circle with a few waves."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    angle, distance = np.arctan2(y, x), np.hypot(y, x)
    waves = sum(rng.uniform(0, 0.08) * np.sin(k * angle + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 5))
    return distance < radius * (1 + waves)


def _path(rng: np.random.Generator, n_frames: int, room: tuple[int, int]) -> np.ndarray:
    """Return the corner (T, 2) int of the object in each frame: from one place to another, slower at both ends."""
    start, end = rng.uniform(0, 1, 2), rng.uniform(0, 1, 2)
    end[1] = 1 - start[1]  # across the picture
    share = 0.5 - 0.5 * np.cos(np.linspace(0, np.pi, n_frames))
    return ((start + share[:, None] * (end - start)) * room).round().astype(int)


def _noisy(clean: np.ndarray, rng: np.random.Generator, noise: float) -> np.ndarray:
    return (clean + noise * rng.standard_normal(clean.shape)).clip(0, 255).round().astype(np.uint8)
