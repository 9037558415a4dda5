"""Which of the known layouts a labeled data set has, and reading it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vitnp.errors import UsageError
from vitnp.evaluate.data.coco import read_coco
from vitnp.evaluate.data.labeled import LabeledSet, read_coseg, read_label_folder, read_voc
from vitnp.evaluate.data.pairs import match_pairs

LAYOUTS = {
    "voc": "ROOT: VOCdevkit or VOC2012",
    "coco": "IMAGES JSON: a folder and an instances file",
    "coseg": "IMAGES MASKS: in each a folder for every category",
    "folder": "IMAGES LABELS: photographs, and label maps of the same names",
}


def detect_layout(places: Sequence[Path]) -> str:
    """Tell the layout from what is there: "voc", "coco", "coseg" or "folder".

    One place is VOC; a .json file among two is COCO. Two folders are a folder for each category when every photograph
    lies in a subfolder and the first mask of each shows nothing but black and white; otherwise they hold label maps.

    Raises
    ------
    UsageError
        When the number of places fits no layout, or photographs and masks don't match.
    ImageError
        When a folder can't be listed.
    """
    if len(places) == 1:
        return "voc"
    if len(places) != 2:
        raise UsageError(
            f"{len(places)} places are named; a labeled set is ROOT, IMAGES JSON, IMAGES MASKS or IMAGES LABELS"
        )
    if any(place.suffix.lower() == ".json" for place in places):
        return "coco"
    firsts: dict[str, Path] = {}
    for pair in match_pairs(*places)[0]:
        if "/" not in pair.name:
            return "folder"
        firsts.setdefault(pair.name.split("/")[0], pair.mask)
    return "coseg" if all(map(_black_and_white, firsts.values())) else "folder"


def read_labeled(
    places: Sequence[Path],
    layout: str,
    *,
    split: str | None = None,
    labels: str | None = None,
    names: Path | None = None,
    merge: Path | None = None,
) -> LabeledSet:
    """Read a labeled set.

    Parameters
    ----------
    places : sequence of Path
        As many as :data:`LAYOUTS` says; COCO's in either order.
    layout : str
    split, labels : str, optional
        List, and folder of label maps, of a VOC set: "val" and whatever is there.
    names : path, optional
        Class names of label maps, see :func:`vitnp.evaluate.data.labeled.read_label_folder`.
    merge : path, optional
        Table of coarser classes.

    Raises
    ------
    UsageError
        When the set isn't of that layout, or an option doesn't belong to it.
    ImageError
        When a folder or a label map can't be read.
    """
    wanted = 1 if layout == "voc" else 2
    if len(places) != wanted:
        whole = "that" if wanted == 1 else "both"
        raise UsageError(f"the layout {layout} is {LAYOUTS[layout]}; name {whole}, not {len(places)}")
    for name, value, owner in (("--split", split, "voc"), ("--labels", labels, "voc"), ("--names", names, "folder")):
        if value is not None and layout != owner:
            raise UsageError(
                f"{name} is for the layout {owner}, and this one is {layout}; leave it out, or give --layout {owner}"
            )
    if layout == "voc":
        return read_voc(places[0], split or "val", masks=labels, merge=merge)
    if layout == "coco":
        images, annotations = sorted(places, key=lambda place: place.suffix.lower() == ".json")
        return read_coco(annotations, images, merge=merge)
    if layout == "coseg":
        return read_coseg(*places, merge=merge)
    return read_label_folder(*places, names=names, merge=merge)


def _black_and_white(path: Path) -> bool:
    """Whether a picture is a mask, not a map of labels: lossy files, pictures with channels and 0/255 are masks."""
    from PIL import Image

    if path.suffix.lower() in (".jpg", ".jpeg"):
        return True
    try:
        with Image.open(path) as picture:
            if picture.mode == "1" or len(picture.getbands()) > 1:
                return True
            return bool(np.isin(np.asarray(picture), (0, 255)).all())
    except Exception:
        return True
