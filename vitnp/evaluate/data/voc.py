"""Semantic segmentation in PASCAL VOC's layout, and the parts of the layout that object discovery uses too."""

from __future__ import annotations

import os
from pathlib import Path

from vitnp.errors import UsageError
from vitnp.evaluate.data.class_tables import BACKGROUND
from vitnp.evaluate.data.files import is_file, read_lines
from vitnp.evaluate.data.label_images import LabelImage
from vitnp.evaluate.data.labeled import LabeledSet, Sample

VOC_CLASSES = (
    BACKGROUND, "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


def read_voc(
    root: str | os.PathLike[str],
    split: str = "val",
    *,
    masks: str | None = None,
    merge: str | os.PathLike[str] | None = None,
) -> LabeledSet:
    """Read a set for semantic segmentation in PASCAL VOC's layout.

    Parameters
    ----------
    root : path
        VOCdevkit, or the folder VOC2012 (VOC2007 ...) in it.
    split : str
        Name of a list in ImageSets/Segmentation, such as train, val or trainval.
    masks : {"SegmentationClass", "SegmentationClassAug"}, optional
        Folder of label maps; by default the first one that exists.
    merge : path, optional
        A table of coarser classes, see :func:`vitnp.evaluate.data.class_tables.read_class_table`.

    Raises
    ------
    UsageError
        When a folder, the list or a file named in it is missing, or the table can't be used.

    Examples
    --------
    >>> voc = read_voc("VOCdevkit", "val")                       # doctest: +SKIP
    >>> len(voc.samples), voc.classes[:3]                        # doctest: +SKIP
    (1449, ('background', 'aeroplane', 'bicycle'))
    """
    folder = find_voc_folder(root)
    choices = [masks] if masks else ["SegmentationClass", "SegmentationClassAug"]
    existing = [choice for choice in choices if (folder / choice).is_dir()]
    if not existing:
        raise UsageError(f"{folder}: there is no folder {' or '.join(choices)}; name VOCdevkit or the VOC2012 in it")
    samples = []
    for name in read_split(folder / "ImageSets" / "Segmentation", split):
        image, truth = folder / "JPEGImages" / f"{name}.jpg", folder / existing[0] / f"{name}.png"
        check_files(split, image, truth)
        samples.append(Sample(name, image, LabelImage(truth, len(VOC_CLASSES))))
    return LabeledSet(tuple(samples), VOC_CLASSES).merge_classes(merge)


def find_voc_folder(root: str | os.PathLike[str]) -> Path:
    """Return the folder that contains JPEGImages: `root`, or the only VOC20xx in it.

    Raises
    ------
    UsageError
        When there is none, or more than one.
    """
    root = Path(root)
    if (root / "JPEGImages").is_dir():
        return root
    years = sorted(folder.parent for folder in root.glob("VOC20*/JPEGImages")) if root.is_dir() else []
    if len(years) == 1:
        return years[0]
    if years:
        raise UsageError(f"{root}: it contains {', '.join(year.name for year in years)}; name one of these folders")
    raise UsageError(f"{root}: there is no folder JPEGImages, nor one in a VOC2012 below; name VOCdevkit or VOC2012")


def read_split(folder: Path, split: str) -> list[str]:
    """Read a list of PASCAL VOC: the first word of each line, without folders and extension.

    Raises
    ------
    UsageError
        When the list is missing or empty, or contains a name twice.
    """
    path = folder / f"{split}.txt"
    if not is_file(path):
        lists = sorted(file.stem for file in folder.glob("*.txt"))[:12] if folder.is_dir() else []
        advice = f"choose among {', '.join(lists)}" if lists else f"there are no lists in {folder}"
        raise UsageError(f"{path}: there is no such list; {advice}")
    # The augmented train set's list has lines like "/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png".
    names = [Path(line.split()[0]).stem for _, line in read_lines(path)]
    if not names:
        raise UsageError(f"{path}: this list is empty; get a sound copy")
    if len(set(names)) < len(names):
        duplicate = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"{path}: it lists {duplicate} twice; remove one of the lines")
    return names


def check_files(split: str, *files: Path) -> None:
    """Check that files named in a list exist.

    Raises
    ------
    UsageError
        For the first file that is missing.
    """
    for file in files:
        if not is_file(file):
            raise UsageError(f"{file}: this file is missing, but {split}.txt lists it; complete the data set")
