"""Drawn photographs with true masks: hot-air balloons, sailing boats and trees, for pages that people look at."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

KINDS = ("balloon", "boat", "tree")
_SKIES = [
    ((96, 150, 214), (231, 238, 240)),
    ((238, 160, 104), (253, 226, 178)),
    ((70, 92, 150), (238, 178, 170)),
    ((128, 178, 190), (240, 240, 226)),
]
_GROUNDS = [(92, 122, 74), (126, 132, 82), (70, 104, 96), (150, 128, 88)]
_WATERS = [(58, 104, 136), (74, 120, 128), (86, 84, 124)]
_PAINTS = [(204, 62, 52), (232, 168, 44), (52, 116, 176), (240, 232, 214), (150, 70, 130), (54, 140, 110)]


def scene(seed: int, size: tuple[int, int] = (640, 480)) -> tuple[np.ndarray, np.ndarray]:
    """Draw a scene.

    Returns
    -------
    (height, width, 3) uint8
    (height, width) uint8
        0 on the background, else 1 plus the index of the object in `KINDS`.
    """
    rng = np.random.default_rng(seed)
    kind = seed % len(KINDS)
    width, height = size
    horizon = int(height * rng.uniform(0.55, 0.72))
    picture = Image.fromarray(_background(rng, kind, size, horizon))
    mask = Image.new("L", size)
    scale = height * rng.uniform(0.2, 0.3)
    x = width * rng.uniform(0.3, 0.7)
    draw = (ImageDraw.Draw(picture), ImageDraw.Draw(mask))
    (_balloon, _boat, _tree)[kind](rng, draw, x, horizon, scale, kind + 1)
    blurred = picture.filter(ImageFilter.GaussianBlur(0.8))
    noisy = np.asarray(blurred, np.float32) + rng.normal(0, 4, (height, width, 1))
    return noisy.clip(0, 255).astype(np.uint8), np.asarray(mask)


def _background(rng, kind, size, horizon):
    width, height = size
    top, bottom = (np.array(color, float) for color in _SKIES[rng.integers(len(_SKIES))])
    rows = np.linspace(0, 1, height)[:, None, None]
    picture = np.broadcast_to(top + (bottom - top) * (rows / (horizon / height)).clip(0, 1), (height, width, 3)).copy()
    columns = np.arange(width)
    for layer in range(3):  # hills, the nearer the darker
        waves = sum(np.sin(columns / width * rng.uniform(3, 9) + rng.uniform(0, 6)) for _ in range(3))
        edge = horizon - (2 - layer) * height * 0.05 - waves * height * 0.018
        color = bottom * (0.62 - 0.16 * layer) + np.array(_GROUNDS[rng.integers(len(_GROUNDS))]) * (0.24 + 0.16 * layer)
        picture[np.arange(height)[:, None] > edge] = color
    ground = np.array((_WATERS if kind == 1 else _GROUNDS)[rng.integers(3)], float)
    below = np.arange(height)[:, None] > horizon + (0 if kind == 1 else np.sin(columns / 70) * 6)
    shade = 1.12 - 0.4 * (np.arange(height) - horizon)[:, None, None] / (height - horizon)
    picture = np.where(below[..., None], ground * shade, picture)
    coarse = rng.normal(0, 1, (height // 6, width // (30 if kind == 1 else 8), 1)).repeat(3, 2)
    texture = np.asarray(Image.fromarray(np.uint8((coarse * 30 + 128).clip(0, 255))).resize(size), float) - 128
    return (picture + texture * np.where(below, 0.35, 0.05)[..., None]).clip(0, 255).astype(np.uint8)


def _both(draw, method, points, color, label):
    getattr(draw[0], method)(points, fill=color)
    getattr(draw[1], method)(points, fill=label)


def _balloon(rng, draw, x, horizon, scale, label):
    y, radius = horizon * rng.uniform(0.4, 0.55), scale * 0.8
    first, second = (_PAINTS[i] for i in rng.permutation(len(_PAINTS))[:2])
    _both(
        draw,
        "polygon",
        [
            (x - radius * 0.8, y + radius * 0.6),
            (x + radius * 0.8, y + radius * 0.6),
            (x + radius * 0.16, y + radius * 1.5),
            (x - radius * 0.16, y + radius * 1.5),
        ],
        first,
        label,
    )
    _both(draw, "ellipse", (x - radius, y - radius, x + radius, y + radius), first, label)
    for share, color in ((0.62, second), (0.25, first)):
        draw[0].ellipse((x - radius * share, y - radius, x + radius * share, y + radius), fill=color)
    basket = (x - radius * 0.17, y + radius * 1.5, x + radius * 0.17, y + radius * 1.78)
    _both(draw, "rectangle", basket, (96, 66, 42), label)


def _boat(rng, draw, x, horizon, scale, label):
    y, paint = horizon + scale * rng.uniform(0.15, 0.5), _PAINTS[rng.integers(len(_PAINTS))]
    sail = (244, 240, 228) if rng.random() < 0.6 else _PAINTS[rng.integers(len(_PAINTS))]
    _both(
        draw,
        "polygon",
        [(x - scale, y), (x + scale, y), (x + scale * 0.72, y + scale * 0.34), (x - scale * 0.7, y + scale * 0.34)],
        paint,
        label,
    )
    mast = (x - scale * 0.04, y - scale * 1.6, x + scale * 0.04, y)
    _both(draw, "rectangle", mast, (86, 62, 46), label)
    _both(
        draw,
        "polygon",
        [
            (x + scale * 0.05, y - scale * 1.55),
            (x + scale * 0.05, y - scale * 0.1),
            (x + scale * 0.85, y - scale * 0.1),
        ],
        sail,
        label,
    )
    shadow = tuple(int(value * 0.86) for value in sail)
    _both(
        draw,
        "polygon",
        [
            (x - scale * 0.06, y - scale * 1.35),
            (x - scale * 0.06, y - scale * 0.1),
            (x - scale * 0.62, y - scale * 0.1),
        ],
        shadow,
        label,
    )


def _tree(rng, draw, x, horizon, scale, label):
    y = horizon + scale * 0.35
    trunk = (x - scale * 0.09, y - scale * 0.7, x + scale * 0.09, y)
    _both(draw, "rectangle", trunk, (88, 64, 46), label)
    green = np.array([(66, 112, 52), (104, 132, 48), (190, 120, 40)][rng.integers(3)])
    for part in range(26):
        angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.55) * scale
        cx, cy = x + np.cos(angle) * distance * 1.15, y - scale * 1.25 + np.sin(angle) * distance
        radius = scale * rng.uniform(0.22, 0.4)
        color = tuple(int(value) for value in (green * (0.7 + part / 60)).clip(0, 255))
        _both(draw, "ellipse", (cx - radius, cy - radius, cx + radius, cy + radius), color, label)
