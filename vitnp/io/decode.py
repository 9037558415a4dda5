"""One picture file, PIL image or array becomes upright uint8 RGB, or one clear `ImageError`.

Pillow decodes, but never through ``Image.open``: that consults the process-wide ``Image.MAX_IMAGE_PIXELS``, which a
library must not change. Here a file's first bytes choose Pillow's class for the format, that class reads the header,
and the size found there is checked before a single pixel is decoded.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib
import os
import stat
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from vitnp.errors import ImageError

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 120_000_000

FORMATS = "JPEG, PNG, WebP, TIFF, BMP, GIF, HEIC or AVIF"

# A decoded picture is copied into the result a band of rows at a time, so that no second full copy exists.
_BAND_PIXELS = 1 << 20

# Each EXIF orientation as a view: given the upright picture, the same pixels in the order the file stores them.
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
    white, and of several frames or pages the first one counts. Color profiles are ignored: values are taken as sRGB.
    Deeper pictures become eight-bit by these rules, for files and arrays alike:

    * 16-bit integers: the high byte, so that 65535 gives 255.
    * floats: 0..1 is mapped to 0..255 and rounded; values outside (by more than 0.001), infinite or NaN are refused.
    * booleans and one-bit pictures: 0 and 255.
    * 32-bit integers, in files only: read as 16-bit; values outside 0..65535 are refused.

    Parameters
    ----------
    source : path, PIL image, or array
        An array is (H, W) gray, (H, W, 1) gray, (H, W, 3) RGB or (H, W, 4) RGBA of dtype uint8, bool, uint16, or float
        in 0..1. A C-contiguous uint8 RGB array comes back as it is, not copied.
    max_pixels : int
        Larger pictures are refused, on the strength of the header alone.

    Returns
    -------
    array, shape (H, W, 3), uint8
        C-contiguous.

    Raises
    ------
    ImageError
        If there is no such file, it can't be read, isn't a picture, is truncated or damaged, or is too large.

    Examples
    --------
    >>> import numpy as np
    >>> read_image(np.array([[0.0, 1.0]]))[0].tolist()
    [[0, 0, 0], [255, 255, 255]]
    """
    if isinstance(source, (str, os.PathLike)):
        with _header(source) as (picture, kind):
            return _read_picture(picture, source, kind, max_pixels)
    if hasattr(source, "getexif"):
        return _read_picture(source, "the PIL image", "image", max_pixels)
    if isinstance(source, np.ndarray):
        return _read_array(source, max_pixels)
    raise ImageError(f"a photograph can't be read from a {type(source).__name__}; pass a path, a PIL image or an array")


def pixels_of(path: str | os.PathLike[str]) -> int:
    """Pixels that a picture file has by its header, which alone is read.

    Raises
    ------
    ImageError
        As :func:`read_image`, but for what only decoding shows.
    """
    height, width = stored_size(path)
    return height * width


def stored_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Height and width of a picture file by its header, as stored: before it is turned upright.

    Raises
    ------
    ImageError
        As :func:`pixels_of`.
    """
    with _header(path) as (picture, _):
        return picture.height, picture.width


def file_hash(path: str | os.PathLike[str]) -> str:
    """Fingerprint of a picture file's bytes: 32 hexadecimal digits of BLAKE2b.

    Raises
    ------
    ImageError
        If there is no such file, it is empty, or can't be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    with _opened(path) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


# --- Files -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file that is there, isn't empty, and may be read."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise ImageError(f"{path}: this is a folder, not a photograph; name a file")
        # Anything else, such as a pipe or a device, might never end.
        if not stat.S_ISREG(mode):
            raise ImageError(f"{path}: this is not a regular file; save the photograph to a file first")
        with open(path, "rb") as file:
            if not file.read(1):
                raise ImageError(f"{path}: the file is empty (0 bytes); copy it again from where it came")
            file.seek(0)
            yield file
    except (OSError, ValueError) as error:
        raise unopened(path, error) from None


def unopened(path: str | os.PathLike[str], error: OSError | ValueError) -> ImageError:
    """What to tell when the system won't open a file or list a folder."""
    number = getattr(error, "errno", None)
    if number in (errno.ENOENT, errno.ENOTDIR):
        return ImageError(f"{path}: there is no such file or folder; check the spelling")
    if number in (errno.EACCES, errno.EPERM):
        return ImageError(f"{path}: no permission to read it; change its permissions or use a copy")
    reason = getattr(error, "strerror", None) or error
    return ImageError(f"{path}: it can't be opened ({reason}); check the path and the disk")


@contextlib.contextmanager
def _header(path: str | os.PathLike[str]) -> Iterator[tuple[Image.Image, str]]:
    """A picture file of which only the header was read, and its format."""
    with _opened(path) as file:
        head = file.read(64)
        file.seek(0)
        kind = _kind(head)
        if kind is None:
            raise ImageError(f"{path}: this is not a picture that vitnp can read; convert it to {FORMATS}")
        opener = _opener(kind, path)
        try:
            picture = opener(file)
        except Exception as error:
            raise _damaged(path, kind, error) from None
        with picture:
            yield picture, kind


def _kind(head: bytes) -> str | None:
    """Format by the first bytes of a file; None for anything else."""
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if head[4:8] == b"ftyp":
        # ISO base media: a main brand and, from byte 16 on, the compatible ones (ISO/IEC 14496-12, 4.3).
        box = head[8 : max(12, int.from_bytes(head[:4], "big"))]
        brands = {box[start : start + 4] for start in range(0, len(box), 4)}
        if brands & {b"avif", b"avis"}:
            return "AVIF"
        if brands & {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}:
            return "HEIC"
    if head.startswith(b"BM"):
        return "BMP"
    return None


def _opener(kind: str, path: str | os.PathLike[str]) -> Callable[[BinaryIO], Image.Image]:
    """Pillow's class for a format: it reads the header and leaves the pixels for later."""
    if kind == "HEIC":
        try:
            from pillow_heif import HeifImageFile
        except ImportError:
            raise ImageError(
                f"{path}: HEIC needs an extra package; pip install 'vitnp[heic]', or convert it to JPEG"
            ) from None
        return HeifImageFile
    module = {"JPEG": "Jpeg", "PNG": "Png", "WebP": "WebP", "TIFF": "Tiff", "GIF": "Gif", "BMP": "Bmp", "AVIF": "Avif"}
    try:
        plugin = importlib.import_module(f"PIL.{module[kind]}ImagePlugin")
    except ImportError:
        raise ImageError(
            f"{path}: the installed Pillow can't read {kind}; install a newer Pillow, or convert it to JPEG"
        ) from None
    return getattr(plugin, f"{module[kind]}ImageFile")


def _check_tiff(picture: Image.Image, path: object, max_pixels: int) -> None:
    """Refuse two things that only a TIFF can be: a raw file whose first page is a thumbnail, and a tile bomb."""
    from PIL import Image

    reduced, subpages, raw_version, tile_width, tile_height = (
        picture.tag_v2.get(tag) for tag in (254, 330, 50706, 322, 323)
    )
    if raw_version or (subpages and reduced == 1):
        raise ImageError(f"{path}: this is a camera raw file, which vitnp can't develop; export it as JPEG or TIFF")
    if tile_width and tile_height and tile_width * tile_height > max(max_pixels, _BAND_PIXELS):
        raise ImageError(
            f"{path}: the TIFF has tiles of {tile_width} x {tile_height} pixels, more than the limit of "
            f"{max_pixels:,}; save it again in another program"
        )
    # Newer Pillow, about to make room for a TIFF, asks the process-wide limit; not so when the room is there.
    if hasattr(picture, "_tile_size"):
        picture.im = Image.core.new(picture.mode, picture._tile_size)


def _damaged(path: object, kind: str, error: Exception) -> ImageError:
    if isinstance(error, MemoryError):
        return ImageError(f"{path}: there is not enough memory to decode it; scale the picture down")
    reason = " ".join(str(error).split()) or type(error).__name__
    return ImageError(
        f"{path}: the {kind} is truncated, damaged or of an unusual kind ({reason}); get a sound copy or "
        "save it again in another program"
    )


# --- Pictures and arrays ---------------------------------------------------------------------------------------------


def _check_size(name: object, height: int, width: int, max_pixels: int) -> None:
    if height < 1 or width < 1:
        raise ImageError(f"{name}: it has no pixels ({width} x {height}); use a picture of at least 1 x 1")
    if height * width > max_pixels:
        raise ImageError(
            f"{name}: {width} x {height} pixels are more than the limit of {max_pixels:,}; scale the picture "
            "down or raise the limit (--max-pixels, max_pixels)"
        )


def _read_picture(picture: Image.Image, name: object, kind: str, max_pixels: int) -> np.ndarray:
    try:
        _check_size(name, picture.height, picture.width, max_pixels)
        if kind == "TIFF":
            _check_tiff(picture, name, max_pixels)
        picture.load()
        # After the loading: Pillow turns a TIFF by itself then, and has read the chunks that follow a PNG's pixels.
        stored_view = _STORED_VIEW[_orientation(picture)]
        height, width = picture.height, picture.width
        _check_size(name, height, width, max_pixels)
        swapped = stored_view(np.empty((height, width, 0))).shape[:2] != (height, width)
        upright = np.empty((width, height, 3) if swapped else (height, width, 3), np.uint8)
        # One item of three bytes a pixel: copying into a turned view is twice as fast so.
        stored = stored_view(upright.view("V3")[..., 0])
        rows = max(1, _BAND_PIXELS // width)
        for top in range(0, height, rows):
            band = picture.crop((0, top, width, min(top + rows, height)))
            stored[top : top + rows] = _band_to_rgb(band, name).view("V3")[..., 0]
        return upright
    except ImageError:
        raise
    except Exception as error:
        raise _damaged(name, kind, error) from None


def _orientation(picture: Image.Image) -> int:
    """EXIF orientation, 1 to 8; a damaged EXIF block is no reason to refuse a sound picture."""
    try:
        value = picture.getexif().get(0x0112, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) and value in _STORED_VIEW else 1


def _band_to_rgb(band: Image.Image, name: object) -> np.ndarray:
    """A few rows of a picture in any of Pillow's modes -> (rows, width, 3) uint8, C-contiguous."""
    clear = band.info.get("transparency")
    if band.mode in ("F", "I") or band.mode.startswith("I;16"):
        gray = _to_eight_bits(np.asarray(band), name)
        if isinstance(clear, int):
            gray = np.where(np.asarray(band) == clear, np.uint8(255), gray)
        return np.repeat(gray[..., None], 3, axis=2)
    if isinstance(clear, tuple) and max(clear) > 255:
        # The transparent color of a 16-bit PNG, of which Pillow keeps the high bytes only.
        band.info["transparency"] = tuple(value >> 8 for value in clear)
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
    """Depths as `read_image` documents them -> uint8."""
    kind, size = values.dtype.kind, values.dtype.itemsize
    if kind == "u" and size == 1:
        return values
    if kind == "b":
        return values * np.uint8(255)
    if kind == "u" and size == 2:
        return (values >> 8).astype(np.uint8)
    low, high = values.min(), values.max()
    if kind == "f":
        # The comparison is false for NaN.
        if not (low >= -0.001 and high <= 1.001):
            raise ImageError(
                f"{name}: floating-point values must be in 0..1, without NaN, but here lie in {low:g}..{high:g};"
                " rescale them"
            )
        return (values.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    if low < 0 or high > 65535:
        raise ImageError(f"{name}: integer values must be in 0..65535, but here lie in {low}..{high}; rescale them")
    return (values >> 8).astype(np.uint8)


def _read_array(array: np.ndarray, max_pixels: int) -> np.ndarray:
    name = "the array"
    kind, size = array.dtype.kind, array.dtype.itemsize
    if not (kind in "bf" or (kind == "u" and size <= 2)):
        raise ImageError(f"{name}: dtype {array.dtype} is ambiguous; pass uint8, uint16, bool, or float in 0..1")
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        shape = tuple(array.shape)
        raise ImageError(f"{name}: shape {shape} is not that of a picture; pass (H, W), (H, W, 3) or (H, W, 4)")
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
