"""Boxes from PASCAL VOC's annotations."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import NoReturn
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import numpy as np

from vitnp.errors import ImageError, UsageError
from vitnp.evaluate.data.labeled import read_split, voc_folder
from vitnp.io.decode import unopened

# An annotation has a few kilobytes.
_MAX_BYTES = 4_000_000


@dataclasses.dataclass(frozen=True)
class BoxSample:
    """A photograph and the file with its boxes."""

    name: str
    image: Path
    annotation: Path

    def load_boxes(self, *, hard: bool = True) -> np.ndarray:
        """True boxes, see :func:`read_boxes`."""
        return read_boxes(self.annotation, hard=hard)


def read_voc_boxes(root: str | os.PathLike[str], split: str = "trainval") -> list[BoxSample]:
    """Photographs with boxes in PASCAL VOC's layout.

    Parameters
    ----------
    root : path
        VOCdevkit, or the folder VOC2007 or VOC2012 in it.
    split : str
        A list of names in ImageSets/Main; discovery is scored on trainval.

    Raises
    ------
    UsageError
        When a folder, the list or a file that it names is missing.

    Examples
    --------
    >>> samples = read_voc_boxes("VOCdevkit/VOC2007")            # doctest: +SKIP
    >>> samples[0].load_boxes()                                  # doctest: +SKIP
    array([[262., 210., 324., 339.], ...
    """
    folder = voc_folder(root)
    samples = []
    for name in read_split(folder / "ImageSets" / "Main", split):
        sample = BoxSample(name, folder / "JPEGImages" / f"{name}.jpg", folder / "Annotations" / f"{name}.xml")
        for file in (sample.image, sample.annotation):
            if not file.is_file():
                raise UsageError(f"{file}: this file is missing, but {split}.txt names it; complete the data set")
        samples.append(sample)
    return samples


def read_boxes(path: str | os.PathLike[str], *, hard: bool = True) -> np.ndarray:
    """Boxes of the objects in an annotation.

    Parameters
    ----------
    path : path
        An XML file of PASCAL VOC.
    hard : bool
        Keep objects marked `difficult` or `truncated`, as LOST and TokenCut do for their tables on VOC07 and VOC12.
        With False they are dropped (their sets "noh"); a photograph that has no other objects is then left without a
        box and doesn't count in :func:`vitnp.evaluate.metrics.boxes.corloc`.

    Returns
    -------
    (M, 4) float64
        Left, top, right, bottom, with (0, 0) the outer corner of the first pixel. The files count pixels from 1 and
        include the last, so 1 is subtracted from left and top alone. Boxes of an object's parts don't count.

    Raises
    ------
    ImageError
        When the file is missing, is no such XML, or a box has no area. A document type declaration is refused unread:
        annotations have none, and its entities could grow without bound.
    """
    root = _parse(path)
    if root.tag != "annotation":
        raise ImageError(f"{path}: its root is <{root.tag[:40]}>, not <annotation>; name an annotation of PASCAL VOC")
    boxes = []
    for thing in root.iterfind("object"):
        marks = [(thing.findtext(mark) or "").strip() for mark in ("difficult", "truncated")]
        if "1" in marks and not hard:
            continue
        sides = [thing.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
        try:
            left, top, right, bottom = map(float, sides)
        except (TypeError, ValueError):
            raise ImageError(f"{path}: an object has no box of four numbers; get a sound copy") from None
        # Written so that NaN fails too.
        if not (-1e9 < left - 1 < right < 1e9 and -1e9 < top - 1 < bottom < 1e9):
            raise ImageError(f"{path}: the box {left:g}, {top:g}, {right:g}, {bottom:g} has no area; get a sound copy")
        boxes.append((left - 1, top - 1, right, bottom))
    return np.array(boxes, np.float64).reshape(-1, 4)


def _parse(path: str | os.PathLike[str]) -> Element:
    builder = TreeBuilder()
    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = builder.start, builder.end
    parser.CharacterDataHandler = builder.data

    def refuse(*_: object) -> NoReturn:
        raise ImageError(f"{path}: it declares a document type, which annotations don't have; remove the declaration")

    parser.StartDoctypeDeclHandler = refuse
    try:
        with open(path, "rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise unopened(path, error) from None
    if len(content) > _MAX_BYTES:
        raise ImageError(f"{path}: it is too large for an annotation; name the XML file of one photograph")
    try:
        parser.Parse(content, True)
        return builder.close()
    except (expat.ExpatError, ValueError, LookupError, AssertionError) as error:
        raise ImageError(f"{path}: this is not XML, or it is damaged ({error}); get a sound copy") from None
