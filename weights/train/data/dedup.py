"""Removal of duplicates: keep photographs that also occur in an evaluation set out of a training set."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

import numpy as np
from vitnp.weights.train.data.packs import Picture, center_crop, read_pictures

from vitnp.errors import ImageError

THUMBNAIL_SIZE = 32  # pixels
MAX_CORRELATION = 0.97  # thumbnails that correlate more than this show the same photograph


class Deduplication:
    """Recognize photographs that occur in given folders, files or packs.

    Two photographs are duplicates if their file names are equal except for the extension, or if their gray thumbnails,
    one of them optionally mirrored, correlate above 0.97. This finds copies of another size, compression or file
    format, but not crops. Different photographs may share a name such as ``0001.jpg``; removing too many does no harm.

    Parameters
    ----------
    paths : iterable of paths
        Known photographs, see :func:`vitnp.weights.train.data.packs.list_pictures`. May be empty.

    Raises
    ------
    ImageError
        If one of them cannot be read.

    Examples
    --------
    >>> known = Deduplication([])
    >>> known.reason("a.jpg", np.zeros((8, 8, 3), np.uint8)) is None
    True
    """

    def __init__(self, paths: Iterable[str | os.PathLike[str]]) -> None:
        self._names: set[str] = set()
        thumbnails: list[np.ndarray] = []
        for name, rgb in read_pictures(paths):
            self._names.add(_stem(name))
            thumbnails += [thumbnail(rgb), thumbnail(rgb[:, ::-1])]
        self._thumbnails = np.array(thumbnails, np.float32).reshape(-1, THUMBNAIL_SIZE * THUMBNAIL_SIZE)

    def __len__(self) -> int:
        return len(self._thumbnails) // 2

    def reason(self, name: str, rgb: np.ndarray) -> str | None:
        """Return why a photograph is a duplicate, "name" or "looks"; None if it is not.

        Parameters
        ----------
        name : str
            File name or path; only its last component is compared, without extension and ignoring case.
        rgb : (height, width, 3) uint8 array
            The photograph.
        """
        if _stem(name) in self._names:
            return "name"
        if len(self) and (self._thumbnails @ thumbnail(rgb)).max() > MAX_CORRELATION:
            return "looks"
        return None

    def check(
        self, pictures: Iterable[Picture], short_side: int | None = None
    ) -> Iterator[tuple[Picture, np.ndarray | ImageError | str]]:
        """Read pictures, and yield each with its outcome.

        Parameters
        ----------
        pictures : iterable of Picture
            Pictures to check.
        short_side : int, optional
            Sufficient resolution, see :meth:`vitnp.weights.train.data.packs.Picture.read`.

        Yields
        ------
        picture : Picture
            The picture.
        outcome : (height, width, 3) uint8 array, str or ImageError
            Its pixels; or why it is a duplicate, as :meth:`reason`; or why it cannot be read.
        """
        for picture in pictures:
            try:
                rgb = picture.read(short_side)
            except ImageError as error:
                yield picture, error
                continue
            yield picture, self.reason(picture.name, rgb) or rgb


def thumbnail(rgb: np.ndarray) -> np.ndarray:
    """Return a gray thumbnail (1024,), float32, with mean 0 and norm 1; the product of two is their correlation.

    It is zero for an image of one color, which thus correlates with no other.
    """
    from PIL import Image

    size = (THUMBNAIL_SIZE, THUMBNAIL_SIZE)
    # Packs contain the center of a long picture, which should still match the whole one.
    gray = Image.fromarray(center_crop(rgb)).convert("L").resize(size, Image.Resampling.BOX)
    values = np.asarray(gray, np.float32).reshape(-1)
    values -= values.mean()
    norm = np.linalg.norm(values)
    return values / norm if norm > 0 else values


def _stem(name: str) -> str:
    return PurePosixPath(name.lower()).stem
