"""Data sets whose truth has classes: where the photographs are, what the classes are called, and a label map for each.

Every reader gives a :class:`LabeledSet`. Labels are uint8: 0 is the background, 255 (`IGNORE`) doesn't count, and what
lies between are the classes in the order of `LabeledSet.classes`. Truth is read when it is asked for, not before. COCO
has a module of its own, :mod:`vitnp.evaluate.data.coco`; boxes are in :mod:`vitnp.evaluate.data.voc_boxes`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np

from vitnp.errors import ImageError, UsageError
from vitnp.evaluate.data.pairs import match_pairs, read_truth
from vitnp.evaluate.metrics.semantic import IGNORE
from vitnp.io.decode import MAX_PIXELS, unopened

BACKGROUND = "background"

VOC_CLASSES = (
    BACKGROUND, "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Sample:
    """A photograph and its truth.

    Attributes
    ----------
    name : str
        Unique within the set.
    image : Path
    load_truth : callable
        Takes the upright photograph's (rows, columns) and gives its labels, (rows, columns) uint8. It raises ImageError
        when the truth is missing, damaged or of another size, and UsageError for a label that the set doesn't know.
    """

    name: str
    image: Path
    load_truth: Callable[[tuple[int, int]], np.ndarray]


@dataclasses.dataclass(frozen=True)
class LabeledSet:
    """Photographs and the names of their classes, `classes[0]` the background's."""

    samples: tuple[Sample, ...]
    classes: tuple[str, ...]

    def merged(self, table: str | os.PathLike[str] | None) -> LabeledSet:
        """The same photographs with coarser classes.

        The background stays background and ignored pixels stay ignored unless the table says otherwise; every other
        class must be in the table.

        Parameters
        ----------
        table : path, optional
            See :func:`read_table`; None gives the set as it is.

        Raises
        ------
        UsageError
            When the table can't be used: see there.
        """
        if table is None:
            return self
        lookup, classes = read_table(table, self.classes)
        samples = (
            dataclasses.replace(sample, load_truth=_Merged(sample.load_truth, lookup)) for sample in self.samples
        )
        return LabeledSet(tuple(samples), classes)


@dataclasses.dataclass(frozen=True)
class _Merged:
    load: Callable[[tuple[int, int]], np.ndarray]
    lookup: np.ndarray

    def __call__(self, shape: tuple[int, int]) -> np.ndarray:
        return self.lookup[self.load(shape)]


# --- Layouts ---------------------------------------------------------------------------------------------------------


def read_voc(
    root: str | os.PathLike[str],
    split: str = "val",
    *,
    masks: str | None = None,
    merge: str | os.PathLike[str] | None = None,
) -> LabeledSet:
    """Semantic segmentation in PASCAL VOC's layout.

    Parameters
    ----------
    root : path
        VOCdevkit, or the folder VOC2012 (VOC2007 ...) in it.
    split : str
        A list of names in ImageSets/Segmentation, such as train, val or trainval.
    masks : {"SegmentationClass", "SegmentationClassAug"}, optional
        By default the first, unless only the second is there.
    merge : path, optional
        A table that makes classes coarser, see :func:`read_table`.

    Raises
    ------
    UsageError
        When a folder, the list or a file that it names is missing, or the table can't be used.

    Examples
    --------
    >>> voc = read_voc("VOCdevkit", "val")                       # doctest: +SKIP
    >>> len(voc.samples), voc.classes[:3]                        # doctest: +SKIP
    (1449, ('background', 'aeroplane', 'bicycle'))
    """
    folder = voc_folder(root)
    choices = [masks] if masks else ["SegmentationClass", "SegmentationClassAug"]
    there = [choice for choice in choices if (folder / choice).is_dir()]
    if not there:
        raise UsageError(f"{folder}: there is no folder {' or '.join(choices)}; name VOCdevkit or the VOC2012 in it")
    samples = []
    for name in read_split(folder / "ImageSets" / "Segmentation", split):
        image, truth = folder / "JPEGImages" / f"{name}.jpg", folder / there[0] / f"{name}.png"
        for file in (image, truth):
            if not file.is_file():
                raise UsageError(f"{file}: this file is missing, but {split}.txt names it; complete the data set")
        samples.append(Sample(name, image, _LabelFile(truth, len(VOC_CLASSES))))
    return LabeledSet(tuple(samples), VOC_CLASSES).merged(merge)


def read_label_folder(
    images_dir: str | os.PathLike[str],
    labels_dir: str | os.PathLike[str],
    *,
    names: str | os.PathLike[str] | None = None,
    merge: str | os.PathLike[str] | None = None,
) -> LabeledSet:
    """A folder of photographs and one of label maps, matched as :func:`vitnp.evaluate.data.pairs.match_pairs` does.

    Parameters
    ----------
    images_dir, labels_dir : path
        Label maps are single-channel or palette pictures whose values are class numbers: 0 background, 255 ignored.
    names : path, optional
        A text file with a class name in each line, the background's first. Without it every label map is read once to
        see which classes there are, and they are called by their numbers.
    merge : path, optional
        A table that makes classes coarser, see :func:`read_table`. Where label 0 is no background, let it say so.

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
        classes = tuple(line for _, line in _lines(names))
        if not 1 <= len(classes) <= IGNORE:
            raise UsageError(f"{names}: it names {len(classes)} classes; give up to {IGNORE}, background first")
    else:
        highest = max(_highest_label(pair.mask) for pair in pairs)
        classes = (BACKGROUND, *map(str, range(1, highest + 1)))
    samples = (Sample(pair.name, pair.image, _LabelFile(pair.mask, len(classes))) for pair in pairs)
    return LabeledSet(tuple(samples), classes).merged(merge)


def read_coseg(
    images_dir: str | os.PathLike[str],
    masks_dir: str | os.PathLike[str],
    *,
    merge: str | os.PathLike[str] | None = None,
) -> LabeledSet:
    """Co-segmentation: a folder for each category, and masks that show the category's objects.

    ``IMAGES/Cat/1.jpg`` belongs to ``MASKS/Cat/1.png``, whose foreground (see :func:`vitnp.evaluate.data.pairs.read_truth`) is of
    the class Cat. The categories are numbered from 1 in the order of their names.

    Raises
    ------
    UsageError
        When photographs and masks don't match, a photograph lies in no category's folder, or the table can't be used.

    Examples
    --------
    >>> coseg = read_coseg("coseg/images", "coseg/masks")        # doctest: +SKIP
    >>> coseg.classes[:3]                                        # doctest: +SKIP
    ('background', 'Aero', 'Bird')
    """
    pairs, _ = match_pairs(images_dir, masks_dir)
    stray = [pair.name for pair in pairs if "/" not in pair.name]
    if stray:
        raise UsageError(f"{images_dir}: {stray[0]} lies in no category's folder; make a folder for each category")
    categories = sorted({pair.name.split("/")[0] for pair in pairs})
    if len(categories) >= IGNORE:
        raise UsageError(f"{images_dir}: {len(categories)} categories are too many; keep at most {IGNORE - 1}")
    classes = (BACKGROUND, *categories)
    samples = (
        Sample(pair.name, pair.image, _Painted(pair.mask, classes.index(pair.name.split("/")[0], 1))) for pair in pairs
    )
    return LabeledSet(tuple(samples), classes).merged(merge)


def voc_folder(root: str | os.PathLike[str]) -> Path:
    """The folder with JPEGImages: `root` itself, or the only VOC20xx below it.

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
        raise UsageError(f"{root}: it holds {', '.join(year.name for year in years)}; name one of these folders")
    raise UsageError(f"{root}: there is no folder JPEGImages, nor one in a VOC2012 below; name VOCdevkit or VOC2012")


def read_split(folder: Path, split: str) -> list[str]:
    """Names that a list of PASCAL VOC holds: the first word of each line, without folders and extension.

    Raises
    ------
    UsageError
        When there is no such list, it names nothing, or names something twice.
    """
    path = folder / f"{split}.txt"
    if not path.is_file():
        known = sorted(file.stem for file in folder.glob("*.txt"))[:12] if folder.is_dir() else []
        advice = f"choose among {', '.join(known)}" if known else f"there are no lists in {folder}"
        raise UsageError(f"{path}: there is no such list; {advice}")
    # The augmented train set's list has lines like "/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png".
    names = [Path(line.split()[0]).stem for _, line in _lines(path)]
    if not names:
        raise UsageError(f"{path}: this list is empty; get a sound copy")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"{path}: it names {twice} twice; remove one of the lines")
    return names


# --- Label maps ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _LabelFile:
    path: Path
    classes: int

    def __call__(self, shape: tuple[int, int]) -> np.ndarray:
        return read_labels(self.path, shape, self.classes)


@dataclasses.dataclass(frozen=True)
class _Painted:
    """A mask whose foreground is of one class."""

    path: Path
    label: int

    def __call__(self, shape: tuple[int, int]) -> np.ndarray:
        return read_truth(self.path, shape) * np.uint8(self.label)


def read_labels(
    path: str | os.PathLike[str], shape: tuple[int, int] | None = None, classes: int = IGNORE
) -> np.ndarray:
    """Read a label map: the numbers that a single-channel or palette picture holds, whatever colors they are shown in.

    Parameters
    ----------
    path : path
    shape : (int, int), optional
        Rows and columns that it must have.
    classes : int
        Labels must be below this, or 255.

    Returns
    -------
    uint8 (rows, columns)

    Raises
    ------
    ImageError
        When the file is missing, damaged, no picture, in colors, or of another size.
    UsageError
        For a label that is no class.
    """
    labels = _label_values(path, shape)
    wrong = labels[(labels >= classes) & (labels != IGNORE)]
    if wrong.size:
        raise UsageError(
            f"{path}: it holds the label {wrong[0]}, but classes are 0 to {classes - 1}; ignored pixels have {IGNORE}"
        )
    return labels


def _label_values(path: str | os.PathLike[str], shape: tuple[int, int] | None = None) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path) as picture:
            # The size is compared before anything is decoded: a wrong file costs no memory.
            if shape is not None and picture.size != (shape[1], shape[0]):
                raise ImageError(
                    f"{path}: the label map has {picture.width} x {picture.height} pixels, but its photograph has "
                    f"{shape[1]} x {shape[0]}; give each photograph labels of its own size"
                )
            if picture.width * picture.height > MAX_PIXELS:
                raise ImageError(f"{path}: {picture.width} x {picture.height} pixels are too many; scale it down")
            if len(picture.getbands()) > 1:
                raise ImageError(
                    f"{path}: these labels are painted in colors ({picture.mode}); save them as numbers, in a gray or "
                    "palette picture"
                )
            labels = np.asarray(picture)
    except ImageError:
        raise
    except MemoryError:
        raise ImageError(f"{path}: there is not enough memory to decode this label map; close other programs") from None
    except Exception as error:
        if getattr(error, "errno", None):
            raise unopened(path, error) from None
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{path}: this label map is damaged or not a picture ({reason}); get a sound copy") from None
    low, high = labels.min(), labels.max()
    if labels.dtype.kind == "f" or low < 0 or high > IGNORE:
        raise ImageError(
            f"{path}: its values go from {low} to {high}; labels are whole numbers, so renumber them, 0 to {IGNORE}"
        )
    return labels.astype(np.uint8)


def _highest_label(path: Path) -> int:
    labels = _label_values(path)
    return int(labels[labels != IGNORE].max(initial=0))


# --- Tables of coarser classes ---------------------------------------------------------------------------------------


def read_table(path: str | os.PathLike[str], classes: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Read how classes are put together.

    Each line has two columns, what and into what, with a tab or a comma between them, or else spaces (the last word
    then is the second column). What follows # is a comment. The first column is a class, by name or number; the second
    a coarser class, by name or, in the whole table, by number: 0 or ``background``, and 255 or ``ignore``, mean just
    that. Names are numbered from 1 in the order in which they first occur. The background and ignored pixels stay what
    they are unless a line says otherwise; every other class needs a line.

    Parameters
    ----------
    path : path
    classes : sequence of str
        The classes that there are.

    Returns
    -------
    lookup : (256,) uint8
        The new label of each old one.
    classes : tuple of str
        The coarser classes. A number without a name of its own is called by its only source, else by its number.

    Raises
    ------
    UsageError
        When the file can't be read, a line isn't understood, or a class is missing, unknown or there twice.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    numbers.update({str(number): number for number in range(len(classes))} | {"ignore": IGNORE, str(IGNORE): IGNORE})
    into: dict[int, str] = {}
    for line, text in _lines(path):
        source, target = _columns(path, line, text)
        if source not in numbers:
            _refuse(path, line, f"there is no class {source!r}; the set has {_few(classes)}")
        if numbers[source] in into:
            _refuse(path, line, f"{source} has a line already; keep one of them")
        into[numbers[source]] = target
    missing = [name for number, name in enumerate(classes) if number and number not in into]
    if missing:
        raise UsageError(f"{path}: nothing tells what becomes of {_few(missing)}; add '{missing[0]}, ignore' or such")
    into.setdefault(0, "0")
    into.setdefault(IGNORE, "ignore")

    special = {"0": 0, BACKGROUND: 0, str(IGNORE): IGNORE, "ignore": IGNORE}
    plain = list(dict.fromkeys(target for target in into.values() if target not in special))
    by_number = [target for target in plain if target.isdecimal()]
    if by_number and len(by_number) < len(plain):
        name = next(target for target in plain if not target.isdecimal())
        raise UsageError(f"{path}: the second column mixes numbers ({by_number[0]}) and names ({name}); take one kind")
    targets = special | {target: int(target) if by_number else rank for rank, target in enumerate(plain, 1)}
    too_high = [target for target in plain if targets[target] >= IGNORE]
    if too_high:
        raise UsageError(f"{path}: {too_high[0]} is beyond {IGNORE - 1}, the most classes there can be; merge more")

    lookup = np.full(256, IGNORE, np.uint8)
    for number, target in into.items():
        lookup[number] = targets[target]
    names = [BACKGROUND, *map(str, range(1, 1 + max((targets[target] for target in plain), default=0)))]
    for target in plain:
        sources = [number for number, name in into.items() if name == target]
        if not by_number:
            names[targets[target]] = target
        elif len(sources) == 1 and sources[0] < len(classes):
            names[targets[target]] = classes[sources[0]]
    return lookup, tuple(names)


def _columns(path: str | os.PathLike[str], line: int, text: str) -> tuple[str, str]:
    for separator in ("\t", ","):
        if separator in text:
            columns = [column.strip() for column in text.split(separator) if column.strip()]
            break
    else:
        columns = text.rsplit(None, 1)
    if len(columns) != 2:
        _refuse(path, line, f"{text!r} doesn't have two columns; write 'class, coarser class'")
    return columns[0], columns[1]


def _refuse(path: str | os.PathLike[str], line: int, reason: str) -> NoReturn:
    raise UsageError(f"{path}, line {line}: {reason}")


def _few(names: Sequence[str], most: int = 4) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def _lines(path: str | os.PathLike[str]) -> list[tuple[int, str]]:
    """Lines of a text file that hold something, with their numbers from 1; without comments and outer spaces."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"{path}: this is not a text file in UTF-8; name a text file") from None
    except OSError as error:
        raise UsageError(str(unopened(path, error))) from None
    stripped = ((number, line.partition("#")[0].strip()) for number, line in enumerate(text.splitlines(), 1))
    return [(number, line) for number, line in stripped if line]
