"""Open image files, recognize their format by content, and read their headers without decoding pixels.

Pillow decodes, but not through ``Image.open``: that applies the process-wide ``Image.MAX_IMAGE_PIXELS``, which a
library must not change. Instead, the first bytes of a file select Pillow's class for the format, and this class reads
the header.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib
import io
import os
import stat
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, BinaryIO

from vitnp.errors import ImageError
from vitnp.io.pillow_warnings import collected, one_line

if TYPE_CHECKING:
    from PIL import Image

FORMATS = "JPEG, PNG, WebP, TIFF, BMP, GIF, HEIC or AVIF"

# Pillow's plugin for each format; HEIC is read by pillow-heif instead. Photographs are read in all formats but PNM.
_PLUGINS = {
    "JPEG": "Jpeg", "PNG": "Png", "WebP": "WebP", "TIFF": "Tiff", "GIF": "Gif", "BMP": "Bmp", "AVIF": "Avif",
    "PNM": "Ppm",
}  # fmt: skip

_SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
}
# Files up to this many bytes are read at once.
_MAX_CONTENT = 1 << 26

_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"})


def pixels_of(path: str | os.PathLike[str] | FileContent) -> int:
    """Return the number of pixels of an image file, reading only its header.

    Raises
    ------
    ImageError
        If there is no such file, or it is not an image in a supported format. Damage after the header is not noticed.
    """
    height, width = stored_size(path)
    return height * width


def stored_size(path: str | os.PathLike[str] | FileContent) -> tuple[int, int]:
    """Return height and width of an image file as stored, without its EXIF orientation, reading only its header.

    Raises
    ------
    ImageError
        As in :func:`pixels_of`.
    """
    with open_header(path) as (image, _):
        return image.height, image.width


class FileContent(bytes):
    """The bytes of a file, to be read once for its hash, header and pixels.

    Attributes
    ----------
    path : str or os.PathLike
        Where they come from; errors name it.
    """

    path: str | os.PathLike[str]


def read_content(path: str | os.PathLike[str]) -> FileContent | str | os.PathLike[str]:
    """Read a file at once; return the path of a large file, of which the parts are to be read when they are needed.

    Raises
    ------
    ImageError
        If there is no such file, it is empty, or it cannot be read.
    """
    with _open_file(path) as file:
        if os.fstat(file.fileno()).st_size > _MAX_CONTENT:
            return path
        content = FileContent(file.read())
    content.path = path
    return content


def file_hash(source: str | os.PathLike[str] | FileContent) -> str:
    """Return the fingerprint of a file: the BLAKE2b hash of its bytes as 32 hexadecimal digits.

    Raises
    ------
    ImageError
        If there is no such file, it is empty, or it cannot be read.
    """
    if isinstance(source, FileContent):
        return hashlib.blake2b(source, digest_size=16).hexdigest()
    path, digest = source, hashlib.blake2b(digest_size=16)
    with _open_file(path) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def open_header(source: str | os.PathLike[str] | bytes, *, mask: bool = False) -> Iterator[tuple[Image.Image, str]]:
    """Open an image file, or its bytes, and read its header.

    Parameters
    ----------
    source : path or bytes
    mask : bool
        Whether the file may also be in a format of masks (PBM, PGM, PPM).

    Yields
    ------
    PIL image, str
        The image, whose pixels are not loaded, and the format.

    Raises
    ------
    ImageError
        If there is no such file, it is not an image in a supported format, or its header is damaged.
    """
    path = name_of(source)
    with io.BytesIO(source) if isinstance(source, bytes) else _open_file(source) as file:
        head = file.read(64)
        file.seek(0)
        file_format = _recognize(head)
        if file_format is None or (file_format == "PNM" and not mask):
            raise ImageError(f"{path}: this is not an image in a supported format; convert it to {FORMATS}")
        image_class = _image_class(file_format, path)
        try:
            with collected():  # logged when the pixels are decoded
                image = image_class(file)
        except Exception as error:
            raise damaged(path, file_format, error) from None
        with image:
            yield image, file_format


def name_of(source: object) -> object:
    """Return what errors call a file or its bytes."""
    return getattr(source, "path", "the bytes") if isinstance(source, bytes) else source


def unopened(path: str | os.PathLike[str], error: OSError | ValueError) -> ImageError:
    """Return the error for a file that cannot be opened, or a folder that cannot be listed."""
    number = getattr(error, "errno", None)
    if number in (errno.ENOENT, errno.ENOTDIR):
        return ImageError(f"{path}: there is no such file or folder; check the spelling", path=path)
    if number in (errno.EACCES, errno.EPERM):
        return ImageError(f"{path}: no permission to read it; change its permissions or use a copy", path=path)
    reason = getattr(error, "strerror", None) or error
    return ImageError(f"{path}: it can't be opened ({reason}); check the path and the disk", path=path)


def damaged(name: object, file_format: str, error: Exception) -> ImageError:
    """Return the error for an image that Pillow fails to decode."""
    if isinstance(error, MemoryError):
        return ImageError(f"{name}: there is not enough memory to decode it; use a smaller image")
    reason = one_line(error) or type(error).__name__
    return ImageError(
        f"{name}: the {file_format} is truncated, damaged or of an unsupported kind ({reason}); "
        "get an intact copy, or save it again with another program"
    )


@contextlib.contextmanager
def _open_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a regular file that is not empty."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise ImageError(f"{path}: this is a folder, not a photograph; name a file")
        # Reading from anything else, such as a pipe or a device, might never end.
        if not stat.S_ISREG(mode):
            raise ImageError(f"{path}: this is not a regular file; save the photograph to a file first")
        with open(path, "rb") as file:
            if not file.read(1):
                raise ImageError(f"{path}: the file is empty (0 bytes); copy it again from its source")
            file.seek(0)
            yield file
    except (OSError, ValueError) as error:
        raise unopened(path, error) from None


def _recognize(head: bytes) -> str | None:
    """Return the format of a file by its first bytes; None if it is not supported."""
    for signature, file_format in _SIGNATURES.items():
        if head.startswith(signature):
            return file_format
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[4:8] == b"ftyp":
        # ISO base media file: a major brand and, from byte 16, the compatible brands (ISO/IEC 14496-12, 4.3).
        box = head[8 : max(12, int.from_bytes(head[:4], "big"))]
        brands = {box[start : start + 4] for start in range(0, len(box), 4)}
        if brands & _AVIF_BRANDS:
            return "AVIF"
        if brands & _HEIC_BRANDS:
            return "HEIC"
    # Two bytes are a weak signature, so they are tried last.
    if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace():
        return "PNM"
    return "BMP" if head.startswith(b"BM") else None


def _image_class(file_format: str, path: object) -> Callable[[BinaryIO], Image.Image]:
    """Return the PIL image class for a format, whose constructor reads the header and no pixels."""
    if file_format == "HEIC":
        try:
            from pillow_heif import HeifImageFile
        except ImportError:
            raise ImageError(
                f"{path}: HEIC needs an extra package; pip install 'vitnp[heic]', or convert it to JPEG"
            ) from None
        return HeifImageFile
    plugin_name = _PLUGINS[file_format]
    try:
        plugin = importlib.import_module(f"PIL.{plugin_name}ImagePlugin")
    except ImportError:
        raise ImageError(
            f"{path}: the installed Pillow can't read {file_format}; install a newer Pillow, or convert it to JPEG"
        ) from None
    return getattr(plugin, f"{plugin_name}ImageFile")
