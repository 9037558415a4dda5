"""``annotations.json``: a collection's regions in the format of the COCO data set."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from vitnp import __version__
from vitnp.io.spool import Spool
from vitnp.io.write import replacing
from vitnp.masks.contours import polygons as outline_polygons
from vitnp.masks.rle import encode, extent

if TYPE_CHECKING:
    from typing import Self


def class_names(n: int) -> list[str]:
    """Names of `n` classes that have nothing but numbers.

    Examples
    --------
    >>> class_names(2)
    ['class 1', 'class 2']
    """
    return [f"class {number}" for number in range(1, n + 1)]


def segmentation(mask: np.ndarray, *, polygons: bool = False) -> dict[str, object] | list[list[int]]:
    """A mask as the ``segmentation`` of a COCO annotation.

    Parameters
    ----------
    mask : array, shape (H, W), bool
    polygons : bool
        Polygons along the edges of pixels instead of run lengths, see :func:`vitnp.masks.contours.polygons`. They too are
        exact; holes, which COCO's polygons can't have, are opened by a cut without width.

    Examples
    --------
    >>> segmentation(np.array([[0, 1], [1, 1]], bool))
    {'size': [2, 2], 'counts': '13'}
    >>> segmentation(np.array([[0, 1]], bool), polygons=True)
    [[1, 0, 2, 0, 2, 1, 1, 1]]
    """
    return outline_polygons(mask) if polygons else {"size": list(mask.shape), "counts": encode(mask)}


class CocoWriter:
    """Write a COCO file photograph by photograph; it appears, whole, when the ``with`` block ends without an error.

    What is added waits on the disk, so memory doesn't grow with the collection. Images and annotations are numbered
    from 1 in the order in which they are added. The same content gives the same bytes.

    Parameters
    ----------
    path : path
        Of ``annotations.json``; its folder exists.
    classes : sequence of str
        Names of the classes 1, 2, ...; see :func:`class_names`.
    polygons : bool
        Polygons instead of run lengths, see :func:`segmentation`.

    Raises
    ------
    OutputError
        When the file can't be written, at the end or while text is gathered.

    References
    ----------
    Lin et al., "Microsoft COCO: common objects in context", ECCV 2014; the data format on cocodataset.org, with the
    field ``score`` of its results format.

    Examples
    --------
    >>> import tempfile
    >>> mask = np.array([[0, 1, 1]], bool)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = folder + "/annotations.json"
    ...     with CocoWriter(path, class_names(2)) as coco:
    ...         image = coco.add("a.jpg", mask.shape, [(mask, 2, 0.75)])
    ...     with open(path) as file:
    ...         json.load(file)["annotations"][0]["bbox"]
    [1, 0, 2, 1]
    """

    def __init__(self, path: str | os.PathLike[str], classes: Sequence[str], *, polygons: bool = False) -> None:
        self._path, self._polygons = path, polygons
        self._categories = [{"id": number, "name": name} for number, name in enumerate(classes, 1)]
        self._image_count = self._annotation_count = 0
        self._images, self._annotations = Spool(path), Spool(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._images, self._annotations:
            if kind is None:
                self._write()

    def add(self, file_name: str, shape: tuple[int, int], regions: Iterable[tuple[np.ndarray, int, float]] = ()) -> int:
        """Add a photograph and its regions.

        Parameters
        ----------
        file_name : str
            Relative to the collection's folder, with forward slashes.
        shape : (int, int)
            Height and width.
        regions : iterable of (mask, class, score)
            Mask bool (H, W), class from 1 on, score in 0..1. Empty masks are left out.

        Returns
        -------
        int
            The photograph's id.

        Raises
        ------
        ValueError
            When a mask isn't of this shape or a class isn't one of the file's.
        """
        height, width = shape
        # Everything is made before anything is noted: a photograph that fails leaves no trace.
        made = [self._annotation(mask, number, score, (height, width)) for mask, number, score in regions]
        self._image_count += 1
        image = {"id": self._image_count, "file_name": file_name, "height": height, "width": width}
        self._images.write(_separated(image, first=self._image_count == 1))
        for annotation in filter(None, made):
            self._annotation_count += 1
            numbers = {"id": self._annotation_count, "image_id": self._image_count}
            self._annotations.write(_separated({**numbers, **annotation}, first=self._annotation_count == 1))
        return self._image_count

    def _annotation(
        self, mask: np.ndarray, number: int, score: float, shape: tuple[int, int]
    ) -> dict[str, object] | None:
        if mask.shape != shape or mask.dtype != bool:
            raise ValueError(f"a region's mask must be bool of shape {shape}, not {mask.dtype} of {mask.shape}")
        if not 1 <= number <= len(self._categories):
            raise ValueError(f"there is no class {number}; classes go from 1 to {len(self._categories)}")
        top, bottom, left, right = extent(mask)
        if top == bottom:
            return None
        return {
            "category_id": int(number),
            "bbox": [left, top, right - left, bottom - top],
            "area": int(np.count_nonzero(mask)),
            "score": round(float(score), 6),
            "iscrowd": 0,
            "segmentation": segmentation(mask, polygons=self._polygons),
        }

    def _write(self) -> None:
        info = {"description": "unsupervised segmentation", "version": f"vitnp {__version__}"}
        with replacing(self._path) as file:
            file.write(f'{{"info": {_json(info)},\n"categories": {_json(self._categories)},\n"images": ['.encode())
            self._images.copy_to(file)
            file.write(b'],\n"annotations": [')
            self._annotations.copy_to(file)
            file.write(b"]}\n")


def _separated(record: dict[str, object], *, first: bool) -> str:
    """A record on a line of its own, with the comma that JSON wants before all but the first."""
    return ("\n" if first else ",\n") + _json(record)


def _json(value: object) -> str:
    # JSON has no NaN; a reader would stumble over it, so better does the writer.
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
