"""Check what Pillow makes of a TIFF against the tags of the file (TIFF 6.0): right, put right, or refused.

Pillow chooses how to unpack samples by a table of tags that leaves some out of account.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from vitnp.errors import ImageError
from vitnp.io.samples import Samples

if TYPE_CHECKING:
    from PIL.TiffImagePlugin import TiffImageFile

_SUBFILE_TYPE, _BITS, _COMPRESSION, _PHOTOMETRIC, _CHANNELS, _PLANAR = 254, 258, 259, 262, 277, 284
_COLOR_MAP, _TILE_WIDTH, _TILE_HEIGHT, _SUBPAGES, _INK_SET = 320, 322, 323, 330, 332
_EXTRA, _FORMAT, _SUBSAMPLING, _RAW_VERSION = 338, 339, 530, 50706
# The largest value: of unsigned samples, and of samples of any type.
_MAX_SAMPLES = (281, 341)

_WHITE_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 2, 3, 5, 6
_SIGNED = 2

# libtiff gives samples in the byte order of the machine, but these modes of Pillow expect that of the file.
_BY_LIBTIFF = {"F;32F": "F;32NF", "F;32BF": "F;32NF", "I;32S": "I;32NS", "I;32BS": "I;32NS"}

# Tiles below this size are not checked against the limit of pixels.
_SMALL_TILE = 1 << 20


def check_tiff(image: TiffImageFile, name: object, max_pixels: int) -> Samples:
    """Check the tags of a TIFF before its pixels are loaded, and correct what Pillow is about to do.

    Returns
    -------
    Samples
        What the values of the loaded image mean.

    Raises
    ------
    ImageError
        If the pixels would be wrong: camera raw files, tiles of excessive size, and layouts that Pillow can't read.
    """
    tags = image.tag_v2
    _check_raw_and_tiles(image, name, max_pixels)
    reason = _misread(image)
    if reason:
        raise ImageError(f"{name}: {reason}; save it again as 8- or 16-bit RGB or grayscale")
    _correct(image)
    depth = _first(tags.get(_BITS), 1)
    bits = 8 if depth <= 8 else depth if depth <= 16 else 16  # integers of 32 bits hold values of 16
    inverted = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO and (image.mode.startswith("I;16") or image.mode == "F")
    white = max((_first(tags.get(tag), 0) for tag in _MAX_SAMPLES), default=0)
    significant = bits
    if isinstance(white, int) and white.bit_length() in range(9, min(depth, 17)) and not white & (white + 1):
        significant = white.bit_length()  # a power of two less one: not just the largest value that occurs
    return Samples(bits, significant, inverted)


def _check_raw_and_tiles(image: TiffImageFile, name: object, max_pixels: int) -> None:
    from PIL import Image

    tags = image.tag_v2
    if tags.get(_RAW_VERSION) or (tags.get(_SUBPAGES) and tags.get(_SUBFILE_TYPE) == 1):
        raise ImageError(f"{name}: this is a camera raw file, which vitnp can't develop; export it as JPEG or TIFF")
    width, height = tags.get(_TILE_WIDTH), tags.get(_TILE_HEIGHT)
    if width and height and width * height > max(max_pixels, _SMALL_TILE):
        raise ImageError(
            f"{name}: the TIFF has tiles of {width} x {height} pixels, more than the limit of "
            f"{max_pixels:,}; save it again with another program"
        )
    # Recent versions of Pillow check the process-wide limit before they allocate memory for a TIFF. If it is allocated
    # already, they do not.
    if hasattr(image, "_tile_size") and image.tile:
        image.im = Image.core.new(image.mode, image._tile_size)


def _misread(image: TiffImageFile) -> str | None:
    """Return what Pillow would read wrongly; None if there is nothing."""
    tags = image.tag_v2
    photometric, bits = tags.get(_PHOTOMETRIC), _first(tags.get(_BITS), 1)
    n_channels, uncompressed = tags.get(_CHANNELS, 1), tags.get(_COMPRESSION, 1) == 1
    if _first(tags.get(_FORMAT), 1) == _SIGNED and bits < 32:
        return f"the TIFF has signed {bits}-bit values, for which no white is defined"
    if photometric == _CMYK and tags.get(_INK_SET, 1) != 1:
        return "the TIFF has inks other than cyan, magenta, yellow and black"
    # Older versions of Pillow take YCbCr for RGB.
    is_subsampled = tuple(tags.get(_SUBSAMPLING, (2, 2))) != (1, 1)
    if photometric == _YCBCR and uncompressed and (is_subsampled or image.mode != "YCbCr"):
        return "the TIFF has subsampled YCbCr without compression, which Pillow can't read"
    if tags.get(_PLANAR, 1) == 2 and n_channels > 1:
        extra = tags.get(_EXTRA) or ()
        if photometric not in (_RGB, _CMYK) or 1 in extra or (bits != 8 and image.mode not in ("RGB", "RGBA", "CMYK")):
            return "the TIFF has a plane per channel in a layout that Pillow can't read"
    return None


def _correct(image: TiffImageFile) -> None:
    """Change how Pillow is about to unpack a TIFF where it would take the wrong way."""
    from PIL import ImagePalette

    tags = image.tag_v2
    if tags.get(_PHOTOMETRIC) == _PALETTE and image.palette is not None:
        colors = tags.get(_COLOR_MAP, ())
        # The map has 16 bits, but some programs write 8; like libtiff, take it for that if no value is larger.
        if colors and max(colors) < 256:
            image.palette = ImagePalette.raw("RGB;L", bytes(colors))
    if not image.tile:
        return
    decoder, extents, offset, args = cast("tuple[Any, ...]", image.tile[0])
    if decoder == "libtiff" and args[0] in _BY_LIBTIFF:
        _set_tile(image, (decoder, extents, offset, (_BY_LIBTIFF[args[0]], *args[1:])))
    if decoder == "raw" and tags.get(_PLANAR, 1) == 2 and _first(tags.get(_BITS), 8) == 16:
        # Pillow takes the planes for 8 bits, but libtiff unpacks them.
        image.use_load_libtiff = True
        extents = (0, 0, *image._tile_size) if hasattr(image, "_tile_size") else (0, 0, *image.size)
        _set_tile(image, ("libtiff", extents, 0, (f"{image.mode};16N", False, tags.offset)))


def _set_tile(image: TiffImageFile, tile: tuple[Any, ...]) -> None:
    kind: Any = type(image.tile[0])  # a named tuple in recent versions of Pillow
    tiles: list[Any] = [kind(*tile) if hasattr(kind, "_fields") else tile]
    image.tile = tiles


def _first(values: Any, default: Any) -> Any:
    if isinstance(values, tuple):
        return values[0] if values else default
    return default if values is None else values
