"""Videos for tests, written with PyAV."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

_ONE, _ZERO = b"\0\1\0\0", b"\0\0\0\0"
_LAST = b"\x40\0\0\0"
_UPRIGHT = _ONE + 3 * _ZERO + _ONE + 3 * _ZERO + _LAST
# By 90 degrees, clockwise: (x, y) is shown at (-y, x).
_TURNED = _ZERO + _ONE + _ZERO + b"\xff\xff\0\0" + 4 * _ZERO + _LAST


def write_video(
    path: Path, frames: Sequence[np.ndarray], times: Sequence[float] | None = None, codec: str = "mpeg4", gop: int = 12
) -> None:
    """Write frames (height, width, 3) uint8, ten per second or at given seconds."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        stream.codec_context.time_base, stream.codec_context.gop_size = Fraction(1, 1000), gop
        stream.bit_rate = 4_000_000
        for index, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture.pts = round(1000 * (index / 10 if times is None else times[index]))
            picture.time_base = Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def write_sound(path: Path) -> None:
    """Write a second of silence."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        for start in range(0, 44032, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 44100, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def turn(path: Path) -> None:
    """Say in the header of an MP4 file that its pictures are to be turned by 90 degrees, clockwise."""
    content = path.read_bytes()
    start = content.index(_UPRIGHT, content.index(b"tkhd"))
    path.write_bytes(content[:start] + _TURNED + content[start + len(_TURNED) :])
