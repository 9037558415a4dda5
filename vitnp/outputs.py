"""The table of outputs of one photograph: the name of each file and the function that writes it.

To add one, add its name to ``OUTPUTS`` in :mod:`vitnp.options` and a row to :data:`WRITERS`.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from vitnp import options
from vitnp.errors import OutputError, UsageError
from vitnp.io import color, write
from vitnp.io.geotiff import write_geotiff
from vitnp.io.label_png import write_labels
from vitnp.io.metadata import Metadata
from vitnp.io.stamp import is_own_output
from vitnp.masks import backdrop, overlay
from vitnp.masks.cutout import box_with_margin, cutout
from vitnp.masks.cutout_options import BLUR, DEFAULT_CUTOUT, CutoutOptions
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
    def metadata(self) -> Metadata:
        """Resolution and georeference of the photograph."""

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
    georeferenced_suffix : str
        The suffix for photographs with a georeference; empty if it is the same.
    """

    suffix: str
    write: Callable[[Path, Result, Stamp], None]
    georeferenced_suffix: str = ""

    def ending(self, georeferenced: bool) -> str:
        """Return the suffix for a photograph with or without a georeference."""
        return (georeferenced and self.georeferenced_suffix) or self.suffix


def render_cutout(result: Result, options: CutoutOptions) -> tuple[np.ndarray, tuple[int, int]]:
    """Return the cutout of a result, and where its first pixel is in the photograph.

    Returns
    -------
    (height, width, 4 or 3) uint8
        RGBA on a transparent background, else RGB; in the photograph's color space.
    (int, int)
        Left and top.
    """
    pixels = cutout(result.image, result.soft, result.opacity)
    left, top, right, bottom = 0, 0, pixels.shape[1], pixels.shape[0]
    if options.margin is not None:
        margin, percent = options.margin
        left, top, right, bottom = box_with_margin(pixels[..., 3], margin, percent=percent)
    box = slice(top, bottom), slice(left, right)
    if options.background == BLUR:
        pixels = backdrop.over_picture(pixels[box], backdrop.blurred_background(result.image, pixels[..., 3])[box])
    elif options.color is not None:
        pixels = backdrop.over_color(pixels[box], color.from_srgb(options.color, result.profile))
    else:
        pixels = pixels[box]
    return pixels, (left, top)


def _write_picture(
    path: Path, pixels: np.ndarray, metadata: Metadata, stamp: Stamp, *, profile: bytes | None = None
) -> None:
    """Write a PNG with the photograph's resolution, or if its name says so a GeoTIFF."""
    if path.suffix == ".tif":
        write_geotiff(path, pixels, metadata.georeference, stamp, profile=profile, dpi=metadata.dpi)
    else:
        write.write_png(path, pixels, stamp, profile=profile, dpi=metadata.dpi)


def _write_mask(path: Path, result: Result, stamp: Stamp) -> None:
    _write_picture(path, result.mask, result.metadata, stamp)


def _write_overlay(path: Path, result: Result, stamp: Stamp) -> None:
    _write_picture(path, overlay.overlay(result.image, result.mask), result.metadata, stamp, profile=result.profile)


def _write_cutout(path: Path, result: Result, stamp: Stamp, options: CutoutOptions = DEFAULT_CUTOUT) -> None:
    # Those of single objects come first: while the file of all exists, they do too.
    if result.instances is not None:
        _write_object_cutouts(path, result, stamp)
    pixels, corner = render_cutout(result, options)
    metadata = result.metadata.cropped(*corner)
    _write_picture(path, pixels, metadata, {**stamp, **options.stamp}, profile=result.profile)


def _write_soft(path: Path, result: Result, stamp: Stamp) -> None:
    _write_picture(path, result.soft, result.metadata, stamp)


def _write_object_cutouts(path: Path, result: Result, stamp: Stamp) -> None:
    """Write NAME_cutout_1.png, NAME_cutout_2.png, ..., and remove those of an earlier run with more objects.

    Raises
    ------
    OutputError
        If a file of another program is in the way, or one cannot be written.
    """
    files = [path.with_name(f"{path.stem}_{number}.png") for number in range(1, options.MAX_OBJECTS + 1)]
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
    "mask": OutputWriter("_mask.png", _write_mask, "_mask.tif"),
    "overlay": OutputWriter("_overlay.png", _write_overlay),
    "cutout": OutputWriter("_cutout.png", _write_cutout, "_cutout.tif"),
    "soft": OutputWriter("_soft.png", _write_soft, "_soft.tif"),
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


def output_paths(
    stem: str | os.PathLike[str], which: Iterable[str], *, labels: bool = False, georeferenced: bool = False
) -> dict[str, Path]:
    """Return the paths of a photograph's outputs, by kind.

    Parameters
    ----------
    stem : path
        What the names begin with, or an :class:`ExactFile` for a single output.
    which : iterable of str
        Among :data:`vitnp.options.OUTPUTS`.
    labels : bool
        Whether there are classes, and so a label image too; an :class:`ExactFile` has none.
    georeferenced : bool
        Whether the photograph is a GeoTIFF, see :func:`vitnp.io.georeference.is_georeferenced`.

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
    return {name: Path(f"{os.fspath(stem)}{WRITERS[name].ending(georeferenced)}") for name in which}


def expected_stamp(name: str, stamp: Stamp, cutout_options: CutoutOptions = DEFAULT_CUTOUT) -> dict[str, str]:
    """Return the stamp of an output: that of its result, and in a cutout the options that made it."""
    return {**stamp, **(cutout_options.stamp if name == "cutout" else {})}


def write_outputs(
    result: Result,
    stem: str | os.PathLike[str],
    which: Iterable[str],
    cutout_options: CutoutOptions = DEFAULT_CUTOUT,
) -> dict[str, Path]:
    """Write the outputs of a photograph beside each other; see :meth:`vitnp.result.Segmentation.save`."""
    which = tuple(which)
    georeferenced = result.metadata.georeference is not None
    paths = output_paths(stem, which, labels=result.labels is not None, georeferenced=georeferenced)
    write.make_folder(Path(stem).parent)
    write.check_names(paths.values())
    stamp = result.stamp
    writers = {name: WRITERS[name].write for name in paths}
    if "cutout" in paths:
        writers["cutout"] = functools.partial(_write_cutout, options=cutout_options)
    if "npz" in paths and "keys" in paths:
        writers["npz"] = _write_npz_with_keys
    with write.writing_together(Path(stem).parent):
        for name, path in paths.items():
            writers[name](path, result, stamp)
    return paths
