"""Draw the picture of docs/video.md: frames of two clips, without and with smoothing along time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from bench.quality.clips import Clip, moving_object, moving_view
from vitnp import read_image, segment_video
from vitnp.cli import shared
from vitnp.masks.overlay import overlay
from vitnp.video.smoothing import SMOOTHING, SmoothingConfig

_ROOT = Path(__file__).parents[2]
# Neighboring frames that are shown, of a clip of 24.
_SHOWN = range(6)


def main(argv: list[str] | None = None) -> int:
    """Write docs/video.jpg."""
    shared.parser("python -m bench video-strip", "Draw the picture of docs/video.md.").parse_args(argv)
    cat = read_image(_ROOT / "tests" / "photographs" / "chelsea.jpg")
    clips = [moving_object(1), moving_view(cat, np.zeros(cat.shape[:2], bool), 0, size=(180, 240))]
    rows = [_row(clip, steps) for clip in clips for steps in (0, SMOOTHING.steps)]
    width = min(row.shape[1] for row in rows)
    gap = np.full((4, width, 3), 255, np.uint8)
    parts = [part for row in rows for part in (row[:, :width], gap)][:-1]
    path = _ROOT / "docs" / "video.jpg"
    Image.fromarray(np.concatenate(parts)).save(path, quality=85)
    print(f"written to {path}")
    return shared.EXIT_OK


def _row(clip: Clip, steps: int) -> np.ndarray:
    """Return the shown frames side by side, with their masks."""
    results = list(segment_video(list(clip.frames), smoothing=SmoothingConfig(steps=steps)))
    return np.concatenate([overlay(results[index].image, results[index].mask) for index in _SHOWN], axis=1)
