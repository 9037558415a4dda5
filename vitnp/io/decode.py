"""Decode an image file, PIL image or array to upright uint8 RGB, or raise one clear `ImageError`.

The size in the header is checked before any pixel is decoded.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import numpy as np

from vitnp.errors import ImageError
from vitnp.io.headers import FORMATS, damaged, file_hash, open_header, pixels_of, stored_size, unopened

if TYPE_CHECKING:
    from PIL import Image
    from PIL.TiffImagePlugin import TiffImageFile

__all__ = ["FORMATS", "MAX_PIXELS", "file_hash", "pixels_of", "read_image", "stored_size", "unopened"]

MAX_PIXELS = 120_000_000

# A decoded image is copied to the result in bands of rows of this many pixels, so that there is no second full copy.
_BAND_PIXELS = 1 << 20

# For each EXIF orientation, a view of the upright image with the pixels in the order in which the file stores them.
_STORED_VIEW: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}


def read_image(
    source: str | os.PathLike[str] | Image.Image | np.ndarray, *, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Read a photograph as upright uint8 RGB.

    Files are recognized by content, not by extension. The EXIF orientation is applied, transparency is composited over
    white, and only the first frame or page is read. Color profiles are ignored: values are taken as sRGB. Other depths
    are converted to eight bits by these rules, for files and arrays alike:

    * 16-bit integers: the high byte, so 65535 becomes 255.
    * floats: 0..1 is mapped to 0..255 and rounded; values outside (by more than 0.001), infinity and NaN are an error.
    * booleans and one-bit images: 0 and 255.
    * 32-bit integers, in files only: read as 16-bit; values outside 0..65535 are an error.

    Parameters
    ----------
    source : path, PIL image, or array
        An array is (H, W) gray, (H, W, 1) gray, (H, W, 3) RGB or (H, W, 4) RGBA of dtype uint8, bool, uint16, or float
        in 0..1. A C-contiguous uint8 RGB array is returned as it is, not copied.
    max_pixels : int
        Larger images are an error, which only the header is read for.

    Returns
    -------
    array, shape (H, W, 3), uint8
        C-contiguous.

    Raises
    ------
    ImageError
        If the file does not exist, cannot be read, is not an image, is truncated or damaged, or is too large.

    Examples
    --------
    >>> import numpy as np
    >>> read_image(np.array([[0.0, 1.0]]))[0].tolist()
    [[0, 0, 0], [255, 255, 255]]
    """
    if isinstance(source, (str, os.PathLike)):
        with open_header(source) as (image, file_format):
            return _decode(image, source, file_format, max_pixels)
    if isinstance(source, np.ndarray):
        return _convert_array(source, max_pixels)
    if hasattr(source, "getexif"):
        return _decode(source, "the PIL image", "image", max_pixels)
    raise ImageError(f"a photograph can't be read from a {type(source).__name__}; pass a path, a PIL image or an array")


def _check_size(name: object, height: int, width: int, max_pixels: int) -> None:
    if height < 1 or width < 1:
        raise ImageError(f"{name}: it has no pixels ({width} x {height}); use an image of at least 1 x 1")
    if height * width > max_pixels:
        raise ImageError(
            f"{name}: {width} x {height} pixels are more than the limit of {max_pixels:,}; scale the image "
            "down or raise the limit (--max-pixels, max_pixels)"
        )


def _check_tiff(image: TiffImageFile, name: object, max_pixels: int) -> None:
    """Raise an error for a camera raw file, whose first page is a thumbnail, and for tiles of excessive size."""
    from PIL import Image

    reduced, subpages, raw_version, tile_width, tile_height = (
        image.tag_v2.get(tag) for tag in (254, 330, 50706, 322, 323)
    )
    if raw_version or (subpages and reduced == 1):
        raise ImageError(f"{name}: this is a camera raw file, which vitnp can't develop; export it as JPEG or TIFF")
    if tile_width and tile_height and tile_width * tile_height > max(max_pixels, _BAND_PIXELS):
        raise ImageError(
            f"{name}: the TIFF has tiles of {tile_width} x {tile_height} pixels, more than the limit of "
            f"{max_pixels:,}; save it again with another program"
        )
    # Recent versions of Pillow check the process-wide limit before they allocate memory for a TIFF. If it is allocated
    # already, they do not.
    if hasattr(image, "_tile_size"):
        image.im = Image.core.new(image.mode, image._tile_size)


def _decode(image: Image.Image, name: object, file_format: str, max_pixels: int) -> np.ndarray:
    try:
        _check_size(name, image.height, image.width, max_pixels)
        if file_format == "TIFF":
            _check_tiff(cast("TiffImageFile", image), name, max_pixels)
        image.load()
        # Only now: while loading, Pillow applies the orientation of a TIFF itself, and reads the PNG chunks after the
        # pixels.
        stored_view = _STORED_VIEW[_orientation(image)]
        height, width = image.height, image.width
        _check_size(name, height, width, max_pixels)
        swapped = stored_view(np.empty((height, width, 0))).shape[:2] != (height, width)
        upright = np.empty((width, height, 3) if swapped else (height, width, 3), np.uint8)
        # Items of three bytes, one per pixel: copying to a rotated view is twice as fast this way.
        stored = stored_view(upright.view("V3")[..., 0])
        rows = max(1, _BAND_PIXELS // width)
        for top in range(0, height, rows):
            band = image.crop((0, top, width, min(top + rows, height)))
            stored[top : top + rows] = _band_to_rgb(band, name).view("V3")[..., 0]
        return upright
    except ImageError:
        raise
    except Exception as error:
        raise damaged(name, file_format, error) from None


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 if the EXIF block is damaged, because the pixels may be intact."""
    try:
        value = image.getexif().get(0x0112, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) and value in _STORED_VIEW else 1


def _band_to_rgb(band: Image.Image, name: object) -> np.ndarray:
    """Convert some rows of an image of any Pillow mode to (rows, width, 3) uint8, C-contiguous."""
    transparent = band.info.get("transparency")
    if band.mode in ("F", "I") or band.mode.startswith("I;16"):
        gray = _to_eight_bits(np.asarray(band), name)
        if isinstance(transparent, int):
            gray = np.where(np.asarray(band) == transparent, np.uint8(255), gray)
        return np.repeat(gray[..., None], 3, axis=2)
    if isinstance(transparent, tuple) and max(transparent) > 255:
        # The transparent color of a 16-bit PNG; of its pixels, Pillow keeps only the high bytes.
        band.info["transparency"] = tuple(value >> 8 for value in transparent)
    if band.mode == "La":
        band = band.convert("LA")
    if band.has_transparency_data:
        return _over_white(np.asarray(band.convert("RGBA")))
    return np.ascontiguousarray(band if band.mode == "RGB" else band.convert("RGB"))


def _over_white(rgba: np.ndarray) -> np.ndarray:
    """Composite (H, W, 4) uint8 over white, rounded to nearest."""
    alpha = rgba[..., 3:].astype(np.uint16)
    return ((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _to_eight_bits(values: np.ndarray, name: object) -> np.ndarray:
    """Convert to uint8 by the rules of `read_image`."""
    kind, size = values.dtype.kind, values.dtype.itemsize
    if kind == "u" and size == 1:
        return values
    if kind == "b":
        return values * np.uint8(255)
    if kind == "u" and size == 2:
        return (values >> 8).astype(np.uint8)
    low, high = values.min(), values.max()
    if kind == "f":
        # NaN compares as false.
        if not (low >= -0.001 and high <= 1.001):
            raise ImageError(
                f"{name}: floating-point values must be in 0..1, without NaN, but are in {low:g}..{high:g}; "
                "rescale them"
            )
        return (values.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    if low < 0 or high > 65535:
        raise ImageError(f"{name}: integer values must be in 0..65535, but are in {low}..{high}; rescale them")
    return (values >> 8).astype(np.uint8)


def _convert_array(array: np.ndarray, max_pixels: int) -> np.ndarray:
    name = "the array"
    kind, size = array.dtype.kind, array.dtype.itemsize
    if not (kind in "bf" or (kind == "u" and size <= 2)):
        raise ImageError(f"{name}: dtype must be uint8, uint16, bool, or float in 0..1, got {array.dtype}")
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise ImageError(f"{name}: shape must be (H, W), (H, W, 3) or (H, W, 4), got {tuple(array.shape)}")
    height, width, channels = array.shape
    _check_size(name, height, width, max_pixels)
    if channels == 3 and kind == "u" and size == 1:
        return np.ascontiguousarray(array)
    rgb = np.empty((height, width, 3), np.uint8)
    rows = max(1, _BAND_PIXELS // width)
    for top in range(0, height, rows):
        band = _to_eight_bits(array[top : top + rows], name)
        rgb[top : top + rows] = _over_white(band) if channels == 4 else band
    return rgb
