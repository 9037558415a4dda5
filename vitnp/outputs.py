"""The outputs of one photograph, in one table: what each is called and how it is written.

To add one, add its name to ``OUTPUTS`` in :mod:`vitnp.options` and a row to :data:`WRITERS`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vitnp import options
from vitnp.errors import UsageError
from vitnp.io import write
from vitnp.io.label_png import write_labels
from vitnp.masks import overlay

if TYPE_CHECKING:
    from vitnp.result import Segmentation

Stamp = Mapping[str, str]


class OutputWriter(NamedTuple):
    """How an output is called and written.

    Attributes
    ----------
    suffix : str
        What follows the photograph's name.
    write : callable
        ``write(path, result, stamp)``; the stamp goes into the file, see :mod:`vitnp.io.stamp`. A format without room
        for text is stamped by :func:`vitnp.io.stamp.write_sidecar`.
    """

    suffix: str
    write: Callable[[Path, Segmentation, Stamp], None]


def _write_npz(path: Path, result: Segmentation, stamp: Stamp) -> None:
    arrays = {"mask": result.mask, "score": result.score}
    write.write_npz(path, arrays, {**result.parameters, "confidence": result.confidence, **stamp})


def _write_npz_with_keys(path: Path, result: Segmentation, stamp: Stamp) -> None:
    arrays = {"mask": result.mask, "score": result.score, "keys": result.keys}
    write.write_npz(path, arrays, {**result.parameters, "confidence": result.confidence, **stamp})


WRITERS: dict[str, OutputWriter] = {
    "mask": OutputWriter("_mask.png", lambda path, result, stamp: write.write_png(path, result.mask, stamp)),
    "overlay": OutputWriter(
        "_overlay.png",
        lambda path, result, stamp: write.write_png(path, overlay.overlay(result.image, result.mask), stamp),
    ),
    "cutout": OutputWriter(
        "_cutout.png",
        lambda path, result, stamp: write.write_png(path, overlay.cutout(result.image, result.soft), stamp),
    ),
    "soft": OutputWriter("_soft.png", lambda path, result, stamp: write.write_png(path, result.soft, stamp)),
    "score": OutputWriter("_score.npy", lambda path, result, stamp: write.write_npy(path, result.score, stamp)),
    "keys": OutputWriter("_keys.npy", lambda path, result, stamp: write.write_npy(path, result.keys, stamp)),
    "npz": OutputWriter(".npz", _write_npz),
    # Written besides those that were asked for when there are classes.
    "labels": OutputWriter("_labels.png", lambda path, result, stamp: write_labels(path, result.labels, stamp)),
}


def output_paths(stem: str | os.PathLike[str], which: Iterable[str], *, labels: bool = False) -> dict[str, Path]:
    """Return the names of a photograph's output files.

    Parameters
    ----------
    stem : path
        What the names begin with.
    which : iterable of str
        Among :data:`vitnp.options.OUTPUTS`.
    labels : bool
        Whether there are classes, and so a label image too.

    Raises
    ------
    UsageError
        If there is no output of a name.

    Examples
    --------
    >>> output_paths("out/cat", ["mask"])["mask"].as_posix()
    'out/cat_mask.png'
    """
    which = list(which)
    for name in which:
        if name not in options.OUTPUTS:
            raise UsageError(f"an output must be one of {options.enumerate_words(options.OUTPUTS)}, got {name!r}")
    which += ["labels"] * labels
    return {name: Path(f"{os.fspath(stem)}{WRITERS[name].suffix}") for name in which}


def write_outputs(result: Segmentation, stem: str | os.PathLike[str], which: Iterable[str]) -> dict[str, Path]:
    """Write the outputs of a photograph beside each other; see :meth:`vitnp.result.Segmentation.save`."""
    which = tuple(which)
    paths = output_paths(stem, which, labels=result.labels is not None)
    write.make_folder(Path(stem).parent)
    stamp = result.stamp
    for name, path in paths.items():
        # One file holds the keys too if both are asked for.
        writer = _write_npz_with_keys if name == "npz" and "keys" in which else WRITERS[name].write
        writer(path, result, stamp)
    return paths
