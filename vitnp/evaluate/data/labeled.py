"""Data sets with classes: where the photographs are, what the classes are called, and a label map for each photograph.

Every reader returns a :class:`LabeledSet`: :mod:`vitnp.evaluate.data.voc` PASCAL VOC,
:mod:`vitnp.evaluate.data.coco` COCO, and :mod:`vitnp.evaluate.data.label_images` folders of label maps or of masks per
category. Labels are uint8: 0 is the background, 255 (`IGNORE`) is not evaluated, all others are indices into
`LabeledSet.classes`. Label maps are read on demand.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vitnp.evaluate.data.class_tables import read_class_table


@dataclasses.dataclass(frozen=True)
class Sample:
    """A photograph and its label map.

    Attributes
    ----------
    name : str
        Name, unique within the set.
    image : Path
        File of the photograph.
    load_truth : callable
        ``load_truth(shape)`` reads the label map, uint8 of shape (rows, columns), which must be that of the upright
        photograph. Raises ImageError when the label map is missing, damaged or of another size, and UsageError for a
        label that is no class of the set.
    """

    name: str
    image: Path
    load_truth: Callable[[tuple[int, int]], np.ndarray]


@dataclasses.dataclass(frozen=True)
class LabeledSet:
    """Photographs with label maps, and the names of the classes.

    Attributes
    ----------
    samples : tuple of Sample
        Photographs with their label maps.
    classes : tuple of str
        Class names by label; ``classes[0]`` is the background.
    """

    samples: tuple[Sample, ...]
    classes: tuple[str, ...]

    def merge_classes(self, table: str | os.PathLike[str] | None) -> LabeledSet:
        """Return the same photographs with coarser classes.

        Parameters
        ----------
        table : path, optional
            See :func:`vitnp.evaluate.data.class_tables.read_class_table`; None returns the set unchanged.

        Raises
        ------
        UsageError
            When the table can't be used.
        """
        if table is None:
            return self
        lookup, classes = read_class_table(table, self.classes)
        samples = (
            dataclasses.replace(sample, load_truth=_Relabeled(sample.load_truth, lookup)) for sample in self.samples
        )
        return LabeledSet(tuple(samples), classes)


@dataclasses.dataclass(frozen=True)
class _Relabeled:
    """A label map with every label replaced through a table."""

    load_truth: Callable[[tuple[int, int]], np.ndarray]
    lookup: np.ndarray

    def __call__(self, shape: tuple[int, int]) -> np.ndarray:
        return self.lookup[self.load_truth(shape)]
