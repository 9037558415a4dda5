"""Packs: many small photographs in one file, so that a training set travels and opens as one.

A pack is an uncompressed NumPy ``.npz`` without pickled objects:

==========  ================  =======================================================================
bytes       uint8 (total,)    the encoded pictures, one after another
offsets     int64 (n + 1,)    picture i is ``bytes[offsets[i]:offsets[i + 1]]``
name        bytes (n,)        UTF-8, where each came from, such as ``b"birds/0001.jpg"``
==========  ================  =======================================================================

More arrays may be there; they are ignored. Pictures are encoded as WebP, which at the same fidelity takes two thirds of
what JPEG takes.
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

__all__ = ["Picture", "encode", "middle", "photographs_of", "pictures_of", "read_pack", "write_pack"]

QUALITY = 72
SHORT_SIDE = 176  # pixels
_MOST_ASPECT = 1.6  # what is longer loses its ends


@dataclass(frozen=True)
class Picture:
    """A photograph that is read when asked for.

    Parameters
    ----------
    name : str
        Its path below the folder in which it was found, or its name in the pack.
    source : path or bytes
        The file, or what such a file would hold.
    """

    name: str
    source: Path | bytes

    def read(self, short_side: int | None = None) -> np.ndarray:
        """The photograph, uint8 (height, width, 3).

        Parameters
        ----------
        short_side : int, optional
            Enough pixels. A JPEG of twice as many and more is decoded at a half, a quarter or an eighth, which is
            several times faster.

        Raises
        ------
        ImageError
            When it can't be read.
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
            raise ImageError(f"{self.name}: this picture can't be read; leave it out") from None


def read_pack(path: str | os.PathLike[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Names and pictures, uint8 (height, width, 3), of a pack, one by one.

    Parameters
    ----------
    path : path

    Raises
    ------
    ImageError
        When the file is no pack, or a picture in it is damaged.

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


def photographs_of(paths: Iterable[str | os.PathLike[str]]) -> Iterator[tuple[str, np.ndarray]]:
    """Names and pictures, uint8 (height, width, 3), of folders, files and packs, one by one; see :func:`pictures_of`.

    Raises
    ------
    ImageError
        When one can't be read.
    """
    for picture in pictures_of(paths):
        yield picture.name, picture.read()


def pictures_of(paths: Iterable[str | os.PathLike[str]]) -> list[Picture]:
    """The pictures that folders, files and packs stand for, not decoded yet.

    Parameters
    ----------
    paths : iterable of paths
        A pack ends in ``.npz``. A folder stands for the packs in it, and for the photographs in it and its subfolders.

    Returns
    -------
    list of Picture
        In the order of the paths, each sorted by name; packs come in the order within.

    Raises
    ------
    ImageError
        When a path is missing or holds neither a photograph nor a pack.
    """
    found: list[Picture] = []
    for path in map(Path, paths):
        if path.suffix == ".npz":
            found += _open_pack(path)
            continue
        packs = sorted(path.glob("*.npz")) if path.is_dir() else []
        for pack in packs:
            found += _open_pack(pack)
        failures: list[ImageError] = []
        photographs = find_photographs([path], failures=failures)
        if failures and not packs:
            raise failures[0]
        found += [Picture(photograph.relative.as_posix(), photograph.path) for photograph in photographs]
    return found


def write_pack(path: str | os.PathLike[str], photographs: Iterable[tuple[str, np.ndarray]]) -> int:
    """Write a pack, whole or not at all.

    Parameters
    ----------
    path : path
        Replaced when it exists.
    photographs : iterable of (str, uint8 array (height, width, 3))
        Names and pictures.

    Returns
    -------
    int
        How many pictures it holds.

    Raises
    ------
    UsageError
        When there are no photographs.
    OutputError
        When it can't be written.
    """
    names, contents = [], []
    for name, rgb in photographs:
        names.append(name.encode())
        contents.append(encode(rgb))
    if not names:
        raise UsageError(f"{path}: there is no photograph left to pack; give others")
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
    """A picture as a pack keeps it: its :func:`middle`, scaled down, in WebP.

    Parameters
    ----------
    rgb : uint8 array, shape (height, width, 3)
    short_side : int
        In pixels; smaller pictures stay as they are.
    quality : int
        Of WebP, 0 to 100.

    Examples
    --------
    >>> from PIL import Image
    >>> Image.open(io.BytesIO(encode(np.zeros((400, 2000, 3), np.uint8)))).size
    (282, 176)
    """
    from PIL import Image

    picture = Image.fromarray(middle(rgb))
    scale = short_side / min(picture.size)
    if scale < 1:
        picture = picture.resize(tuple(round(side * scale) for side in picture.size), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=quality, method=4)
    return buffer.getvalue()


def middle(rgb: np.ndarray) -> np.ndarray:
    """The picture without its ends where it is longer than 1.6 times its short side.

    Examples
    --------
    >>> middle(np.zeros((10, 40, 3), np.uint8)).shape, middle(np.zeros((10, 12, 3), np.uint8)).shape
    ((10, 16, 3), (10, 12, 3))
    """
    longest = round(min(rgb.shape[:2]) * _MOST_ASPECT)
    top, left = (max(0, (side - longest) // 2) for side in rgb.shape[:2])
    return np.ascontiguousarray(rgb[top : top + longest, left : left + longest])


def _open_pack(path: Path) -> list[Picture]:
    try:
        with open(path, "rb") as file, np.load(file) as arrays:
            content, offsets, names = (arrays[key] for key in ("bytes", "offsets", "name"))
        if (
            len(names) != len(offsets) - 1
            or offsets[0] < 0
            or offsets[-1] > len(content)
            or (np.diff(offsets) < 0).any()
        ):
            raise ValueError("offsets")
        return [
            Picture(name.decode(), content[start:end].tobytes())
            for name, start, end in zip(names, offsets[:-1], offsets[1:])
        ]
    except OSError as error:
        raise (unopened(path, error) if error.errno else _no_pack(path)) from None
    except (ValueError, KeyError, AttributeError, TypeError, IndexError, EOFError, zipfile.BadZipFile):
        raise _no_pack(path) from None


def _is_jpeg(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(2) == b"\xff\xd8"
    except OSError as error:
        raise unopened(path, error) from None


def _no_pack(path: Path) -> ImageError:
    return ImageError(f"{path}: this is no pack of photographs; make one with `python -m vitnp.weights.train pack`")
