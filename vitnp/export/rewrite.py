"""Rewrite outputs of a finished run from what it found, without segmenting again."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from vitnp import options
from vitnp.export.apply import rename_classes
from vitnp.export.collection_outputs import RUN_RECORD, CollectionInfo, outputs_of, refuse_foreign_outputs
from vitnp.export.gallery_page import run_failures
from vitnp.export.results_file import Results
from vitnp.export.run_record import read_run_record
from vitnp.io import write


def set_polygons(out: str | os.PathLike[str], tolerance: float | None) -> None:
    """Make the masks in ``annotations.json`` polygons or run lengths, unless they are that already.

    Parameters
    ----------
    out : path
        Output folder of a finished run.
    tolerance : float, optional
        Polygons, simplified within so many pixels; run lengths if None.

    Raises
    ------
    OutputError
        If the folder holds no results, or a file cannot be written.
    """
    if recorded_polygons(out) != tolerance:
        rewrite(out, tolerance=tolerance, only=("annotations.json",))


def rewrite(
    out: str | os.PathLike[str],
    *,
    tolerance: float | None = None,
    names: Sequence[str] | None = None,
    only: Sequence[str] | None = None,
) -> None:
    """Write the outputs of a collection anew from its results.

    Parameters
    ----------
    out : path
        Output folder of a finished run.
    tolerance : float, optional
        As for :func:`set_polygons`.
    names : sequence of str, optional
        New names of the classes 1, 2, ...
    only : sequence of str, optional
        File names to which this is limited; all outputs by default.

    Raises
    ------
    OutputError
        If the folder holds no results, a file is foreign, or one cannot be written.
    """
    out = Path(out)
    results = Results.read(out)
    if names is not None and results.decided:
        rename_classes(out, names)
        set_polygons(out, tolerance)
        return
    refuse_foreign_outputs(out)
    info = CollectionInfo(
        n_photographs=results.n_photographs,
        n_labels=len(results.names),
        has_classes=results.has_classes,
        tolerance=tolerance,
        class_names=results.names if names is None else names,
        decided=results.decided,
        failures=lambda: run_failures(out / RUN_RECORD),
    )
    with contextlib.ExitStack() as stack:
        writers = [
            stack.enter_context(output.create(out / output.name, info))
            for output in outputs_of(has_classes=results.has_classes)
            if only is None or output.name in only
        ]
        for photograph in results.photographs():
            for writer in writers:
                writer.add(photograph)
    record = read_run_record(out / RUN_RECORD)
    if record:
        record["parameters"]["polygons"] = tolerance
        write.write_json(out / RUN_RECORD, record)


def recorded_polygons(out: str | os.PathLike[str]) -> float | None:
    """Return the tolerance of the polygons in ``annotations.json``; None for run lengths."""
    tolerance = read_run_record(Path(out, RUN_RECORD)).get("parameters", {}).get("polygons")
    return tolerance if options.OPTIONS["polygons"].accepts(tolerance) else None
