"""Write files atomically, with the stamp by which vitnp recognizes its own files."""

from __future__ import annotations

import contextlib
import errno
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO

import numpy as np

from vitnp.errors import OutputError
from vitnp.io.part_files import check_writable, replacing_part, together
from vitnp.io.path_text import ascii_json
from vitnp.io.png import encode_png
from vitnp.io.stamp import canonical_json, json_default, sidecar_entries, sidecar_path, with_software

if TYPE_CHECKING:
    from PIL import Image

# Bytes per write call.
_WRITE_BYTES = 1 << 24

_ADVICE = {
    errno.ENOSPC: "the disk is full; free some space or write elsewhere",
    errno.EDQUOT: "the disk quota is used up; free some space or write elsewhere",
    errno.EFBIG: "the file would be larger than allowed here; write elsewhere",
    errno.EACCES: "no permission to write there; choose another folder",
    errno.EPERM: "no permission to write there; choose another folder",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ENOENT: "the folder doesn't exist; create it first",
    errno.ENOTDIR: "a part of the path is a file, not a folder; choose another one",
    errno.EISDIR: "a folder of this name is in the way; remove it or choose another name",
    errno.EEXIST: "a file of this name is in the way; remove it or choose another name",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.EINVAL: "the file system there does not take such names; choose another name or folder",
    errno.EILSEQ: "the file system there does not take such names; choose another name or folder",
}


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file for writing that replaces `path` when the block ends without an exception.

    The bytes are written to a hidden temporary file in the same folder, which then replaces `path` atomically. After an
    exception, including KeyboardInterrupt, it is removed and the file at `path` is unchanged; if the process is killed,
    the next run removes it (:mod:`vitnp.io.part_files`). The new file has the default permissions (umask).

    Raises
    ------
    OutputError
        If the file cannot be written: disk full, no permission, no such folder and so on.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(folder + "/a.txt") as file:
    ...         _ = file.write(b"all of it")
    ...     os.listdir(folder)
    ['a.txt']
    """
    path = Path(path)
    try:
        with replacing_part(path) as file:
            yield file
    except (OSError, ValueError) as error:
        raise _refused(path, error) from None


def _refused(path: Path, error: OSError | ValueError) -> OutputError:
    """Return the error for a file that cannot be written."""
    advice = _ADVICE.get(getattr(error, "errno", None) or 0)
    return OutputError(f"can't write {path}: {advice or f'{error}; choose another place'}")


@contextlib.contextmanager
def writing_together(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Write several files to a folder, all or none: they replace those of their names when the block ends.

    Raises
    ------
    OutputError
        If a file cannot be written.
    """
    try:
        with together():
            yield
    except OSError as error:
        raise _refused(Path(error.filename2 or folder), error) from None


def make_folder(path: str | os.PathLike[str]) -> None:
    """Create a folder and its parents, unless it exists.

    Raises
    ------
    OutputError
        If it cannot be created, or a file of this name exists.
    """
    try:
        os.makedirs(path, exist_ok=True)
    except (OSError, ValueError) as error:
        raise _refused(Path(path), error) from None


def prepare_folder(path: str | os.PathLike[str]) -> None:
    """Create a folder for outputs and check that files can be written there.

    Call it before long work, so that a disk that is full or read-only shows first.

    Raises
    ------
    OutputError
        If the folder cannot be created or written to.
    """
    make_folder(path)
    try:
        check_writable(Path(path))
    except OSError as error:
        raise _refused(Path(path), error) from None


def check_names(paths: Iterable[str | os.PathLike[str]]) -> None:
    """Check that the file system takes the names of all files, before the first of them is written.

    Raises
    ------
    OutputError
        For the first name that is too long, or has characters that are not allowed.
    """
    for path in paths:
        try:
            os.lstat(path)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue  # it is new, or writing will tell
        except (OSError, ValueError) as error:
            raise _refused(Path(path), error) from None


def write_png(
    path: str | os.PathLike[str],
    image: np.ndarray | Image.Image,
    text: Mapping[str, str] | None = None,
    *,
    profile: bytes | None = None,
    dpi: tuple[float, float] | None = None,
    palette: np.ndarray | None = None,
) -> None:
    """Write a PNG with the stamp of vitnp.

    Parameters
    ----------
    path : path
    image : PIL image or array
        (H, W) uint8 or uint16 gray, (H, W, 3) uint8 RGB or (H, W, 4) uint8 RGBA; bool becomes 0 and 255.
    text : mapping of str to str
        Additional text chunks, such as "vitnp:parameters" and "vitnp:photograph"; see :func:`vitnp.io.stamp.stamp`.
    profile : bytes, optional
        ICC color profile of the pixels; none for sRGB.
    dpi : (float, float), optional
        Pixels per inch, horizontally and vertically.
    palette : (256, 3) uint8 array, optional
        Colors of the values of an 8-bit gray image.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    for key, value in with_software(text).items():
        chunks.add_text(key, value)
    pixels = np.asarray(image)
    if pixels.dtype == bool:
        pixels = pixels.view(np.uint8) * np.uint8(255)
    texts = [(name, content) for name, content, *_ in chunks.chunks]
    with replacing(path) as file:
        file.writelines(encode_png(pixels, texts, profile=profile, dpi=dpi, palette=palette))


def as_image(image: np.ndarray | Image.Image) -> Image.Image:
    """Return an array as an image of PIL; bool becomes 0 and 255."""
    from PIL import Image

    if not isinstance(image, np.ndarray):
        return image
    if image.dtype == bool:
        image = image.view(np.uint8) * np.uint8(255)
    return Image.fromarray(np.ascontiguousarray(image))


def write_npy(path: str | os.PathLike[str], array: np.ndarray, text: Mapping[str, str] | None = None) -> None:
    """Write an array for ``np.load``, with the stamp of vitnp after the data, where ``np.load`` ignores it.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    with replacing(path) as file:
        _write_array(file, array)
        file.write(b"\n" + canonical_json(with_software(text)).encode())


def write_npz(
    path: str | os.PathLike[str],
    arrays: Mapping[str, np.ndarray],
    metadata: Mapping[str, object] | None = None,
    *,
    compressed: bool = True,
) -> None:
    """Write several arrays and metadata for ``np.load``; equal content gives equal bytes.

    Parameters
    ----------
    path : path
    arrays : mapping of str to array
    metadata : mapping
        Values that JSON can represent. They are stored as one more array, "metadata": a string to be read by
        ``json.loads(str(np.load(path)["metadata"]))``. Entries that begin with "vitnp:" also are the stamp of the file.
    compressed : bool
        Whether to compress the arrays (deflate).

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    metadata = dict(metadata or {})
    method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    own = {key: str(value) for key, value in metadata.items() if key.startswith("vitnp:")}
    with replacing(path) as file, zipfile.ZipFile(file, "w", method, allowZip64=True) as archive:
        for name, array in {**arrays, "metadata": np.array(canonical_json(metadata))}.items():
            # The date of a ZipInfo is the constant 1980-01-01, while ZipFile.write would store the current time.
            member = zipfile.ZipInfo(f"{name}.npy")
            member.compress_type = method
            with archive.open(member, "w", force_zip64=True) as entry:
                _write_array(entry, array)
        archive.comment = canonical_json(with_software(own)).encode()


def _write_array(file: IO[bytes], array: np.ndarray) -> None:
    """Write an array in NumPy's format 1.0. Unlike ``np.save``, this reports a full disk as such."""
    array = np.asanyarray(array, order="C")
    if array.dtype.hasobject:
        raise TypeError(f"arrays of Python objects can't be stored, got dtype {array.dtype}")
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
    if array.size:
        data = array.reshape(-1).view(np.uint8).data
        file.writelines(data[start : start + _WRITE_BYTES] for start in range(0, len(data), _WRITE_BYTES))


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text; lone surrogates, which UTF-8 lacks, become backslash escapes.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    with replacing(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def write_json(path: str | os.PathLike[str], value: object) -> None:
    """Write a value as indented JSON in ASCII.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    write_text(path, ascii_json(value, indent=2, default=json_default) + "\n")


def write_sidecar(path: str | os.PathLike[str], text: Mapping[str, str] | None = None) -> None:
    """Stamp a file whose format holds no text by a file beside it, ``NAME.ext.vitnp.json``.

    Parameters
    ----------
    path : path
        The complete file. The sidecar holds its hash and is void once the file changes.
    text : mapping of str to str
        Entries in addition to the software, as for :func:`write_png`; see :func:`vitnp.io.stamp.stamp`.

    Raises
    ------
    OutputError
        If the file cannot be read or the sidecar cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from vitnp.io.stamp import stamp
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_text(folder + "/a.svg", "<svg/>")
    ...     write_sidecar(folder + "/a.svg", {"vitnp:photograph": "12ab"})
    ...     stamp(folder + "/a.svg")
    {'vitnp:photograph': '12ab'}
    """
    try:
        entries = sidecar_entries(path, text)
    except OSError as error:
        raise OutputError(f"cannot stamp {path}: {error.strerror}; check its permissions") from None
    write_text(sidecar_path(path), canonical_json(entries))
