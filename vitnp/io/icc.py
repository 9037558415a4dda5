"""Make ICC profiles for color spaces that a file describes by numbers instead of a profile (ICC.1:2022).

PNG has chromaticities and gamma, or code points of video signals (ITU-T H.273), which AVIF and HEIC use too; cameras
write a mark for Adobe RGB into EXIF. With a profile, all of them take one way through the color management.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

_D65 = (0.3127, 0.3290)
_BT709 = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06)

# Chromaticities by code point of ColourPrimaries (H.273, table 2): white, red, green, blue.
_PRIMARIES = {
    1: (*_D65, *_BT709),
    9: (*_D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),  # BT.2020
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),  # DCI-P3
    12: (*_D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),  # Display P3
}

# Curves as ICC writes them: g, or g, a, b, c, d for y = (a x + b)**g if x >= d, else c x.
Curve = tuple[float, ...]
SRGB_CURVE: Curve = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)

# Curves by code point of TransferCharacteristics (H.273, table 3). Those of television, 1, 6, 14 and 15, are curves of
# cameras; such pictures are made to be seen as they are on displays of sRGB.
_TRANSFERS = {
    **dict.fromkeys((1, 6, 13, 14, 15), SRGB_CURVE),
    4: (2.2,),
    5: (2.8,),
    8: (1.0,),
}

UNSPECIFIED = 2

# White point of profiles, and the Bradford matrix that adapts colors to it.
_D50 = np.array([0.96420288, 1.0, 0.82490540])
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def adobe_rgb() -> bytes:
    """Return a profile of Adobe RGB (1998)."""
    return rgb_profile((*_D65, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06), (563 / 256,))


def from_gamma(gamma: float | None, chromaticities: Sequence[float] | None) -> bytes:
    """Return the profile for the chunks gAMA and cHRM of a PNG.

    Parameters
    ----------
    gamma : float, optional
        Exponent by which the samples were encoded, such as 1/2.2; the curve of sRGB by default.
    chromaticities : 8 floats, optional
        x and y of white, red, green and blue; those of sRGB by default.

    Raises
    ------
    ValueError
        If the numbers describe no color space.
    """
    if gamma is not None and not 0.1 <= gamma <= 10:
        raise ValueError(f"the gamma is {gamma:g}")
    curve = SRGB_CURVE if gamma is None or abs(gamma - 1 / 2.2) < 0.01 else (1 / gamma,)
    return rgb_profile(chromaticities or (*_D65, *_BT709), curve)


def from_code_points(primaries: int, transfer: int) -> bytes | None:
    """Return the profile for code points of H.273; None if they are unspecified.

    Raises
    ------
    ValueError
        If they are reserved, or stand for a color space without a profile, such as those of HDR video.
    """
    if UNSPECIFIED in (primaries, transfer):
        return None
    if primaries not in _PRIMARIES or transfer not in _TRANSFERS:
        raise ValueError(f"the color space has the code points {primaries} and {transfer}")
    return rgb_profile(_PRIMARIES[primaries], _TRANSFERS[transfer])


def rgb_profile(chromaticities: Sequence[float], curve: Curve) -> bytes:
    """Return an ICC profile of three primaries and one curve.

    Parameters
    ----------
    chromaticities : 8 floats
        x and y of white, red, green and blue.
    curve : 1 or 5 floats
        Parameters of the curve from samples to light, both in 0..1.

    Returns
    -------
    bytes

    Raises
    ------
    ValueError
        If these are not chromaticities of a color space.
    """
    xy = np.array(chromaticities, float).reshape(4, 2)
    if not ((xy > -1) & (xy < 2)).all() or (xy[:, 1] <= 0).any():
        raise ValueError("the chromaticities are out of range")
    white, *primaries = np.column_stack([xy[:, 0] / xy[:, 1], np.ones(4), (1 - xy.sum(axis=1)) / xy[:, 1]])
    columns = np.array(primaries).T
    if abs(np.linalg.det(columns)) < 1e-3:
        raise ValueError("the chromaticities are on one line")
    cones = _BRADFORD @ white
    if (cones <= 0).any():
        raise ValueError("the white point is out of range")
    adapted = np.linalg.inv(_BRADFORD) @ np.diag(_BRADFORD @ _D50 / cones) @ _BRADFORD
    red, green, blue = (adapted @ columns @ np.diag(np.linalg.solve(columns, white))).T
    tone = struct.pack(">4sIHH", b"para", 0, 0 if len(curve) == 1 else 3, 0) + _fixed(curve)
    return _assemble(
        {
            b"desc": _text("RGB"),
            b"cprt": _text("Public domain"),
            b"wtpt": b"XYZ \0\0\0\0" + _fixed(_D50),
            b"chad": b"sf32\0\0\0\0" + _fixed(adapted.ravel()),
            **{
                kind + b"XYZ": b"XYZ \0\0\0\0" + _fixed(column)
                for kind, column in zip((b"r", b"g", b"b"), (red, green, blue))
            },
            **{kind + b"TRC": tone for kind in (b"r", b"g", b"b")},
        }
    )


def _fixed(values: Sequence[float] | np.ndarray) -> bytes:
    """Encode numbers as s15Fixed16Number."""
    return struct.pack(f">{len(values)}i", *(round(float(value) * 65536) for value in values))


def _text(text: str) -> bytes:
    """Encode a text as multiLocalizedUnicodeType."""
    data = text.encode("utf-16-be")
    return struct.pack(">4sIII2s2sII", b"mluc", 0, 1, 12, b"en", b"US", len(data), 28) + data


def _assemble(tags: dict[bytes, bytes]) -> bytes:
    """Return a display profile of RGB with these tags, version 4.3."""
    table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += struct.pack(">4sII", name, start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    header = struct.pack(
        ">I4sI4s4s4s12s4s4sIIIQI", start + len(body), b"", 0x04300000, b"mntr", b"RGB ", b"XYZ ",
        struct.pack(">6H", 2000, 1, 1, 0, 0, 0), b"acsp", b"", 0, 0, 0, 0, 0,
    )  # fmt: skip
    header += _fixed(_D50)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body
