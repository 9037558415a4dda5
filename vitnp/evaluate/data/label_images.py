"""Label maps stored as pictures, in a folder beside that of the photographs."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np

from vitnp.errors import ImageError, UsageError
from vitnp.evaluate.data.class_tables import BACKGROUND
from vitnp.evaluate.data.files import open_picture, read_lines
from vitnp.evaluate.data.labeled import LabeledSet, Sample
from vitnp.evaluate.data.pairs import match_pairs, read_truth
from vitnp.evaluate.metrics.semantic import IGNORE


def read_label_folder(
    images_dir: str | os.PathLike[str],
    labels_dir: str | os.PathLike[str],
    *,
    names: str | os.PathLike[str] | None = None,
    merge: str | os.PathLike[str] | None = None,
) -> LabeledSet:
    """Read a folder of photographs and a folder of label maps, matched by name.

    Parameters
    ----------
    images_dir, labels_dir : path
        Files are matched as by :func:`vitnp.evaluate.data.pairs.match_pairs`. Label maps are single-channel or palette
        pictures whose values are class numbers: 0 background, 255 ignored.
    names : path, optional
        A text file with one class name per line, background first. Without it every label map is read once to find the
        highest label, and classes are named by their numbers.
    merge : path, optional
        A table of coarser classes, see :func:`vitnp.evaluate.data.class_tables.read_class_table`. If label 0 is not the
        background, give it a line in the table.

    Raises
    ------
    UsageError
        When photographs and label maps don't match, or the names or the table can't be used.
    ImageError
        Without `names`, when a label map can't be read.

    Examples
    --------
    >>> stuff = read_label_folder("val2017", "stuffthingmaps/val2017", merge="coarse27.txt")    # doctest: +SKIP
    """
    pairs, _ = match_pairs(images_dir, labels_dir)
    if names is not None:
        classes = tuple(line for _, line in read_lines(names))
        if not 1 <= len(classes) <= IGNORE:
            raise UsageError(f"{names}: a data set has 1 to {IGNORE} classes, background first, got {len(classes)}")
    else:
        highest = max(_highest_label(pair.mask) for pair in pairs)
        classes = (BACKGROUND, *map(str, range(1, highest + 1)))
    samples = (Sample(pair.name, pair.image, LabelImage(pair.mask, len(classes))) for pair in pairs)
    return LabeledSet(tuple(samples), classes).merge_classes(merge)


def read_coseg(
    images_dir: str | os.PathLike[str],
    masks_dir: str | os.PathLike[str],
    *,
    merge: str | os.PathLike[str] | None = None,
) -> LabeledSet:
    """Read a co-segmentation set: one folder per category, with masks of the category's objects.

    ``IMAGES/Cat/1.jpg`` belongs to ``MASKS/Cat/1.png``, whose foreground (see
    :func:`vitnp.evaluate.data.pairs.read_truth`) has the class Cat. Categories are numbered from 1, sorted by name.

    Parameters
    ----------
    images_dir, masks_dir : path
    merge : path, optional
        A table of coarser classes, see :func:`vitnp.evaluate.data.class_tables.read_class_table`.

    Raises
    ------
    UsageError
        When photographs and masks don't match, a photograph is in no category's folder, or the table can't be used.

    Examples
    --------
    >>> coseg = read_coseg("coseg/images", "coseg/masks")        # doctest: +SKIP
    >>> coseg.classes[:3]                                        # doctest: +SKIP
    ('background', 'Aero', 'Bird')
    """
    pairs, _ = match_pairs(images_dir, masks_dir)
    for pair in pairs:
        if "/" not in pair.name:
            raise UsageError(f"{images_dir}: {pair.name} is in no category's folder; make a folder for each category")
    categories = sorted({pair.name.split("/")[0] for pair in pairs})
    if len(categories) >= IGNORE:
        raise UsageError(f"{images_dir}: a data set has at most {IGNORE - 1} categories, got {len(categories)}")
    classes = (BACKGROUND, *categories)
    samples = (
        Sample(pair.name, pair.image, LabeledMask(pair.mask, classes.index(pair.name.split("/")[0], 1)))
        for pair in pairs
    )
    return LabeledSet(tuple(samples), classes).merge_classes(merge)


@dataclasses.dataclass(frozen=True)
class LabelImage:
    """A label map in a file; calling it reads the labels, see :class:`vitnp.evaluate.data.labeled.Sample`."""

    path: Path
    n_classes: int

    def __call__(self, shape: tuple[int, int]) -> np.ndarray:
        """Read the labels, uint8 of the given shape."""
        return read_labels(self.path, shape, self.n_classes)


@dataclasses.dataclass(frozen=True)
class LabeledMask:
    """A mask in a file whose foreground has one label; calling it reads the labels."""

    path: Path
    label: int

    def __call__(self, shape: tuple[int, int]) -> np.ndarray:
        """Read the labels, uint8 of the given shape."""
        return read_truth(self.path, shape) * np.uint8(self.label)


def read_labels(
    path: str | os.PathLike[str], shape: tuple[int, int] | None = None, n_classes: int = IGNORE
) -> np.ndarray:
    """Read a label map: the values of a single-channel or palette picture, whatever colors they are shown in.

    Parameters
    ----------
    path : path
    shape : (int, int), optional
        Rows and columns that it must have.
    n_classes : int
        Labels must be below this number, or 255.

    Returns
    -------
    uint8 (rows, columns)

    Raises
    ------
    ImageError
        When the file is missing or damaged, is no picture, has colors, or has another size.
    UsageError
        For a label that is no class.
    """
    labels = _read_values(path, shape)
    invalid = labels[(labels >= n_classes) & (labels != IGNORE)]
    if invalid.size:
        raise UsageError(
            f"{path}: labels must be 0 to {n_classes - 1}, or {IGNORE} for ignored pixels, got {invalid[0]}; renumber "
            "the labels or name more classes"
        )
    return labels


def _read_values(path: str | os.PathLike[str], shape: tuple[int, int] | None = None) -> np.ndarray:
    with open_picture(path, "label map") as picture:
        # Compare sizes before anything is decoded: a wrong file costs no memory.
        if shape is not None and picture.size != (shape[1], shape[0]):
            raise ImageError(
                f"{path}: the label map has {picture.width} x {picture.height} pixels, but its photograph has "
                f"{shape[1]} x {shape[0]}; give each photograph labels of its own size"
            )
        if len(picture.getbands()) > 1:
            raise ImageError(
                f"{path}: labels must be numbers in a gray or palette picture, got colors ({picture.mode}); convert it"
            )
        labels = np.asarray(picture)
    low, high = labels.min(), labels.max()
    if labels.dtype.kind == "f" or low < 0 or high > IGNORE:
        raise ImageError(
            f"{path}: labels must be whole numbers from 0 to {IGNORE}, got values from {low} to {high}; renumber them"
        )
    return labels.astype(np.uint8)


def _highest_label(path: Path) -> int:
    labels = _read_values(path)
    return int(labels[labels != IGNORE].max(initial=0))
