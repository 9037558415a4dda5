"""The table of outputs of one photograph: the name of each file and the function that writes it.

To add one, add its name to ``OUTPUTS`` in :mod:`vitnp.options` and a row to :data:`WRITERS`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from vitnp import options
from vitnp.errors import OutputError, UsageError
from vitnp.io import write
from vitnp.io.label_png import write_labels
from vitnp.io.stamp import is_own_output
from vitnp.masks import overlay
from vitnp.masks.instance import Instance
from vitnp.method.instances import Instances

Stamp = Mapping[str, str]


class Result(Protocol):
    """What the outputs need of a result; :class:`vitnp.result.Segmentation` describes each attribute."""

    @property
    def image(self) -> np.ndarray:
        """(height, width, 3) uint8."""

    @property
    def profile(self) -> bytes | None:
        """ICC color profile of the photograph, None for sRGB."""

    @property
    def opacity(self) -> np.ndarray | None:
        """(height, width) uint8, None if nothing transparent was kept out of the mask."""

    @property
    def mask(self) -> np.ndarray:
        """(height, width) bool."""

    @property
    def soft(self) -> np.ndarray:
        """(height, width) uint16."""

    @property
    def score(self) -> np.ndarray:
        """(rows, columns) float32."""

    @property
    def keys(self) -> np.ndarray:
        """(rows, columns, D) float32."""

    @property
    def instances(self) -> Instances | None:
        """The separated objects as one array, None if they were not asked for."""

    @property
    def objects(self) -> Sequence[Instance]:
        """The separated objects, the most confident first."""

    @property
    def labels(self) -> np.ndarray | None:
        """(height, width) uint8, None without classes."""

    @property
    def confidence(self) -> float:
        """From 0 to 1."""

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Everything that the result depends on besides the photograph."""

    @property
    def stamp(self) -> Stamp:
        """Entries by which a later run recognizes the files."""


class OutputWriter(NamedTuple):
    """Suffix of an output's file, and the function that writes it.

    Attributes
    ----------
    suffix : str
        End of the file name, after the photograph's name.
    write : callable
        ``write(path, result, stamp)``; the stamp goes into the file, see :mod:`vitnp.io.stamp`. A format that cannot
        hold text is stamped by :func:`vitnp.io.write.write_sidecar`.
    """

    suffix: str
    write: Callable[[Path, Result, Stamp], None]


def _write_overlay(path: Path, result: Result, stamp: Stamp) -> None:
    write.write_png(path, overlay.overlay(result.image, result.mask), stamp, profile=result.profile)


def _write_cutout(path: Path, result: Result, stamp: Stamp) -> None:
    # Those of single objects come first: while the file of all exists, they do too.
    if result.instances is not None:
        _write_object_cutouts(path, result, stamp)
    rgba = overlay.cutout(result.image, result.soft, result.opacity)
    write.write_png(path, rgba, stamp, profile=result.profile)


def _write_object_cutouts(path: Path, result: Result, stamp: Stamp) -> None:
    """Write NAME_cutout_1.png, NAME_cutout_2.png, ..., and remove those of an earlier run with more objects.

    Raises
    ------
    OutputError
        If a file of another program is in the way, or one cannot be written.
    """
    files = [path.with_name(f"{path.stem}_{number}{path.suffix}") for number in range(1, options.MAX_OBJECTS + 1)]
    count = len(result.objects)
    for file in files[:count]:
        if os.path.lexists(file) and not is_own_output(file):
            raise OutputError(f"{file}: this file exists and vitnp did not write it; move it away")
    for file, each in zip(files, result.objects):
        write.write_png(file, np.asarray(each.cutout()), stamp, profile=result.profile)
    for file in files[count:]:
        if is_own_output(file):
            file.unlink()


def _write_npz(path: Path, result: Result, stamp: Stamp) -> None:
    arrays = {"mask": result.mask, "score": result.score}
    write.write_npz(path, arrays, {**result.parameters, "confidence": result.confidence, **stamp})


def _write_npz_with_keys(path: Path, result: Result, stamp: Stamp) -> None:
    arrays = {"mask": result.mask, "score": result.score, "keys": result.keys}
    write.write_npz(path, arrays, {**result.parameters, "confidence": result.confidence, **stamp})


def _write_labels(path: Path, result: Result, stamp: Stamp) -> None:
    if result.labels is None:
        raise UsageError("labels can be written only with a collection that has classes; this result has none")
    write_labels(path, result.labels, stamp)


def _write_objects(path: Path, result: Result, stamp: Stamp) -> None:
    if result.instances is None:
        raise UsageError("objects can be saved only where they were separated; segment with instances=True")
    write_labels(path, result.instances.labels, stamp)


WRITERS: dict[str, OutputWriter] = {
    "mask": OutputWriter("_mask.png", lambda path, result, stamp: write.write_png(path, result.mask, stamp)),
    "overlay": OutputWriter("_overlay.png", _write_overlay),
    "cutout": OutputWriter("_cutout.png", _write_cutout),
    "soft": OutputWriter("_soft.png", lambda path, result, stamp: write.write_png(path, result.soft, stamp)),
    "score": OutputWriter("_score.npy", lambda path, result, stamp: write.write_npy(path, result.score, stamp)),
    "keys": OutputWriter("_keys.npy", lambda path, result, stamp: write.write_npy(path, result.keys, stamp)),
    "npz": OutputWriter(".npz", _write_npz),
    "objects": OutputWriter("_objects.png", _write_objects),
    # Written in addition to the requested outputs if there are classes.
    "labels": OutputWriter("_labels.png", _write_labels),
}


@dataclasses.dataclass(frozen=True)
class ExactFile(os.PathLike[str]):
    """A file to write one output to, in place of the stem of several."""

    path: Path

    def __fspath__(self) -> str:
        return os.fspath(self.path)


def output_paths(stem: str | os.PathLike[str], which: Iterable[str], *, labels: bool = False) -> dict[str, Path]:
    """Return the paths of a photograph's outputs, by kind.

    Parameters
    ----------
    stem : path
        What the names begin with, or an :class:`ExactFile` for a single output.
    which : iterable of str
        Among :data:`vitnp.options.OUTPUTS`.
    labels : bool
        Whether there are classes, and so a label image too; an :class:`ExactFile` has none.

    Raises
    ------
    UsageError
        If a name is not that of an output, or several are to go to one file.

    Examples
    --------
    >>> output_paths("out/cat", ["mask"])["mask"].as_posix()
    'out/cat_mask.png'
    """
    which = list(which)
    for name in which:
        if name not in options.OUTPUTS:
            raise UsageError(f"an output must be one of {options.enumerate_words(options.OUTPUTS)}, got {name!r}")
    if isinstance(stem, ExactFile):
        if len(which) != 1:
            raise UsageError(f"one file holds one output, got {', '.join(which)}")
        return {which[0]: stem.path}
    which += ["labels"] * labels
    return {name: Path(f"{os.fspath(stem)}{WRITERS[name].suffix}") for name in which}


def write_outputs(result: Result, stem: str | os.PathLike[str], which: Iterable[str]) -> dict[str, Path]:
    """Write the outputs of a photograph beside each other; see :meth:`vitnp.result.Segmentation.save`."""
    which = tuple(which)
    paths = output_paths(stem, which, labels=result.labels is not None)
    write.make_folder(Path(stem).parent)
    write.check_names(paths.values())
    stamp = result.stamp
    with write.writing_together(Path(stem).parent):
        for name, path in paths.items():
            # If both are asked for, the npz file holds the keys too.
            writer = _write_npz_with_keys if name == "npz" and "keys" in which else WRITERS[name].write
            writer(path, result, stamp)
    return paths
