"""The regions of a photograph: those that vitnp finds, or those of mask files that a user gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vitnp.errors import ImageError
from vitnp.io.label_pictures import read_values
from vitnp.method.regions import RegionRule, label_regions
from vitnp.options import enumerate_words
from vitnp.result import Segmentation

# Value of pixels that belong to no class, in label images of PASCAL VOC and similar data sets.
VOID = 255

# Gray values between black and white that a soft mask has at least: fewer are labels.
_MIN_GRAYS = 3

# Ends of the names of mask files by kind, the best first. "any" is a file of another program.
MASK_SUFFIXES = {"objects": "_objects.png", "labels": "_labels.png", "mask": "_mask.png", "geotiff": "_mask.tif"}


@dataclasses.dataclass(frozen=True, eq=False)
class RegionMap:
    """The regions of one photograph.

    Attributes
    ----------
    labels : (height, width) uint16
        0 outside of regions, then the regions from 1 to G.
    numbers : (G,) int32
        Number of each region in the picture that it is from; of vitnp's own regions 1 to G.
    classes : (G,) int32
        Class of each region, from 1; 0 if it has none.
    confidences : (G,) float32
        0 to 1; NaN if they are not known.
    """

    labels: np.ndarray
    numbers: np.ndarray
    classes: np.ndarray
    confidences: np.ndarray


def regions_of_result(result: Segmentation, rule: RegionRule) -> RegionMap:
    """Return the regions of a result: its separated objects, else its classes, else the parts that a rule makes.

    Parameters
    ----------
    result : Segmentation
    rule : RegionRule
        "image": the whole mask is a region; "components": each connected component is one.
    """
    if result.instances is not None:
        regions = result.instances.labels.astype(np.uint16)
        confidences = result.instances.confidences.astype(np.float32)
        return _numbered(regions, classes_of(regions, result.labels, len(confidences)), confidences)
    if result.labels is not None and rule.how == "image":
        return dataclasses.replace(_by_value(result.labels), confidences=_same(result.labels, result.confidence))
    regions = label_regions(result.mask, rule)
    count = int(regions.max(initial=0))
    classes = classes_of(regions, result.labels, count)
    return _numbered(regions, classes, np.full(count, result.confidence, np.float32))


class MaskFolder:
    """Masks that a user gives, in a folder.

    The mask of a photograph has the same path in the folder as the photograph in its own: ``NAME_objects.png``,
    ``NAME_labels.png`` or ``NAME_mask.png``, as `vitnp segment` names them, or ``NAME.png`` of any program.

    Parameters
    ----------
    folder : path
    rule : RegionRule
        Divides masks without numbers.
    """

    def __init__(self, folder: Path, rule: RegionRule) -> None:
        self._folder, self._rule = folder, rule

    def regions(self, stem: Path, relative: Path, size: tuple[int, int]) -> RegionMap:
        """Return the regions of a photograph.

        Parameters
        ----------
        stem : Path
            What the names of the photograph's outputs in the folder begin with.
        relative : Path
            Path of the photograph below its own folder.
        size : (int, int)
            Height and width of the upright photograph.

        Raises
        ------
        ImageError
            If there is no mask, it cannot be read, it has another size, or its edges are gray.
        """
        files = self.files(stem, relative)
        if "objects" in files:
            regions = _by_value(read_values(files["objects"], size)[0])
            if "labels" not in files:
                return dataclasses.replace(regions, classes=np.zeros_like(regions.numbers))
            labels, _ = read_values(files["labels"], size)
            return dataclasses.replace(regions, classes=classes_of(regions.labels, labels, len(regions.numbers)))
        if "labels" in files:
            return _by_value(read_values(files["labels"], size)[0])
        path = next(iter(files.values()))
        values, palette = read_values(path, size)
        if not palette and is_soft(values):
            raise ImageError(
                f"{relative}: {path} looks like a soft mask, whose edges are gray; make it black and white at half of "
                f"its range, or name it {stem.name}{MASK_SUFFIXES['labels']} if its values are labels",
                path=relative,
            )
        if "any" in files and (palette or not is_mask(values)):
            return _by_value(np.where(values == VOID, 0, values) if values.dtype == np.uint8 else values)
        labels = label_regions(values > 0, self._rule)
        count = int(labels.max(initial=0))
        return _numbered(labels, np.zeros(count, np.int32), np.full(count, np.nan, np.float32))

    def files(self, stem: Path, relative: Path) -> Mapping[str, Path]:
        """Return the mask files of a photograph by kind, the best first.

        Raises
        ------
        ImageError
            If there are none.
        """
        candidates = {kind: Path(f"{stem}{suffix}") for kind, suffix in MASK_SUFFIXES.items()}
        candidates["any"] = Path(f"{stem}.png")
        files = {kind: path for kind, path in candidates.items() if path.is_file()}
        if not files:
            names = enumerate_words(tuple(path.name for path in candidates.values()))
            raise ImageError(f"{relative}: {self._folder} holds no mask of it; add {names}", path=relative)
        return files


def is_mask(values: np.ndarray) -> bool:
    """Tell whether a gray picture shows background and one object: 0, and 1 or the white of its depth.

    Examples
    --------
    >>> is_mask(np.array([[0, 255]], np.uint8)), is_mask(np.array([[0, 7]], np.uint8))
    (True, False)
    """
    others = np.unique(values[values > 0]).tolist()
    return len(others) == 0 or (len(others) == 1 and others[0] in (1, 255, 65535))


def is_soft(values: np.ndarray) -> bool:
    """Tell whether a gray picture is a soft mask and no picture of labels.

    Labels have areas of equal values. In a soft mask most gray pixels differ from their right or lower neighbor.

    Examples
    --------
    >>> is_soft(np.array([[0, 60, 130, 200, 255]], np.uint8))
    True
    >>> is_soft(np.array([[1, 1, 1, 2, 2, 2, 3, 3, 3]], np.uint8))
    False
    """
    grays = (values > 0) & (values < np.iinfo(values.dtype).max)
    if len(np.unique(values[grays])) < _MIN_GRAYS:
        return False
    alone = np.zeros(values.shape, bool)
    alone[:, :-1] |= values[:, 1:] != values[:, :-1]
    alone[:-1] |= values[1:] != values[:-1]
    return bool(2 * np.count_nonzero(alone & grays) > np.count_nonzero(grays))


def classes_of(regions: np.ndarray, labels: np.ndarray | None, count: int) -> np.ndarray:
    """Return the class of most pixels of each region, (G,) int32: 0 without labels (height, width)."""
    if labels is None or not count:
        return np.zeros(count, np.int32)
    n_labels = int(labels.max(initial=0)) + 1
    pairs = regions.astype(np.int64) * n_labels + labels
    votes = np.bincount(pairs.ravel(), minlength=(count + 1) * n_labels).reshape(count + 1, n_labels)
    votes[:, 0] = 0
    return votes[1:].argmax(axis=1).astype(np.int32)


def _by_value(values: np.ndarray) -> RegionMap:
    """Make the pixels of each value, from 1 to 65535, a region, whose number and class the value is."""
    present = np.bincount(values.ravel(), minlength=1) > 0
    present[0] = False
    numbers = np.flatnonzero(present).astype(np.int32)
    labels = np.cumsum(present).astype(np.uint16) * present.astype(np.uint16)
    return RegionMap(labels[values], numbers, numbers, np.full(len(numbers), np.nan, np.float32))


def _same(labels: np.ndarray, confidence: float) -> np.ndarray:
    return np.full(int(np.count_nonzero(np.unique(labels))), confidence, np.float32)


def _numbered(labels: np.ndarray, classes: np.ndarray, confidences: np.ndarray) -> RegionMap:
    return RegionMap(labels, np.arange(1, len(classes) + 1, dtype=np.int32), classes, confidences)
