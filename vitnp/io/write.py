"""What goes out: files written whole or not at all, their names, and the stamp by which vitnp knows its own."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from vitnp.errors import OutputError

if TYPE_CHECKING:
    from PIL import Image

from vitnp.io.stamp import canonical_json, json_default, with_software

_WRITE_BYTES = 1 << 24

_ADVICE = {
    errno.ENOSPC: "the disk is full; free some space or write elsewhere",
    errno.EDQUOT: "the disk quota is used up; free some space or write elsewhere",
    errno.EFBIG: "the file would be larger than allowed here; write elsewhere",
    errno.EACCES: "no permission to write there; choose another folder",
    errno.EPERM: "no permission to write there; choose another folder",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ENOENT: "the folder doesn't exist; make it first",
    errno.ENOTDIR: "a part of the path is a file, not a folder; choose another one",
    errno.EISDIR: "a folder of this name is in the way; remove it or choose another name",
    errno.EEXIST: "a file of this name is in the way; remove it or choose another name",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
}


# --- Files, whole or not at all --------------------------------------------------------------------------------------


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file for writing that takes its place at the end, and only when all went well.

    The bytes go to a hidden temporary file in the same folder, which replaces `path` in one step when the block ends.
    After any exception, an interruption from the keyboard too, it is removed and what stood at `path` is untouched. The
    new file has the permissions that any new file gets (umask).

    Raises
    ------
    OutputError
        When the system refuses: full disk, no permission, no such folder and so on.

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
    temporary = path.with_name(f".vitnp-{secrets.token_hex(8)}.part")
    try:
        try:
            with open(temporary, "xb") as file:
                yield file
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    except (OSError, ValueError) as error:
        raise _refused(path, error) from None


def _refused(path: Path, error: OSError | ValueError) -> OutputError:
    advice = _ADVICE.get(getattr(error, "errno", None))
    return OutputError(f"can't write {path}: {advice or f'{error}; choose another place'}")


def make_folder(path: str | os.PathLike[str]) -> None:
    """Make a folder, and those above it, unless it is there.

    Raises
    ------
    OutputError
        When the system refuses, or a file is in the way.
    """
    try:
        os.makedirs(path, exist_ok=True)
    except (OSError, ValueError) as error:
        raise _refused(Path(path), error) from None


def write_png(
    path: str | os.PathLike[str], picture: np.ndarray | Image.Image, text: Mapping[str, str] | None = None
) -> None:
    """Write a PNG with vitnp's stamp.

    Parameters
    ----------
    path : path
    picture : PIL image or array
        (H, W) uint8 or uint16 gray, (H, W, 3) uint8 RGB or (H, W, 4) uint8 RGBA; bool becomes 0 and 255.
    text : mapping of str to str
        Further text chunks, such as "vitnp:parameters" and "vitnp:photograph"; see :func:`stamp`.

    Raises
    ------
    OutputError
        When the file can't be written.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    if isinstance(picture, np.ndarray):
        if picture.dtype == bool:
            picture = picture.view(np.uint8) * np.uint8(255)
        picture = Image.fromarray(np.ascontiguousarray(picture))
    chunks = PngInfo()
    for key, value in with_software(text).items():
        chunks.add_text(key, value)
    # Level 6 takes two to three times as long as 3 on photographs, to save a tenth of the space.
    level = 3 if picture.mode in ("RGB", "RGBA") else 6
    with replacing(path) as file:
        picture.save(file, "PNG", pnginfo=chunks, compress_level=level)


def write_npy(path: str | os.PathLike[str], array: np.ndarray, text: Mapping[str, str] | None = None) -> None:
    """Write an array for ``np.load``, with vitnp's stamp behind the data, where ``np.load`` doesn't look.

    Raises
    ------
    OutputError
        When the file can't be written.
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
    """Write several arrays for ``np.load``, and metadata; the same content gives the same bytes.

    Parameters
    ----------
    path : path
    arrays : mapping of str to array
    metadata : mapping
        Anything JSON knows. It is stored as one more array, "metadata": a string to be read by
        ``json.loads(str(np.load(path)["metadata"]))``. Entries that begin with "vitnp:" are the file's stamp too.
    compressed : bool
        Whether to deflate.

    Raises
    ------
    OutputError
        When the file can't be written.
    """
    metadata = dict(metadata or {})
    method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    own = {key: str(value) for key, value in metadata.items() if key.startswith("vitnp:")}
    with replacing(path) as file, zipfile.ZipFile(file, "w", method, allowZip64=True) as archive:
        for name, array in {**arrays, "metadata": np.array(canonical_json(metadata))}.items():
            # ZipInfo's own date is the constant 1980-01-01, whereas ZipFile.write would store the clock's.
            member = zipfile.ZipInfo(f"{name}.npy")
            member.compress_type = method
            with archive.open(member, "w", force_zip64=True) as entry:
                _write_array(entry, array)
        archive.comment = canonical_json(with_software(own)).encode()


def _write_array(file: BinaryIO, array: np.ndarray) -> None:
    """An array in NumPy's format 1.0; unlike ``np.save`` it reports a full disk as such."""
    array = np.asanyarray(array, order="C")
    if array.dtype.hasobject:
        raise TypeError("arrays of Python objects can't be stored")
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
    if array.size:
        data = memoryview(array.reshape(-1).view(np.uint8))
        file.writelines(data[start : start + _WRITE_BYTES] for start in range(0, len(data), _WRITE_BYTES))


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text.

    Raises
    ------
    OutputError
        When the file can't be written.
    """
    with replacing(path) as file:
        file.write(text.encode())


def write_json(path: str | os.PathLike[str], value: object) -> None:
    """Write a value as indented JSON.

    Raises
    ------
    OutputError
        When the file can't be written.
    """
    write_text(path, json.dumps(value, indent=2, default=json_default) + "\n")
