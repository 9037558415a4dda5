"""Decode video files with PyAV, a package of its own: the extra ``video``."""

from __future__ import annotations

import dataclasses
import importlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vitnp.errors import ImageError, UsageError
from vitnp.io.decode import DecodedImage
from vitnp.io.headers import unopened

_LOG = logging.getLogger("vitnp")

# Transfer characteristics of high dynamic range (ITU-T H.273): PQ and HLG.
_HIGH_DYNAMIC_RANGE = (16, 18)

# 1 in the fixed point of a display matrix.
_ONE = 1 << 16


def import_av() -> Any:
    """Return the module ``av``.

    Raises
    ------
    UsageError
        If it is not installed.
    """
    try:
        return importlib.import_module("av")
    except ImportError:
        raise UsageError("videos are read by the package av, which is missing; pip install 'vitnp[video]'") from None


@dataclasses.dataclass(frozen=True, eq=False)
class VideoPicture:
    """A decoded frame of a video, not yet RGB.

    Attributes
    ----------
    frame : av.VideoFrame
    """

    frame: Any

    def convert(self) -> DecodedImage:
        """Return the frame upright, in RGB."""
        rgb = self.frame.to_ndarray(format="rgb24")
        return DecodedImage(np.ascontiguousarray(_upright(rgb, _display_matrix(self.frame))))


def decode_video(path: Path, max_pixels: int) -> Iterator[tuple[float | None, VideoPicture | ImageError]]:
    """Yield the frames of a video's first picture track in the order in which they are shown.

    Parameters
    ----------
    path : Path
    max_pixels : int
        Videos of larger frames are refused.

    Yields
    ------
    seconds : float or None
        Time from the first frame; None if the file does not tell.
    picture : VideoPicture or ImageError
        An error for each packet of the file that cannot be decoded.

    Raises
    ------
    ImageError
        If the file cannot be read, has no pictures, or their size changes on the way.
    UsageError
        If PyAV is not installed.
    """
    av = import_av()
    try:
        container = av.open(str(path), metadata_errors="replace")
    except OSError as error:
        raise unopened(path, error) from None
    except av.error.FFmpegError as error:
        raise _unreadable(path, error) from None
    with container:
        stream = next((stream for stream in container.streams.video if not _is_cover(stream)), None)
        if stream is None:
            kind = "sound but no video" if container.streams.audio else "no video"
            raise ImageError(f"{path}: the file has {kind}; name a video, or a folder of frames", path=path)
        size = stream.codec_context.width, stream.codec_context.height
        if size[0] * size[1] > max_pixels:
            raise ImageError(
                f"{path}: frames of {size[0]} x {size[1]} pixels are more than the limit of {max_pixels:,}; scale the "
                "video down or raise the limit (--max-pixels, max_pixels)",
                path=path,
            )
        # Without this, decoders fill what is damaged with gray or with the frame before, and say nothing.
        stream.codec_context.options = {"err_detect": "explode"}
        yield from _checked(path, _frames(av, path, container, stream))


def count_frames(path: Path) -> int:
    """Return the number of frames that a video claims to have; 0 if it does not tell, or cannot be read."""
    av = import_av()
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            return int(next((stream.frames for stream in container.streams.video if not _is_cover(stream)), 0))
    except (OSError, av.error.FFmpegError):
        return 0


def _checked(path: Path, frames: Iterator[Any]) -> Iterator[tuple[float | None, VideoPicture | ImageError]]:
    """Add times; check that there are frames, and that all of them have one size."""
    size, start, count = None, None, 0
    for frame in frames:
        if isinstance(frame, ImageError):
            yield None, frame
            continue
        if size is None:
            size, start = (frame.width, frame.height), frame.time
            if frame.color_trc in _HIGH_DYNAMIC_RANGE:
                _LOG.warning("%s: its high dynamic range is not mapped to that of photographs; colors look pale", path)
        if (frame.width, frame.height) != size:
            raise ImageError(
                f"{path}: frame {count} has {frame.width} x {frame.height} pixels, and those before it {size[0]} x "
                f"{size[1]}; cut the video where its size changes",
                path=path,
            )
        count += 1
        known = frame.time is not None and start is not None
        yield float(frame.time - start) if known else None, VideoPicture(frame)
    if not count:
        raise ImageError(f"{path}: no frame of the video can be decoded; the file is damaged or empty", path=path)


def _frames(av: Any, path: Path, container: Any, stream: Any) -> Iterator[Any]:
    """Yield frames of PyAV, and an ImageError for each packet that cannot be decoded."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except (av.error.FFmpegError, OSError) as error:  # what follows cannot be found any more
            yield ImageError(f"{path}: the file breaks off ({error.strerror}); its end is lost", path=path)
            return
        if packet is None:
            return
        try:
            frames = packet.decode()
        except av.error.EOFError:
            return
        except (av.error.FFmpegError, OSError, ValueError) as error:
            at = "" if packet.pts is None else f" at {float(packet.pts * packet.time_base):.2f} s"
            yield ImageError(f"{path}: a frame{at} cannot be decoded ({_reason(error)}); it is left out", path=path)
            continue
        for frame in frames:
            if frame.is_corrupt:
                yield ImageError(f"{path}: the frame at {frame.time or 0:.2f} s is damaged; it is left out", path=path)
            else:
                yield frame


def _is_cover(stream: Any) -> bool:
    """Tell whether a stream is the picture on the cover of a piece of music."""
    disposition = getattr(stream, "disposition", None)
    return disposition is not None and "attached_pic" in str(getattr(disposition, "name", disposition))


def _unreadable(path: Path, error: Any) -> ImageError:
    return ImageError(f"{path}: not a video that can be read ({_reason(error)}); it may be damaged", path=path)


def _reason(error: Any) -> str:
    return str(getattr(error, "strerror", None) or error)


def _display_matrix(frame: Any) -> tuple[int, int, int, int]:
    """Return a, b, c and d of a frame's display matrix: the point (x, y) is shown at (a x + c y, b x + d y)."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return 1, 0, 0, 1
    matrix = np.frombuffer(bytes(data), np.int32)[[0, 1, 3, 4]] / _ONE
    a, b, c, d = (int(value) for value in matrix.round())
    return a, b, c, d


def _upright(rgb: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Turn and mirror a picture as its display matrix says; turns by other than right angles are left out.

    Examples
    --------
    >>> _upright(np.array([[1, 2], [3, 4]]), (0, 1, -1, 0)).tolist()     # by 90 degrees, clockwise
    [[3, 1], [4, 2]]
    """
    a, b, c, d = matrix
    if abs(b) == abs(c) == 1 and a == d == 0:
        rgb, (a, d) = rgb.swapaxes(0, 1), (c, b)
    return rgb[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
