"""The result for one photograph, and saving it."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitnp.io import write
from vitnp.io.label_png import write_labels
from vitnp.io.stamp import parameters_hash
from vitnp.masks import boxes, overlay

if TYPE_CHECKING:
    from PIL import Image
from vitnp.io.outputs import labels_path, output_paths

# Half of the 16-bit scale of the soft map: the mask is where it is reached.
HALF = 32768


@dataclasses.dataclass(frozen=True, eq=False)
class Segmentation:
    """What vitnp found in a photograph.

    Attributes
    ----------
    image : (height, width, 3) uint8
        The photograph, upright.
    soft : (height, width) uint16
        Refined foreground map in 16-bit fixed point: 65535 is 1.
    score : (rows, columns) float32
        Foreground score of each patch, 0..1, after cleaning.
    keys : (rows, columns, D) float32
        Keys of the patches (or the facet that was asked for) as the network gives them.
    confidence : float
        How sure one may be that there is an object, 0..1.
    parameters : mapping
        Everything that the answer depends on beside the photograph.
    photograph : str
        Fingerprint of the file, or of the pixels where there was no file.
    seconds : mapping of str to float
        Time spent in each stage.
    capped : bool
        Whether the patch grid was made coarser to stay within the tokens allowed.
    category : int, optional
        Of a fitted collection's categories of similar photographs, the one this belongs to.
    labels : (height, width) uint8, optional
        With a collection that has classes: 0 for background, classes from 1.
    levels : tuple of (N,) float32, optional
        With a collection: what image, data set and category each said of the patches before they agreed, row by row.
    device : str
        Where everything between pixels and mask was computed: "cpu" or "cuda:0". All arrays are in the host's memory.
    """

    image: np.ndarray
    soft: np.ndarray
    score: np.ndarray
    keys: np.ndarray
    confidence: float
    parameters: Mapping[str, object]
    photograph: str
    seconds: Mapping[str, float]
    capped: bool
    category: int | None = None
    labels: np.ndarray | None = None
    levels: tuple[np.ndarray, ...] | None = None
    device: str = "cpu"

    @functools.cached_property
    def mask(self) -> np.ndarray:
        """(height, width) bool, True on the foreground."""
        return self.soft >= HALF

    @property
    def share(self) -> float:
        """Foreground's share of the photograph, 0..1."""
        return float(np.count_nonzero(self.mask) / self.mask.size)

    def boxes(self) -> list[tuple[int, int, int, int]]:
        """Bounding boxes of the mask's 8-connected parts, (x, y, width, height) in pixels, largest part first.

        Specks of less than a thousandth of the photograph are left out.
        """
        return [tuple(box[:4]) for box in boxes.bounding_boxes(self.mask, min_area_share=1e-3)]

    def overlay(self) -> Image.Image:
        """The photograph with the mask's outline and a tint."""
        from PIL import Image

        return Image.fromarray(overlay.overlay(self.image, self.mask))

    def cutout(self) -> Image.Image:
        """The photograph with the soft map as its alpha channel, RGBA."""
        from PIL import Image

        return Image.fromarray(overlay.cutout(self.image, self.soft))

    def save(self, stem: str | os.PathLike[str], which: Iterable[str] = ("mask", "overlay")) -> dict[str, Path]:
        """Write results to files beside each other.

        Parameters
        ----------
        stem : path
            What the names begin with: ``OUT/cat`` gives ``OUT/cat_mask.png`` and so on. Missing folders are made.
        which : iterable of str
            Among "mask" (0/255), "overlay", "cutout" (RGBA), "soft" (16-bit PNG), "score" and "keys" (patch grid, .npy) and
            "npz" (mask, score, metadata, and keys when they are named too).

        Returns
        -------
        dict of str to Path
            The files written; "labels" (a palette PNG) among them where there are classes.

        Raises
        ------
        UsageError
            For a kind of output that doesn't exist.
        OutputError
            When a file can't be written; nothing half-written is left behind.

        Examples
        --------
        >>> vitnp.segment_image("cat.jpg").save("out/cat", ["mask", "cutout"])      # doctest: +SKIP
        {'mask': PosixPath('out/cat_mask.png'), 'cutout': PosixPath('out/cat_cutout.png')}
        """
        which = tuple(which)
        paths = output_paths(stem, which)
        write.make_folder(Path(stem).parent)
        stamp = {"vitnp:parameters": parameters_hash(self.parameters), "vitnp:photograph": self.photograph}
        for kind in which:
            path = paths[kind]
            if kind == "npz":
                arrays = {"mask": self.mask, "score": self.score}
                if "keys" in which:
                    arrays["keys"] = self.keys
                write.write_npz(path, arrays, {**self.parameters, "confidence": self.confidence, **stamp})
            elif kind in ("score", "keys"):
                write.write_npy(path, getattr(self, kind), stamp)
            else:
                write.write_png(path, self._picture(kind), stamp)
        if self.labels is not None:
            paths["labels"] = labels_path(stem)
            write_labels(paths["labels"], self.labels, stamp)
        return paths

    def _picture(self, kind: str) -> np.ndarray:
        if kind == "overlay":
            return overlay.overlay(self.image, self.mask)
        if kind == "cutout":
            return overlay.cutout(self.image, self.soft)
        return self.mask if kind == "mask" else self.soft
