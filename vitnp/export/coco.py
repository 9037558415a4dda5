"""Write ``annotations.json``: the regions of a collection in the format of the COCO data set."""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import TracebackType

import numpy as np

from vitnp import __version__
from vitnp.export.photograph_record import PhotographRecord, RegionRecord
from vitnp.io.path_text import ascii_json, path_entries
from vitnp.io.spool import Spool
from vitnp.io.write import replacing
from vitnp.masks.contours import polygons
from vitnp.masks.rle import encode, extent
from vitnp.masks.simplify import joined, signed_area, simplified_polygons


def segmentation(mask: np.ndarray, tolerance: float | None = None) -> dict[str, object] | list[list[float]]:
    """Return a mask as the ``segmentation`` of a COCO annotation.

    Parameters
    ----------
    mask : (H, W) bool
    tolerance : float, optional
        Polygons, simplified within so many pixels, instead of run lengths; see
        :func:`vitnp.masks.simplify.simplified_polygons`. With 0 they are exact. Holes, which COCO's polygons cannot
        have, are opened by a cut without width.

    Returns
    -------
    dict or list of list of float
        Compressed run lengths, or polygons as x, y, x, y, ...

    Examples
    --------
    >>> segmentation(np.array([[0, 1], [1, 1]], bool))
    {'size': [2, 2], 'counts': '13'}
    >>> segmentation(np.array([[0, 1]], bool), tolerance=0)
    [[1, 0, 2, 0, 2, 1, 1, 1]]
    """
    if tolerance is None:
        return {"size": list(mask.shape), "counts": encode(mask)}
    if tolerance == 0:
        return [list(ring) for ring in polygons(mask)]
    return [coordinates(joined([polygon])) for polygon in simplified_polygons(mask, tolerance)]


def coordinates(ring: np.ndarray) -> list[float]:
    """Return a ring (n, 2) as x, y, x, y, ...; whole numbers without a fraction, which saves a third of the file."""
    return [int(value) if value == int(value) else value for value in ring.ravel().tolist()]


class CocoWriter:
    """Write a COCO file; it appears, complete, when the ``with`` block ends without an exception.

    Text is buffered on the disk, so memory does not grow with the collection. Images and annotations are numbered from
    1 in the order in which they are added. Equal content gives equal bytes.

    Parameters
    ----------
    path : path
        ``annotations.json``; its folder exists.
    names : sequence of str
        Names of the classes 1, 2, ..., see :func:`vitnp.export.writer.class_names`.
    tolerance : float, optional
        Polygons instead of run lengths, see :func:`segmentation`.

    Raises
    ------
    OutputError
        If the file or the buffer cannot be written.

    References
    ----------
    Lin et al., "Microsoft COCO: common objects in context", ECCV 2014; the data format on cocodataset.org, with the
    field ``score`` of its results format.

    Examples
    --------
    >>> import json
    >>> import tempfile
    >>> regions = np.array([[0, 1, 1]], np.uint8)
    >>> photograph = PhotographRecord("a.jpg", 0.9, (RegionRecord(2, 0.75, 1.0, 4),), lambda: regions, lambda: None)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = folder + "/annotations.json"
    ...     with CocoWriter(path, ["class 1", "class 2"]) as coco:
    ...         coco.add(photograph)
    ...     with open(path) as file:
    ...         json.load(file)["annotations"][0]["bbox"]
    [1, 0, 2, 1]
    """

    def __init__(self, path: str | os.PathLike[str], names: Sequence[str], tolerance: float | None = None) -> None:
        self._path, self._tolerance = path, tolerance
        self._categories = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
        self._image_count = self._annotation_count = 0
        self._images, self._annotations = Spool(path), Spool(path)

    def __enter__(self) -> CocoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._images, self._annotations:
            if kind is None:
                self._write()

    def add(self, photograph: PhotographRecord) -> None:
        """Add a photograph and its regions; regions without pixels are left out.

        Raises
        ------
        ValueError
            If a class is not one of the file's.
        """
        # All annotations are computed before any is written, so that a photograph that fails leaves no trace.
        annotations = [
            self._annotation(photograph.region_map == number, region)
            for number, region in enumerate(photograph.regions, 1)
        ]
        height, width = photograph.shape
        self._image_count += 1
        name = path_entries("file_name", photograph.name)
        image = {"id": self._image_count, **name, "height": height, "width": width}
        self._images.write(_line(image, first=self._image_count == 1))
        for annotation in filter(None, annotations):
            self._annotation_count += 1
            ids = {"id": self._annotation_count, "image_id": self._image_count}
            self._annotations.write(_line({**ids, **annotation}, first=self._annotation_count == 1))

    def _annotation(self, mask: np.ndarray, region: RegionRecord) -> dict[str, object] | None:
        """Return the annotation of a region without its ids; None for an empty mask."""
        if not 1 <= region.label <= len(self._categories):
            raise ValueError(f"a class must be from 1 to {len(self._categories)}, got {region.label}")
        top, bottom, left, right = extent(mask)
        if top == bottom:
            return None
        outline = segmentation(mask, self._tolerance)
        box: list[float] = [left, top, right - left, bottom - top]
        area: float = int(np.count_nonzero(mask))
        if self._tolerance and isinstance(outline, list):
            # Those of the simplified polygons, as readers compute them.
            rings = [np.array(ring).reshape(-1, 2) for ring in outline]
            low, high = np.concatenate(rings).min(axis=0), np.concatenate(rings).max(axis=0)
            box, area = coordinates(np.concatenate([low, high - low])), sum(map(signed_area, rings))
        return {
            "category_id": int(region.label),
            "bbox": box,
            "area": area,
            "score": round(float(region.score), 6),
            "iscrowd": 0,
            "segmentation": outline,
        }

    def _write(self) -> None:
        info = {"description": "unsupervised segmentation", "version": f"vitnp {__version__}"}
        with replacing(self._path) as file:
            file.write(f'{{"info": {_json(info)},\n"categories": {_json(self._categories)},\n"images": ['.encode())
            self._images.copy_to(file)
            file.write(b'],\n"annotations": [')
            self._annotations.copy_to(file)
            file.write(b"]}\n")


def _line(record: dict[str, object], *, first: bool) -> str:
    """Return a record as a line of a JSON array, with a comma before all but the first."""
    return ("\n" if first else ",\n") + _json(record)


def _json(value: object) -> str:
    # NaN is an error here because JSON has none and readers would fail on it.
    return ascii_json(value, separators=(",", ":"), allow_nan=False)
