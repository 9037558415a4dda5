"""Bounding boxes from PASCAL VOC's annotations."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import NoReturn
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import numpy as np

from vitnp.errors import ImageError
from vitnp.evaluate.data.voc import check_files, find_voc_folder, read_split
from vitnp.io.decode import unopened

# Sound annotations have a few kilobytes.
_MAX_BYTES = 4_000_000


@dataclasses.dataclass(frozen=True)
class BoxSample:
    """A photograph and its annotation.

    Attributes
    ----------
    name : str
        Name in the list of the data set.
    image, annotation : Path
        Their files.
    """

    name: str
    image: Path
    annotation: Path

    def load_boxes(self, *, hard: bool = True) -> np.ndarray:
        """Read the true boxes, see :func:`read_boxes`."""
        return read_boxes(self.annotation, hard=hard)


def read_voc_boxes(root: str | os.PathLike[str], split: str = "trainval") -> list[BoxSample]:
    """List the photographs and annotations of a set in PASCAL VOC's layout.

    Parameters
    ----------
    root : path
        VOCdevkit, or the folder VOC2007 or VOC2012 in it.
    split : str
        Name of a list in ImageSets/Main; object discovery is evaluated on trainval.

    Raises
    ------
    UsageError
        When a folder, the list or a file named in it is missing.

    Examples
    --------
    >>> samples = read_voc_boxes("VOCdevkit/VOC2007")            # doctest: +SKIP
    >>> samples[0].load_boxes()                                  # doctest: +SKIP
    array([[262., 210., 324., 339.], ...
    """
    folder = find_voc_folder(root)
    samples = []
    for name in read_split(folder / "ImageSets" / "Main", split):
        sample = BoxSample(name, folder / "JPEGImages" / f"{name}.jpg", folder / "Annotations" / f"{name}.xml")
        check_files(split, sample.image, sample.annotation)
        samples.append(sample)
    return samples


def read_boxes(path: str | os.PathLike[str], *, hard: bool = True) -> np.ndarray:
    """Read the boxes of the objects in an annotation.

    Parameters
    ----------
    path : path
        An XML file of PASCAL VOC.
    hard : bool
        Keep objects marked `difficult` or `truncated`, as LOST and TokenCut do in their tables for VOC07 and VOC12.
        False drops them (the "noh" sets of these papers); photographs without other objects then have no box and are
        not counted by :func:`vitnp.evaluate.metrics.boxes.corloc`.

    Returns
    -------
    (M, 4) float64
        Left, top, right and bottom edge in pixels, from 0, right and bottom exclusive. The files count pixels from 1
        and include the last one, so 1 is subtracted from left and top only. Boxes of parts of an object are left out.

    Raises
    ------
    ImageError
        When the file is missing, has another format, or a box has no area. A document type declaration is rejected
        before it is parsed: annotations have none, and its entities could expand without limit.
    """
    root = _parse(path)
    if root.tag != "annotation":
        raise ImageError(f"{path}: its root is <{root.tag[:40]}>, not <annotation>; name an annotation of PASCAL VOC")
    boxes = []
    for element in root.iterfind("object"):
        flags = [(element.findtext(flag) or "").strip() for flag in ("difficult", "truncated")]
        if hard or "1" not in flags:
            boxes.append(_read_box(path, element))
    return np.array(boxes, np.float64).reshape(-1, 4)


def _read_box(path: str | os.PathLike[str], element: Element) -> tuple[float, float, float, float]:
    sides = (element.findtext(f"bndbox/{side}", "") for side in ("xmin", "ymin", "xmax", "ymax"))
    try:
        left, top, right, bottom = map(float, sides)
    except ValueError:
        raise ImageError(f"{path}: an object has no box of four numbers; get a sound copy") from None
    # Also true for NaN.
    if not (-1e9 < left - 1 < right < 1e9 and -1e9 < top - 1 < bottom < 1e9):
        raise ImageError(f"{path}: the box {left:g}, {top:g}, {right:g}, {bottom:g} has no area; get a sound copy")
    return left - 1, top - 1, right, bottom


def _parse(path: str | os.PathLike[str]) -> Element:
    builder = TreeBuilder()
    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = builder.start, builder.end
    parser.CharacterDataHandler = builder.data

    def reject_doctype(*_: object) -> NoReturn:
        raise ImageError(f"{path}: annotations have no document type, but this one declares one; remove it")

    parser.StartDoctypeDeclHandler = reject_doctype
    try:
        with open(path, "rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise unopened(path, error) from None
    if len(content) > _MAX_BYTES:
        raise ImageError(f"{path}: annotations have at most {_MAX_BYTES} bytes; name the XML file of one photograph")
    try:
        parser.Parse(content, True)
        return builder.close()
    except (expat.ExpatError, ValueError, LookupError, AssertionError) as error:
        raise ImageError(f"{path}: this is not XML, or it is damaged ({error}); get a sound copy") from None
