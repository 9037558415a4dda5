"""Convert Pillow images of any mode to colors and opacity, eight bits each, a band of rows at a time."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from vitnp.io import color
from vitnp.io.samples import SIXTEEN_BITS, Samples, is_deep, to_eight_bits

if TYPE_CHECKING:
    from PIL import Image

_GRAY_MODES = ("1", "L", "LA", "La", "I", "F")


@dataclasses.dataclass(frozen=True)
class ColorConversion:
    """What becomes of the colors of an image.

    Attributes
    ----------
    profile : bytes, optional
        ICC profile of the RGB pixels that result; None if they are sRGB.
    gray_table : (256, 3) uint8, optional
        Color in sRGB of each level of gray.
    transform : object, optional
        Transform of Pillow from CMYK or LAB to sRGB.
    """

    profile: bytes | None = None
    gray_table: np.ndarray | None = None
    transform: Any = None

    @classmethod
    def of(cls, mode: str, profile: bytes | None) -> ColorConversion:
        """Return the conversion for an image of a Pillow mode with a profile.

        RGB keeps its pixels and the profile, because sRGB lacks some of its colors. Gray, CMYK and LAB, which have to
        be converted in any case, become sRGB.

        Raises
        ------
        ValueError
            If the profile is damaged or does not fit the mode.
        """
        if mode == "LAB":
            return cls(transform=color.transform(None, "LAB"))
        if profile is None:
            return cls()
        pixels = "L" if mode in _GRAY_MODES or is_deep(mode) else "CMYK" if mode == "CMYK" else "RGB"
        expected = color.mode_of(profile)
        if expected == "RGB" and pixels != "CMYK":  # gray may have the profile of RGB
            return cls() if color.is_srgb(profile) else cls(profile=profile)
        if expected != pixels:
            names = {"L": "grayscale"}
            raise ValueError(f"it is for {names.get(expected, expected)}, not {names.get(pixels, pixels)}")
        if pixels == "CMYK":
            return cls(transform=color.transform(profile, "CMYK"))
        return cls() if color.is_srgb(profile) else cls(gray_table=color.gray_table(profile))


def band_to_rgb(
    band: Image.Image, name: object, samples: Samples = SIXTEEN_BITS, conversion: ColorConversion | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Convert some rows of an image.

    Parameters
    ----------
    band : PIL image
        Its ``info`` may be changed.
    name : object
        Name of the image, for errors.
    samples : Samples
        Meaning of values of more than eight bits.
    conversion : ColorConversion, optional

    Returns
    -------
    rgb : (rows, width, 3) uint8
        C-contiguous.
    opacity : (rows, width) uint8, or None
        None if the image has no transparency.

    Raises
    ------
    ImageError
        If values are out of range.
    """
    conversion = conversion or ColorConversion()
    transparent = band.info.get("transparency")
    opacity = None
    if is_deep(band.mode):
        values = np.asarray(band)
        rgb = np.repeat(to_eight_bits(values, name, samples)[..., None], 3, axis=2)
        if isinstance(transparent, int):
            opacity = np.where(values == transparent, np.uint8(0), np.uint8(255))
    elif conversion.transform is not None:
        return np.asarray(conversion.transform.apply(band)), None
    else:
        if isinstance(transparent, tuple) and max(transparent) > 255:
            # The transparent color of a 16-bit PNG; of its pixels, Pillow keeps only the high bytes.
            band.info["transparency"] = tuple(value >> 8 for value in transparent)
        if band.mode == "La":
            band = band.convert("LA")
        if band.has_transparency_data:
            rgba = np.asarray(band.convert("RGBA"))
            rgb, opacity = rgba[..., :3], rgba[..., 3]
        else:
            rgb = np.asarray(band if band.mode == "RGB" else band.convert("RGB"))
    if conversion.gray_table is not None:
        rgb = conversion.gray_table[rgb[..., 0]]
    return np.ascontiguousarray(rgb), opacity


def over_white(rgb: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """Composite colors (..., 3) uint8 of some opacity (...) uint8 over white, rounded to nearest."""
    alpha = opacity[..., None].astype(np.uint16)
    return ((rgb * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
