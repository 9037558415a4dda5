"""Decode an image file, PIL image or array to upright uint8 RGB, or raise one clear `ImageError`.

The size in the header is checked before any pixel is decoded. A JPEG is decoded at its full scale: decoding it at a
reduced one would be faster, but other pixels would reach the network, and masks would change.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from typing import Any

import numpy as np

from vitnp import options
from vitnp.errors import ImageError
from vitnp.io import chunks, color
from vitnp.io.headers import FORMATS, damaged, file_hash, name_of, open_header, pixels_of, stored_size, unopened
from vitnp.io.inputs import as_photograph
from vitnp.io.metadata import NO_METADATA, Metadata, metadata_of
from vitnp.io.modes import ColorConversion, band_to_rgb, over_white
from vitnp.io.orientation import stored_view_of
from vitnp.io.pillow_warnings import collected
from vitnp.io.samples import SIXTEEN_BITS, Samples, resolve_samples, to_eight_bits
from vitnp.io.tiff import check_tiff

__all__ = ["FORMATS", "MAX_PIXELS", "DecodedImage", "decode_image", "file_hash", "pixels_of", "read_image"]
__all__ += ["stored_size", "unopened"]

MAX_PIXELS = options.MAX_PIXELS

# A decoded image is copied to the result in bands of rows of this many pixels, so that there is no second full copy.
_BAND_PIXELS = 1 << 20


@dataclasses.dataclass(frozen=True, eq=False)
class DecodedImage:
    """An upright image as it was stored, and what is needed to see it as it is meant.

    Attributes
    ----------
    rgb : (height, width, 3) uint8
        C-contiguous. Transparent parts are composited over white, unless `alpha` was "ignore".
    profile : bytes, optional
        ICC profile of the pixels; None if they are sRGB.
    opacity : (height, width) uint8, optional
        Alpha channel; only if `alpha` was "mask" and the image has transparent parts.
    notices : tuple of str
        What a user should know about how the image was read: one sentence each, beginning with its name.
    metadata : Metadata
        Resolution and georeference, which outputs carry.
    """

    rgb: np.ndarray
    profile: bytes | None = None
    opacity: np.ndarray | None = None
    notices: tuple[str, ...] = ()
    metadata: Metadata = NO_METADATA

    def log(self) -> None:
        """Log the notices."""
        for notice in self.notices:
            logging.getLogger("vitnp").warning("%s", notice)


def read_image(
    source: Any,
    *,
    max_pixels: int = MAX_PIXELS,
    alpha: str = "background",
) -> np.ndarray:
    """Read a photograph as upright uint8 RGB in the color space sRGB.

    Files are recognized by content, not by extension. The EXIF orientation is applied, and only the first frame or page
    is read. What a user should know, such as that there are more pages, is logged. Other depths are converted to eight
    bits by these rules, for files and arrays alike:

    * 16-bit integers: the high byte, so 65535 becomes 255. If a file says that its values have fewer bits
      (BitsPerSample or MaxSampleValue in TIFF, sBIT in PNG), the high eight of these.
    * floats: 0..1 is mapped to 0..255 and rounded; values outside (by more than 0.001), infinity and NaN are an error.
    * booleans and one-bit images: 0 and 255.
    * 32-bit integers, in files only: read as 16-bit; values outside 0..65535 are an error.

    Colors are converted to sRGB by the file's ICC profile, its PNG chunks (cICP, gAMA and cHRM), or the mark for Adobe
    RGB in EXIF. Without any of them, values are taken as sRGB. A damaged profile is ignored with a notice.

    Parameters
    ----------
    source : path, file object, bytes, PIL image, array, or row of a data set
        See :func:`vitnp.io.inputs.as_photograph`. An array is (H, W) gray, (H, W, 1) gray, (H, W, 3) RGB or (H, W, 4)
        RGBA of dtype uint8, bool, uint16, or float in 0..1. A C-contiguous uint8 RGB array is returned as it is, not
        copied.
    max_pixels : int
        Larger images are an error, which only the header is read for.
    alpha : {"background", "mask", "ignore"}
        "background" and "mask" composite transparent parts over white; "ignore" takes the colors as they are stored.

    Returns
    -------
    array, shape (H, W, 3), uint8
        C-contiguous.

    Raises
    ------
    ImageError
        If the file does not exist, cannot be read, is not an image, is truncated or damaged, or is too large; or if
        Pillow would read its pixels wrongly.

    Examples
    --------
    >>> import numpy as np
    >>> read_image(np.array([[0.0, 1.0]]))[0].tolist()
    [[0, 0, 0], [255, 255, 255]]
    """
    image = decode_image(source, max_pixels=max_pixels, alpha=alpha)
    image.log()
    return color.to_srgb(image.rgb, image.profile)


def decode_image(
    source: Any,
    *,
    max_pixels: int = MAX_PIXELS,
    alpha: str = "background",
) -> DecodedImage:
    """Read a photograph like :func:`read_image`, but keep the color space of RGB, and log nothing.

    Parameters
    ----------
    source, max_pixels, alpha
        As for :func:`read_image`.

    Returns
    -------
    DecodedImage

    Raises
    ------
    ImageError
        As for :func:`read_image`.
    """
    options.check("alpha", alpha)
    source = as_photograph(source)
    if isinstance(source, (str, os.PathLike, bytes)):
        name = name_of(source)
        with collected() as warnings, open_header(source) as (image, file_format):
            return _Decoder(image, name, file_format, alpha, warnings).decode(max_pixels)
    if isinstance(source, np.ndarray):
        return _convert_array(source, max_pixels, alpha)
    with collected() as warnings:
        return _Decoder(source, "the PIL image", "image", alpha, warnings).decode(max_pixels)


def _check_size(name: object, height: int, width: int, max_pixels: int) -> None:
    if height < 1 or width < 1:
        raise ImageError(f"{name}: it has no pixels ({width} x {height}); use an image of at least 1 x 1")
    if height * width > max_pixels:
        raise ImageError(
            f"{name}: {width} x {height} pixels are more than the limit of {max_pixels:,}; scale the image "
            "down or raise the limit (--max-pixels, max_pixels)"
        )


class _Decoder:
    """Decodes one image, and gathers notices.

    Parameters
    ----------
    image : PIL image
    name : object
        Name for errors and notices.
    file_format : str
        Format for errors; "image" if there is no file.
    alpha : str
        See :func:`read_image`.
    warnings : list of str
        Messages of Pillow's warnings, which grow while the image is decoded.
    """

    def __init__(self, image: Any, name: object, file_format: str, alpha: str, warnings: list[str]) -> None:
        self.image, self.name, self.file_format, self.alpha, self.warnings = image, name, file_format, alpha, warnings
        self.notices: list[str] = []

    def decode(self, max_pixels: int) -> DecodedImage:
        """Return the image."""
        image, name = self.image, self.name
        try:
            _check_size(name, image.height, image.width, max_pixels)
            samples, code_points = self._read_header(max_pixels)
            metadata, notice = metadata_of(image, from_file=self.file_format != "image")
            self.notices += [notice] if notice else []
            image.load()
            # While loading, Pillow applies the orientation of a TIFF itself, and reads the PNG chunks after the pixels.
            _check_size(name, image.height, image.width, max_pixels)
            samples, notice = resolve_samples(image, samples, name)
            self.notices += [notice] if notice else []
            conversion = self._conversion(code_points)
            rgb, opacity = self._convert(samples, conversion)
        except ImageError:
            raise
        except Exception as error:
            raise damaged(name, self.file_format, error) from None
        self.notices += [f"Pillow warns: {message}" for message in self.warnings]
        notices = tuple(f"{name}: {notice}" for notice in self.notices)
        return DecodedImage(rgb, conversion.profile, opacity, notices, metadata)

    def _read_header(self, max_pixels: int) -> tuple[Samples, tuple[int, int] | None]:
        """Return the meaning of the samples and the code points of the colors, which Pillow does not tell."""
        image, from_file = self.image, self.file_format != "image"
        if from_file and _has_more_frames(image):
            self.notices.append("it holds several pictures, of which the first is used")
        if hasattr(image, "tag_v2"):
            return check_tiff(image, self.name, max_pixels), None
        if from_file and self.file_format == "PNG":
            header = chunks.read_png_header(image.fp)
            return Samples(header.bits, header.significant_bits), header.code_points
        if from_file and self.file_format in ("AVIF", "HEIC"):
            return Samples(), chunks.nclx_code_points(image.fp)
        return Samples(), None

    def _conversion(self, code_points: tuple[int, int] | None) -> ColorConversion:
        """Return what becomes of the colors; what cannot be used is ignored with a notice."""
        mode = self.image.mode
        try:
            return ColorConversion.of(mode, color.embedded_profile(self.image, code_points))
        except ValueError as error:
            if mode == "LAB":
                raise
            self.notices.append(f"its color profile is not used ({error}); colors are taken as sRGB")
            return ColorConversion()

    def _convert(self, samples: Samples, conversion: ColorConversion) -> tuple[np.ndarray, np.ndarray | None]:
        """Return upright colors and, for `alpha` "mask", the opacity if anything is transparent."""
        image, stored_view = self.image, stored_view_of(self.image)
        height, width = image.height, image.width
        swapped = stored_view(np.empty((height, width, 0))).shape[:2] != (height, width)
        upright = np.empty((width, height, 3) if swapped else (height, width, 3), np.uint8)
        alpha: np.ndarray | None = None
        # Items of three bytes, one per pixel: copying to a rotated view is twice as fast this way.
        stored = stored_view(upright.view("V3")[..., 0])
        n_transparent = 0
        rows = max(1, _BAND_PIXELS // width)
        for top in range(0, height, rows):
            band = image.crop((0, top, width, min(top + rows, height)))
            rgb, opacity = band_to_rgb(band, self.name, samples, conversion)
            if opacity is not None and self.alpha != "ignore":
                rgb = over_white(rgb, opacity)
                n_transparent += int(np.count_nonzero(opacity < 128))
                if self.alpha == "mask":
                    alpha = np.full(upright.shape[:2], 255, np.uint8) if alpha is None else alpha
                    stored_view(alpha)[top : top + rows] = opacity
            stored[top : top + rows] = rgb.view("V3")[..., 0]
        self._say_transparent(n_transparent / (height * width))
        return upright, None if alpha is None or alpha.min() == 255 else alpha

    def _say_transparent(self, share: float) -> None:
        if share and self.alpha == "background":
            self.notices.append(
                f"{max(share, 0.01):.0%} of it is transparent and taken as white; --alpha mask keeps that out of the "
                "mask, --alpha ignore takes the stored colors"
            )


def _has_more_frames(image: Any) -> bool:
    """Tell whether a file holds several pictures: pages, or frames of an animation."""
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # of a damaged second frame
        return False


def _convert_array(array: np.ndarray, max_pixels: int, alpha: str) -> DecodedImage:
    name = "the array"
    kind, size = array.dtype.kind, array.dtype.itemsize
    if not (kind in "bf" or (kind == "u" and size <= 2)):
        raise ImageError(f"{name}: dtype must be uint8, uint16, bool, or float in 0..1, got {array.dtype}")
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise ImageError(f"{name}: shape must be (H, W), (H, W, 3) or (H, W, 4), got {tuple(array.shape)}")
    height, width, n_channels = array.shape
    _check_size(name, height, width, max_pixels)
    if n_channels == 3 and kind == "u" and size == 1:
        return DecodedImage(np.ascontiguousarray(array))
    rgb = np.empty((height, width, 3), np.uint8)
    opacity = np.empty((height, width), np.uint8) if n_channels == 4 and alpha == "mask" else None
    rows = max(1, _BAND_PIXELS // width)
    for top in range(0, height, rows):
        band = to_eight_bits(array[top : top + rows], name, SIXTEEN_BITS)
        if opacity is not None:
            opacity[top : top + rows] = band[..., 3]
        if n_channels == 4:
            band = band[..., :3] if alpha == "ignore" else over_white(band[..., :3], band[..., 3])
        rgb[top : top + rows] = band
    return DecodedImage(rgb, opacity=None if opacity is None or opacity.min() == 255 else opacity)
