"""Detect the layout of a labeled data set, and read it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vitnp.errors import ImageError, UsageError
from vitnp.evaluate.data.coco import read_coco
from vitnp.evaluate.data.files import open_picture
from vitnp.evaluate.data.label_images import read_coseg, read_label_folder
from vitnp.evaluate.data.labeled import LabeledSet
from vitnp.evaluate.data.pairs import match_pairs
from vitnp.evaluate.data.voc import read_voc

# The paths that each layout takes.
LAYOUTS = {
    "voc": "ROOT: VOCdevkit or VOC2012",
    "coco": "IMAGES JSON: a folder and an instances file",
    "coseg": "IMAGES MASKS: two folders with one subfolder per category",
    "folder": "IMAGES LABELS: photographs, and label maps with the same names",
}


def detect_layout(paths: Sequence[Path]) -> str:
    """Detect the layout of a data set: "voc", "coco", "coseg" or "folder".

    A single path is VOC, two paths with a .json file are COCO. Two folders are "coseg" if every photograph is in a
    subfolder, its category, and the first mask of each category is black and white; otherwise "folder".

    Parameters
    ----------
    paths : sequence of Path
        One or two paths, see :data:`LAYOUTS`.

    Raises
    ------
    UsageError
        When the number of paths fits no layout, or photographs and masks don't match.
    ImageError
        When a folder can't be listed.
    """
    if len(paths) == 1:
        return "voc"
    if len(paths) != 2:
        raise UsageError(
            "a labeled data set is given by ROOT, IMAGES JSON, IMAGES MASKS or IMAGES LABELS, "
            f"got {len(paths)} paths; name one or two"
        )
    if any(path.suffix.lower() == ".json" for path in paths):
        return "coco"
    first_masks: dict[str, Path] = {}
    for pair in match_pairs(paths[0], paths[1])[0]:
        if "/" not in pair.name:
            return "folder"
        first_masks.setdefault(pair.name.split("/")[0], pair.mask)
    return "coseg" if all(map(_is_mask, first_masks.values())) else "folder"


def read_labeled(
    paths: Sequence[Path],
    layout: str,
    *,
    split: str | None = None,
    labels: str | None = None,
    names: Path | None = None,
    merge: Path | None = None,
) -> LabeledSet:
    """Read a labeled data set.

    Parameters
    ----------
    paths : sequence of Path
        One or two paths, see :data:`LAYOUTS`; those of COCO in any order.
    layout : {"voc", "coco", "coseg", "folder"}
    split, labels : str, optional
        List ("val") and folder of label maps of a VOC set, see :func:`vitnp.evaluate.data.voc.read_voc`.
    names : path, optional
        Class names of a folder of label maps, see :func:`vitnp.evaluate.data.label_images.read_label_folder`.
    merge : path, optional
        Table of coarser classes, see :func:`vitnp.evaluate.data.class_tables.read_class_table`.

    Raises
    ------
    UsageError
        When the data set doesn't have that layout, or an option belongs to another one.
    ImageError
        When a folder or a label map can't be read.
    """
    n_paths = 1 if layout == "voc" else 2
    if len(paths) != n_paths:
        raise UsageError(f"the layout {layout} takes {LAYOUTS[layout]}; got {len(paths)} paths instead of {n_paths}")
    for name, value, owner in (("--split", split, "voc"), ("--labels", labels, "voc"), ("--names", names, "folder")):
        if value is not None and layout != owner:
            raise UsageError(
                f"{name} is for the layout {owner}, but this set has {layout}; leave it out, or give --layout {owner}"
            )
    if layout == "voc":
        return read_voc(paths[0], split or "val", masks=labels, merge=merge)
    if layout == "coco":
        images, annotations = sorted(paths, key=lambda path: path.suffix.lower() == ".json")
        return read_coco(annotations, images, merge=merge)
    if layout == "coseg":
        return read_coseg(paths[0], paths[1], merge=merge)
    return read_label_folder(paths[0], paths[1], names=names, merge=merge)


def _is_mask(path: Path) -> bool:
    """Tell a mask from a label map: lossy files, pictures with several channels, and those of 0 and 255 are masks."""
    if path.suffix.lower() in (".jpg", ".jpeg"):
        return True
    try:
        with open_picture(path, "mask") as picture:
            if picture.mode == "1" or len(picture.getbands()) > 1:
                return True
            return bool(np.isin(np.asarray(picture), (0, 255)).all())
    except ImageError:
        return True
