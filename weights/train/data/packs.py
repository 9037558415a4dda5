"""Packs: many small photographs in one file, which is faster to copy and to open than many files.

A pack is an uncompressed NumPy ``.npz`` without pickled objects:

==========  ================  =======================================================================
bytes       uint8 (total,)    concatenated encoded pictures
offsets     int64 (n + 1,)    picture i is ``bytes[offsets[i]:offsets[i + 1]]``
name        bytes (n,)        original path of each picture in UTF-8, such as ``b"birds/0001.jpg"``
==========  ================  =======================================================================

Further arrays are ignored. Pictures are encoded as WebP, which needs two thirds of the space of JPEG at equal quality.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitnp.errors import ImageError, UsageError
from vitnp.io.decode import read_image, unopened
from vitnp.io.find import find_photographs
from vitnp.io.write import write_npz

__all__ = ["Picture", "center_crop", "encode", "list_pictures", "read_pack", "read_pictures", "write_pack"]

QUALITY = 72
SHORT_SIDE = 176  # pixels
_MAX_ASPECT = 1.6  # longer pictures are cropped


@dataclass(frozen=True)
class Picture:
    """A photograph that is not decoded yet.

    Parameters
    ----------
    name : str
        Path relative to the folder that was searched, or name in a pack.
    source : path or bytes
        Image file, or its contents.
    """

    name: str
    source: Path | bytes

    def read(self, short_side: int | None = None) -> np.ndarray:
        """Decode the photograph.

        Parameters
        ----------
        short_side : int, optional
            Sufficient length of the short side in pixels. A JPEG of at least twice this size is decoded at a half, a
            quarter or an eighth of its size, which is several times faster.

        Returns
        -------
        (height, width, 3) uint8 array
            RGB.

        Raises
        ------
        ImageError
            If it cannot be read.
        """
        if isinstance(self.source, Path) and (short_side is None or not _is_jpeg(self.source)):
            return read_image(self.source)
        from PIL import Image

        try:
            with Image.open(io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source) as picture:
                if short_side is not None:
                    picture.draft("RGB", (short_side, short_side))
                return read_image(picture)
        except Exception:
            raise ImageError(f"{self.name}: cannot read this image; leave it out") from None


def read_pack(path: str | os.PathLike[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Read a pack.

    Parameters
    ----------
    path : path
        An ``.npz`` file written by :func:`write_pack`.

    Yields
    ------
    name : str
        Name of a picture.
    rgb : (height, width, 3) uint8 array
        The decoded picture.

    Raises
    ------
    ImageError
        If the file is not a pack, or a picture in it is damaged.

    Examples
    --------
    >>> import tempfile
    >>> pictures = [("a", np.zeros((9, 9, 3), np.uint8)), ("b", np.ones((20, 30, 3), np.uint8))]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_pack(f"{folder}/two.npz", pictures)
    ...     [(name, picture.shape) for name, picture in read_pack(f"{folder}/two.npz")]
    2
    [('a', (9, 9, 3)), ('b', (20, 30, 3))]
    """
    for picture in _open_pack(Path(path)):
        yield picture.name, picture.read()


def read_pictures(paths: Iterable[str | os.PathLike[str]]) -> Iterator[tuple[str, np.ndarray]]:
    """Read the pictures of folders, files and packs, see :func:`list_pictures`.

    Yields
    ------
    name : str
        Name of a picture.
    rgb : (height, width, 3) uint8 array
        The decoded picture.

    Raises
    ------
    ImageError
        If one cannot be read.
    """
    for picture in list_pictures(paths):
        yield picture.name, picture.read()


def list_pictures(paths: Iterable[str | os.PathLike[str]]) -> list[Picture]:
    """List the pictures in folders, files and packs, without decoding them.

    Parameters
    ----------
    paths : iterable of paths
        Image files, packs (``.npz``), and folders. A folder is searched for packs, and with its subfolders for
        photographs.

    Returns
    -------
    list of Picture
        In the order of the paths. The contents of a folder are sorted by name, packs first; pictures of a pack keep
        their order.

    Raises
    ------
    ImageError
        If a path does not exist, or contains neither a photograph nor a pack.
    """
    pictures: list[Picture] = []
    for path in map(Path, paths):
        if path.suffix == ".npz":
            pictures += _open_pack(path)
            continue
        packs = sorted(path.glob("*.npz")) if path.is_dir() else []
        for pack in packs:
            pictures += _open_pack(pack)
        failures: list[ImageError] = []
        photographs = find_photographs([path], failures=failures)
        if failures and not packs:
            raise failures[0]
        pictures += [Picture(photograph.relative.as_posix(), photograph.path) for photograph in photographs]
    return pictures


def write_pack(path: str | os.PathLike[str], photographs: Iterable[tuple[str, np.ndarray]]) -> int:
    """Write a pack; atomic.

    Parameters
    ----------
    path : path
        An ``.npz`` file; replaced if it exists.
    photographs : iterable of (str, (height, width, 3) uint8 array)
        Name and RGB of each picture.

    Returns
    -------
    int
        Number of pictures written.

    Raises
    ------
    UsageError
        If there are no photographs.
    OutputError
        If the file cannot be written.
    """
    names, contents = [], []
    for name, rgb in photographs:
        names.append(name.encode())
        contents.append(encode(rgb))
    if not names:
        raise UsageError(f"{path}: no photographs left to pack; give others")
    offsets = np.zeros(len(contents) + 1, np.int64)
    np.cumsum([len(content) for content in contents], out=offsets[1:])
    write_npz(
        path,
        {
            "bytes": np.frombuffer(b"".join(contents), np.uint8),
            "offsets": offsets,
            "name": np.array(names),
        },
        compressed=False,
    )
    return len(contents)


def encode(rgb: np.ndarray, *, short_side: int = SHORT_SIDE, quality: int = QUALITY) -> bytes:
    """Encode a picture for a pack: its :func:`center_crop`, downscaled, as WebP.

    Parameters
    ----------
    rgb : (height, width, 3) uint8 array
        The picture.
    short_side : int
        Length of the short side in pixels; smaller pictures are not resized.
    quality : int
        WebP quality, 0 to 100.

    Returns
    -------
    bytes
        Contents of a WebP file.

    Examples
    --------
    >>> from PIL import Image
    >>> Image.open(io.BytesIO(encode(np.zeros((400, 2000, 3), np.uint8)))).size
    (282, 176)
    """
    from PIL import Image

    picture = Image.fromarray(center_crop(rgb))
    scale = short_side / min(picture.size)
    if scale < 1:
        width, height = (round(side * scale) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=quality, method=4)
    return buffer.getvalue()


def center_crop(rgb: np.ndarray) -> np.ndarray:
    """Crop the long side of a picture to at most 1.6 times its short side, around the center.

    Parameters
    ----------
    rgb : (height, width, 3) uint8 array
        The picture.

    Returns
    -------
    (height, width, 3) uint8 array
        A contiguous copy, or the picture itself.

    Examples
    --------
    >>> center_crop(np.zeros((10, 40, 3), np.uint8)).shape, center_crop(np.zeros((10, 12, 3), np.uint8)).shape
    ((10, 16, 3), (10, 12, 3))
    """
    max_side = round(min(rgb.shape[:2]) * _MAX_ASPECT)
    top, left = (max(0, (side - max_side) // 2) for side in rgb.shape[:2])
    return np.ascontiguousarray(rgb[top : top + max_side, left : left + max_side])


def _open_pack(path: Path) -> list[Picture]:
    try:
        with open(path, "rb") as file, np.load(file) as arrays:
            content, offsets, names = (arrays[key] for key in ("bytes", "offsets", "name"))
        ascending = (np.diff(offsets) >= 0).all() and offsets[0] >= 0 and offsets[-1] <= len(content)
        if len(names) != len(offsets) - 1 or not ascending:
            raise ValueError("offsets")
        return [
            Picture(name.decode(), content[start:end].tobytes())
            for name, start, end in zip(names, offsets[:-1], offsets[1:])
        ]
    except OSError as error:
        raise (unopened(path, error) if error.errno else _not_a_pack(path)) from None
    except (ValueError, KeyError, AttributeError, TypeError, IndexError, EOFError, zipfile.BadZipFile):
        raise _not_a_pack(path) from None


def _is_jpeg(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(2) == b"\xff\xd8"
    except OSError as error:
        raise unopened(path, error) from None


def _not_a_pack(path: Path) -> ImageError:
    return ImageError(f"{path}: not a pack of photographs; make one with `python -m vitnp.weights.train pack`")
