"""Label maps drawn from a COCO instances file."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from vitnp.errors import ImageError, UsageError
from vitnp.evaluate.data.class_tables import BACKGROUND
from vitnp.evaluate.data.files import is_file, shorten_text
from vitnp.evaluate.data.labeled import LabeledSet, Sample
from vitnp.evaluate.metrics.semantic import IGNORE
from vitnp.io.decode import MAX_PIXELS, unopened
from vitnp.masks import rle
from vitnp.masks.polygons import fill_polygon

# An entry of "annotations", as in the file.
Annotation: TypeAlias = Mapping[str, Any]


def read_coco(
    annotations: str | os.PathLike[str],
    images_dir: str | os.PathLike[str],
    *,
    merge: str | os.PathLike[str] | None = None,
) -> LabeledSet:
    """Read a set for semantic segmentation from COCO's instance annotations.

    Categories become classes numbered from 1, in the order of their ids. Where instances overlap, the one with fewer
    pixels is drawn on top (of equally large ones the later), since the smaller one usually is in front. Crowd regions
    are ignored (255) except where they overlap an instance. Photographs without annotations are part of the set: all
    their pixels are background.

    Parameters
    ----------
    annotations : path
        JSON file with polygons or run lengths, compressed or not.
    images_dir : path
        Folder that file names in `annotations` are relative to.
    merge : path, optional
        A table of coarser classes, see :func:`vitnp.evaluate.data.class_tables.read_class_table`.

    Raises
    ------
    UsageError
        When the file can't be read or has another format, a photograph is missing, or the table can't be used. A
        damaged segmentation raises ImageError when the label map of its photograph is read.

    References
    ----------
    Lin et al., "Microsoft COCO: common objects in context", ECCV 2014, and the data format on cocodataset.org.

    Examples
    --------
    >>> coco = read_coco("annotations/instances_val2017.json", "val2017")      # doctest: +SKIP
    >>> len(coco.classes)                                                      # doctest: +SKIP
    81
    """
    path, images_dir = Path(annotations), Path(images_dir)
    content = _parse(path, _load_json(path))
    ids = sorted(content.categories)
    labels = {category_id: label for label, category_id in enumerate(ids, 1)}
    samples: list[Sample] = []
    names: set[str] = set()
    for image in content.images:
        file = _photograph_file(path, images_dir, image.name)
        if not is_file(file):
            raise UsageError(
                f"{shorten_text(str(file))}: this photograph is missing, but {path} lists it; name the folder that "
                "holds it"
            )
        if image.name in names:
            raise UsageError(f"{path}: it lists {shorten_text(image.name)} twice; remove one of the entries")
        names.add(image.name)
        truth = _InstanceMap(path, image.shape, tuple(content.annotations.get(image.id, ())), labels)
        samples.append(Sample(image.name, file, truth))
    classes = (BACKGROUND, *(content.categories[category_id] for category_id in ids))
    return LabeledSet(tuple(samples), classes).merge_classes(merge)


def _photograph_file(path: Path, images_dir: Path, name: str) -> Path:
    """Return the path of a photograph, which has to be in the folder: the file may be someone else's."""
    inside = os.path.normpath(name)
    if os.path.isabs(inside) or os.path.splitdrive(inside)[0] or inside.split(os.sep)[0] == os.pardir:
        raise UsageError(
            f"{path}: the photograph {shorten_text(name)} is outside the folder {images_dir}; file names are relative "
            "to the folder, without .."
        )
    return images_dir / inside


class _CocoImage(NamedTuple):
    """An entry of "images"; `shape` is (rows, columns)."""

    id: int
    name: str
    shape: tuple[int, int]


class _Content(NamedTuple):
    """An instances file: names of categories by id, images, and the annotations of each image by its id."""

    categories: dict[int, str]
    images: list[_CocoImage]
    annotations: Mapping[int, list[Annotation]]


def _parse(path: Path, content: Mapping[str, Any]) -> _Content:
    try:
        categories = {int(category["id"]): str(category["name"]) for category in content["categories"]}
        images = [
            _CocoImage(int(image["id"]), str(image["file_name"]), (int(image["height"]), int(image["width"])))
            for image in content["images"]
        ]
        annotations: defaultdict[int, list[Annotation]] = defaultdict(list)
        for annotation in content["annotations"]:
            annotations[int(annotation["image_id"])].append(annotation)
        unknown = {int(annotation["category_id"]) for annotation in content["annotations"]} - set(categories)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise UsageError(
            f"{path}: this is not a COCO instances file ({type(error).__name__}: {error}); name one with images, "
            "annotations and categories"
        ) from None
    if unknown:
        raise UsageError(f"{path}: it has annotations of the unknown category {min(unknown)}; get a sound copy")
    if not images:
        raise UsageError(f"{path}: it lists no photographs; name another file")
    if len(categories) >= IGNORE:
        raise UsageError(f"{path}: a data set has at most {IGNORE - 1} categories, got {len(categories)}; merge some")
    return _Content(categories, images, annotations)


def _load_json(path: Path) -> Mapping[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except OSError as error:
        raise UsageError(str(unopened(path, error))) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: this is not JSON, or it is damaged ({error}); get a sound copy") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path}: this is not a COCO instances file; name one with images, annotations and categories")
    return content


@dataclasses.dataclass(frozen=True)
class _InstanceMap:
    """The label map of a photograph, drawn from its annotations on demand.

    Attributes
    ----------
    path : Path
        The annotations file, for error messages.
    shape : (int, int)
        Rows and columns of the photograph, as listed.
    annotations : tuple of mapping
        Entries of "annotations".
    labels : mapping of int to int
        Label of each category by its id.
    """

    path: Path
    shape: tuple[int, int]
    annotations: tuple[Annotation, ...]
    labels: Mapping[int, int]

    def __call__(self, shape: tuple[int, int]) -> np.ndarray:
        rows, columns = self.shape
        if self.shape != tuple(shape) or rows < 1 or columns < 1 or rows * columns > MAX_PIXELS:
            raise ImageError(
                f"{self.path}: a photograph is listed with {columns} x {rows} pixels, but has {shape[1]} x {shape[0]}; "
                "use the photographs that the file was made for"
            )
        labels = np.zeros(self.shape, np.uint8)
        # Area of the instance drawn at each pixel, which only smaller instances may cover. Crowds never cover one.
        no_instance = rows * columns + 1
        area_at = np.full(self.shape, no_instance)
        for annotation in self.annotations:
            mask = self._mask(annotation)
            if annotation.get("iscrowd"):
                labels[mask & (area_at == no_instance)] = IGNORE
                continue
            area = np.count_nonzero(mask)
            mask &= area_at >= area
            labels[mask] = self.labels[int(annotation["category_id"])]
            area_at[mask] = area
        return labels

    def _mask(self, annotation: Annotation) -> np.ndarray:
        try:
            return _segmentation_mask(annotation.get("segmentation"), self.shape)
        except ValueError as error:
            raise ImageError(
                f"{self.path}: the segmentation of annotation {annotation.get('id')} is damaged ({error}); get a sound "
                "copy"
            ) from None


def _segmentation_mask(segmentation: object, shape: tuple[int, int]) -> np.ndarray:
    """Return the mask of a segmentation, bool of the given shape: run lengths, or the union of polygons."""
    if isinstance(segmentation, list):
        mask = np.zeros(shape, bool)
        for outline in segmentation:
            mask |= fill_polygon(outline, shape)
        return mask
    if isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), (str, list)):
        if segmentation.get("size") != list(shape):
            raise ValueError(f"its size is {segmentation.get('size')}, not {list(shape)}")
        return rle.decode(segmentation["counts"], shape)
    raise ValueError("there are neither polygons nor run lengths")
