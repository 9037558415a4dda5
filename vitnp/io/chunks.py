"""Read what Pillow ignores in the headers of PNG, AVIF and HEIC: the depth of samples, and code points of colors."""

from __future__ import annotations

import dataclasses
import os
from typing import BinaryIO

_SIGNATURE_BYTES = 8

# Chunks before the pixels; a file has about ten of them.
_MAX_CHUNKS = 1000

# The boxes that describe an AVIF or HEIC come before the pixels and are a few kilobytes.
_BOXES_BYTES = 1 << 16


@dataclasses.dataclass(frozen=True)
class PngHeader:
    """What the chunks before the pixels say.

    Attributes
    ----------
    bits : int
        Bits per sample, 1 to 16.
    significant_bits : int
        Bits of the original samples of a gray image (sBIT); `bits` if the file does not say. By the specification such
        samples are scaled to the full range, but some programs store them as they are.
    code_points : (int, int), optional
        Code points of primaries and transfer function (H.273).
    """

    bits: int = 8
    significant_bits: int = 8
    code_points: tuple[int, int] | None = None


def read_png_header(file: BinaryIO) -> PngHeader:
    """Read the chunks before the pixels from the start of an open PNG; its position stays as it is."""
    position = file.tell()
    try:
        file.seek(_SIGNATURE_BYTES)
        return _read_chunks(file)
    finally:
        file.seek(position)


def _read_chunks(file: BinaryIO) -> PngHeader:
    bits, is_gray, significant, code_points = 8, False, 0, None
    for _ in range(_MAX_CHUNKS):
        head = file.read(8)
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if len(head) < 8 or kind in (b"IDAT", b"IEND"):
            break
        data = file.read(length) if kind in (b"IHDR", b"sBIT", b"cICP") and length <= 16 else b""
        if kind == b"IHDR" and len(data) == 13:
            bits, is_gray = data[8], data[9] == 0
        elif kind == b"sBIT" and is_gray and data:
            significant = data[0]
        elif kind == b"cICP" and len(data) == 4:
            code_points = data[0], data[1]
        file.seek(length - len(data) + 4, os.SEEK_CUR)
    return PngHeader(bits, significant if 8 < significant < bits else bits, code_points)


def nclx_code_points(file: BinaryIO) -> tuple[int, int] | None:
    """Return the code points of primaries and transfer function of an open AVIF or HEIC, if it has any.

    They are in a color information box of type "nclx" (ISO/IEC 14496-12, 12.1.5) near the start of the file.
    """
    position = file.tell()
    try:
        file.seek(0)
        _, box, after = file.read(_BOXES_BYTES).partition(b"colrnclx")
    finally:
        file.seek(position)
    if not box or len(after) < 4:
        return None
    return int.from_bytes(after[:2], "big"), int.from_bytes(after[2:4], "big")
