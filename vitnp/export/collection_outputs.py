"""The outputs of a collection, in one table: file names, and the writers that make them.

To add one, implement :class:`vitnp.export.writer.Writer` in a file of its own and add a row to
:data:`COLLECTION_OUTPUTS`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vitnp.errors import CheckpointError, OutputError
from vitnp.export.classes import ClassesWriter
from vitnp.export.coco import CocoWriter
from vitnp.export.contact_sheet import ContactSheetWriter
from vitnp.export.gallery import GalleryWriter
from vitnp.export.output_folder import refuse_foreign_folder
from vitnp.export.results_file import RESULTS, ResultsWriter
from vitnp.export.writer import Writer, class_names
from vitnp.io import stamp, write
from vitnp.method.collection import Collection

# Record of the run itself, written last: while it exists, the other files are those that it describes.
RUN_RECORD = "run.json"

# The page, and the folder of its larger pictures.
GALLERY, PREVIEWS = "gallery.html", "gallery"

# Where decisions of a person were applied: these, and what the run had found.
DECISIONS_FILE = "decisions.json"
ORIGINAL_RESULTS = "results-original.jsonl"

# Files of vitnp without a stamp (JSON and HTML) name it within so many characters.
_HEAD_CHARACTERS = 4096


@dataclasses.dataclass(frozen=True)
class CollectionInfo:
    """What the writers know before the first photograph.

    Attributes
    ----------
    n_photographs : int
        Number of photographs, unreadable ones included.
    n_labels : int
        Number of classes; 1 for the foreground if no classes were asked for.
    has_classes : bool
        Whether classes were asked for.
    tolerance : float, optional
        Polygons in annotations.json, simplified within so many pixels, instead of run lengths.
    class_names : sequence of str, optional
        Names of the classes; "class 1", "class 2", ... by default.
    decided : bool
        Whether decisions of a person are applied.
    failures : callable
        Returns what could not be segmented, as in ``run.json``; complete once all photographs are added.
    """

    n_photographs: int
    n_labels: int
    has_classes: bool
    tolerance: float | None = None
    class_names: Sequence[str] | None = None
    decided: bool = False
    failures: Callable[[], Sequence[Mapping[str, str]]] = list

    @property
    def names(self) -> list[str]:
        """Names of the classes."""
        return class_names(self.n_labels) if self.class_names is None else list(self.class_names)


@dataclasses.dataclass(frozen=True)
class CollectionOutput:
    """Row of the table of a collection's outputs.

    Attributes
    ----------
    name : str
        File name.
    create : callable
        Returns the writer: ``create(path, info)``.
    needs_classes : bool
        Whether the file is written only if classes were asked for.
    """

    name: str
    create: Callable[[Path, CollectionInfo], Writer]
    needs_classes: bool = False


COLLECTION_OUTPUTS = (
    CollectionOutput(
        RESULTS,
        lambda path, info: ResultsWriter(path, info.names, has_classes=info.has_classes, decided=info.decided),
    ),
    CollectionOutput("annotations.json", lambda path, info: CocoWriter(path, info.names, tolerance=info.tolerance)),
    CollectionOutput("classes.json", lambda path, info: ClassesWriter(path, info.names), needs_classes=True),
    CollectionOutput("contact-sheet.png", lambda path, info: ContactSheetWriter(path, info.names)),
    CollectionOutput(
        GALLERY,
        lambda path, info: GalleryWriter(path, info.names, total=info.n_photographs, failures=info.failures),
    ),
)  # fmt: skip


def outputs_of(*, has_classes: bool) -> list[CollectionOutput]:
    """Return the outputs that are written with or without classes.

    Examples
    --------
    >>> [output.name for output in outputs_of(has_classes=False)]
    ['results.jsonl', 'annotations.json', 'contact-sheet.png', 'gallery.html']
    """
    return [output for output in COLLECTION_OUTPUTS if has_classes or not output.needs_classes]


def remove_stale_outputs(folder: Path, *, has_classes: bool) -> None:
    """Remove what an earlier run has left in a folder and this one does not write.

    These are the outputs of a run with classes if this run has none, and the results before decisions.
    """
    (folder / ORIGINAL_RESULTS).unlink(missing_ok=True)
    current = outputs_of(has_classes=has_classes)
    for output in COLLECTION_OUTPUTS:
        if output not in current:
            (folder / output.name).unlink(missing_ok=True)


def refuse_foreign_outputs(folder: Path) -> None:
    """Check that a folder holds no file of another program under the name of an output of a collection.

    Raises
    ------
    OutputError
        For the first such file, or one that cannot be read.
    """
    refuse_foreign_folder(folder / PREVIEWS)
    names = [RUN_RECORD, DECISIONS_FILE, ORIGINAL_RESULTS, *(output.name for output in COLLECTION_OUTPUTS)]
    for name in sorted(names):
        path = folder / name
        if path.suffix == ".png":
            if path.exists():
                stamp.refuse_foreign([path])
        elif path.exists() and "vitnp" not in _head(path):
            raise stamp.foreign_error(path)


def check_collection_file(path: Path, *, overwrite: bool) -> None:
    """Check before any work that a fitted collection can be saved, and make its folder.

    Raises
    ------
    OutputError
        If it cannot, or another file is in the way.
    """
    write.make_folder(path.parent)
    if path.is_dir():
        raise OutputError(f"{path}: this is a folder; name a file, such as {path / 'fitted.safetensors'}")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"cannot write {path}: no permission to write there; choose another folder")
    if not overwrite and path.exists():
        try:
            Collection.load(path)
        except CheckpointError:
            raise OutputError(
                f"{path}: this file exists and is not a fitted collection; move it away or give --overwrite"
            ) from None


def _head(path: Path) -> str:
    """Return the first characters of a text file; nothing of a pipe, which would wait for its writer."""
    if not path.is_file():
        return ""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(_HEAD_CHARACTERS)
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror}; check its permissions") from None
