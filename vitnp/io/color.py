"""Color management: convert pixels with an ICC profile to sRGB, by Little CMS in Pillow.

The intent is relative colorimetric with black point compensation, the default of most image editors.
"""

from __future__ import annotations

import functools
import io
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from vitnp.io import icc
from vitnp.io.pillow_warnings import one_line

if TYPE_CHECKING:
    from PIL import Image

# Profiles that change no color by more than this many of 255 levels are taken for sRGB, so their pixels stay as they
# are: there are many profiles of sRGB, which differ by rounding.
_SRGB_TOLERANCE = 2

# Pixels per band: Pillow stores RGB at four bytes per pixel.
_BAND_PIXELS = 1 << 20

# Flags of Little CMS; older versions of Pillow have no names for them.
_BLACK_POINT_COMPENSATION, _NO_OPTIMIZATION = 0x2000, 0x0100

_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}

# EXIF: the interoperability IFD, and its mark for Adobe RGB (DCF 2.0, "optional color space").
_INTEROPERABILITY, _ADOBE_RGB = 0xA005, "R03"


def mode_of(profile: bytes) -> str:
    """Return the Pillow mode of the pixels that an ICC profile is for: "RGB", "L" or "CMYK".

    Raises
    ------
    ValueError
        If the profile is damaged, or for other pixels, or this Pillow has no color management.
    """
    try:
        from PIL import ImageCms

        space = ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space.strip()
    except ImportError:
        raise ValueError("this Pillow has no color management") from None
    except Exception as error:  # whatever a damaged profile raises
        raise ValueError(_reason(error)) from None
    if space not in _MODES:
        raise ValueError(f"it is for colors of the kind {space!r}")
    return _MODES[space]


@functools.lru_cache(maxsize=8)
def transform(profile: bytes | None, mode: str, *, exact: bool = False) -> Any:
    """Return Pillow's transform from pixels of a mode to sRGB; without a profile from LAB.

    Raises
    ------
    ValueError
        If the profile is damaged or does not fit the mode.
    """
    try:
        from PIL import ImageCms

        source = ImageCms.createProfile("LAB") if profile is None else ImageCms.ImageCmsProfile(io.BytesIO(profile))
        flags: Any = _BLACK_POINT_COMPENSATION | (_NO_OPTIMIZATION if exact else 0)
        target, intent = ImageCms.createProfile("sRGB"), ImageCms.Intent.RELATIVE_COLORIMETRIC
        return ImageCms.buildTransform(source, target, mode, "RGB", intent, flags)
    except ImportError:
        raise ValueError("this Pillow has no color management") from None
    except Exception as error:
        raise ValueError(_reason(error)) from None


@functools.lru_cache(maxsize=8)
def gray_table(profile: bytes) -> np.ndarray:
    """Return the color in sRGB of each of 256 levels of gray, (256, 3) uint8.

    Raises
    ------
    ValueError
        If the profile is damaged or not for gray.
    """
    from PIL import Image

    levels = np.arange(256, dtype=np.uint8)[None]
    # The table that Little CMS itself makes to be fast is too coarse for dark levels.
    return np.asarray(transform(profile, "L", exact=True).apply(Image.fromarray(levels)))[0]


@functools.lru_cache(maxsize=8)
def is_srgb(profile: bytes) -> bool:
    """Tell whether a profile of RGB or gray is one of sRGB: whether it leaves colors as they are.

    Raises
    ------
    ValueError
        If the profile is damaged.
    """
    from PIL import Image

    if mode_of(profile) == "L":
        return _is_close(gray_table(profile), np.arange(256)[:, None])
    levels = np.linspace(0, 255, 18).astype(np.uint8)
    colors = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(18, -1, 3)
    return _is_close(np.asarray(transform(profile, "RGB").apply(Image.fromarray(colors))), colors)


def _is_close(converted: np.ndarray, colors: np.ndarray) -> bool:
    return int(np.abs(converted.astype(int) - colors).max()) <= _SRGB_TOLERANCE


def to_srgb(rgb: np.ndarray, profile: bytes | None) -> np.ndarray:
    """Convert an image to sRGB.

    Parameters
    ----------
    rgb : (height, width, 3) uint8
    profile : bytes, optional
        ICC profile of the pixels. Without one the image is returned as it is.

    Returns
    -------
    (height, width, 3) uint8
    """
    if profile is None:
        return rgb
    from PIL import Image

    convert = transform(profile, "RGB")
    result = np.empty(rgb.shape, np.uint8)
    rows = max(1, _BAND_PIXELS // rgb.shape[1])
    for top in range(0, len(rgb), rows):
        band = Image.fromarray(np.ascontiguousarray(rgb[top : top + rows]))
        result[top : top + rows] = np.asarray(convert.apply(band))
    return result


def from_srgb(color: tuple[int, int, int], profile: bytes | None) -> tuple[int, int, int]:
    """Return a color of sRGB, 0 to 255, as pixels with a profile of RGB have it.

    Examples
    --------
    >>> from_srgb((255, 136, 0), None)
    (255, 136, 0)
    """
    if profile is None:
        return color
    from PIL import Image, ImageCms

    source, target = ImageCms.createProfile("sRGB"), ImageCms.ImageCmsProfile(io.BytesIO(profile))
    flags: Any = _BLACK_POINT_COMPENSATION
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    convert = ImageCms.buildTransform(source, target, "RGB", "RGB", intent, flags)
    red, green, blue = np.asarray(convert.apply(Image.new("RGB", (1, 1), color)))[0, 0].tolist()
    return red, green, blue


def embedded_profile(image: Image.Image, code_points: tuple[int, int] | None = None) -> bytes | None:
    """Return the ICC profile of a loaded image, or one made from what the file says in numbers; None if it is sRGB.

    Parameters
    ----------
    image : PIL image
    code_points : (int, int), optional
        Code points of primaries and transfer function, if the file has them; see :func:`vitnp.io.icc.from_code_points`.

    Raises
    ------
    ValueError
        If the color space is described by numbers that have no meaning.
    """
    info = image.info
    # In a PNG the code points come first, then the profile (PNG specification, third edition, 4.3).
    if code_points is not None and image.format == "PNG":
        return icc.from_code_points(*code_points)
    if isinstance(info.get("icc_profile"), bytes) and info["icc_profile"]:
        return info["icc_profile"]
    if code_points is not None:
        return icc.from_code_points(*code_points)
    if image.format == "PNG" and "srgb" not in info and ("gamma" in info or "chromaticity" in info):
        return icc.from_gamma(info.get("gamma"), info.get("chromaticity"))
    if image.format in ("JPEG", "MPO") and _is_adobe_rgb(image):
        return icc.adobe_rgb()
    return None


def _is_adobe_rgb(image: Image.Image) -> bool:
    if "exif" not in image.info:
        return False
    try:
        return image.getexif().get_ifd(_INTEROPERABILITY).get(1) == _ADOBE_RGB
    except (ValueError, TypeError, KeyError, OSError, SyntaxError, struct.error):
        return False


def _reason(error: Exception) -> str:
    return one_line(error) or type(error).__name__
