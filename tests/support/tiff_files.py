"""Write TIFF files field by field, as the specification describes them: an oracle that is independent of Pillow."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping

import numpy as np

# Type number and struct code of the fields that are not unsigned integers of 32 bits.
_SHORT, _LONG, _UNDEFINED = 3, 4, 7
_FORMATS = {"u": 1, "i": 2, "f": 3}


def tiff_bytes(
    samples: np.ndarray,
    photometric: int = 1,
    *,
    byte_order: str = "<",
    bits: int | None = None,
    planar: int = 1,
    compression: int = 1,
    predictor: int = 1,
    tags: Mapping[int, int | bytes | list[int]] | None = None,
) -> bytes:
    """Encode one page in a single strip (or one per plane).

    Parameters
    ----------
    samples : (H, W) or (H, W, C) array
        Values as they are stored; the dtype gives BitsPerSample and SampleFormat.
    photometric : int
        PhotometricInterpretation: 0 white is zero, 1 black is zero, 2 RGB, 3 palette, 5 CMYK, 6 YCbCr, 8 CIELab.
    byte_order : {"<", ">"}
    bits : int, optional
        BitsPerSample if it is less than the dtype has; rows are packed, the most significant bit first.
    planar : {1, 2}
        PlanarConfiguration: 1 interleaved, 2 one plane per channel.
    compression : {1, 8}
        None, or deflate.
    predictor : {1, 2, 3}
        None, horizontal differences, or those of the bytes of floats; with deflate only.
    tags : mapping
        Further fields, or other values for fields that are written anyway: a number, numbers, or bytes.
    """
    samples = samples if samples.ndim == 3 else samples[..., None]
    height, width, channels = samples.shape
    planes = np.moveaxis(samples, 2, 0)[..., None] if planar == 2 else samples[None]
    strips = [_strip(plane, byte_order, bits, predictor) for plane in planes]
    if compression == 8:
        strips = [zlib.compress(strip) for strip in strips]
    fields: dict[int, int | bytes | list[int]] = {
        256: width,
        257: height,
        258: [bits or samples.dtype.itemsize * 8] * channels,
        259: compression,
        262: photometric,
        277: channels,
        278: height,
        279: [len(strip) for strip in strips],
        284: planar,
        317: predictor,
        339: [_FORMATS[samples.dtype.kind]] * channels,
        **(tags or {}),
    }
    body, offsets = b"", []
    for strip in strips:
        offsets.append(8 + len(body))
        body += strip + b"\0" * (len(strip) % 2)
    fields[273] = offsets
    entries = b""
    for tag, value in sorted(fields.items()):
        kind, count, data = _field(tag, value, byte_order)
        if len(data) > 4:
            place = 8 + len(body)
            body += data + b"\0" * (len(data) % 2)
            data = struct.pack(byte_order + "I", place)
        entries += struct.pack(byte_order + "HHI", tag, kind, count) + data.ljust(4, b"\0")
    mark = {"<": b"II*\0", ">": b"MM\0*"}[byte_order]
    directory = struct.pack(byte_order + "H", len(fields)) + entries + bytes(4)
    return mark + struct.pack(byte_order + "I", 8 + len(body)) + body + directory


def _field(tag: int, value: int | bytes | list[int], byte_order: str) -> tuple[int, int, bytes]:
    """Return type, count and bytes of a field."""
    if isinstance(value, bytes):
        return _UNDEFINED, len(value), value
    values = value if isinstance(value, list) else [value]
    kind, code = (_LONG, "I") if tag in (273, 279) or max(values) > 65535 else (_SHORT, "H")
    return kind, len(values), struct.pack(f"{byte_order}{len(values)}{code}", *values)


def _strip(samples: np.ndarray, byte_order: str, bits: int | None, predictor: int) -> bytes:
    """Return (H, W, C) samples as a file holds them before compression."""
    height, width, channels = samples.shape
    if bits is not None:
        places = (samples.reshape(height, -1, 1) >> np.arange(bits)[::-1]) & 1
        return np.packbits(places.reshape(height, -1).astype(np.uint8), axis=1).tobytes()
    if predictor == 2:
        before = np.concatenate([np.zeros_like(samples[:, :1]), samples[:, :-1]], axis=1)
        samples = samples - before  # modulo 2**bits
    if predictor == 3:
        # The most significant bytes of a row first, whatever the byte order, then differences of single bytes.
        rows = samples.astype(samples.dtype.newbyteorder(">")).view(np.uint8).reshape(height, width * channels, -1)
        rows = rows.swapaxes(1, 2).reshape(height, -1, channels)
        before = np.concatenate([np.zeros_like(rows[:, :1]), rows[:, :-1]], axis=1)
        return (rows - before).tobytes()
    return samples.astype(samples.dtype.newbyteorder(byte_order)).tobytes()
