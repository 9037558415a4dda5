"""Write ``classes.json``: one record per class of a collection."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from types import TracebackType

import numpy as np

from vitnp import __version__
from vitnp.export.photograph_record import PhotographRecord
from vitnp.io.path_text import path_entries
from vitnp.io.write import write_json
from vitnp.masks.palette import voc_colors


@dataclasses.dataclass
class _Tally:
    """What has been added of one class."""

    confidences: list[float] = dataclasses.field(default_factory=list)
    patches: int = 0
    medoid: str | None = None
    typicality: float = -np.inf


class ClassesWriter:
    """Write a record per class; the file appears, complete, when the ``with`` block ends without an exception.

    A record holds "id" (from 1), "name", "color" (``#rrggbb``, as in the label images), "images" (number of photographs
    with a region of the class), "patches", "medoid" (name of the most typical photograph, the first of equals; null
    for a class without regions) and "confidence" (mean over these photographs; null likewise).

    Parameters
    ----------
    path : path
        ``classes.json``; its folder exists.
    names : sequence of str
        Names of the classes 1, 2, ...

    Raises
    ------
    OutputError
        At the end, if the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], names: Sequence[str]) -> None:
        self._path, self._names = path, list(names)
        self._tallies = [_Tally() for _ in self._names]

    def __enter__(self) -> ClassesWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            write_json(self._path, {"software": f"vitnp {__version__}", "classes": self.records()})

    def add(self, photograph: PhotographRecord) -> None:
        """Count a photograph.

        Raises
        ------
        ValueError
            If a region has a class that the file has no name for.
        """
        if photograph.labels and not (photograph.labels[0] >= 1 and photograph.labels[-1] <= len(self._names)):
            raise ValueError(f"a class must be from 1 to {len(self._names)}, got {photograph.labels}")
        for label, typicality in photograph.typicality.items():
            tally = self._tallies[label - 1]
            tally.confidences.append(photograph.confidence)
            if typicality > tally.typicality:
                tally.medoid, tally.typicality = photograph.name, typicality
        for region in photograph.regions:
            self._tallies[region.label - 1].patches += region.n_patches

    def records(self) -> list[dict[str, object]]:
        """Return the records of all classes, of the photographs added so far."""
        colors = voc_colors(len(self._names) + 1)[1:].tolist()
        return [
            {
                "id": number,
                "name": name,
                "color": f"#{bytes(color).hex()}",
                "images": len(tally.confidences),
                "patches": tally.patches,
                **({"medoid": None} if tally.medoid is None else path_entries("medoid", tally.medoid)),
                "confidence": round(float(np.mean(tally.confidences)), 6) if tally.confidences else None,
            }
            for number, (name, color, tally) in enumerate(zip(self._names, colors, self._tallies), 1)
        ]
