r"""Write and read ``results.jsonl``: what a run over a collection found, from which every other format is made.

The first line says what follows: ``{"vitnp": "results", "version": 1, "classes": [names], "has_classes": bool}``, and
``"decided": true`` if decisions of a person are applied (:mod:`vitnp.export.apply`). Each further line is a photograph:

``name``
    Path within the collection, with forward slashes.
``file``
    Path of the photograph, relative to the folder of this file where that is possible.
``size``
    Height and width in pixels, upright.
``confidence``, ``category``
    See :class:`vitnp.export.photograph_record.PhotographRecord`.
``outputs``
    Files of the photograph by kind, relative to the folder of this file.
``regions``
    One object each: ``class`` (from 1), ``score``, ``typicality``, ``patches`` and ``counts`` (COCO's compressed run
    lengths, see :mod:`vitnp.masks.rle`).

A mask takes about a kilobyte. Lines are ASCII. A path that is not valid Unicode has its bytes in base64 beside it, in
``name_bytes``, ``file_bytes`` and ``outputs_bytes``; see :func:`vitnp.io.path_text.path_entries`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import operator
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from vitnp.errors import OutputError
from vitnp.export.photograph_record import PhotographRecord, RegionRecord, read_preview, read_thumbnail
from vitnp.io.path_text import ascii_json, mapping_entries, path_entries, read_mapping, read_path
from vitnp.io.spool import Spool
from vitnp.io.write import replacing
from vitnp.masks.rle import decode, encode

RESULTS = "results.jsonl"
_VERSION = 1

# Limits of the pixels and the regions of a photograph, and what reading a line with other content than its own raises.
_MAX_PIXELS, _MAX_REGIONS = 1 << 30, 65535
_WRONG_CONTENT = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)


class ResultsWriter:
    """Write ``results.jsonl``; it appears, complete, when the ``with`` block ends without an exception.

    Parameters
    ----------
    path : path
        ``results.jsonl``; its folder exists.
    names : sequence of str
        Names of the classes 1, 2, ...
    has_classes : bool
        Whether classes were asked for; if not, the only class is the foreground.
    decided : bool
        Whether decisions of a person are applied.

    Raises
    ------
    OutputError
        If the file or the buffer cannot be written.
    """

    def __init__(
        self, path: str | os.PathLike[str], names: Sequence[str], *, has_classes: bool, decided: bool = False
    ) -> None:
        self._path = Path(path)
        self._header = {"vitnp": "results", "version": _VERSION, "classes": list(names), "has_classes": has_classes}
        if decided:
            self._header["decided"] = True
        self._lines = Spool(path)

    def __enter__(self) -> ResultsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lines:
            if kind is None:
                with replacing(self._path) as file:
                    file.write(_line(self._header).encode())
                    self._lines.copy_to(file)

    def add(self, photograph: PhotographRecord) -> None:
        """Add a photograph and its regions."""
        folder = self._path.parent
        region_map = photograph.region_map
        record = {
            **path_entries("name", photograph.name),
            **({"file": None} if photograph.path is None else path_entries("file", _relative(photograph.path, folder))),
            "size": list(photograph.shape),
            "confidence": float(photograph.confidence),
            "category": photograph.category,
            **mapping_entries("outputs", {kind: _relative(path, folder) for kind, path in photograph.outputs.items()}),
            "regions": [
                {
                    "class": int(region.label),
                    "score": float(region.score),
                    "typicality": float(region.typicality),
                    "patches": int(region.n_patches),
                    "counts": encode(region_map == number),
                }
                for number, region in enumerate(photograph.regions, 1)
            ],
        }
        self._lines.write(_line(record))


@dataclasses.dataclass(frozen=True)
class Results:
    """The results of a finished run, read from its ``results.jsonl``.

    Attributes
    ----------
    path : Path
    names : tuple of str
        Names of the classes 1, 2, ...
    has_classes : bool
        Whether classes were asked for.
    n_photographs : int
        Number of segmented photographs.
    decided : bool
        Whether decisions of a person are applied.
    """

    path: Path
    names: tuple[str, ...]
    has_classes: bool
    n_photographs: int
    decided: bool = False

    @classmethod
    def read(cls, folder: str | os.PathLike[str], name: str = RESULTS) -> Results:
        """Read the head of ``results.jsonl``, or a file of the same kind, in the output folder of a run.

        Raises
        ------
        OutputError
            If the folder holds no results of a finished run, or the file is damaged.
        """
        path = Path(folder, name)
        if path.exists() and not path.is_file():  # opening a pipe would wait for its writer
            raise _damaged(path, "this is no file")
        try:
            with open(path, encoding="ascii") as file:
                header = json.loads(file.readline())
                count = sum(1 for _ in file)
            if header["vitnp"] != "results" or header["version"] != _VERSION:
                raise _damaged(path, f"version {header['version']!r}, where this vitnp reads version {_VERSION}")
            names, has_classes = tuple(map(str, header["classes"])), bool(header["has_classes"])
            decided = bool(header.get("decided", False))
        except FileNotFoundError:
            raise OutputError(
                f"{folder}: no {name} there; give the folder that `vitnp segment --levels all --out` has finished"
            ) from None
        except OSError as error:
            raise OutputError(f"cannot read {path}: {error.strerror}; check its permissions") from None
        except _WRONG_CONTENT:
            raise _damaged(path, "its first line is not that of results") from None
        return cls(path, names, has_classes, count, decided)

    def photographs(self) -> Iterator[PhotographRecord]:
        """Yield the photographs in order; their arrays are loaded on access.

        Raises
        ------
        OutputError
            If the file is damaged.
        """
        with open(self.path, encoding="ascii", errors="replace") as file:
            next(file)
            for number, line in enumerate(file, 2):
                try:
                    yield self._photograph(json.loads(line))
                except _WRONG_CONTENT:
                    raise _damaged(self.path, f"line {number} is no photograph") from None

    def _photograph(self, record: dict) -> PhotographRecord:
        folder = self.path.parent
        height, width = map(operator.index, record["size"])
        if min(height, width) < 1 or height * width > _MAX_PIXELS:
            raise ValueError("no size of a photograph")
        regions = tuple(map(_region, record["regions"]))
        counts = [region["counts"] for region in record["regions"]]
        if not all(1 <= region.label <= len(self.names) for region in regions):
            raise ValueError("a class without a name")
        if not all(0 <= region.n_patches <= height * width for region in regions):
            raise ValueError("a region of an impossible size")
        if len(regions) > _MAX_REGIONS or not all(isinstance(text, str) for text in counts):
            raise ValueError("no regions")
        path = None if record["file"] is None else Path(os.path.normpath(folder / read_path(record, "file")))
        return PhotographRecord(
            name=read_path(record, "name"),
            confidence=_finite(record["confidence"]),
            regions=regions,
            load_region_map=functools.partial(_region_map, counts, (height, width), self.path),
            load_thumbnail=(lambda: None) if path is None else functools.partial(read_thumbnail, path),
            path=path,
            outputs={
                kind: Path(os.path.normpath(folder / file)) for kind, file in read_mapping(record, "outputs").items()
            },
            category=None if record["category"] is None else operator.index(record["category"]),
            load_preview=None if path is None else functools.partial(read_preview, path),
        )


def _region(record: dict) -> RegionRecord:
    return RegionRecord(
        operator.index(record["class"]),
        _finite(record["score"]),
        _finite(record["typicality"]),
        operator.index(record["patches"]),
    )


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("not a finite number")
    return float(value)


def _region_map(counts: Sequence[str], size: tuple[int, int], path: Path) -> np.ndarray:
    """Return the map of regions with given run lengths."""
    region_map = np.zeros(size, np.uint8 if len(counts) < 256 else np.uint16)
    for number, text in enumerate(counts, 1):
        try:
            region_map[decode(text, size)] = number
        except ValueError:
            raise _damaged(path, "the run lengths of a mask do not fit its size") from None
    return region_map


def _relative(path: Path, folder: Path) -> str:
    """Return a path relative to a folder, with forward slashes; absolute on another drive."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive of Windows
        return Path(os.path.abspath(path)).as_posix()


def _line(record: object) -> str:
    return ascii_json(record, separators=(",", ":"), allow_nan=False) + "\n"


def _damaged(path: Path, reason: str) -> OutputError:
    return OutputError(f"{path}: {reason}; run `vitnp segment` on the photographs again")
