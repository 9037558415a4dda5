"""Keep evaluation honest: leave out of a training set what also occurs among other photographs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

import numpy as np
from vitnp.weights.train.data.packs import Picture, middle, photographs_of

from vitnp.errors import ImageError

SIDE = 32  # pixels of a thumbnail
MOST_ALIKE = 0.97  # correlation above which two thumbnails show the same photograph


class Deduplication:
    """Recognizes photographs that occur in given folders, files or packs.

    By file name whatever its extension, or by looks: the gray thumbnails of both, one of them also mirrored, correlate
    above 0.97. So copies of another size, compression or file format are found, and crops are not. Different
    photographs may share a file name such as ``0001.jpg``; leaving out too many does no harm.

    Parameters
    ----------
    paths : iterable of paths
        What to leave out, as for :func:`vitnp.weights.train.data.packs.photographs_of`. None at all excludes nothing.

    Raises
    ------
    ImageError
        When one can't be read.

    Examples
    --------
    >>> Deduplication([]).why("a.jpg", np.zeros((8, 8, 3), np.uint8))
    """

    def __init__(self, paths: Iterable[str | os.PathLike[str]]):
        self._names: set[str] = set()
        thumbnails = []
        for name, rgb in photographs_of(paths):
            self._names.add(_stem(name))
            thumbnails += [thumbnail(rgb), thumbnail(rgb[:, ::-1])]
        self._thumbnails = np.array(thumbnails, np.float32).reshape(-1, SIDE * SIDE)

    def __len__(self) -> int:
        return len(self._thumbnails) // 2

    def why(self, name: str, rgb: np.ndarray) -> str | None:
        """Why a photograph is left out: "name" or "looks"; None when it isn't.

        Parameters
        ----------
        name : str
            Its last part counts, without extension and regard to case.
        rgb : uint8 array, shape (height, width, 3)
        """
        if _stem(name) in self._names:
            return "name"
        if len(self) and (self._thumbnails @ thumbnail(rgb)).max() > MOST_ALIKE:
            return "looks"
        return None

    def sort_out(
        self, pictures: Iterable[Picture], short_side: int | None = None
    ) -> Iterator[tuple[Picture, np.ndarray | ImageError | str]]:
        """Each picture with what it is: its pixels, why it is left out (as by :meth:`why`), or why it can't be read.

        Parameters
        ----------
        pictures : iterable of Picture
        short_side : int, optional
            Enough pixels, as for :meth:`vitnp.weights.train.data.packs.Picture.read`.
        """
        for picture in pictures:
            try:
                rgb = picture.read(short_side)
            except ImageError as error:
                yield picture, error
                continue
            yield picture, self.why(picture.name, rgb) or rgb


def thumbnail(rgb: np.ndarray) -> np.ndarray:
    """A gray thumbnail with mean 0 and norm 1, float32 (1024,), so that the product of two is their correlation.

    Zero for a picture of one color, which then resembles nothing.
    """
    from PIL import Image

    # Packs keep the middle of a long picture; it should still resemble the whole one.
    gray = Image.fromarray(middle(rgb)).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    values = np.asarray(gray, np.float32).reshape(-1)
    values -= values.mean()
    norm = np.linalg.norm(values)
    return values / norm if norm > 0 else values


def _stem(name: str) -> str:
    return PurePosixPath(name.lower()).stem
