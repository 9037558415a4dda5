"""Apply the decisions of a person to a finished run: every output is written anew, from what the run found."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitnp.errors import OutputError, UsageError
from vitnp.export.collection_outputs import (
    DECISIONS_FILE,
    GALLERY,
    ORIGINAL_RESULTS,
    RUN_RECORD,
    CollectionInfo,
    outputs_of,
    refuse_foreign_outputs,
)
from vitnp.export.decisions import Decisions
from vitnp.export.formats.table import FORMATS, export_formats
from vitnp.export.gallery import GalleryWriter
from vitnp.export.gallery_page import run_failures, set_decisions
from vitnp.export.output_folder import folder_settings, is_own_folder
from vitnp.export.per_image import MAX_LABELS
from vitnp.export.photograph_record import PhotographRecord
from vitnp.export.results_file import Results
from vitnp.export.run_record import read_run_record
from vitnp.io import stamp, write
from vitnp.io.label_png import write_labels
from vitnp.io.path_text import ascii_json

# Label of every pixel of a photograph whose mask is wrong: "void" in PASCAL VOC, which readers ignore.
VOID = 255

# Entry of a label image that decisions have changed: what it shows now.
_SHOWN = "Decision"


@dataclasses.dataclass(frozen=True)
class Applied:
    """What decisions came to.

    Attributes
    ----------
    names : tuple of str
        Names of the classes that are left.
    wrong, empty, moved : int
        Numbers of photographs whose mask is wrong, that show no object, and that got another class.
    formats : tuple of str
        Formats that were written anew.
    """

    names: tuple[str, ...]
    wrong: int
    empty: int
    moved: int
    formats: tuple[str, ...]


def apply_decisions(decisions: str | os.PathLike[str] | Mapping[str, Any], out: str | os.PathLike[str]) -> Applied:
    """Write label images, ``annotations.json`` and all other outputs of a run anew, as a person has decided.

    Photographs whose mask is wrong are left out of everything but the gallery, and their label images are 255, which
    stands for "unknown" in PASCAL VOC. Photographs that show no object stay, without regions. Merged classes disappear,
    and the others are numbered without gaps. Masks, overlays and cutouts of single photographs stay as they are.

    What the run found is kept in ``results-original.jsonl``. Decisions always start from there, so that applying them
    again changes nothing, and empty ones undo all others. If this is interrupted, do it again.

    Parameters
    ----------
    decisions : path or mapping
        ``decisions.json``, or its content, see :mod:`vitnp.export.decisions`.
    out : path
        Output folder of the run.

    Raises
    ------
    UsageError
        If the decisions do not fit the run; nothing is written then.
    OutputError
        If the folder holds no results, a file of another program is in the way, or something cannot be written.

    Examples
    --------
    >>> apply_decisions("Downloads/decisions.json", "OUT/")          # doctest: +SKIP
    Applied(names=('cat', 'dog'), wrong=3, empty=1, moved=0, formats=('coco',))
    """
    out = Path(out)
    results = original_results(out)
    if isinstance(decisions, Mapping):
        checked = Decisions.check(dict(decisions), results.names, results.photographs())
    else:
        checked = Decisions.read(decisions, results.names, results.photographs())
    return _Application(out, results, checked).run()


def undo_decisions(out: str | os.PathLike[str]) -> Applied:
    """Write all outputs of a run as they were before any decisions; see :func:`apply_decisions`."""
    out = Path(out)
    return _Application(out, original_results(out), Decisions()).run()


def rename_classes(out: str | os.PathLike[str], names: Sequence[str]) -> Applied:
    """Give the classes that decisions have left other names, as further decisions; see :func:`apply_decisions`."""
    out = Path(out)
    results = original_results(out)
    decisions = Decisions.read(out / DECISIONS_FILE, results.names, results.photographs())
    kept = [label for label in range(1, len(results.names) + 1) if label not in decisions.into]
    if len(kept) != len(names):
        raise UsageError(f"there must be {len(kept)} names, one for each class, got {len(names)}")
    return apply_decisions(decisions.renamed(dict(zip(kept, names))), out)


def original_results(out: str | os.PathLike[str]) -> Results:
    """Return what a run found, before any decisions.

    Raises
    ------
    OutputError
        If the folder holds no results of a finished run, or a file is damaged.
    """
    results = Results.read(out)
    return Results.read(out, ORIGINAL_RESULTS) if results.decided else results


class _Application:
    """One application of decisions to a run."""

    def __init__(self, out: Path, results: Results, decisions: Decisions) -> None:
        self.out, self.results, self.decisions = out, results, decisions
        self.formats = [name for name in FORMATS if is_own_folder(out / name)]
        self.names, self.numbers = decisions.classes(results.names)
        self.counts = Counter("moved" if isinstance(mark, int) else mark for mark in decisions.photographs.values())
        if self.counts["wrong"] and results.has_classes and len(self.names) == MAX_LABELS:
            raise UsageError(
                f"{MAX_LABELS} classes leave no label for photographs whose mask is wrong; merge two classes first"
            )

    def run(self) -> Applied:
        self._check()
        original = self.out / ORIGINAL_RESULTS
        if self.decisions and self.results.path != original:
            with write.replacing(original) as target, open(self.results.path, "rb") as source:
                shutil.copyfileobj(source, target)
            self.results = Results.read(self.out, ORIGINAL_RESULTS)
        if self.results.has_classes:
            for number, photograph in enumerate(self.results.photographs(), 1):
                self._write_labels(photograph, self.decisions.decide(number, photograph, self.numbers))
        with write.writing_together(self.out):
            self._write_outputs()
        self._update_gallery()
        if not self.decisions:
            original.unlink(missing_ok=True)
            (self.out / DECISIONS_FILE).unlink(missing_ok=True)
        for name in self.formats:
            export_formats(self.out, [name], **folder_settings(self.out / name))
        counts = {name: self.counts[name] for name in ("wrong", "empty", "moved")}
        return Applied(tuple(self.names), formats=tuple(self.formats), **counts)

    def _check(self) -> None:
        """Check before anything is written that nothing of another program is in the way, and nothing is missing."""
        refuse_foreign_outputs(self.out)
        for number, photograph in enumerate(self.results.photographs(), 1):
            rejected = self.decisions.photographs.get(number) == "wrong"
            if self.formats and not rejected and (photograph.path is None or not photograph.path.is_file()):
                raise OutputError(
                    f"{photograph.path or photograph.name}: this photograph is gone; put it back, or remove the "
                    f"exports in {self.out}: {', '.join(self.formats)}"
                )
            path = photograph.outputs.get("labels")
            if path is not None:
                stamp.refuse_foreign([path])

    def _write_labels(self, photograph: PhotographRecord, decided: PhotographRecord | None) -> None:
        """Write the label image of a photograph unless it shows what was decided already."""
        path = photograph.outputs.get("labels")
        if path is None:
            return
        found = _shown(photograph)
        wanted = "wrong" if decided is None else _shown(decided)
        if path.exists() and _recorded(path, found) == wanted:
            return
        entries = {**(stamp.stamp(path) or {}), **({_SHOWN: wanted} if wanted != found else {})}
        labels = np.full(photograph.shape, VOID, np.uint8) if decided is None else decided.label_map
        write_labels(path, labels, entries)

    def _write_outputs(self) -> None:
        """Write the outputs of the collection."""
        record = read_run_record(self.out / RUN_RECORD)
        info = CollectionInfo(
            n_photographs=self.results.n_photographs,
            n_labels=len(self.names),
            has_classes=self.results.has_classes,
            tolerance=record.get("parameters", {}).get("polygons"),
            class_names=self.names,
            decided=bool(self.decisions),
        )
        with contextlib.ExitStack() as stack:
            writers = [
                stack.enter_context(output.create(self.out / output.name, info))
                for output in outputs_of(has_classes=info.has_classes)
                if output.name != GALLERY
            ]
            for number, photograph in enumerate(self.results.photographs(), 1):
                decided = self.decisions.decide(number, photograph, self.numbers)
                if decided is not None:
                    for writer in writers:
                        writer.add(decided)
        if self.decisions:
            write.write_text(self.out / DECISIONS_FILE, ascii_json(self.decisions.record, indent=1) + "\n")
        if record:
            record.pop("decisions", None)
            if self.decisions:
                record["decisions"] = {**self.counts, "classes": len(self.names)}
            write.write_json(self.out / RUN_RECORD, record)

    def _update_gallery(self) -> None:
        """Make the page begin with the decisions; it shows what the run found."""
        path, content = self.out / GALLERY, self.decisions.record if self.decisions else {}
        if set_decisions(path, content):
            return
        total, record = self.results.n_photographs, self.out / RUN_RECORD
        with GalleryWriter(path, self.results.names, total=total, failures=lambda: run_failures(record)) as gallery:
            for photograph in self.results.photographs():
                gallery.add(photograph)
        set_decisions(path, content)


def _shown(photograph: PhotographRecord) -> str:
    """Return the classes of the regions of a photograph, in words."""
    return json.dumps([region.label for region in photograph.regions])


def _recorded(path: Path, found: str) -> str:
    """Return what a label image shows: what the run found, unless decisions have changed it."""
    from PIL import Image

    with contextlib.suppress(OSError, ValueError), Image.open(path) as image:
        return str(image.info.get(_SHOWN, found))
    return ""
