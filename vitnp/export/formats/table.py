"""The table of formats, and the export of a finished run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from vitnp.export.formats.coco import CocoFolder
from vitnp.export.formats.folder import FormatFolder
from vitnp.export.formats.label_studio import LabelStudioFolder
from vitnp.export.formats.labelme import LabelMeFolder
from vitnp.export.formats.settings import FormatSettings
from vitnp.export.formats.voc import VocFolder
from vitnp.export.formats.yolo import YoloFolder
from vitnp.export.results_file import Results

# The keys are options.EXPORT_FORMATS, and the names of the folders.
FORMATS: dict[str, Callable[[Path, FormatSettings], FormatFolder]] = {
    "coco": CocoFolder,
    "yolo": YoloFolder,
    "voc": VocFolder,
    "labelme": LabelMeFolder,
    "labelstudio": LabelStudioFolder,
}


def export_formats(
    out: str | os.PathLike[str],
    formats: Iterable[str],
    *,
    tolerance: float | None = None,
    copy: bool = False,
    split: float = 0.2,
    seed: int = 0,
) -> list[Path]:
    """Write a finished run in other formats, from the results that it left; nothing is segmented again.

    Parameters
    ----------
    out : path
        Output folder of the run, with ``results.jsonl``.
    formats : iterable of str
        Among :data:`FORMATS`; each becomes a folder of this name in `out`.
    tolerance, copy, split, seed
        See :class:`vitnp.export.formats.settings.FormatSettings`.

    Returns
    -------
    list of Path
        The folders.

    Raises
    ------
    OutputError
        If there are no results, a photograph is gone, or something cannot be written. A folder is changed only when it
        is complete.
    UsageError
        If a format cannot hold the results.
    """
    results = Results.read(out)
    settings = FormatSettings(results.names, results.n_photographs, tolerance, copy, split, seed)
    folders = [FORMATS[name](Path(out, name), settings) for name in dict.fromkeys(formats)]
    if folders:
        with contextlib.ExitStack() as stack:
            for folder in folders:
                stack.enter_context(folder)
            for photograph in results.photographs():
                for folder in folders:
                    folder.add(photograph)
    return [folder.path for folder in folders]
