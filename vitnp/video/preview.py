"""Write a video of the masks on their frames."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from vitnp.errors import ImageError, OutputError
from vitnp.io.resample import downscale, working_size
from vitnp.io.write import replacing
from vitnp.masks.overlay import overlay
from vitnp.masks.palette import bright_colors
from vitnp.video.container import import_av

# Long side of a preview in pixels.
LONG_SIDE = 960
# Share of a class's color in its pixels.
CLASS_TINT = 0.5
# Frames per second of clips whose frames have no times.
RATE = 25
# Ticks per second: times of 24, 25, 30 and 60 frames per second are whole numbers of them, and MPEG-4 takes no more.
_TICKS = 30_000
# The result of the encoder depends on its number of threads.
_ENCODER_THREADS = 2


def can_preview() -> bool:
    """Tell whether the package is installed that writes videos."""
    return importlib.util.find_spec("av") is not None


def render(rgb: np.ndarray, mask: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
    """Return a frame (height, width, 3) uint8 of the preview: mask and classes drawn on the frame, of even sides.

    Parameters
    ----------
    rgb : (H, W, 3) uint8
    mask : (H, W) bool
    labels : (H, W) of integers, optional
        Classes, from 1; their colors are those of label images, but brighter.
    """
    if labels is not None:
        rgb = _tinted(rgb, labels)
    size = working_size(rgb.shape[0], rgb.shape[1], LONG_SIDE)
    if size != mask.shape:
        rgb, mask = (
            downscale(rgb, size),
            downscale(np.repeat(mask[..., None] * np.uint8(255), 3, 2), size)[..., 0] > 127,
        )
    picture = overlay(rgb, mask)
    return np.pad(picture, ((0, size[0] % 2), (0, size[1] % 2), (0, 0)), "edge")


def _tinted(rgb: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Mix the pixels of classes with the colors of their classes."""
    inside = labels > 0
    colors = bright_colors()[(labels[inside].astype(np.int64) - 1) % 255 + 1]  # there are 255 besides black
    tinted = rgb.copy()
    tinted[inside] = np.rint((1 - CLASS_TINT) * rgb[inside] + CLASS_TINT * colors)
    return tinted


@contextlib.contextmanager
def writing_preview(path: Path) -> Iterator[Preview]:
    """Write an MP4 file that gets its name when the block ends; after an exception nothing is left.

    Raises
    ------
    ImageError
        If no picture was added.
    OutputError
        If it cannot be written.
    UsageError
        If PyAV is not installed.
    """
    av = import_av()
    with replacing(path) as file:
        container = av.open(file, "w", format="mp4")
        try:
            preview = Preview(av, container, path)
            yield preview
            preview.finish()
            container.close()
        except BaseException:
            with contextlib.suppress(Exception):
                container.close()
            raise


class Preview:
    """A video to which pictures are added; see :func:`writing_preview`."""

    def __init__(self, av: Any, container: Any, path: Path) -> None:
        self._av, self._container, self._path = av, container, path
        self._stream: Any = None
        self._last = -1

    def add(self, picture: np.ndarray, seconds: float) -> None:
        """Append a picture (height, width, 3) uint8, which is shown from a time on.

        Raises
        ------
        OutputError
            If it cannot be encoded or written.
        """
        if self._stream is None:
            self._stream = self._open_stream(picture)
        frame = self._av.VideoFrame.from_ndarray(picture, format="rgb24")
        self._last = max(self._last + 1, round(seconds * _TICKS))
        frame.pts, frame.time_base = self._last, Fraction(1, _TICKS)
        self._encode(frame)

    def finish(self) -> None:
        """Write what the encoder still holds."""
        if self._stream is None:
            raise ImageError("none of the frames can be read, so there is no preview; see the reason of each")
        self._encode(None)

    def _encode(self, frame: Any) -> None:
        try:
            self._container.mux(self._stream.encode(frame))
        except (self._av.error.FFmpegError, OSError) as error:
            raise OutputError(f"cannot write {self._path}: {error.strerror or error}; write elsewhere") from None

    def _open_stream(self, picture: np.ndarray) -> Any:
        codec = "libx264" if "libx264" in self._av.codecs_available else "mpeg4"
        stream = self._container.add_stream(codec, rate=RATE)
        stream.height, stream.width, stream.pix_fmt = *picture.shape[:2], "yuv420p"
        context = stream.codec_context
        context.time_base, context.thread_count = Fraction(1, _TICKS), _ENCODER_THREADS
        return stream
