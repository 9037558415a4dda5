"""Label maps from a COCO instances file."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vitnp.errors import ImageError, UsageError
from vitnp.evaluate.data.labeled import BACKGROUND, LabeledSet, Sample
from vitnp.evaluate.metrics.semantic import IGNORE
from vitnp.io.decode import MAX_PIXELS, unopened
from vitnp.masks import rle
from vitnp.masks.polygons import fill_polygon


def read_coco(
    annotations: str | os.PathLike[str],
    images_dir: str | os.PathLike[str],
    *,
    merge: str | os.PathLike[str] | None = None,
) -> LabeledSet:
    """Semantic truth from COCO's annotations of instances.

    Categories become classes in the order of their ids, numbered from 1. Where instances overlap, the one with fewer
    pixels lies on top (of equal ones the later), since the smaller is most often in front. Crowd regions are ignored
    (255) except where an instance lies on them. Photographs without annotations are part of the set: they show
    background only.

    Parameters
    ----------
    annotations : path
        The JSON file: polygons and run lengths, plain or packed.
    images_dir : path
        The folder that the file's names of photographs begin from.
    merge : path, optional
        A table that makes classes coarser, see :func:`vitnp.evaluate.data.labeled.read_table`.

    Raises
    ------
    UsageError
        When the file can't be read or isn't of that form, a photograph is missing, or the table can't be used. What is
        wrong with a single segmentation shows when its truth is read, as ImageError.

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
    content = _load(path)
    try:
        names = {int(category["id"]): str(category["name"]) for category in content["categories"]}
        images = [
            (int(image["id"]), str(image["file_name"]), (int(image["height"]), int(image["width"])))
            for image in content["images"]
        ]
        by_image: defaultdict[int, list[Mapping]] = defaultdict(list)
        for annotation in content["annotations"]:
            by_image[int(annotation["image_id"])].append(annotation)
        unknown = {int(annotation["category_id"]) for annotation in content["annotations"]} - set(names)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise UsageError(
            f"{path}: this is not a COCO instances file ({type(error).__name__}: {error}); name one with images, "
            "annotations and categories"
        ) from None
    if unknown:
        raise UsageError(f"{path}: it has annotations of the unknown category {min(unknown)}; get a sound copy")
    if not images:
        raise UsageError(f"{path}: it lists no photographs; name another file")
    if len(names) >= IGNORE:
        raise UsageError(f"{path}: its {len(names)} categories are too many; at most {IGNORE - 1} can be told apart")
    ranks = {category: rank for rank, category in enumerate(sorted(names), 1)}

    samples, seen = [], set()
    for identity, name, shape in images:
        image = images_dir / name
        if not image.is_file():
            raise UsageError(f"{image}: this photograph is missing, but {path} lists it; name the folder that holds it")
        if name in seen:
            raise UsageError(f"{path}: it lists {name} twice; remove one of the entries")
        seen.add(name)
        samples.append(Sample(name, image, _Instances(path, shape, tuple(by_image.get(identity, ())), ranks)))
    classes = (BACKGROUND, *(names[category] for category in sorted(names)))
    return LabeledSet(tuple(samples), classes).merged(merge)


def _load(path: Path) -> Mapping:
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
class _Instances:
    """The annotations of one photograph, painted when asked for."""

    path: Path
    size: tuple[int, int]
    annotations: tuple[Mapping, ...]
    ranks: Mapping[int, int]

    def __call__(self, shape: tuple[int, int]) -> np.ndarray:
        rows, columns = self.size
        if self.size != tuple(shape) or rows < 1 or columns < 1 or rows * columns > MAX_PIXELS:
            raise ImageError(
                f"{self.path}: a photograph is listed with {columns} x {rows} pixels, but has {shape[1]} x {shape[0]}; "
                "use the photographs that the file was made for"
            )
        labels = np.zeros(self.size, np.uint8)
        # Pixels of the instance that a pixel shows: only smaller ones may cover it. A crowd gives way to any.
        shown = np.full(self.size, rows * columns + 1)
        for annotation in self.annotations:
            mask = self._mask(annotation)
            if annotation.get("iscrowd"):
                labels[mask & (shown > rows * columns)] = IGNORE
                continue
            count = np.count_nonzero(mask)
            mask &= shown >= count
            labels[mask] = self.ranks[int(annotation["category_id"])]
            shown[mask] = count
        return labels

    def _mask(self, annotation: Mapping) -> np.ndarray:
        try:
            return _segmentation_mask(annotation.get("segmentation"), self.size)
        except ValueError as error:
            raise ImageError(
                f"{self.path}: the segmentation of annotation {annotation.get('id')} is damaged ({error}); get a sound "
                "copy"
            ) from None


def _segmentation_mask(segmentation: object, size: tuple[int, int]) -> np.ndarray:
    """The mask of one annotation, bool of the given size: polygons (their union) or run lengths."""
    if isinstance(segmentation, list):
        mask = np.zeros(size, bool)
        for outline in segmentation:
            mask |= fill_polygon(outline, size)
        return mask
    if isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), (str, list)):
        if segmentation.get("size") != list(size):
            raise ValueError(f"its size is {segmentation.get('size')}, not {list(size)}")
        return rle.decode(segmentation["counts"], size)
    raise ValueError("there are neither polygons nor run lengths")
